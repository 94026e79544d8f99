"""Conditions, last events, registers and several event types, against SQL and each other."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.windows.engine import WindowEngine
from raypipe.windows.spec import (
    DEFAULT_SPANS,
    Span,
    WindowView,
    count,
    distinct,
    last,
    maximum,
    mean,
    minimum,
    since_last,
    std,
    total,
)
from raypipe.windows.state import ViewState
from tests.property.test_windows_oracle import SQL_EXAMPLES, check
from tests.property.window_streams import (
    ASK,
    DAY,
    PAY,
    SCHEMA,
    SHORT,
    TODAY,
    WINDOWS,
    asked_bits,
    busy,
    chunks_of,
    cut,
    event,
    part_of,
    reading,
    rows_of,
    run,
    streams,
)

LARGE = "amount > 100"
BAND = "amount >= 0 and amount < 5000"
AT_A = "shop == 'a' or points > 2"


def rich(window: tuple[Span, ...] = DEFAULT_SPANS, also: tuple[str, ...] = ()) -> WindowView:
    """A view with what plain ones lack; with ``also``, of several event types."""
    of = PAY if also else ""
    labels = [s.label for s in window]
    lags = tuple(zip(labels[1:], labels, strict=False))
    return WindowView(
        "rich",
        "card",
        PAY,
        "card",
        (
            count(),
            count(where=LARGE, of=of, name="large", lags=lags),
            total("amount", where=LARGE, of=of, name="large", lags=lags),
            mean("amount", where=BAND, of=of, name="band", lags=lags),
            mean("points", of=of, name="all"),
            minimum("amount", where=AT_A, of=of, name="at_a"),
            maximum("points", where=BAND, of=of, name="band"),
            std("amount", over=labels[-1:], where=BAND, of=of, name="band"),
            distinct("shop", registers=256),
            distinct("shop", where="shop != 'b'", registers=256, name="not_b"),
            distinct("event_id", over=labels[:1], where=LARGE, of=of, name="large"),
            last("amount", (1, 2, 5), of=of, name="pay"),
            last("points", (1, 3), where=LARGE, of=of, name="large"),
            since_last((1, 2, 7)),
            since_last((1, 2), where=BAND, of=of, name="band"),
            *([count(of=ASK), since_last(of=ASK)] if also else []),
        ),
        window,
        also=also,
    )


VIEWS = [rich(), rich(SHORT), rich(also=(ASK,)), rich(SHORT, (ASK,))]


@settings(max_examples=SQL_EXAMPLES // 2)  # its views have several times the columns of others
@given(streams(), st.sampled_from(WINDOWS), st.sampled_from([PAY, ASK]), st.booleans())
def test_every_value_is_what_sql_says(
    events: pa.Table, window: tuple[Span, ...], decision: str, several: bool
) -> None:
    check(rich(window, (ASK,) if several else ()), events, decision)


@pytest.mark.parametrize("v", VIEWS, ids=lambda v: f"{len(v.events)} {v.spans[0].label}")
@pytest.mark.parametrize("decision", [PAY, ASK])
def test_busy_keys_whose_readers_run_ahead(v: WindowView, decision: str) -> None:
    check(v, busy(len(v.columns)), decision)


@given(streams(), st.sampled_from(VIEWS), st.data())
def test_a_batch_cut_anywhere_and_restored_at_every_cut(
    events: pa.Table, v: WindowView, data: st.DataObject
) -> None:
    rows = rows_of(v, events, PAY)
    whole, final = run(v, rows)
    state, seen = ViewState(v), []
    for piece in cut(rows, data.draw(st.lists(st.integers(0, events.num_rows), max_size=8))):
        fresh = ViewState(v)
        fresh.restore(state.snapshot())
        assert fresh.snapshot().equals(state.snapshot(), check_metadata=True)
        state = fresh
        seen.append(asked_bits(state.process(piece), piece))
    expected = asked_bits(whole, rows)
    padded = [s + [b""] * (len(expected) - len(s)) for s in seen]
    assert [b"".join(parts) for parts in zip(*padded, strict=True)] == expected
    assert state.snapshot().equals(final.snapshot(), check_metadata=True)


@settings(max_examples=max(10, settings().max_examples // len(VIEWS)))
@given(streams(), st.sampled_from([PAY, ASK]))
def test_one_by_one_in_columns_and_as_replay(events: pa.Table, decision: str) -> None:
    names = [f"v{i}" for i in range(len(VIEWS))]
    views = [
        WindowView(n, v.entity, v.event, v.key, v.aggregates, v.spans, also=v.also)
        for n, v in zip(names, VIEWS, strict=True)
    ]
    live, replayed = WindowEngine(views, decision), WindowEngine(views, decision)
    seen = []
    for i, e in enumerate(events.to_pylist()):
        seen.append(live.observe(e["kind"], e, e["offset"]))
        if i % 3 == 2:
            replayed.apply(chunks_of(events.slice(i - 2, 3)))
    replayed.apply(chunks_of(events.slice(len(events) - len(events) % 3)))
    columns = []
    for v in views:
        values, state = run(v, rows_of(v, events, decision))
        columns.append(values.before[reading(events, decision)])
        assert live.states[v.name].snapshot().equals(state.snapshot(), check_metadata=True)
    assert b"".join(seen) == np.ascontiguousarray(np.hstack(columns)).tobytes()
    for a, b in zip(live.snapshot(), replayed.snapshot(), strict=True):
        assert a.equals(b, check_metadata=True)


@given(streams(), st.sampled_from(VIEWS), st.integers(2, 4))
def test_partitions_merge_to_the_whole(events: pa.Table, v: WindowView, parts: int) -> None:
    rows = rows_of(v, events, PAY)
    _, whole = run(v, rows)
    merged = ViewState(v)
    for p in range(parts):
        _, state = run(v, part_of(rows, np.asarray(rows.keys % parts == p)))
        merged.restore(state.snapshot())
    assert merged.snapshot().equals(whole.snapshot(), check_metadata=True)


def test_last_events_outlive_every_window() -> None:
    v = rich(SHORT)
    events = pa.Table.from_pylist(
        [
            event(0, TODAY, amount=7),
            event(1, TODAY + 1_000, amount=9),
            event(2, TODAY + 900 * DAY, ASK),
        ],
        SCHEMA,
    )
    values, _ = run(v, rows_of(v, events, ASK))
    found = dict(zip(v.column_names, values.before[2].tolist(), strict=True))
    assert found["rich_count_48s"] == 0
    assert found["rich_pay_amount_last"] == 9
    assert found["rich_pay_amount_last_2"] == 7
    assert found["rich_since_last_2"] == 900 * DAY / 1000
    assert np.isnan(found["rich_pay_amount_last_5"])


def test_a_late_event_takes_its_place_among_the_last() -> None:
    v = WindowView("v", "card", PAY, "card", (last("amount", (1, 2, 3)),), SHORT)
    rows = [
        event(0, TODAY, amount=1),
        event(1, TODAY - 400 * DAY, amount=2),
        event(2, TODAY, amount=3),
        event(3, TODAY, ASK),
    ]
    values, state = run(v, rows_of(v, pa.Table.from_pylist(rows, SCHEMA), ASK))
    assert values.before[3].tolist() == [3, 1, 2]
    assert state.too_old == 1
