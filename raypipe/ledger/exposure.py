"""Exposures as records of the log: that an arm of an experiment mattered, once for each decision.

They are written in the same transaction as the decision that was made with the arm, so there is
one for each (experiment, decision), and none without the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import pyarrow as pa

from raypipe.ledger.record import DecisionRecord

EXPOSURE = "exposure"
"""Kind of these records."""


class Counted(msgspec.Struct, frozen=True, array_like=True):
    """Exposures of an arm so far; the times of the first and the last decision are ms UTC."""

    experiment: str
    arm: str
    exposures: int
    first_ms: int
    last_ms: int

    def with_(self, other: Counted) -> Counted:
        """Both together, of one arm."""
        return Counted(
            self.experiment,
            self.arm,
            self.exposures + other.exposures,
            min(self.first_ms, other.first_ms),
            max(self.last_ms, other.last_ms),
        )


EXPOSURE_SCHEMA = pa.schema(
    [
        pa.field("tenant", pa.string(), nullable=False),
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("experiment", pa.string(), nullable=False),
        pa.field("arm", pa.string(), nullable=False),
        pa.field("unit", pa.string(), nullable=False),
        pa.field("propensity", pa.float64(), nullable=False),
        pa.field("decision_id", pa.string(), nullable=False),
        pa.field("decided_event_id", pa.string(), nullable=False),
        pa.field("event_offset", pa.int64(), nullable=False),
        pa.field("event_time", pa.int64(), nullable=False),
        pa.field("decided_at", pa.int64(), nullable=False),
    ]
)
"""How exposures lie in the log: ``event_id`` is ``exposure_id``, ``event_offset`` and
``event_time`` are those of the decided event."""


def exposure_id(decision_id: str, experiment: str) -> str:
    """The id of the one exposure of a decision to an experiment.

    >>> exposure_id("dec_a", "limits@2")
    'dec_a/limits@2'
    """
    return f"{decision_id}/{experiment}"


def exposures_batch(records: Iterable[DecisionRecord]) -> pa.RecordBatch | None:
    """All exposures of some decisions in their order; None where there are none."""
    rows: list[dict[str, Any]] = [
        {
            "tenant": r.tenant,
            "event_id": exposure_id(r.decision_id, e.experiment),
            "experiment": e.experiment,
            "arm": e.arm,
            "unit": e.unit,
            "propensity": e.propensity,
            "decision_id": r.decision_id,
            "decided_event_id": r.event_id,
            "event_offset": r.event_offset,
            "event_time": r.event_time,
            "decided_at": r.decided_at,
        }
        for r in records
        for e in r.exposed
    ]
    return pa.RecordBatch.from_pylist(rows, EXPOSURE_SCHEMA) if rows else None
