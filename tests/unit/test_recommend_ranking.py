"""Ranking: what was known at each moment, by loops over single events; and a learned order."""

from __future__ import annotations

from collections import defaultdict
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.commerce import project
from features.commerce_ranking import DEMAND, SHOPPER, VIEWS
from raypipe.clock import DAY_MS, HOUR_MS
from raypipe.errors import StageError, UsageError
from raypipe.events.row import RowValidator
from raypipe.windows.engine import WindowEngine
from training.recommend.catalogue import read_catalogue
from training.recommend.events import read_interactions
from training.recommend.interactions import Interactions, Weights
from training.recommend.ranking import ranker
from training.recommend.ranking.features import Attributes, Columns, Table
from training.recommend.ranking.moments import GRADES, Moments, histories, moments
from training.recommend.ranking.past import Past
from training.recommend.ranking.windows import LoggedWindows, read_at
from training.recommend.rows import Rows

NOW = 1_790_000_000_000
MINUTE_MS = 60_000
KINDS = ("page_view", "cart", "order_line")
Event = tuple[str, str, str, int]
"""Kind, customer, item, time."""


def stream(count: int = 400, seed: int = 0) -> list[Event]:
    """Events in log order; one in ten comes late."""
    rng = np.random.default_rng(seed)
    times = NOW + np.sort(rng.integers(0, 20 * DAY_MS, count))
    times -= (rng.random(count) < 0.1) * rng.integers(0, 2 * DAY_MS, count)
    return [
        (
            KINDS[rng.choice(3, p=[0.7, 0.2, 0.1])],
            f"c{rng.integers(0, 6)}",
            f"i{rng.integers(0, 9)}",
            int(time) // 1000 * 1000,
        )
        for time in times
    ]


def body(event: Event, offset: int) -> dict[str, object]:
    kind, customer, item, time = event
    fields: dict[str, object] = {
        "customer_id": customer,
        "item_id": item,
        "session_id": f"s{offset % 7}",
    }
    if kind != "page_view":
        fields |= {"quantity": 1 + offset % 3, "price": 100 + offset % 5 * 50}
    if kind == "cart":
        fields["action"] = "add"
    if kind == "order_line":
        fields["order_id"] = f"o{offset}"
    return fields | {"event_id": f"e{offset}", "event_time": time}


class Log:
    """Events as the log's tables, in log order."""

    def __init__(self, events: list[Event]) -> None:
        self.events = events
        rows: dict[str, list[dict[str, object]]] = {k: [] for k in (*KINDS, "listing")}
        for n in range(8):  # the ninth item is never listed, the eighth has no brand
            listing = {"item_id": f"i{n}", "category": f"k{n % 3}", "available": True}
            listing |= {"brand": None if n == 7 else f"b{n % 2}", "price": 100 * (n + 1)}
            rows["listing"].append(listing | {"event_time": NOW - 1, "offset": n - 100})
        for offset, event in enumerate(events):
            rows[event[0]].append(body(event, offset) | {"offset": offset})
        self._rows = rows

    def table(self, kind: str) -> ds.Dataset:
        fields = [f.with_nullable(True) for f in project.event(kind).arrow_schema]
        schema = pa.schema([pa.field("offset", pa.int64()), *fields])
        rows = [{"tenant": "t", "received_at": r["event_time"], **r} for r in self._rows[kind]]
        return ds.dataset(pa.Table.from_pylist(rows, schema))

    @property
    def interactions(self) -> Interactions:
        return read_interactions(self.table)


@cache
def log() -> Log:
    return Log(stream())


GRADE = {"page_view": 1.0, "cart": 2.0, "order_line": 3.0}


