"""The kernel against SQL over raw events: random streams, every operation, odd clocks and keys."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.events.schema import AMOUNT_LIMIT
from raypipe.windows.spec import (
    DEFAULT_SPANS,
    Span,
    WindowView,
    count,
    distinct,
    mean,
    minimum,
    since_last,
    spans,
    std,
    total,
)
from tests.property.oracle import Worst, compare, truth
from tests.property.window_streams import (
    ASK,
    DAY,
    PAY,
    SCHEMA,
    TODAY,
    WINDOWS,
    busy,
    event,
    reading,
    rows_of,
    run,
    streams,
    values_at,
    view,
    windows,
)

SQL_EXAMPLES = 50
"""Each takes three queries; the seeded streams below go deeper."""


def check(v: WindowView, events: pa.Table, decision: str, at: list[int] | None = None) -> Worst:
    """Values before every reading event and after every own one are what SQL says."""
    values, state = run(v, rows_of(v, events, decision))
    wanted = set(at) if at is not None else set(events["offset"].to_pylist())
    true = truth(v, events, decision, at=at)
    mine = reading(events, decision)
    before = values_at(events, mine, values.before)
    worst = compare(true, v.column_names, {o: r for o, r in before.items() if o in wanted})
    newest = values_at(events, mine, values.newest)
    assert {o: int(n) for o, n in newest.items() if o in wanted} == true.newest

    true = truth(v, events, decision, at=at, after=True)
    own = np.isin(np.array(events["kind"].to_pylist(), object), v.events)
    after = {o: r for o, r in values_at(events, own, values.after).items() if o in true.rows}
    compare(true, v.column_names, after, since_zero=True)
    clocks = values_at(events, own, values.clocks)
    assert {o: int(clocks[o]) for o in true.clocks} == true.clocks
    if at is None:
        assert state.too_old == too_old(v.spans, events, true.clocks)
        keys = {(e["tenant"], e[v.key]) for e in events.to_pylist() if e["kind"] in v.events}
        assert state.keys == sum(key is not None for _, key in keys)
    return worst


def too_old(window: tuple[Span, ...], events: pa.Table, clocks: dict[int, int]) -> int:
    """Own events that no window holds at the key's clock."""
    times = dict(zip(events["offset"].to_pylist(), events["event_time"].to_pylist(), strict=True))
    return sum(
        all(times[o] // 1000 // s.hop <= clock // 1000 // s.hop - s.length // s.hop for s in window)
        for o, clock in clocks.items()
    )


@settings(max_examples=SQL_EXAMPLES)
@given(streams(), st.sampled_from(WINDOWS), st.sampled_from([PAY, ASK]))
def test_every_value_is_what_sql_says(
    events: pa.Table, window: tuple[Span, ...], decision: str
) -> None:
    check(view(window=window), events, decision)


@settings(max_examples=SQL_EXAMPLES)
@given(streams(), windows(), st.sampled_from(["card", "shop"]))
def test_any_spans_that_nest_and_any_key(
    events: pa.Table, window: tuple[Span, ...], key: str
) -> None:
    check(view(key, window), events, PAY)


@pytest.mark.parametrize("decision", [PAY, ASK])
@pytest.mark.parametrize("window", WINDOWS, ids=lambda w: " ".join(s.label for s in w))
def test_busy_keys_whose_readers_run_ahead(window: tuple[Span, ...], decision: str) -> None:
    check(view(window=window), busy(len(window)), decision)


@pytest.mark.parametrize("decision", [PAY, ASK])
def test_no_event_at_all(decision: str) -> None:
    check(view(), SCHEMA.empty_table(), decision)


def test_ten_thousand_events_in_one_second_are_one_count() -> None:
    rng = np.random.default_rng(1)
    rows = [
        event(
            i,
            TODAY + int(ms),
            amount=int(amount),
            points=int(points),
            shop=f"s{int(shop)}",
        )
        for i, (ms, amount, points, shop) in enumerate(
            zip(
                np.sort(rng.integers(0, 1_000, 10_000)),
                rng.integers(-500, 500, 10_000),
                rng.integers(0, 10, 10_000),
                rng.integers(0, 30, 10_000),
                strict=True,
            )
        )
    ]
    rows.append(event(10_000, TODAY + 999))
    at = [0, 1, 2, 99, 5_000, 9_999, 10_000]
    check(view(), pa.Table.from_pylist(rows, SCHEMA), PAY, at)


def test_fifty_thousand_events_of_one_key_over_ninety_days() -> None:
    rng = np.random.default_rng(2)
    n = 50_000
    times = np.sort(rng.integers(0, 90 * DAY, n))
    # Bursts within seconds, and one event in thirty up to three days late.
    times[::7] = times[::7] // 600_000 * 600_000
    late = rng.random(n) < 1 / 30
    times[late] -= rng.integers(0, 3 * DAY, int(late.sum()))
    columns = {
        "offset": np.arange(n),
        "kind": [PAY] * n,
        "tenant": ["t"] * n,
        "event_id": [str(i) for i in range(n)],
        "event_time": TODAY + times,
        "card": ["a"] * n,
        "shop": [f"s{i}" for i in rng.zipf(1.4, n) % 500],
        "amount": rng.integers(-(10**6), 10**9, n),
        "points": rng.integers(-5, 5, n),
    }
    v = WindowView(
        "huge",
        "card",
        PAY,
        "card",
        (
            count(lags=[("7d", "1d")]),
            total("amount"),
            mean("amount", lags=[("30d", "1h")]),
            minimum("amount"),
            std("amount"),
            distinct("shop", ["1d"]),
            distinct("card"),
            since_last(),
        ),
        DEFAULT_SPANS,
    )
    at = sorted({*rng.choice(n, 60, replace=False).tolist(), *np.flatnonzero(late)[:20].tolist()})
    check(v, pa.Table.from_pydict(columns, SCHEMA), PAY, at)


@pytest.mark.parametrize(
    "sign",
    [
        pytest.param([1], id="all-positive"),
        pytest.param([-1], id="all-negative"),
        pytest.param([1, -1], id="alternating"),
    ],
)
def test_the_largest_amounts_many_times(sign: list[int]) -> None:
    largest = AMOUNT_LIMIT - 1
    rows = [
        event(i, TODAY + i, amount=sign[i % len(sign)] * largest, points=0) for i in range(3_000)
    ]
    check(view(), pa.Table.from_pylist(rows, SCHEMA), PAY, [0, 1, 2, 3, 17, 1_000, 2_998, 2_999])


@pytest.mark.parametrize("value", [0, 1, -1, 7, AMOUNT_LIMIT - 1, 1 - AMOUNT_LIMIT, 10**12 + 7])
def test_equal_values_deviate_by_exactly_zero(value: int) -> None:
    v = WindowView("v", "card", PAY, "card", (std("amount", ["1m"]), mean("amount", ["1m"])))
    rows = [event(i, TODAY + i, amount=value) for i in range(1_001)]
    values, _ = run(v, rows_of(v, pa.Table.from_pylist(rows, SCHEMA), PAY))
    assert np.isnan(values.before[0]).all()
    assert (values.before[1:, 0] == 0.0).all()
    assert (values.before[1:, 1] == value).all()


@pytest.mark.parametrize("value", [0, 100, AMOUNT_LIMIT - 2, 1 - AMOUNT_LIMIT])
@pytest.mark.parametrize("share", [2, 3, 1_000])
def test_huge_values_that_differ_by_one(value: int, share: int) -> None:
    """One in ``share`` is larger by 1: the variance is f (1 - f), however large the values are."""
    v = WindowView("v", "card", PAY, "card", (std("amount", ["1m"]),))
    rows = [event(i, TODAY + i, amount=value + (i % share == 0)) for i in range(3_001)]
    values, _ = run(v, rows_of(v, pa.Table.from_pylist(rows, SCHEMA), PAY))
    f = 1_000 * (3 // share) / 3_000 if share == 3 else -(-3_000 // share) / 3_000
    assert values.before[3_000, 0] == pytest.approx((f * (1 - f)) ** 0.5, rel=1e-14, abs=0)


def test_a_read_ahead_of_the_clock_empties_windows_but_writes_nothing() -> None:
    v = view(window=spans("1m/1s", "1h/1m"))
    rows = [
        event(0, TODAY, amount=5),
        event(1, TODAY + 90_000, ASK),
        event(2, TODAY + 3_650 * DAY, ASK),
        event(3, TODAY + 1_000, ASK),
        event(4, TODAY + 1_000, amount=6),
        event(5, TODAY + 1_000, ASK),
    ]
    events = pa.Table.from_pylist(rows, SCHEMA)
    check(v, events, ASK)
    values, _ = run(v, rows_of(v, events, ASK))
    names = list(v.column_names)
    counts = values.before[[1, 2, 3, 5]][
        :, [names.index("seen_count_1m"), names.index("seen_count_1h")]
    ]
    assert counts.tolist() == [[0, 1], [0, 0], [1, 1], [2, 2]]


def test_an_event_that_came_too_late_is_counted_and_in_no_value() -> None:
    v = view(window=spans("1m/1s"))
    rows = [
        event(0, TODAY),
        event(1, TODAY - 60_000, amount=9),
        event(2, TODAY - 59_000, amount=9),
        event(3, TODAY, ASK),
    ]
    events = pa.Table.from_pylist(rows, SCHEMA)
    check(v, events, ASK)
    values, state = run(v, rows_of(v, events, ASK))
    assert values.before[3, 0] == 2
    assert state.too_old == 1


def test_the_edge_of_a_window_is_one_hop_wide() -> None:
    """An event leaves when its hop does: not a millisecond earlier, not one later."""
    v = WindowView("v", "card", PAY, "card", (count(),), spans("1h/1m"))
    for shift in (0, 1, 59_999):
        first = event(0, TODAY + shift)
        leaves = TODAY + 3_600_000
        for time, expected in ((leaves - 1, 1), (leaves, 0), (leaves + 1, 0)):
            events = pa.Table.from_pylist([first, event(1, time, ASK)], SCHEMA)
            values, _ = run(v, rows_of(v, events, ASK))
            assert values.before[1, 0] == expected


def test_equal_keys_of_two_tenants_or_views_are_strangers() -> None:
    v = view()
    rows = [event(0, TODAY, tenant="t"), event(1, TODAY, tenant="u"), event(2, TODAY, tenant="t")]
    values, state = run(v, rows_of(v, pa.Table.from_pylist(rows, SCHEMA), PAY))
    assert values.before[:, 0].tolist() == [0, 0, 1]
    assert state.keys == 2
