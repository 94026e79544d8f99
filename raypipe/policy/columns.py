"""A policy over columns: the verdicts that one event at a time would get, many at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.policy.lists import Lists
from raypipe.policy.names import AWAY, SCORE
from raypipe.policy.policy import Action
from raypipe.policy.program import Phase, Program
from raypipe.policy.rules import BoundPolicy

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

ACTIONS = tuple(Action)
"""By severity: a column of actions holds places in it."""


@dataclass(frozen=True)
class Verdicts:
    """The verdicts about n events."""

    action: npt.NDArray[np.int8]
    """Places in ACTIONS [n]."""
    hits: Flags
    """By rule in order of evaluation [n, rules]."""
    threshold: npt.NDArray[np.int8]
    """The action of the threshold that was exceeded, 0 for none [n]."""
    segment: npt.NDArray[np.int16]
    """Places among the segments; their number stands for ``default`` [n]."""
    degraded: Flags
    """There was no usable score [n]."""


def decide_columns(
    policy: BoundPolicy,
    score: Floats,
    events: pa.Table,
    rows: npt.NDArray[np.float32],
    lists: Lists,
    at: npt.NDArray[np.int64],
    worker_away: Flags,
) -> Verdicts:
    """The verdicts about n events, as ``policy.decide`` gives them one by one.

    Args:
        score: float64 [n], NaN for none.
        events: the decision events [n].
        rows: float32 [n, features of the model]; without a score they mean nothing.
        lists: the tenant's, with their past.
        at: when each is decided, ms [n].
        worker_away: which are decided without the worker [n].
    """
    program = policy.program
    with np.errstate(invalid="ignore"):
        usable = (score >= 0.0) & (score <= 1.0)
    score_or_nan = np.where(usable, score, np.nan)
    holds = _holds(program, score_or_nan, events, rows, lists, at, worker_away, usable)
    segment = np.full(len(score), len(program.segments), np.int16)
    for place in reversed(range(len(program.segments))):
        segment[holds[program.segments[place]] != 0.0] = place
    hits = np.zeros((len(score), len(program.rules)), np.bool_)
    for place, name in enumerate(program.rules):
        hits[:, place] = (holds[name] != 0.0) & (usable | program.independent[place])
    action = np.zeros(len(score), np.int8)
    threshold = np.zeros(len(score), np.int8)
    phases = np.searchsorted(np.array(program.moments, np.int64), at, "right")
    for number in np.unique(phases):
        mine = np.flatnonzero(phases == number)
        phase = program.phases[number]
        hits[mine], ended = _fired(program, phase, hits[mine])
        flags = _thresholds(phase, score[mine], segment[mine])
        flags[ended | ~usable[mine]] = 0
        threshold[mine] = flags
        asked = [0 if h is None else h.action.severity for h in phase.hits]
        by_rules = (hits[mine] * np.array(asked, np.int8)).max(axis=1, initial=0)
        action[mine] = np.maximum(by_rules, flags)
    action[~usable] = np.maximum(action[~usable], policy.spec.on_error.severity)
    return Verdicts(action, hits, threshold, segment, ~usable)


def _holds(
    program: Program,
    score: Floats,
    events: pa.Table,
    rows: npt.NDArray[np.float32],
    lists: Lists,
    at: npt.NDArray[np.int64],
    worker_away: Flags,
    usable: Flags,
) -> dict[str, Floats]:
    """The answers of every expression, 1 or 0 [n]."""
    values: dict[str, Floats] = {SCORE: score, AWAY: worker_away.astype(np.float64)}
    for name in program.columns:
        # Unsafe only in that integers over 2**53 are rounded, as they are for a row.
        column = events.column(name).cast(pa.float64(), safe=False)
        values[name] = column.to_numpy(zero_copy_only=False).astype(np.float64)
    for name, place in program.features:
        values[name] = np.where(usable, rows[:, place].astype(np.float64), np.nan)
    for test, name in program.tests:
        compare = pc.equal if test.equal else pc.not_equal
        found = compare(events.column(test.column), test.text).fill_null(False)
        values[name] = found.to_numpy(zero_copy_only=False).astype(np.float64)
    for on, name, _ in program.lists:
        listed = lists.holds_columns(on.list, events.column(on.column), at)
        values[name] = listed.astype(np.float64)
    return program.of_columns(values)


def _fired(program: Program, phase: Phase, hits: Flags) -> tuple[Flags, Flags]:
    """The hits that count [n, rules], and whether a final rule ended the evaluation [n]."""
    on = np.array([h is not None for h in phase.hits], np.bool_)
    hits = hits & on
    final = hits & np.array(program.final, np.bool_)
    # A rule counts if no final one fired before it.
    before: npt.NDArray[np.int64] = np.cumsum(final, axis=1, dtype=np.int64) - final
    ended: Flags = np.asarray(final.any(axis=1), np.bool_)
    return hits & (before == 0), ended


def _thresholds(
    phase: Phase, score: Floats, segment: npt.NDArray[np.int16]
) -> npt.NDArray[np.int8]:
    """The severest action whose threshold a score exceeds, 0 for none [n]."""
    out = np.zeros(len(score), np.int8)
    for place, flags in enumerate(phase.flags):
        mine = segment == place
        for least, hit in reversed(flags):  # the severest last
            with np.errstate(invalid="ignore"):
                out[mine & (score > least)] = hit.action.severity
    return out