def moments_by_hand(
    events: list[Event], start: int, end: int, gap: int, after: int
) -> list[tuple[str, int, int, dict[str, float]]]:
    visits: dict[str, list[list[int]]] = defaultdict(list)
    for offset, (_, customer, _, time) in enumerate(events):
        own = visits[customer]
        if own and time - events[own[-1][-1]][3] <= gap:
            own[-1].append(offset)
        else:
            own.append([offset])
    found = []
    for customer, own in visits.items():
        met: set[str] = set()
        for visit in own:
            first = events[visit[0]][3]
            known = list(dict.fromkeys(events[o][2] for o in visit))[:after]
            later = [n for n, o in enumerate(visit) if events[o][2] not in known]
            taken: dict[str, float] = {}
            for offset in visit:
                kind, _, item, time = events[offset]
                if item not in met and item not in known and time < end:
                    taken[item] = max(taken.get(item, 0), GRADE[kind])
            if taken and start <= first < end:
                clock = events[visit[later[0] - 1]][3] if after else first
                found.append((customer, clock, visit[later[0]], taken))
            met |= {events[o][2] for o in visit}
    return sorted(found, key=lambda m: m[2])


@pytest.mark.parametrize(("seed", "after"), [(0, 0), (1, 0), (2, 0), (3, 1), (0, 1), (0, 2)])
def test_moments_are_visits_that_take_something_new(seed: int, after: int) -> None:
    events = stream(120, seed)
    interactions = Log(events).interactions
    start, end = NOW + 2 * DAY_MS, NOW + 12 * DAY_MS
    found = moments(interactions, start, end, gap_ms=6 * HOUR_MS, after=after)
    users, items = interactions.users.to_pylist(), interactions.items.to_pylist()
    got = []
    for row in range(len(found)):
        columns, grades = found.truth.row(row)
        taken = {items[c]: float(g) for c, g in zip(columns, grades, strict=True)}
        got.append((users[found.user[row]], found.time[row], found.offset[row], taken))
    assert got == moments_by_hand(events, start, end, 6 * HOUR_MS, after)
    assert got
    assert GRADES == {"view": 1.0, "cart": 2.0, "order": 3.0}


def test_moments_need_a_log_and_something_new() -> None:
    interactions = log().interactions
    with pytest.raises(StageError, match="takes anything new"):
        moments(interactions, NOW + 90 * DAY_MS, NOW + 99 * DAY_MS)
    table = Interactions.of(
        pa.array(["a"]), pa.array(["b"]), np.zeros(1, "u1"), ("view",), np.array([NOW])
    )
    with pytest.raises(UsageError, match="no places in a log"):
        moments(table, NOW, NOW + 1)


@cache
def at() -> Moments:
    return moments(log().interactions, NOW + 3 * DAY_MS, NOW + 20 * DAY_MS, gap_ms=HOUR_MS)


def earlier(row: int) -> list[Event]:
    """The visitor's own events that came into the log before a moment."""
    user = log().interactions.users[int(at().user[row])].as_py()
    return [e for e in log().events[: at().offset[row]] if e[1] == user]


def test_a_history_is_what_came_into_the_log_before() -> None:
    weights = Weights({"view": 1, "cart": 3, "order": 5}, half_life_ms=4 * DAY_MS, cap=6.0)
    found = histories(log().interactions, at(), weights)
    items = log().interactions.items.to_pylist()
    worth = {"page_view": 1.0, "cart": 3.0, "order_line": 5.0}
    for row in range(len(at())):
        expected: dict[str, float] = defaultdict(float)
        for kind, _, item, time in earlier(row):
            age = max(int(at().time[row]) - time, 0)
            expected[item] += worth[kind] * 0.5 ** (age / (4 * DAY_MS))
        columns, values = found.row(row)
        got = {items[c]: float(v) for c, v in zip(columns, values, strict=True)}
        assert got == {i: pytest.approx(min(w, 6.0), rel=1e-5) for i, w in expected.items()}


past_rows = st.lists(
    st.tuples(st.integers(-1, 4), st.integers(0, 50), st.integers(0, 9)), max_size=25
)


@given(past_rows, st.lists(st.tuples(st.integers(-1, 6), st.integers(0, 60)), min_size=1))
def test_the_past_is_summed_up_to_a_place_in_the_log(
    rows: list[tuple[int, int, int]], asked: list[tuple[int, int]]
) -> None:
    key, offset, time = (np.array([r[i] for r in rows], np.int64) for i in range(3))
    values = np.stack([np.ones(len(rows)), time.astype(float)], axis=1)
    past = Past(key, offset, time, values)
    found = past.before(*(np.array([a[i] for a in asked], np.int64) for i in range(2)))
    for n, (k, o) in enumerate(asked):
        mine = [r for r in rows if r[0] == k >= 0 and r[1] < o]
        assert found.sums[n].tolist() == [len(mine), sum(r[2] for r in mine)]
        assert found.newest[n] == max((r[2] for r in mine), default=-1)


