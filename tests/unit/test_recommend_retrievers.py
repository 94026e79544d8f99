"""Each method against its formula in dense NumPy, and what all retrievers promise."""

from __future__ import annotations

import numpy as np
import pytest

from raypipe.errors import StageError, UsageError
from tests.unit.recommend_kit import lists, ranked, rows_of, tastes
from training.recommend.content import NewByContent
from training.recommend.ease import Ease
from training.recommend.factors import Ials, ItemFactors
from training.recommend.neighbours import ItemKNN, NeighbourTable, RP3Beta
from training.recommend.popularity import MostPopular, Popularity
from training.recommend.port import Method, Retriever
from training.recommend.rows import Rows, empty

X = tastes()
TRAIN = rows_of(X)
METHODS: list[Method] = [
    MostPopular(),
    ItemKNN(12),
    RP3Beta(12),
    Ease(5.0, 12),
    Ials(8, 0.1, 5.0, 3, threads=1),
]


@pytest.fixture(scope="module", params=METHODS, ids=lambda m: m.name)
def retriever(request: pytest.FixtureRequest) -> Retriever:
    fitted: Retriever = request.param.fit(TRAIN)
    return fitted


def test_lists_are_ranked_without_what_was_seen(retriever: Retriever) -> None:
    assert isinstance(retriever, Retriever)
    found = retriever.retrieve(TRAIN, 7)
    assert len(found) == len(TRAIN)
    for r in range(len(found)):
        items, scores = found.row(r)
        assert len(set(items.tolist())) == len(items) <= 7
        assert not X[r, items].any()
        keys = list(zip((-scores).tolist(), items.tolist(), strict=True))
        assert keys == sorted(keys)


def test_a_list_depends_on_its_history_alone_and_a_shorter_one_is_its_beginning(
    retriever: Retriever,
) -> None:
    whole = lists(retriever.retrieve(TRAIN, 10))
    back = np.arange(len(TRAIN))[::-1]
    assert lists(retriever.retrieve(TRAIN.take(back), 10)) == whole[::-1]
    assert lists(retriever.retrieve(TRAIN, 4)) == [line[:4] for line in whole]


def test_what_is_seen_may_be_other_than_the_history(retriever: Retriever) -> None:
    everything_but_3 = np.ones_like(X)
    everything_but_3[:, 3] = 0
    found = lists(retriever.retrieve(TRAIN, 5, seen=rows_of(everything_but_3)))
    assert [3] in found
    assert all(line in ([3], []) for line in found)


def test_another_catalogue_is_refused(retriever: Retriever) -> None:
    with pytest.raises(StageError, match="41 items, the retriever knows 40"):
        retriever.retrieve(empty(1, 41), 5)


def test_a_taste_is_found(retriever: Retriever) -> None:
    if isinstance(retriever, Popularity):
        return
    history = np.zeros((1, X.shape[1]), np.float32)
    history[0, [2, 6, 10]] = 1  # items of group 2
    found = lists(retriever.retrieve(rows_of(history), 4))[0]
    assert sum(item % 4 == 2 for item in found) >= 3


def dense_table(table: NeighbourTable) -> np.ndarray:
    return table.table.dense()


def cut_to(weights: np.ndarray, k: int) -> np.ndarray:
    """The k largest positive entries of each row."""
    out = np.zeros_like(weights)
    for r, best in enumerate(ranked(weights, np.eye(len(weights)), k)):
        out[r, best] = weights[r, best]
    return out


def test_itemknn_is_the_shrunken_cosine() -> None:
    x = X * np.random.default_rng(1).integers(1, 4, X.shape)
    norm = np.linalg.norm(x.astype(np.float64), axis=0)
    cosine = (x.T.astype(np.float64) @ x) / (np.outer(norm, norm) + 4.0)
    expected = cut_to(cosine, 6)
    assert dense_table(ItemKNN(6, 4.0).fit(rows_of(x))) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("normalise", [True, False])
def test_rp3beta_is_three_steps_of_a_walk(normalise: bool) -> None:
    x = X.astype(np.float64)
    p_ui = (x / np.maximum(x.sum(1, keepdims=True), 1)) ** 0.7
    p_iu = (x.T / np.maximum(x.T.sum(1, keepdims=True), 1)) ** 0.7
    walk = p_iu @ p_ui / np.maximum(x.sum(0), 1) ** 0.4
    expected = cut_to(walk, 9)
    if normalise:
        expected /= np.maximum(expected.sum(1, keepdims=True), 1e-300)
    found = dense_table(RP3Beta(9, 0.7, 0.4, normalise).fit(TRAIN))
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_score_is_the_weighted_sum_of_similarities_and_names_its_reason() -> None:
    fitted = RP3Beta(15).fit(TRAIN)
    table = dense_table(fitted).astype(np.float64)
    history = np.zeros((1, X.shape[1]), np.float32)
    history[0, [1, 5, 20]] = [1, 3, 2]
    found = fitted.retrieve(rows_of(history), 6)
    assert lists(found) == ranked(history @ table, history > 0, 6)
    for item in found.columns.tolist():
        parts = {code: history[0, code] * table[code, item] for code in (1, 5, 20)}
        assert fitted.because(rows_of(history), item) == max(parts, key=lambda c: parts[c])
    unmet = next(i for i in range(40) if not table[[1, 5, 20], i].any())
    assert fitted.because(rows_of(history), unmet) is None
    assert (
        fitted.similar(5, 3).columns.tolist() == np.argsort(-table[5], kind="stable")[:3].tolist()
    )


