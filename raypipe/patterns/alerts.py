"""Alerts: what a pattern has found, as events of their own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import pyarrow as pa

from raypipe.events.schema import EventType, Field, Kind, Tag
from raypipe.patterns import kernel
from raypipe.patterns.kept import KeptRows
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


_texts = json.JSONEncoder(ensure_ascii=False).encode
_named = json.JSONEncoder().encode


class Alert(NamedTuple):
    """One match. ``event_id`` depends on the log and the pattern alone: a replay gives it again.

    The fields stand in the order of ALERT's columns.
    """

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
    columns = zip(*alerts, strict=True) if alerts else [()] * len(schema)
    arrays = [pa.array(column, f.type) for column, f in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


class AlertMaker:
    """Makes the alerts of one pattern from the records of the kernel."""

    def __init__(self, compilation: Compilation) -> None:
        pattern = compilation.pattern
        self._pattern = pattern
        self._keys = dict(pattern.keys)
        self._text = compilation.reason.text
        steps, head = len(pattern.positive), kernel.REC_WORDS
        self._counts = slice(head, head + steps)
        self._lasts = slice(head + steps, head + 2 * steps)
        self._listed = head + 2 * steps
        leasts = [step.least for step in pattern.positive]
        self._firsts = list(accumulate(leasts[:-1], initial=0))
        """Where each step's first event is among those that are listed."""

    def make(
        self, words: list[int], numbers: list[float], received_at: int | None, events: KeptRows
    ) -> Alert:
        """The alert for one record.

        Args:
            words: the record.
            numbers: those that it remembers.
            received_at: the watermark at the row that completed the match; None: time completed it.
            events: those that the record names.
        """
        pattern = self._pattern
        lasts = words[self._lasts]
        listed = words[self._listed : self._listed + words[kernel.R_LISTED]]
        newest = max(*listed, *lasts)
        column = self._keys[events.kind(newest)]
        tenant, key = events.value(newest, "tenant"), events.value(newest, column)
        first_time = words[kernel.R_FIRST]
        time = words[kernel.R_LAST] if received_at is not None else first_time + pattern.within_ms
        firsts = [listed[place] for place in self._firsts]
        match = Match(
            key, time - first_time, words[self._counts], lasts, firsts, numbers, events.value
        )
        identity = [pattern.name, pattern.version, tenant, key, words[kernel.R_BIRTH], newest]
        return Alert(
            tenant,
            hashlib.sha256(_named(identity).encode()).hexdigest()[:32],
            time,
            words[kernel.R_EXPIRE] if received_at is None else received_at,
            pattern.name,
            pattern.version,
            pattern.severity,
            column,
            key,
            first_time,
            self._text(match),
            _texts(events.values(listed, "event_id")),
        )