@pytest.mark.parametrize("view", VIEWS, ids=lambda v: v.name)
def test_windows_at_a_moment_are_those_that_a_worker_had(view: object) -> None:
    """An engine is fed event by event, and asked just before each moment's own event."""
    assert view in (DEMAND, SHOPPER)
    of_item = view is DEMAND
    keys = [f"i{n}" for n in range(9)] if of_item else [f"c{n}" for n in range(6)]
    where = {int(o): row for row, o in enumerate(at().offset)}
    engine = WindowEngine([view], "payment")  # type: ignore[list-item]
    expected = np.empty((len(at()), len(keys), len(view.column_names)))  # type: ignore[attr-defined]
    for offset, event in enumerate(log().events):
        if offset in where:
            row = where[offset]
            for k, key in enumerate(keys):
                entity = "item" if of_item else "customer"
                read = engine.read("t", entity, key, int(at().time[row]))
                expected[row, k] = list(read.values())
        kind, time = event[0], event[3]
        valid = RowValidator(project.event(kind), "EUR").check(body(event, offset), "t", time)
        engine.observe(kind, valid, offset)
    moment = np.repeat(np.arange(len(at())), len(keys))
    found = read_at(
        view,  # type: ignore[arg-type]
        log().table,
        "t",
        pa.array(keys * len(at())),
        at().time[moment],
        at().offset[moment],
    )
    assert np.array_equal(found.reshape(expected.shape), expected, equal_nan=True)
    assert np.nanmax(found) > 1


def candidates() -> Rows:
    """All items at each moment, in another order each."""
    rng = np.random.default_rng(2)
    count = len(at())
    columns = np.concatenate([rng.permutation(9) for _ in range(count)])
    return Rows(np.arange(count + 1) * 9, columns, np.tile(np.arange(9, 0, -1.0), count), 9)


@cache
def table() -> Table:
    interactions = log().interactions
    catalogue = read_catalogue(log().table, interactions.items, as_of_ms=NOW)
    users, items = interactions.users, interactions.items
    windows = LoggedWindows(log().table, "t", items, users, (DEMAND,), (SHOPPER,))
    columns = Columns(interactions, Attributes.of(catalogue), windows)
    given_ = Rows(np.array([0, 1, *[1] * (len(at()) - 1)]), np.array([4]), np.array([0.5]), 9)
    return columns.table(at(), candidates(), lists={"main": given_})


def test_columns_are_what_a_loop_over_the_visitors_past_counts() -> None:
    found = table()
    items = log().interactions.items.to_pylist()
    column = {name: found.x[:, n] for n, name in enumerate(found.names)}
    category = {f"i{n}": f"k{n % 3}" for n in range(8)}
    price = {f"i{n}": 100 * (n + 1) for n in range(8)}
    for entry in range(0, len(found), 7):
        row, item = int(found.moment[entry]), items[found.candidates.columns[entry]]
        now, past = int(at().time[row]), earlier(row)

        def hours(own: list[Event], now: int = now) -> float:
            ages = [now - e[3] for e in own]
            return max(min(ages), 0) / HOUR_MS if ages else np.nan

        mine = [e for e in past if e[2] == item]
        alike = [e for e in past if category.get(e[2], "?") == category.get(item)]
        prices = [round(np.log(price[e[2]]) * 512) / 512 for e in past if e[2] in price]
        expected = {
            "rank": entry - found.candidates.starts[row] + 1,
            "item_view": sum(e[0] == "page_view" for e in mine),
            "item_order": sum(e[0] == "order_line" for e in mine),
            "item_hours": hours(mine),
            "history_count": len(past),
            "history_hours": hours(past),
        }
        if item in category:
            expected |= {
                "category_cart": sum(e[0] == "cart" for e in alike),
                "category_share": len(alike) / max(len(past), 1),
                "category_hours": hours(alike),
                "item_age_days": (now - NOW + 1) / DAY_MS,
                "price_to_habit": np.log(price[item]) - np.mean(prices) if prices else np.nan,
            }
        else:
            expected |= dict.fromkeys(("category_cart", "log_price", "item_age_days"), np.nan)
        got = {name: float(column[name][entry]) for name in expected}
        assert got == pytest.approx(expected, rel=1e-5, nan_ok=True)
        assert found.grade[entry] == at().truth.dense()[row, found.candidates.columns[entry]]
    assert np.isnan(column["brand_view"][found.candidates.columns == items.index("i7")]).all()
    given_ = np.flatnonzero(~np.isnan(column["main_score"]))
    assert [(found.moment[e], found.candidates.columns[e]) for e in given_] == [(0, 4)]
    assert set(DEMAND.column_names) | set(SHOPPER.column_names) <= set(found.names)


