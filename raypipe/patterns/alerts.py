"""Alerts: what a pattern has found, as events of their own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe.events.schema import EventType, Field, Kind, Tag
from raypipe.patterns import kernel
from raypipe.patterns.kept import Event
from raypipe.patterns.plan import Compilation
from raypipe.patterns.reasons import LONGEST, Match
from raypipe.patterns.spec import SEVERITIES

ALERT = EventType(
    "alert",
    (
        Field("pattern", Kind.STRING, description="name of the pattern"),
        Field("version", Kind.INTEGER, minimum=1, description="version of the pattern"),
        Field("severity", Kind.CHOICE, choices=SEVERITIES),
        Field("key_column", Kind.STRING, description="the column that groups the pattern's events"),
        Field("key", Kind.STRING, tags=frozenset({Tag.KEY, Tag.SUBJECT})),
        Field("first_time", Kind.TIME, description="event_time of the first event of the match"),
        Field("reason", Kind.STRING, max_length=LONGEST),
        Field(
            "events",
            Kind.STRING,
            max_length=16_384,
            description="JSON list of the ids of its events: of a step with times the first ones",
        ),
    ),
    "a pattern matched; event_time is that of its newest event, or when an awaited one was due",
)


@dataclass(frozen=True, slots=True)
class Alert:
    """One match. ``event_id`` depends on the log and the pattern alone: a replay gives it again."""

    tenant: str
    event_id: str
    event_time: int
    received_at: int
    pattern: str
    version: int
    severity: str
    key_column: str
    key: str
    first_time: int
    reason: str
    events: str


def to_batch(alerts: Sequence[Alert]) -> pa.RecordBatch:
    """Alerts as rows of event type ALERT."""
    schema = ALERT.arrow_schema
    columns = [[getattr(alert, f.name) for alert in alerts] for f in schema]
    arrays = [pa.array(column, f.type) for column, f in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def alert_of(
    compilation: Compilation,
    record: npt.NDArray[np.int64],
    numbers: npt.NDArray[np.float64],
    received_at: int | None,
    events: Mapping[int, Event],
) -> Alert:
    """The alert for a record of the kernel.

    Args:
        received_at: the watermark at the row that completed the match; None: time completed it.
        events: those that the record names, by offset.
    """
    pattern, words = compilation.pattern, record.tolist()
    head, steps = kernel.REC_WORDS, len(pattern.positive)
    lasts = words[head + steps : head + 2 * steps]
    listed = words[head + 2 * steps :][: words[kernel.R_LISTED]]
    firsts, place = [], 0
    for step in pattern.positive:
        firsts.append(listed[place])
        place += step.least
    newest = max(*listed, *lasts)
    kind, last = events[newest]
    column = compilation.key(kind)
    first_time = words[kernel.R_FIRST]
    time = words[kernel.R_LAST] if received_at is not None else first_time + pattern.within_ms
    match = Match(
        last[column],
        time - first_time,
        words[head : head + steps],
        lasts,
        firsts,
        numbers.tolist(),
        lambda offset, name: events[offset][1].get(name),
    )
    identity = [
        *(pattern.name, pattern.version, last["tenant"], last[column]),
        *(words[kernel.R_BIRTH], newest),
    ]
    return Alert(
        tenant=last["tenant"],
        event_id=hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32],
        event_time=time,
        received_at=words[kernel.R_EXPIRE] if received_at is None else received_at,
        pattern=pattern.name,
        version=pattern.version,
        severity=pattern.severity,
        key_column=column,
        key=last[column],
        first_time=first_time,
        reason=compilation.reason.text(match),
        events=json.dumps([events[o][1]["event_id"] for o in listed], ensure_ascii=False),
    )
