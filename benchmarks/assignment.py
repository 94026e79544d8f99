"""What it costs to give a unit its arm: one at a time as a decision does, and a column at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from benchmarks.harness import alternate, check, summarise

UNITS = 1_000_000
IN_LINE = 20_000

DECLARED = """
name: benchmark
version: 1
unit: customer_id
layer: thresholds
arms:
  control: {share: 0.3}
  one: {share: 0.3}
  two: {share: 0.2}
holdout: 0.05
eligible: channel == 'online' and amount >= 100
metrics: {name: conversion, of: conversion}
minimum_effect: 0.02
horizon: 28d
"""
"""Three arms, a holdout and a condition: all that an assignment may have to look at."""


class Cost(NamedTuple):
    """Medians, and the raw samples in seconds by candidate."""

    assign_us: float
    assignments_per_s: float
    samples: dict[str, list[float]]


def measure(units: int = UNITS, repeats: int = 5) -> Cost:
    """Assign the same units both ways on one thread; raises WrongResult unless they agree.

    ``assign_us`` is a whole ``place`` of a decision event, with its condition;
    ``assignments_per_s`` is over a column of keys in memory.
    """
    import pyarrow as pa

    from features.payments import project
    from raypipe.experiments.assignment import NOT_IN, Assignment
    from raypipe.experiments.reading import parse_experiment

    assignment = Assignment(parse_experiment(DECLARED), project)
    keys = pa.array([f"customer-{i}" for i in range(units)])
    some = keys.slice(0, min(IN_LINE, units)).to_pylist()
    events = [
        {"tenant": "t", "customer_id": key, "channel": "online", "amount": 100} for key in some
    ]
    placed = [assignment.place(event) for event in events]
    alone = np.array([NOT_IN if p is None else p.arm for p in placed], np.int8)
    together = assignment.arms_of("t", keys)
    check(bool((alone == together[: len(alone)]).all()), "a unit has its column's arm")
    samples = alternate(
        {
            "in_line": lambda: [assignment.place(event) for event in events],
            "column": lambda: assignment.arms_of("t", keys),
        },
        repeats=repeats,
        warmup=1,
    )
    took = {name: summarise(values).median for name, values in samples.items()}
    return Cost(took["in_line"] / len(events) * 1e6, units / took["column"], samples)