def made_up(count: int, seed: int) -> Table:
    """Candidates of which the ones with a high signal are taken; the retriever knows nothing."""
    rng = np.random.default_rng(seed)
    starts = np.arange(count + 1) * 30
    signal, noise = rng.random(count * 30), rng.random(count * 30)
    columns = np.concatenate([rng.permutation(50)[:30] for _ in range(count)])
    taken = rng.random(count * 30) < signal**8
    x = np.stack([noise, signal], axis=1).astype(np.float32)
    rows = Rows(starts, columns, np.ones(count * 30), 50)
    return Table(("noise", "signal"), x, rows, taken.astype(float))


def test_an_order_is_learned_and_holds_for_later_moments() -> None:
    fitted = ranker.fit(made_up(300, 0), validation=made_up(100, 1), rounds=60)
    later = made_up(200, 2)
    ordered = fitted.ordered(later, 10)
    assert (ordered.sizes == 10).all()

    def taken(rows: Rows) -> float:
        wanted = later.grade.reshape(200, 30) > 0
        places = later.candidates.columns.reshape(200, 30)
        top = [set(rows.row(r)[0][:5].tolist()) for r in range(200)]
        return sum(len(top[r] & set(places[r][wanted[r]].tolist())) for r in range(200))

    assert taken(ordered) > 2 * taken(later.candidates)
    again = ranker.fit(made_up(300, 0), validation=made_up(100, 1), rounds=60)
    assert again.ordered(later, 10).columns.tolist() == ordered.columns.tolist()


def test_a_moments_weight_counts() -> None:
    """Of two halves that want opposite things the one that weighs more is followed."""
    base = made_up(200, 3)
    turned = np.where(base.moment < 100, base.x[:, 1], 1 - base.x[:, 1])
    x = np.stack([base.x[:, 0], turned], axis=1).astype(np.float32)
    both = Table(base.names, x, base.candidates, base.grade)
    means = []
    for first in (20.0, 0.05):
        weights = np.where(np.arange(200) < 100, first, 1.0)
        ordered = ranker.fit(both, rounds=20, weights=weights).ordered(made_up(50, 4), 5)
        wide = made_up(50, 4)
        signal = {
            (int(m), int(c)): float(s)
            for m, c, s in zip(wide.moment, wide.candidates.columns, wide.x[:, 1], strict=True)
        }
        pairs = zip(ordered.row_of.tolist(), ordered.columns.tolist(), strict=True)
        means.append(np.mean([signal[p] for p in pairs]))
    assert means[0] > 0.7
    assert means[1] < 0.3


def test_nothing_taken_and_other_columns_are_refused() -> None:
    empty = made_up(5, 0)
    with pytest.raises(StageError, match="none of 150 candidates was taken"):
        ranker.fit(Table(empty.names, empty.x, empty.candidates, empty.grade * 0))
    fitted = ranker.fit(made_up(50, 0), rounds=2)
    with pytest.raises(StageError, match="other columns"):
        fitted.ordered(Table(("a", "b"), empty.x, empty.candidates, empty.grade), 3)
