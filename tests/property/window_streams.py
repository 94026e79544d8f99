"""Random event streams for window tests, the views they feed, and ways to run them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from hypothesis import strategies as st

from raypipe.events.schema import AMOUNT_LIMIT
from raypipe.log.port import Chunk
from raypipe.windows import kernel
from raypipe.windows.inputs import Inputs, key_hashes
from raypipe.windows.spec import (
    DEFAULT_SPANS,
    Aggregate,
    Span,
    WindowView,
    count,
    distinct,
    maximum,
    mean,
    minimum,
    since_last,
    spans,
    std,
    total,
)
from raypipe.windows.state import Rows, Values, ViewState

Event = dict[str, Any]

SCHEMA = pa.schema(
    {
        "offset": pa.int64(),
        "kind": pa.string(),
        "tenant": pa.string(),
        "event_id": pa.string(),
        "event_time": pa.int64(),
        "card": pa.string(),
        "shop": pa.string(),
        "amount": pa.int64(),
        "points": pa.int64(),
    }
)
"""Events of both types in one table; an event that only asks has neither amount nor points."""

PAY, ASK = "pay", "ask"

DAY = 86_400_000
BASES = (1_780_012_800_000, 946_684_800_000, 0, -62_135_596_800_000, 4_102_444_800_000)
"""Multiples of every hop used here (12 h), from the year 1 to 2100."""

TODAY = BASES[0]

EDGES = (1, 2, 3, 4, 5, 6, 8, 12, 40, 44, 48, 60, 300, 3_600, 86_400, 604_800, 2_592_000)


def view(
    key: str = "card", window: tuple[Span, ...] = DEFAULT_SPANS, name: str = "seen"
) -> WindowView:
    """A view over payments with every operation, every span, and each adjacent difference."""
    labels = [s.label for s in window]
    lags = tuple(zip(labels[1:], labels, strict=False))
    aggregates: tuple[Aggregate, ...] = (
        count(lags=lags),
        total("amount", lags=lags),
        mean("amount", lags=lags),
        minimum("amount"),
        maximum("amount"),
        std("amount"),
        total("points", over=labels[:1]),
        std("points", over=labels[-1:]),
        distinct("shop" if key == "card" else "card", bits=128),
        distinct("event_id", over=labels[:2]),
        since_last(),
    )
    return WindowView(name, key, PAY, key, aggregates, window)


SHORT = spans("2s/1s", "6s/2s", "12s/4s", "48s/8s")
ONE = spans("3s/1s")
SAME_HOP = spans("10s/5s", "15s/5s", "20s/5s", "1m/5s")
MIXED = spans("6s/3s", "30s/15s", "1m/15s", "1h/1m", "2d/12h", "400d/12h")
WINDOWS = (SHORT, DEFAULT_SPANS, ONE, SAME_HOP, MIXED)


@st.composite
def windows(draw: st.DrawFn) -> tuple[Span, ...]:
    """Spans that nest: any hops that divide each other, lengths just long enough or longer."""
    hop = draw(st.integers(1, 3))
    length = hop * draw(st.integers(2, 5))
    out = [f"{length}s/{hop}s"]
    for _ in range(draw(st.integers(0, 4))):
        reach = length - hop
        hop *= draw(st.integers(1, 4))
        least = max(length + 1, reach + hop, 2 * hop)
        length = hop * (-(-least // hop) + draw(st.integers(0, 2)))
        out.append(f"{length}s/{hop}s")
    return spans(*out)


AMOUNTS = st.one_of(
    st.integers(-3, 3),
    st.integers(-10_000, 10_000),
    st.sampled_from([AMOUNT_LIMIT - 1, 1 - AMOUNT_LIMIT, AMOUNT_LIMIT - 2, 2 - AMOUNT_LIMIT]),
)
KEYS = st.sampled_from(["a", "b", "", None, "ä", "a" * 40])
STEPS = st.one_of(
    st.sampled_from([0, 0, 0, 1, 500, 999, 1_000, 1_001]),
    st.sampled_from([s * 1_000 + d for s in EDGES for d in (-1, 0, 1)]),
    st.sampled_from([-1, -999, -1_000, *(-s * 1_000 + d for s in EDGES for d in (-1, 0, 1))]),
    st.integers(-60_000, 60_000),
    st.sampled_from([400 * DAY, 3_650 * DAY, -3_650 * DAY]),
)


@st.composite
def streams(draw: st.DrawFn, most: int = 40) -> pa.Table:
    """Events in log order: ties, late ones, jumps of years, missing keys, extreme amounts.

    Offsets grow but have gaps. A time is a step from the newest one, so that late events stay
    near the windows' edges. Some streams begin with one key's steady run, so that it has many
    tiles when the rest comes.
    """
    at = draw(st.sampled_from(BASES)) + draw(st.sampled_from([0, -1, 999, 12_345]))
    offset = draw(st.integers(0, 3))
    tenants = draw(st.sampled_from([["t"], ["t", "u"]]))
    rows: list[Event] = []
    pace = draw(st.sampled_from([1_000, 1_500, 5_000, 61_000, 1_800_000]))
    for i in range(draw(st.sampled_from([0, 0, 17, 20, 45]))):
        offset, at = offset + 1, at + pace
        rows.append(event(offset, at, shop=f"s{i}", amount=i, points=-i % 5))
    for _ in range(draw(st.integers(0, most))):
        time = at + draw(STEPS)
        at = max(at, time)
        offset += draw(st.sampled_from([1, 1, 1, 7]))
        rows.append(
            event(
                offset,
                time,
                kind=draw(st.sampled_from([PAY, PAY, ASK])),
                tenant=draw(st.sampled_from(tenants)),
                card=draw(KEYS),
                shop=draw(KEYS),
                amount=draw(AMOUNTS),
                points=draw(st.integers(-5, 5)),
            )
        )
    return pa.Table.from_pylist(rows, SCHEMA)


def busy(seed: int, n: int = 1_200) -> pa.Table:
    """Two busy keys: bursts and pauses, one event in six late, and asking events that run ahead.

    An asking event may carry a time that payments reach much later, or never: clocks of readers
    and of the view's own events are different things.
    """
    rng = np.random.default_rng(seed)
    pause = np.repeat(rng.choice([0, 200, 1_000, 7_000, 60_000, 1_800_000], n // 30), 30)
    times = TODAY + np.cumsum((pause * rng.exponential(1, n)).astype(np.int64))
    late = rng.random(n) < 1 / 6
    times[late] -= rng.choice([1_000, 5_000, 60_000, 3_600_000, 2 * DAY], int(late.sum()))
    asks = rng.random(n) < 0.4
    ahead = rng.choice([0, 500, 1_000, 2_000, 30_000, 3_600_000, 40 * DAY], n)
    times[asks] += ahead[asks]
    rows = [
        event(
            i,
            int(times[i]),
            ASK if asks[i] else PAY,
            card="ab"[rng.integers(2)],
            shop=f"s{rng.integers(40)}",
            amount=int(rng.integers(-(2**40) + 1, 2**40)),
            points=int(rng.integers(-5, 6)),
        )
        for i in range(n)
    ]
    return pa.Table.from_pylist(rows, SCHEMA)


def event(offset: int, time: int, kind: str = PAY, **fields: Any) -> Event:
    """One event; an asking one loses what only payments have."""
    row = {"tenant": "t", "card": "a", "shop": "s", "amount": 0, "points": 0} | fields
    if kind == ASK:
        row |= {"amount": None, "points": None}
    return row | {"offset": offset, "kind": kind, "event_time": time, "event_id": f"e{offset}"}


def rows_of(view: WindowView, events: pa.Table, decision: str) -> Rows:
    """What the state is fed: every event that reads or counts, in log order."""
    kinds = np.array(events["kind"].to_pylist())
    modes = np.where(kinds == decision, kernel.READ, 0)
    modes |= np.where(np.isin(kinds, view.events), kernel.UPDATE | kernel.READ_AFTER, 0)
    n = events.num_rows
    facts = (
        np.zeros((n, len(view.value_columns)), np.int64),
        np.zeros((n, len(view.sketches)), np.int64),
        np.zeros(n, np.int64),
    )
    for kind in view.events:
        mine = np.flatnonzero(kinds == kind)
        found = Inputs(view, kind).of_columns(events.take(mine))
        for into, values in zip(facts, found, strict=True):
            into[mine] = values
    return Rows(
        key_hashes(view, events),
        events["event_time"].to_numpy().copy(),
        events["offset"].to_numpy().copy(),
        modes.astype(np.uint8),
        *facts,
    )


def chunks_of(events: pa.Table) -> list[Chunk]:
    """A run of events as the log gives back a group: a chunk a kind."""
    found = []
    for kind in events["kind"].unique().to_pylist():
        mine = events.filter(pc.equal(events["kind"], kind)).combine_chunks()
        found += [Chunk(kind, b["offset"].to_numpy(), b) for b in mine.to_batches()]
    return found


def part_of(rows: Rows, at: slice | npt.NDArray[np.bool_]) -> Rows:
    """Some of the rows, in their order."""
    return Rows(*(np.ascontiguousarray(getattr(rows, n)[at]) for n in Rows.__slots__))


def reading(events: pa.Table, decision: str) -> npt.NDArray[np.bool_]:
    """Which events read [n]."""
    return np.array(events["kind"].to_pylist(), object) == decision


def values_at(
    events: pa.Table, mask: npt.NDArray[np.bool_], values: npt.NDArray[Any]
) -> dict[int, Any]:
    """Values of the masked events by offset."""
    if not mask.any():
        return {}  # a batch in which nothing asks for values after has none
    offsets = events["offset"].to_numpy()[mask].tolist()
    return dict(zip(offsets, values[mask], strict=True))


def asked_bits(values: Values, rows: Rows) -> list[bytes]:
    """The bytes of everything that the rows asked for."""
    read = (rows.modes & kernel.READ) != 0
    after = ((rows.modes & kernel.READ_AFTER) != 0) & (rows.keys != 0)
    out = [values.before[read].tobytes(), values.newest[read].tobytes()]
    if len(values.after):
        out += [values.after[after].tobytes(), values.clocks[after].tobytes()]
    return out


def cut(rows: Rows, places: Sequence[int]) -> list[Rows]:
    """Rows cut before each of the given places; pieces may be empty."""
    edges = [0, *sorted(places), len(rows.keys)]
    return [part_of(rows, slice(a, b)) for a, b in pairwise(edges)]


def run(view: WindowView, rows: Rows) -> tuple[Values, ViewState]:
    """Everything in one batch."""
    state = ViewState(view)
    return state.process(rows), state
