"""Business counters by minute: micro-batches into a table, beside polars with sets in Python.

The input is a shop's events as the worker hands them over: Arrow batches by event type, which
their offsets bring into one order. The peer is what one writes with a data frame library: partial
sums of each micro-batch, merged in a dictionary, sessions in sets. It knows no tenants and no late
events, and its distinct counts are exact while ours are estimates; counts and sums are compared
exactly.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness import Result, alternate, check, summarise

if TYPE_CHECKING:
    import pyarrow as pa

    from raypipe.events.schema import Field
    from raypipe.log.port import Chunk

SUITE = "tables"
SEED = 29
START = 1_790_000_040_000
PER_SECOND = 20_000
"""Rate at which the events arrived."""

MIX = {
    "page_view": 0.55,
    "search": 0.08,
    "cart": 0.12,
    "order": 0.06,
    "payment": 0.08,
    "refund": 0.01,
    "login": 0.08,
    "password_change": 0.01,
    "chargeback": 0.01,
}
VISITS = ("page_view", "search", "cart", "order")
SPAN_MS = 60_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes; the defaults are those of committed results."""
    parser.add_argument("--batches", type=int, help="micro-batches")
    parser.add_argument("--rows", type=int, default=4_000, help="events of a micro-batch")
    parser.add_argument("--repeats", type=int, default=5)


def run(args: argparse.Namespace) -> Result:
    """Feed the same micro-batches to both, then compare every window."""
    count = args.batches or (100 if args.quick else 1_000)
    batches = _batches(count, args.rows)
    ours, theirs = _ours(batches), _polars(batches)
    worst = _compare(ours, theirs)
    events = count * args.rows
    samples = alternate(
        {"table": partial(_ours, batches), "polars": partial(_polars, batches)},
        repeats=args.repeats,
        warmup=1,
    )
    s = {name: summarise(values).median for name, values in samples.items()}
    return Result(
        SUITE,
        {
            "events_per_s": events / s["table"],
            "polars_events_per_s": events / s["polars"],
            "ratio_vs_polars": s["polars"] / s["table"],
            "worst_distinct_error": worst,
            "events": events,
            "batch_rows": args.rows,
        },
        samples,
        (
            "table `business` of the commerce project: 8 counts and sums, distinct sessions",
            f"events of {len(MIX)} types at {PER_SECOND:,}/s, up to 40 s after they happened",
            "columns in memory; neither reading the log nor writing it is part of the time",
        ),
    )


def _batches(count: int, rows: int) -> list[list[Chunk]]:
    import pyarrow as pa

    from features.commerce import project
    from raypipe.log.port import Chunk

    rng, found = np.random.default_rng(SEED), []
    for number in range(count):
        offsets = number * rows + np.arange(rows)
        arrived = START + offsets * 1_000 // PER_SECOND
        kinds = rng.choice(list(MIX), rows, p=list(MIX.values()))
        chunks = []
        for kind in MIX:
            at = np.flatnonzero(kinds == kind)
            event = project.event(kind)
            columns = [_column(rng, f, offsets[at], arrived[at]) for f in event.all_fields]
            batch = pa.RecordBatch.from_arrays(columns, schema=event.arrow_schema)
            chunks += [Chunk(kind, offsets[at], batch)] if len(at) else []
        found.append(chunks)
    return found


def _column(
    rng: np.random.Generator,
    field: Field,
    offsets: npt.NDArray[np.int64],
    arrived: npt.NDArray[np.int64],
) -> pa.Array:
    import pyarrow as pa

    n = len(offsets)
    match field.name:
        case "tenant":
            return pa.array(["default"] * n)
        case "event_id":
            return pa.array([f"e-{o}" for o in offsets.tolist()])
        case "event_time":
            return pa.array(arrived - rng.integers(0, 40_000, n))
        case "received_at":
            return pa.array(arrived)
    if field.choices:
        return pa.array(rng.choice(field.choices, n).tolist())
    if field.arrow_type == pa.string():
        return pa.array([f"{field.name}-{i}" for i in rng.integers(0, 20_000, n).tolist()])
    if field.arrow_type == pa.bool_():
        return pa.array(rng.random(n) < 0.9)
    return pa.array(rng.integers(1, 90, n)).cast(field.arrow_type)


def _ours(batches: list[list[Chunk]]) -> dict[int, dict[str, Any]]:
    from features.commerce import project
    from raypipe.tables.engine import TableEngine

    engine = TableEngine(project.tables[:1], project.events)
    for chunks in batches:
        engine.apply(chunks)
    now = engine.watermark("business") or START
    rows = engine.read("default", "business", START - SPAN_MS, now + 1, now)
    check(sum(r["late"] for r in rows) == 0, "nothing was late")
    return {r["start"] // SPAN_MS: r for r in rows}


def _polars(batches: list[list[Chunk]]) -> dict[int, dict[str, Any]]:
    import polars as pl

    window = (pl.col("event_time") // SPAN_MS).alias("window")
    asked: dict[str, tuple[list[str], list[pl.Expr]]] = {
        kind: (["session_id"], [pl.len().alias("n"), pl.col("session_id").unique()])
        for kind in VISITS
    }
    asked |= {"refund": (["amount"], [pl.len().alias("n"), pl.col("amount").sum()])}
    asked |= {"chargeback": ([], [pl.len().alias("n")])}
    declined = (pl.col("approved") == False).sum().alias("declined")  # noqa: E712 - an expression
    asked |= {"payment": (["approved"], [pl.len().alias("n"), declined])}
    asked["order"] = (
        ["session_id", "amount"],
        [*asked["order"][1], pl.col("amount").sum()],
    )
    counts: dict[tuple[int, str], int] = defaultdict(int)
    sessions: dict[int, set[str]] = defaultdict(set)
    for chunks in batches:
        for chunk in chunks:
            if chunk.kind not in asked:
                continue
            columns, measures = asked[chunk.kind]
            frame = pl.DataFrame(pl.from_arrow(chunk.batch.select(["event_time", *columns])))
            for row in frame.group_by(window).agg(measures).iter_rows(named=True):
                at = row["window"]
                counts[at, chunk.kind] += row["n"]
                for name in ("amount", "declined"):
                    counts[at, f"{chunk.kind}.{name}"] += row.get(name, 0)
                sessions[at].update(row.get("session_id", ()))
    names = {
        "orders": "order",
        "revenue": "order.amount",
        "page_views": "page_view",
        "payments": "payment",
        "declined": "payment.declined",
        "refunds": "refund",
        "refunded": "refund.amount",
        "chargebacks": "chargeback",
    }
    return {
        at: {ours: counts[at, theirs] for ours, theirs in names.items()} | {"sessions": len(seen)}
        for at, seen in sessions.items()
    }


def _compare(ours: dict[int, dict[str, Any]], theirs: dict[int, dict[str, Any]]) -> float:
    """Every count and sum must be equal; the worst relative error of distinct sessions."""
    worst = 0.0
    for at, facts in theirs.items():
        for name, value in facts.items():
            if name == "sessions":
                worst = max(worst, abs(ours[at][name] - value) / value)
            else:
                check(ours[at][name] == value, f"{name} of {at}: {ours[at][name]}, not {value}")
    check(worst < 4 * 1.04 / 4_096**0.5, f"distinct sessions are off by {worst:.1%}")
    return worst
