"""Interactions from events and tables: weights, decay, the catalogue as it was known, splits."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.commerce import project
from raypipe.clock import DAY_MS
from raypipe.errors import InputError, NotFound, StageError, UsageError
from tests.unit.recommend_kit import lists
from training.recommend import splits
from training.recommend.catalogue import read_catalogue
from training.recommend.events import guest_id, guests_of, read_interactions, until_a_customer
from training.recommend.interactions import SHOP, Interactions, Weights
from training.recommend.pairs import read_pairs
from training.recommend.popularity import popular_in_window

NOW = 1_790_000_000_000
Row = tuple[int, int, int, int]

rows = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 1), st.integers(0, 9)),
    min_size=1,
    max_size=40,
)


def made(found: list[Row], kinds: tuple[str, ...] = ("view", "order")) -> Interactions:
    user, item, kind, day = (np.array(c) for c in zip(*found, strict=True))
    return Interactions.of(
        pa.array([f"u{u}" for u in user]),
        pa.array([f"i{i}" for i in item]),
        kind.astype(np.uint8),
        kinds,
        NOW + day * DAY_MS,
    )


def pairs_of(interactions: Interactions) -> list[tuple[str, str, int]]:
    users, items = interactions.users.to_pylist(), interactions.items.to_pylist()
    return [
        (users[u], items[i], int(t))
        for u, i, t in zip(
            interactions.user, interactions.item, interactions.time.tolist(), strict=True
        )
    ]


@given(rows, st.sampled_from([None, 2.5]))
def test_a_pairs_weight_is_the_faded_sum_of_its_interactions(
    found: list[Row], cap: float | None
) -> None:
    weights = Weights({"view": 1.0, "order": 4.0}, half_life_ms=3 * DAY_MS, cap=cap)
    expected: dict[tuple[str, str], float] = defaultdict(float)
    newest = max(day for *_, day in found)
    for user, item, kind, day in found:
        expected[f"u{user}", f"i{item}"] += (1.0, 4.0)[kind] * 0.5 ** ((newest - day) / 3)
    interactions = made(found)
    matrix = interactions.matrix(weights)
    users, items = interactions.users.to_pylist(), interactions.items.to_pylist()
    got = {
        (users[r], items[c]): float(v)
        for r, c, v in zip(matrix.row_of, matrix.columns, matrix.values, strict=True)
    }
    bound = float("inf") if cap is None else cap
    assert got == {p: pytest.approx(min(w, bound), rel=1e-6) for p, w in expected.items()}
    assert set(interactions.matrix().values.tolist()) == {1.0}


def test_a_kind_without_weight_has_no_entry_and_an_unknown_one_is_refused() -> None:
    interactions = made([(0, 0, 0, 0), (0, 1, 1, 1)])
    assert lists(interactions.matrix(Weights({"order": 2.0}))) == [[1]]
    with pytest.raises(UsageError, match=r"weights name cart(.|\n)*view, order"):
        interactions.matrix(Weights({"cart": 1.0}))
    with pytest.raises(UsageError, match="go on to"):
        interactions.matrix(Weights({"order": 1.0}, half_life_ms=DAY_MS), as_of_ms=NOW)


@pytest.mark.parametrize(
    ("kinds", "half_life", "cap"),
    [({}, None, None), ({"view": -1}, None, None), ({"view": 1}, 0, 1)],
)
def test_impossible_weights_are_refused(
    kinds: dict[str, float], half_life: int | None, cap: float | None
) -> None:
    with pytest.raises(UsageError):
        Weights(kinds, half_life, cap)


def test_the_fingerprint_is_of_the_content_and_not_of_its_order() -> None:
    found: list[Row] = [(0, 0, 0, 0), (1, 1, 1, 1), (1, 0, 0, 2)]
    assert made(found).fingerprint() == made(found[::-1]).fingerprint()
    assert made(found).fingerprint() != made(found[:2]).fingerprint()


@given(rows)
def test_leave_last_out_asks_for_what_was_met_last_and_learns_from_before(
    found: list[Row],
) -> None:
    first: dict[tuple[int, int], int] = {}
    for user, item, _, day in found:
        first[user, item] = min(day, first.get((user, item), day))
    wanted = {}
    for user in {u for u, _ in first}:
        met = [(day, item) for (u, item), day in first.items() if u == user]
        if len(met) > 1:
            wanted[user] = max(met)
    interactions = made(found)
    if not wanted:
        with pytest.raises(StageError, match="nothing to guess"):
            splits.leave_last_out(interactions)
        return
    split = splits.leave_last_out(interactions)
    users, items = interactions.users.to_pylist(), interactions.items.to_pylist()
    asked = {users[r]: items[c] for r, c in enumerate_rows(split.truth)}
    assert asked == {f"u{u}": f"i{item}" for u, (_, item) in wanted.items()}
    kept = sorted(
        (f"u{u}", f"i{i}", NOW + day * DAY_MS)
        for u, i, _, day in found
        if u not in wanted or (day <= wanted[u][0] and i != wanted[u][1])
    )
    assert sorted(pairs_of(split.train)) == kept


def enumerate_rows(truth: object) -> list[tuple[int, int]]:
    return [(r, c) for r, line in enumerate(lists(truth)) for c in line]  # type: ignore[arg-type]


@given(rows, st.integers(1, 9))
def test_a_split_by_time_asks_only_for_pairs_that_are_new(found: list[Row], day: int) -> None:
    before = {(u, i) for u, i, _, d in found if d < day}
    after = {(u, i) for u, i, _, d in found if d >= day} - before
    interactions = made(found)
    if not after:
        with pytest.raises(StageError, match="nothing to guess"):
            splits.by_time(interactions, NOW + day * DAY_MS)
        return
    split = splits.by_time(interactions, NOW + day * DAY_MS)
    users, items = interactions.users.to_pylist(), interactions.items.to_pylist()
    asked = {(users[r], items[c]) for r, c in enumerate_rows(split.truth)}
    assert asked == {(f"u{u}", f"i{i}") for u, i in after}
    assert all(t < NOW + day * DAY_MS for *_, t in pairs_of(split.train))
    assert len(split.train) == sum(d < day for *_, d in found)


def test_published_pairs_are_read_with_their_split(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user": [7, 7, 8], "item": [10, 9, 9]}), tmp_path / "train.parquet")
    (tmp_path / "test.csv").write_text("user,item\n8,10\n7,9\n8,10\n")
    train = read_pairs(tmp_path / "train.parquet")
    split = splits.given(train, read_pairs(tmp_path / "test.csv", known=train))
    assert train.items.to_pylist() == ["10", "9"]
    assert lists(split.train.matrix()) == [[0, 1], [1]]
    assert lists(split.truth) == [[], [0]]  # 7 has 9 already, 8 10 twice
    with pytest.raises(UsageError, match="have no times"):
        splits.leave_last_out(train)
    with pytest.raises(InputError, match=r"no column 'person'(.|\n)*user, item"):
        read_pairs(tmp_path / "test.csv", "person")
    (tmp_path / "other.csv").write_text("user,item\n8,11\n")
    with pytest.raises(InputError, match="item '11' is not in the list"):
        read_pairs(tmp_path / "other.csv", known=train)
    (tmp_path / "gap.csv").write_text("user,item\n8,\n")
    with pytest.raises(InputError, match="1 rows without 'item'"):
        read_pairs(tmp_path / "gap.csv")


class Log:
    """Rows by event type, as the log's tables show them."""

    def __init__(self, events: list[tuple[str, dict[str, object]]]) -> None:
        self._rows: dict[str, list[dict[str, object]]] = defaultdict(list)
        for offset, (kind, fields) in enumerate(events):
            self._rows[kind].append({"offset": offset, **fields})

    def table(self, kind: str) -> ds.Dataset:
        fields = [f.with_nullable(True) for f in project.event(kind).arrow_schema]
        schema = pa.schema([pa.field("offset", pa.int64()), *fields])
        return ds.dataset(pa.Table.from_pylist(self._rows[kind], schema))


