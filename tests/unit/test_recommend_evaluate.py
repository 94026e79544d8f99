"""Figures by their definitions, intervals that cover, blends and stored versions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from raypipe.errors import Conflict, DeclarationError, IntegrityError, NotFound, UsageError
from raypipe.lake import Place
from tests.unit.recommend_kit import figures_by_hand, lists, rows_of, tastes
from training import registry
from training.recommend import artefact
from training.recommend.blend import FILL, OFFSET, Blend, Part, fallback
from training.recommend.ease import Ease
from training.recommend.evaluate import evaluate
from training.recommend.factors import Ials
from training.recommend.intervals import bootstrap
from training.recommend.measures import beyond_accuracy, by_user
from training.recommend.neighbours import RP3Beta
from training.recommend.popularity import MostPopular
from training.recommend.port import Retriever
from training.recommend.rows import Rows, empty

X = tastes()
TRAIN = rows_of(X)
MAIN, POPULAR = RP3Beta(12).fit(TRAIN), MostPopular().fit(TRAIN)

ranking = st.lists(st.integers(0, 11), unique=True, max_size=12)
task = st.tuples(ranking, st.sets(st.integers(0, 11), min_size=1))


def list_rows(found: list[list[int]], width: int = 12) -> Rows:
    starts = np.concatenate([[0], np.cumsum([len(line) for line in found])])
    columns = np.array([i for line in found for i in line], np.int64)
    return Rows(starts, columns, np.ones(len(columns)), width)


@given(st.lists(task, min_size=1, max_size=5), st.integers(1, 12))
def test_figures_are_their_definitions(tasks: list[tuple[list[int], set[int]]], k: int) -> None:
    found = by_user(
        list_rows([line for line, _ in tasks]), list_rows([sorted(w) for _, w in tasks]), k
    )
    for row, (line, wanted) in enumerate(tasks):
        assert {n: v[row] for n, v in found.items()} == pytest.approx(
            figures_by_hand(line, wanted, k)
        )


def test_ndcg_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        order = rng.permutation(12)
        wanted = rng.choice(12, rng.integers(1, 9), replace=False)
        relevant = np.isin(np.arange(12), wanted)[None, :].astype(float)
        score = np.empty((1, 12))
        score[0, order] = np.arange(12)[::-1]
        found = by_user(list_rows([order.tolist()]), list_rows([sorted(wanted.tolist())]), 5)
        assert found["ndcg"][0] == pytest.approx(ndcg_score(relevant, score, k=5))


def test_what_lists_do_to_the_catalogue_by_hand() -> None:
    train = rows_of(np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]]))
    shown = list_rows([[0, 1, 3], [0, 2], [0]], 4)
    found = beyond_accuracy(shown, train, 2)
    # Shown: item 0 three times, 1 and 2 once; they have 4, 2 and 0 of 4 users.
    assert found["coverage"] == 3 / 4
    assert found["novelty"] == pytest.approx((0 * 3 + 1 + 3) / 5)
    assert found["popularity"] == (3 * 4 + 2 + 0) / 5
    assert found["popularity_lift"] == pytest.approx(2.8 / (20 / 6) - 1)
    times = [0, 1, 1, 3]
    differences = sum(abs(a - b) for a in times for b in times)
    assert found["gini"] == pytest.approx(differences / (2 * 4 * sum(times)))


def test_bootstrap_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for seed in range(200):
        i = bootstrap(rng.exponential(1.0, 80), repeats=200, level=0.9, seed=seed)
        assert i.low <= i.mean <= i.high
        covered += i.low <= 1.0 <= i.high
    assert 0.83 <= covered / 200 <= 0.95


def test_an_interval_is_that_of_the_normal_for_many_users() -> None:
    values = np.random.default_rng(1).normal(0.3, 1.0, 4000)
    found = bootstrap(values, repeats=2000)
    half = 1.96 * values.std() / np.sqrt(4000)
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert found.excludes_zero
    assert not bootstrap(values - 0.3).excludes_zero


def held_out() -> tuple[Rows, Rows]:
    hidden = X * (np.random.default_rng(0).random(X.shape) < 0.25)
    hidden[:10] = 0
    return rows_of(X - hidden), rows_of(hidden)


def test_everything_is_ranked_for_whoever_has_something_to_guess() -> None:
    train, truth = held_out()
    fitted = RP3Beta(30).fit(train)
    found = evaluate(fitted, train, truth, ks=(3, 8))
    assert found.users.tolist() == np.flatnonzero(truth.sizes).tolist()
    scores = train.dense().astype(np.float64) @ fitted.table.dense()
    scores[train.dense() > 0] = -1
    for place, user in enumerate(found.users.tolist()):
        order = np.argsort(-scores[user].astype(np.float32), kind="stable")
        line = [int(i) for i in order if scores[user, i] > 0]
        for k in (3, 8):
            expected = figures_by_hand(line, set(truth.row(user)[0].tolist()), k)
            assert {n: v[place] for n, v in found.figures[k].items()} == pytest.approx(expected)
    described = found.describe(repeats=50)
    assert described["at_3"]["segments"]["all"]["recall"]["mean"] == found.mean("recall", 3)
    groups = described["at_3"]["segments"]
    assert sum(g["ndcg"]["users"] for n, g in groups.items() if n != "all") == len(found.users)


def test_a_taste_beats_popularity_beyond_doubt_and_not_itself() -> None:
    train, truth = held_out()
    ours = evaluate(RP3Beta(30).fit(train), train, truth)
    theirs = evaluate(MostPopular().fit(train), train, truth)
    gain = ours.gain(theirs, "ndcg", 20)
    assert gain.low > 0
    assert gain.mean == pytest.approx(ours.mean("ndcg", 20) - theirs.mean("ndcg", 20))
    assert not ours.gain(ours, "ndcg", 20).excludes_zero
    with pytest.raises(UsageError, match="different users"):
        ours.gain(replace(theirs, users=theirs.users + 1), "ndcg", 20)
    with pytest.raises(UsageError, match="lists of"):
        evaluate(MAIN, train, truth, ks=())


def test_segments_of_ones_own() -> None:
    train, truth = held_out()
    of_user = np.arange(len(train)) % 2
    found = evaluate(MAIN, train, truth, ks=(5,), segment=(of_user, ("even", "odd")))
    odd = found.describe(repeats=10)["at_5"]["segments"]["odd"]
    assert odd["hit"]["users"] == int((truth.sizes[1::2] > 0).sum())


def fused_by_hand(parts: list[tuple[float, list[int]]], k: int) -> list[int]:
    scores: dict[int, float] = {}
    for weight, line in parts:
        for rank, item in enumerate(line, 1):
            scores[item] = scores.get(item, 0.0) + weight / (OFFSET + rank)
    order = sorted(scores, key=lambda i: (-np.float32(scores[i]), i))
    return order[:k]


def test_a_blend_fuses_ranks_by_the_weights_of_the_historys_length() -> None:
    sizes = [0, 1, 2, 3, 5, 9]
    histories = np.zeros((6, 40), np.float32)
    for row, size in enumerate(sizes):
        histories[row, 3 : 3 + size] = 1
    known = rows_of(histories)
    blend = Blend(
        (
            Part("main", MAIN, ((1, 0.5), (3, 1.0))),
            Part("popular", POPULAR, ((0, 1.0), (2, 0.25), (5, FILL))),
        ),
        depth=15,
    )
    found, strongest = blend.explained(known, 8)
    main, popular = (lists(r.retrieve(known, 15)) for r in (MAIN, POPULAR))
    weights = [(0, 1), (0.5, 1), (0.5, 0.25), (1, 0.25), (1, FILL), (1, FILL)]
    for row, (a, b) in enumerate(weights):
        parts = [(w, line) for w, line in ((a, main[row]), (b, popular[row])) if w]
        assert lists(found)[row] == fused_by_hand(parts, 8)
    # What was retrieved before, and deeper than it needs, is not asked for again.
    deeper = {"main": MAIN.retrieve(known, 22), "popular": POPULAR.retrieve(known, 30)}
    again, as_strong = blend.explained(known, 8, given=deeper)
    assert lists(again) == lists(found)
    assert as_strong.tolist() == strongest.tolist()
    assert (strongest[: found.starts[1]] == 1).all()
    assert lists(found)[0] == popular[0][:8]
    assert lists(found)[5] == main[5][:8]


def test_a_visitor_without_history_gets_what_is_popular_and_full_lists_are_filled() -> None:
    blend = fallback(MAIN, POPULAR)
    assert lists(blend.retrieve(empty(1, 40), 9)) == lists(POPULAR.retrieve(empty(1, 40), 9))
    everything = lists(blend.retrieve(TRAIN, 40))
    assert [len(line) for line in everything] == (40 - TRAIN.sizes).tolist()


@pytest.mark.parametrize("weights", [((3, 1.0), (1, 1.0)), ((0, -1.0),), ((2, 1.0), (2, 0.5))])
def test_a_part_with_impossible_weights_is_refused(weights: tuple[tuple[int, float], ...]) -> None:
    with pytest.raises(DeclarationError, match="ascending lengths"):
        Part("main", MAIN, weights)


def test_a_blend_of_nothing_or_of_two_catalogues_is_refused() -> None:
    other = MostPopular().fit(rows_of(X[:, :30]))
    for parts in ((), (Part("a", MAIN, ((0, 1.0),)), Part("b", other, ((0, 1.0),)))):
        with pytest.raises(DeclarationError, match="over one catalogue"):
            Blend(parts)


ITEMS = pa.array([f"i{n:02}" for n in range(40)])


def write(folder: Path, retriever: Retriever, created_ms: int = 1_790_000_000_000) -> Place:
    return artefact.write(
        Place.at(folder),
        retriever,
        ITEMS,
        name="shop",
        created_ms=created_ms,
        method=RP3Beta(12).describe(),
        training={"users": 60},
        data_fingerprint="f" * 64,
        metrics={"ndcg": 0.5},
    )


STORED: dict[str, Callable[[], Retriever]] = {
    "neighbours": lambda: MAIN,
    "popularity": lambda: POPULAR,
    "factors": lambda: Ials(4, 0.1, 5.0, 2, threads=1).fit(TRAIN),
    "blend": lambda: fallback(Ease(9.0, 8).fit(TRAIN), POPULAR, content=MAIN),
}


@pytest.mark.parametrize("kind", STORED)
def test_a_stored_retriever_answers_as_before_over_mapped_files(tmp_path: Path, kind: str) -> None:
    retriever = STORED[kind]()
    assert retriever.kind == kind
    place = write(tmp_path, retriever)
    loaded = artefact.load(place)
    assert loaded.reference == f"shop@{place.name}"
    before, after = retriever.retrieve(TRAIN, 9), loaded.retriever.retrieve(TRAIN, 9)
    assert after.columns.tobytes() == before.columns.tobytes()
    assert after.values.tobytes() == before.values.tobytes()
    history = loaded.history({"i03": 2.0, "gone": 1.0, "i01": 0.5, "i07": 0.0})
    assert (history.columns.tolist(), history.values.tolist()) == ([1, 3], [0.5, 2.0])
    for array in loaded.retriever.arrays().values():
        assert array.base is not None  # no copy of the file
    with pytest.raises(Conflict, match="exists"):
        write(tmp_path, retriever)


def test_versions_are_listed_promoted_and_found_as_models_are(tmp_path: Path) -> None:
    first, second = write(tmp_path, MAIN), write(tmp_path, POPULAR, 1_790_000_001_000)
    versions = Place.at(tmp_path)
    assert registry.versions(versions, "shop") == [first.name, second.name]
    registry.promote(versions, "shop", first.name)
    assert registry.locate(versions, "shop") == first
    with pytest.raises(NotFound, match="no retriever"):
        artefact.load(versions / "shop" / "none")


@pytest.mark.parametrize("file", ["columns.npy", "items.arrow", "manifest.json"])
def test_changed_or_missing_bytes_are_refused(tmp_path: Path, file: str) -> None:
    place = write(tmp_path, MAIN)
    path = tmp_path / "shop" / place.name / file
    data = bytearray(path.read_bytes())
    data[data.rindex(b"0.5") if file == "manifest.json" else -9] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError):
        artefact.load(place)
    if file != "manifest.json":
        path.unlink()
        with pytest.raises(IntegrityError, match="is missing"):
            artefact.load(place)


def test_ids_must_be_as_many_as_the_items(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="40 ids for a retriever of 30"):
        write(tmp_path, MostPopular().fit(rows_of(X[:, :30])))
