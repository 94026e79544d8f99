"""Event patterns: card testing and velocity over payments, beside loops with a deque per card.

No Python library for such patterns is kept up, so the peer is what a team writes by hand: one
function that takes an event, with a dictionary of cards. Both see the same rows in log order and
must name the same completing events. The peer is handed its values as lists; what it costs to get
them out of Arrow is not counted.
"""

from __future__ import annotations

import argparse
from collections import defaultdict, deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from benchmarks.harness import Result, alternate, check, summarise

if TYPE_CHECKING:
    from raypipe.log.port import Chunk
    from raypipe.patterns.spec import Pattern

SUITE = "patterns"
SEED = 31
START_MS = 1_780_000_000_000
SIZES = (100, 1_000, 10_000)
"""Rows of a micro-batch."""

TESTING_MS, VELOCITY_MS = 3_600_000, 600_000
TESTS, BURST = 3, 10
SMALL, BIG, FACTOR = 500, 20_000, 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes; the defaults are those of committed results."""
    parser.add_argument("--rows", type=int, help="payments")
    parser.add_argument("--cards", type=int, help="different cards")
    parser.add_argument("--repeats", type=int, default=5)


def run(args: argparse.Namespace) -> Result:
    """Feed the same payments to both, in turns."""
    from raypipe.patterns.engine import compile_patterns

    compile_patterns()
    size = args.rows or (100_000 if args.quick else 1_000_000)
    cards = args.cards or size // 20
    batch = _payments(size, cards)
    answers: dict[str, list[str]] = {}
    patterns = _patterns()
    candidates: dict[str, Callable[[], object]] = {
        f"{n} rows": partial(_ours, patterns, _chunks(batch, n), answers, f"{n} rows")
        for n in SIZES
    }
    columns = [batch.column(n).to_pylist() for n in ("event_id", "event_time", "card_id", "amount")]
    candidates["loops"] = partial(_loops, columns, answers)
    samples = alternate(candidates, repeats=args.repeats, warmup=1)
    for name, found in answers.items():
        check(found == answers["loops"], f"{name} finds other matches than the loops")
    check(len(answers["loops"]) > size // 10_000, "hardly anything matches")
    s = {name: summarise(values).median for name, values in samples.items()}
    each = size * len(patterns)
    return Result(
        SUITE,
        {
            "ratio_vs_loops": s["loops"] / s["1000 rows"],
            **{f"ns_per_event_and_pattern_{n}": s[f"{n} rows"] / each * 1e9 for n in SIZES},
            "ns_per_event_and_pattern_loops": s["loops"] / each * 1e9,
            "matches": len(answers["loops"]),
            "rows": size,
        },
        samples,
        (
            f"{size:,} payments of {cards:,} cards, two shipped patterns",
            "alerts include reason and event ids; the loops give the last event's id alone",
        ),
    )


def _patterns() -> list[Pattern]:
    from pathlib import Path

    import features
    from raypipe.patterns.reading import read_patterns

    file = Path(features.__file__).parent / "patterns" / "payments.yaml"
    return [p for p in read_patterns(file) if p.name in ("card_testing", "card_velocity")]


def _payments(size: int, cards: int) -> pa.RecordBatch:
    """Quiet cards, and bursts of small payments of some, each with a big one at its end."""
    from features.payments import TRANSACTION

    rng = np.random.default_rng(SEED)
    times = START_MS + np.cumsum(rng.integers(0, 200, size))
    keys = rng.integers(0, cards, size)
    amounts = rng.integers(600, 15_000, size)
    for at in range(500, size - 100, 2_000):
        burst = at + 7 * np.arange(rng.integers(3, 13))
        keys[burst] = rng.integers(0, cards)
        amounts[burst] = rng.integers(100, 499, len(burst))
        amounts[burst[-1]] = rng.integers(8_000, 60_000)
    names = pa.array([f"card_{i:08d}" for i in range(cards)])
    columns: dict[str, Any] = {
        "tenant": ["t"] * size,
        "event_id": [f"event_{i:012d}" for i in range(size)],
        "event_time": times,
        "received_at": times,
        "card_id": names.take(pa.array(keys)),
        "customer_id": ["k"] * size,
        "merchant_id": ["m"] * size,
        "amount": amounts,
        "currency": ["EUR"] * size,
    }
    schema = TRANSACTION.arrow_schema
    arrays = [
        pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(size, f.type)
        for f in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _chunks(batch: pa.RecordBatch, rows: int) -> list[Chunk]:
    from raypipe.log.port import Chunk

    return [
        Chunk("transaction", np.arange(at, min(at + rows, len(batch))), batch.slice(at, rows))
        for at in range(0, len(batch), rows)
    ]


def _ours(
    patterns: list[Pattern], chunks: list[Chunk], answers: dict[str, list[str]], name: str
) -> None:
    import json

    from features.payments import project
    from raypipe.patterns.engine import PatternEngine

    engine = PatternEngine(patterns, project.events)
    alerts = [a for chunk in chunks for a in engine.apply([chunk])]
    check(all(s["dropped"] == 0 for s in engine.stats.values()), "partial matches were given up")
    answers[name] = sorted(f"{a.pattern} {json.loads(a.events)[-1]}" for a in alerts)


def _loops(columns: list[list[Any]], answers: dict[str, list[str]]) -> None:
    """The same two stories by hand."""
    recent: defaultdict[str, deque[int]] = defaultdict(lambda: deque(maxlen=BURST))
    small: defaultdict[str, deque[tuple[int, int]]] = defaultdict(lambda: deque(maxlen=TESTS))
    waiting: defaultdict[str, list[list[int]]] = defaultdict(list)
    found = []
    for event_id, time, card, amount in zip(*columns, strict=True):
        times = recent[card]
        times.append(time)
        if len(times) == BURST and time - times[0] <= VELOCITY_MS:
            found.append(f"card_velocity {event_id}")
            times.clear()
        if amount < SMALL:
            for match in waiting[card]:
                if time - match[0] <= TESTING_MS:
                    match[1] = max(match[1], amount)
            tests = small[card]
            tests.append((time, amount))
            if len(tests) == TESTS and time - tests[0][0] <= TESTING_MS:
                waiting[card].append([tests[0][0], max(a for _, a in tests)])
        elif amount >= BIG and card in waiting:
            live = [m for m in waiting[card] if time - m[0] <= TESTING_MS]
            if any(amount > FACTOR * most for _, most in live):
                found.append(f"card_testing {event_id}")
                small[card].clear()
                live = []
            waiting[card] = live
    answers["loops"] = sorted(found)