VISIT = {"session_id": "s1"}
LOGGED_IN = VISIT | {"customer_id": "c1"}


def listed(item: str, minute: int, category: str, price: int | None, on_sale: bool) -> tuple:
    said = {"item_id": item, "category": category, "price": price, "available": on_sale}
    return "listing", said | {"event_time": NOW + minute}


LOG = Log(
    [
        ("page_view", VISIT | {"item_id": "i1", "event_time": NOW}),
        ("page_view", LOGGED_IN | {"item_id": "i2", "event_time": NOW + 1}),
        ("page_view", LOGGED_IN | {"page": "/", "event_time": NOW + 2}),
        ("cart", LOGGED_IN | {"item_id": "i2", "action": "add", "event_time": NOW + 3}),
        ("cart", LOGGED_IN | {"item_id": "i9", "action": "remove", "event_time": NOW}),
        ("order_line", {"item_id": "i2", "customer_id": "c1", "event_time": NOW + 4}),
        ("order_line", {"item_id": "i3", "customer_id": "c2", "event_time": NOW + 50}),
        listed("i3", 9, "a", 100, True),
        listed("i1", 0, "a", 300, True),
        listed("i3", 9, "b", None, False),
        listed("i3", 3, "x", 90, True),
        listed("i1", 70, "z", 300, False),
        listed("i8", 0, "a", 10, True),
    ]
)


def test_a_shops_events_become_interactions() -> None:
    found = read_interactions(LOG.table)
    kinds = [found.kinds[k] for k in found.kind]
    assert list(zip(pairs_of(found), kinds, strict=True)) == [
        (("c1", "i2", NOW + 1), "view"),
        (("c1", "i2", NOW + 3), "cart"),
        (("c1", "i2", NOW + 4), "order"),
        (("c2", "i3", NOW + 50), "order"),
    ]
    assert found.items.to_pylist() == ["i1", "i2", "i3", "i8"]
    assert read_interactions(LOG.table, listings=None).items.to_pylist() == ["i2", "i3"]
    weights = found.matrix(SHOP)
    assert weights.values.tolist() == [pytest.approx(9, rel=1e-5), pytest.approx(5)]
    assert len(read_interactions(LOG.table, end_ms=NOW + 4)) == 2
    visits = read_interactions(LOG.table, sessions=True)
    assert pairs_of(visits)[0] == ("s1", "i1", NOW)
    assert len(visits) == 3
    with pytest.raises(NotFound, match="no interaction of customers"):
        read_interactions(LOG.table, end_ms=NOW)