def test_ease_is_its_closed_form() -> None:
    x = X.astype(np.float64)
    inverse = np.linalg.inv(x.T @ x + 20 * np.eye(x.shape[1]))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0)
    whole = dense_table(Ease(20.0, 40).fit(TRAIN))
    assert whole == pytest.approx(expected, abs=1e-5)
    cut = dense_table(Ease(20.0, 5).fit(TRAIN))
    for r in range(len(cut)):
        kept = np.flatnonzero(cut[r])
        assert len(kept) == 5
        assert np.abs(whole[r, kept]).min() >= np.sort(np.abs(whole[r]))[-5] - 1e-7
        assert cut[r, kept] == pytest.approx(whole[r, kept])


def test_ease_solves_the_problem_it_stands_for() -> None:
    # Each column is a ridge regression on the other ones.
    x = X.astype(np.float64)
    table = dense_table(Ease(20.0, 40).fit(TRAIN))
    for j in (0, 17, 39):
        others = np.delete(np.arange(40), j)
        a = x[:, others]
        solved = np.linalg.solve(a.T @ a + 20 * np.eye(39), a.T @ x[:, j])
        assert table[others, j] == pytest.approx(solved, abs=1e-5)


def test_ease_stays_within_its_memory_by_leaving_rare_items_out() -> None:
    small = Ease(20.0, 40, memory_mb=1)
    assert 4 * small.most_items**2 + 16 * 1024 * small.most_items <= 2**20
    assert 4 * (small.most_items + 1) ** 2 + 16 * 1024 * (small.most_items + 1) > 2**20
    x = tastes(100, 90)
    fitted = small.fit(rows_of(x))
    have = np.flatnonzero(fitted.table.sizes)
    assert len(have) <= small.most_items == 63
    left = np.setdiff1d(np.arange(90), have)
    assert x.sum(0)[left].max() <= x.sum(0)[have].min() + 1
    assert np.isin(fitted.table.columns, have).all()
    with pytest.raises(UsageError, match="can't be fitted"):
        Ease(memory_mb=0).fit(TRAIN)


def test_a_folded_in_history_has_the_factors_that_implicit_gives_a_user() -> None:
    from implicit.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix

    method = Ials(8, 0.1, 5.0, 4, seed=3, threads=1)
    fitted = method.fit(TRAIN)
    peer = AlternatingLeastSquares(8, regularization=0.1, alpha=1.0, iterations=1)
    peer.item_factors = np.array(fitted.factors)
    confidence = csr_matrix(6.0 * X[:5])  # 1 + alpha where there is something
    expected = peer.recalculate_user(np.arange(5), confidence)
    for user in range(5):
        mine = fitted.fold_in(*TRAIN.row(user))
        assert mine == pytest.approx(np.asarray(expected)[user], abs=1e-4)
    assert not fitted.fold_in(np.zeros(0, np.int64), np.zeros(0, np.float32)).any()


def test_factors_rank_by_their_dense_scores() -> None:
    rng = np.random.default_rng(2)
    fitted = ItemFactors(rng.normal(size=(40, 4)).astype(np.float32), 0.1, 2.0)
    people = np.stack([fitted.fold_in(*TRAIN.row(u)) for u in range(len(TRAIN))])
    expected = ranked(people @ fitted.factors.T, X > 0, 9)
    assert lists(fitted.retrieve(TRAIN, 9)) == expected


def test_most_popular_counts_users_not_weights() -> None:
    x = X.copy()
    x[0, 39] = 50
    fitted = MostPopular().fit(rows_of(x))
    counts = (x > 0).sum(0)
    order = sorted((c for c in range(40) if counts[c]), key=lambda c: (-counts[c], c))
    expected = [[c for c in order if not x[u, c]][:6] for u in range(len(x))]
    assert lists(fitted.retrieve(rows_of(x), 6)) == expected


def test_a_new_item_is_found_by_its_attributes_and_an_old_one_is_not() -> None:
    x = X.copy()
    x[:, [2, 3]] = 0  # nobody has them
    attributes = np.zeros((40, 5), np.float32)
    attributes[np.arange(40), np.arange(40) % 4] = 1.4
    attributes[::2, 4] = 0.7
    fitted = NewByContent(5, few=1).fit(rows_of(x), rows_of(attributes))
    assert set(fitted.table.columns.tolist()) <= {2, 3} | set(np.flatnonzero(x.sum(0) < 1))
    history = np.zeros((1, 40), np.float32)
    history[0, 6] = 1
    found = fitted.retrieve(rows_of(history), 3)
    assert found.columns[0] == 2
    norm = np.linalg.norm(attributes, axis=1)
    assert found.values[0] == pytest.approx(attributes[6] @ attributes[2] / norm[6] / norm[2])


@pytest.mark.parametrize("method", [ItemKNN(0), RP3Beta(0), Ease(0.0), Ials(0)])
def test_parameters_that_can_not_be_are_refused(method: Method) -> None:
    with pytest.raises(UsageError):
        method.fit(TRAIN)


def test_an_item_that_nobody_has_never_comes() -> None:
    x = X.copy()
    x[:, 7] = 0
    for method in METHODS:
        found: Rows = method.fit(rows_of(x)).retrieve(rows_of(x), 40)
        assert 7 not in found.columns
