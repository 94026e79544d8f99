"""The recorded decision: everything that is needed to explain it and to compute it again."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import msgspec
import pyarrow as pa

from raypipe.events.rows import batch_of


class Reason(msgspec.Struct, frozen=True):
    """One feature's share in a score, in log-odds, positive speaks for fraud; or a rule that fired.

    A rule has no feature and no share. ``words`` are for people; "" where nobody wrote any.
    """

    code: str
    feature: str
    contribution: float
    words: str = ""


OwnerOffsets = tuple[tuple[int, int], ...] | msgspec.UnsetType
"""Of an event that several workers have: (partition, offset) of each, the primary owner first."""


class Exposed(msgspec.Struct, frozen=True):
    """The arm of an experiment that a decision was made with.

    ``experiment`` is ``name@version``, ``propensity`` how likely the arm was for a unit of the
    experiment, from 0 to 1.
    """

    experiment: str
    arm: str
    unit: str
    propensity: float


class DecisionRecord(msgspec.Struct, frozen=True):
    """One decision.

    ``features`` are little-endian float32 in the model's feature order. ``profile_times`` are, by
    declared profile, the midnight that its values are of (ms, -1 where nothing was known); none
    when the profiles couldn't be read. ``owner_offsets`` are of several workers alone.
    ``rule_hits`` are the names of rules that fired, ``codes`` their reason codes. ``lists`` is the
    version of the tenant's lists that the policy was given, "" if it reads none, and ``list_hits``
    are the ``list:column`` that were on one: all it takes to decide again without the lists.
    ``degraded_by`` says why, where the worker was away. A ``spilled`` decision was answered before
    its event was in the log, so its features need not be made from the event's stored windows.
    ``experiment`` and ``arm`` are set while models share the decisions: ``champion``, or the
    model version that has this key. ``exposures`` are the arms of declared experiments, one of each
    layer at most; ``exposed`` reads them.
    """

    decision_id: str
    tenant: str
    event_id: str
    event_offset: int
    event_time: int
    received_at: int
    decided_at: int
    model: str
    model_sha256: str
    policy: str
    policy_sha256: str
    definition_hash: str
    features: bytes
    score: float | None
    action: str
    reasons: tuple[Reason, ...] = ()
    rule_hits: tuple[str, ...] = ()
    experiment: str | None = None
    degraded: bool = False
    profile_times: tuple[int, ...] = ()
    owner_offsets: OwnerOffsets = msgspec.UNSET
    codes: tuple[str, ...] = ()
    segment: str = ""
    lists: str = ""
    list_hits: tuple[str, ...] = ()
    degraded_by: tuple[str, ...] = ()
    spilled: bool = False
    arm: str | None = None
    exposures: tuple[Exposed, ...] | msgspec.UnsetType = msgspec.UNSET

    @property
    def exposed(self) -> tuple[Exposed, ...]:
        """The arms of declared experiments that it was made with."""
        return () if isinstance(self.exposures, msgspec.UnsetType) else self.exposures

    @property
    def worker_away(self) -> bool:
        """Whether it was made without the worker."""
        return WORKER_AWAY in self.degraded_by

    @property
    def told(self) -> DecisionRecord:
        """What its client was told of it: without its event's place in the log."""
        return msgspec.structs.replace(
            self, event_offset=NOWHERE, owner_offsets=msgspec.UNSET, spilled=False
        )


WORKER_AWAY = "worker_away"
"""Why a decision is degraded: its windows are the last that were written."""

NOWHERE = -1
"""Place of an event that is not in the log yet."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(DecisionRecord)


def encode(record: DecisionRecord) -> bytes:
    """The record as MessagePack."""
    return _encoder.encode(record)


def decode(data: bytes) -> DecisionRecord:
    """The record from :func:`encode`; raises msgspec.DecodeError on other bytes."""
    return _decoder.decode(data)


def decision_id(tenant: str, event_id: str) -> str:
    """The id of the one decision about an event: a pure function, so a retry asks for the same.

    >>> decision_id("default", "tx-1")
    'dec_fsldxcvujhjtqftwviaxhpdbny'
    """
    digest = hashlib.sha256(f"{len(tenant)}:{tenant}{event_id}".encode()).digest()[:16]
    return "dec_" + base64.b32encode(digest).decode().rstrip("=").lower()


LOG_SCHEMA = pa.schema(
    [
        pa.field("tenant", pa.string(), nullable=False),
        pa.field("decision_id", pa.string(), nullable=False),
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("event_time", pa.int64(), nullable=False),
        pa.field("decided_at", pa.int64(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("action", pa.string(), nullable=False),
        pa.field("score", pa.float32()),
        pa.field("degraded", pa.bool_(), nullable=False),
        pa.field("record", pa.binary(), nullable=False),
    ]
)
"""How decisions lie in the log: the columns that projections filter by, and the whole record."""

LOG_KIND = "decision"


def to_batch(records: list[DecisionRecord]) -> pa.RecordBatch:
    """Records as one batch of LOG_SCHEMA."""
    rows: list[dict[str, Any]] = [
        {
            "tenant": r.tenant,
            "decision_id": r.decision_id,
            "event_id": r.event_id,
            "event_time": r.event_time,
            "decided_at": r.decided_at,
            "model": r.model,
            "action": r.action,
            "score": r.score,
            "degraded": r.degraded,
            "record": encode(r),
        }
        for r in records
    ]
    return batch_of(rows, LOG_SCHEMA)


TOLD_KIND = "told"
"""Answers that a client got and that are not the decision about their event: see told_batch."""

TOLD_SCHEMA = pa.schema(
    [
        pa.field("tenant", pa.string(), nullable=False),
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("event", pa.string(), nullable=False),
        pa.field("record", pa.binary(), nullable=False),
    ]
)


def told_id(record: DecisionRecord) -> str:
    """Identifies an answer among several about one event: the same one has the same id."""
    return f"{record.event_id}@{hashlib.sha256(encode(record)).hexdigest()[:16]}"


def told_batch(record: DecisionRecord, event: str, reason: str) -> pa.RecordBatch:
    """One answer as a row of TOLD_SCHEMA; its ``event_id`` is ``told_id``.

    Args:
        event: the event that it was given to, as JSON.
        reason: why it is not the recorded decision.
    """
    row = {
        "tenant": record.tenant,
        "event_id": told_id(record),
        "reason": reason,
        "event": event,
        "record": encode(record),
    }
    return pa.RecordBatch.from_pylist([row], TOLD_SCHEMA)