def test_sessions_that_name_nobody_are_visitors_of_their_own_where_they_are_asked_for() -> None:
    alone = {"session_id": "s2"}
    log = Log(
        [
            ("page_view", VISIT | {"item_id": "i1", "event_time": NOW}),
            ("page_view", alone | {"item_id": "i2", "event_time": NOW + 1}),
            ("page_view", LOGGED_IN | {"item_id": "i3", "event_time": NOW + 2}),
            ("page_view", {"customer_id": "s2", "item_id": "i4", "event_time": NOW + 3}),
            ("page_view", alone | {"item_id": "i5", "event_time": NOW + 4}),
        ]
    )
    of_customers = [("c1", "i1", NOW), ("c1", "i3", NOW + 2), ("s2", "i4", NOW + 3)]
    assert pairs_of(read_interactions(log.table, joined=True)) == of_customers
    found = read_interactions(log.table, joined=True, guests=True)
    guest = guest_id("s2")
    assert pairs_of(found) == [
        of_customers[0],
        (guest, "i2", NOW + 1),
        *of_customers[1:],
        (guest, "i5", NOW + 4),
    ]
    assert found.users.filter(pa.array(guests_of(found))).to_pylist() == [guest]


def test_the_catalogue_is_what_was_said_before_a_moment() -> None:
    items = pa.array(["i1", "i2", "i3"])
    then = read_catalogue(LOG.table, items, as_of_ms=NOW + 70)
    assert then.table.column("category").to_pylist() == ["a", None, "b"]
    assert then.available.tolist() == [True, False, False]
    assert then.table.column("first_listed").to_pylist() == [NOW, None, NOW + 3]
    later = read_catalogue(LOG.table, items, as_of_ms=NOW + 71)
    assert later.table.column("category").to_pylist() == ["z", None, "b"]


def test_rare_attributes_weigh_more() -> None:
    log = Log(
        [
            ("listing", {"item_id": f"i{n}", "category": c, "price": p, "event_time": NOW})
            for n, (c, p) in enumerate([("a", 10), ("a", 20), ("a", 30), ("b", 400), (None, None)])
        ]
    )
    items = pa.array([f"i{n}" for n in range(5)])
    catalogue = read_catalogue(log.table, items, as_of_ms=NOW + 1)
    found = catalogue.attributes(["category"], price_bands=2)
    a, b, cheap, dear = np.log(5 / 3), np.log(5 / 1), np.log(5 / 2), np.log(5 / 2)
    expected = [[a, 0, cheap, 0], [a, 0, cheap, 0], [a, 0, 0, dear], [0, b, 0, dear], [0, 0, 0, 0]]
    assert found.dense() == pytest.approx(np.array(expected, np.float32))
    with pytest.raises(UsageError, match="no colour"):
        catalogue.attributes(["colour"])


def test_popularity_takes_the_shortest_window_that_has_seen_enough() -> None:
    found: list[Row] = [(u, 0, 0, 1) for u in range(5)] + [(u, 1, 0, 8) for u in range(3)]
    interactions = made(found)
    end, days = NOW + 9 * DAY_MS, (2 * DAY_MS, 30 * DAY_MS)
    recent, window = popular_in_window(interactions, end, days, least=3)
    assert (window, recent.order.tolist()) == (2 * DAY_MS, [1])
    whole, window = popular_in_window(interactions, end, days, least=4)
    assert (window, whole.order.tolist()) == (30 * DAY_MS, [0, 1])
    rest, _ = popular_in_window(interactions, NOW + 8 * DAY_MS, days, least=99)
    assert rest.order.tolist() == [0]
    # Eight over two items: enough where four are asked of each, not where five are.
    for least, shortest in ((4, 9), (5, 30)):
        windows = (9 * DAY_MS, 30 * DAY_MS)
        assert popular_in_window(interactions, end, windows, least=least)[1] == shortest * DAY_MS
    # Nothing at all is never enough.
    assert popular_in_window(interactions, end, (1, 30 * DAY_MS), least=1)[1] == 30 * DAY_MS
    with pytest.raises(UsageError, match="windows"):
        popular_in_window(interactions, end, [])


def test_strangers_after_the_newest_customer_are_left_out() -> None:
    time = np.array([1, 2, 3, 90], np.int64)
    some = Interactions(
        users=pa.array(["c1", guest_id("s1")]),
        items=pa.array(["i1"]),
        kinds=("view",),
        user=np.array([0, 1, 0, 1], np.int32),
        item=np.zeros(4, np.int32),
        kind=np.zeros(4, np.uint8),
        time=time,
        offset=np.arange(4, dtype=np.int64),
    )
    assert until_a_customer(some).time.tolist() == [1, 2, 3]
    strangers = some.where(some.user == 1)
    assert until_a_customer(strangers).time.tolist() == [2, 90]
