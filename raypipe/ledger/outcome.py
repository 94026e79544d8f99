"""What people say about decisions, as records of the log: who works on one, and how it ended."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import msgspec
import pyarrow as pa

from raypipe.events.schema import canonical_json

OUTCOME = "outcome"
"""Kind of the records that say what a decision's event turned out to be."""

CLAIM = "claim"
"""Kind of the records that say who works on a decision, and until when."""

REVIEW = "review"
"""Source of an outcome that a reviewer gave; others name what they know it from."""


class Truth(StrEnum):
    """What an event turned out to be."""

    FRAUD = "fraud"
    GENUINE = "genuine"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One statement about a decision. A later one about the same decision corrects it.

    ``by`` is who said it, ``source`` what it is known from, ``occurred_at`` when it became known
    outside (ms UTC), ``recorded_at`` when it came here. ``action`` and ``model`` are those of the
    decision.
    """

    outcome_id: str
    tenant: str
    decision_id: str
    event_id: str
    outcome: str
    source: str
    by: str
    reason: str
    occurred_at: int
    recorded_at: int
    action: str
    model: str

    @property
    def said(self) -> tuple[str, ...]:
        """What a repetition has to say again to be one."""
        return (self.decision_id, self.outcome, self.source, self.by, self.reason)


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """``holder`` works on a decision until ``held_until``, ms UTC."""

    claim_id: str
    tenant: str
    decision_id: str
    holder: str
    claimed_at: int
    held_until: int


OUTCOME_SCHEMA = pa.schema(
    [
        pa.field("tenant", pa.string(), nullable=False),
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("decision_id", pa.string(), nullable=False),
        pa.field("decided_event_id", pa.string(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("by", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("event_time", pa.int64(), nullable=False),
        pa.field("received_at", pa.int64(), nullable=False),
        pa.field("action", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
    ]
)
"""How outcomes lie in the log; ``event_id`` is the outcome's own id."""

CLAIM_SCHEMA = pa.schema(
    [
        pa.field("tenant", pa.string(), nullable=False),
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("decision_id", pa.string(), nullable=False),
        pa.field("holder", pa.string(), nullable=False),
        pa.field("event_time", pa.int64(), nullable=False),
        pa.field("held_until", pa.int64(), nullable=False),
    ]
)
"""How claims lie in the log."""

_OUTCOME_NAMES = {
    "event_id": "outcome_id",
    "decided_event_id": "event_id",
    "event_time": "occurred_at",
    "received_at": "recorded_at",
}
_CLAIM_NAMES = {"event_id": "claim_id", "event_time": "claimed_at"}


def outcome_id(tenant: str, decision_id: str, said: Sequence[str], key: str | None) -> str:
    """The id of a statement: of its idempotency key, else of all that it says, so that a
    repetition has the same one."""
    told = [tenant, decision_id, *(["key", key] if key is not None else said)]
    return "out_" + hashlib.sha256(canonical_json(told)).hexdigest()[:32]


def outcomes_batch(outcomes: Sequence[Outcome]) -> pa.RecordBatch:
    """Outcomes as one batch of OUTCOME_SCHEMA."""
    return _batch(outcomes, OUTCOME_SCHEMA, _OUTCOME_NAMES)


def claims_batch(claims: Sequence[Claim]) -> pa.RecordBatch:
    """Claims as one batch of CLAIM_SCHEMA."""
    return _batch(claims, CLAIM_SCHEMA, _CLAIM_NAMES)


def read_outcomes(batch: pa.RecordBatch) -> list[Outcome]:
    """The outcomes of a batch."""
    return [Outcome(**_named(row, _OUTCOME_NAMES)) for row in batch.to_pylist()]


def read_claims(batch: pa.RecordBatch) -> list[Claim]:
    """The claims of a batch."""
    return [Claim(**_named(row, _CLAIM_NAMES)) for row in batch.to_pylist()]


def _batch(records: Sequence[Any], schema: pa.Schema, names: dict[str, str]) -> pa.RecordBatch:
    columns = [[getattr(r, names.get(f.name, f.name)) for r in records] for f in schema]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _named(row: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {names.get(n, n): value for n, value in row.items()}
