"""A micro-batch as columns, by event type, and the rows that one pattern sees of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe.errors import UsageError
from raypipe.events.schema import ENVELOPE, EventType
from raypipe.log.port import Chunk
from raypipe.patterns import kernel
from raypipe.patterns.expressions import textual
from raypipe.patterns.plan import Compilation
from raypipe.patterns.values import column_numbers
from raypipe.windows.conditions import Condition
from raypipe.windows.inputs import hash_keys

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

KEY_SPACE = "raypipe.patterns"
"""Seeds the hashes of pattern keys beside the tenant: event types may name a key differently."""

_RECEIVED = "received_at"
_ENVELOPE = frozenset(f.name for f in ENVELOPE)
NEVER = np.iinfo(np.int64).min


class KindRows:
    """All rows of one event type in a micro-batch. Values that several patterns ask for are made
    once.

    ``before`` and ``at`` are the log's watermark before and with each row.
    """

    def __init__(self, event: EventType, chunks: Sequence[Chunk], columns: Sequence[str]) -> None:
        self.event = event
        parts = [_read(event, c.batch, columns) for c in chunks]
        self.batch = parts[0] if len(parts) == 1 else pa.concat_batches(parts)
        self.offsets = np.concatenate([c.offsets for c in chunks])
        self.times: Ints = self.batch.column("event_time").to_numpy()
        self.received: Ints = self.batch.column(_RECEIVED).to_numpy()
        self.before = self.at = self.received
        self._keys: dict[str, Ints] = {}
        self._numbers: dict[str, Floats] = {}
        self._masks: dict[str, npt.NDArray[np.bool_]] = {}

    def keys(self, column: str) -> Ints:
        """Hash of each row's key under its tenant [n]; 0 where it has none."""
        if column not in self._keys:
            self._keys[column] = hash_keys(self.batch, column, KEY_SPACE)
        return self._keys[column]

    def numbers(self, column: str) -> Floats:
        """A column as numbers [n]; NaN where it is missing, also as a whole."""
        if column not in self._numbers:
            if column in self.event:
                kind = self.event.field(column).kind
                found = column_numbers(self.batch.column(column), textual=textual(kind))
            else:
                found = np.full(self.batch.num_rows, np.nan)
            self._numbers[column] = found
        return self._numbers[column]

    def holds(self, condition: Condition) -> npt.NDArray[np.bool_]:
        """Where a condition holds [n]."""
        if condition.text not in self._masks:
            self._masks[condition.text] = condition.of_columns(self.batch)
        return self._masks[condition.text]


def _read(event: EventType, batch: pa.RecordBatch, names: Sequence[str]) -> pa.RecordBatch:
    """Some of an event type's columns; one that the rows were written without is null.

    Raises UsageError for rows without an envelope: they are no rows of a log.
    """
    place = {name: i for i, name in enumerate(batch.schema.names)}
    if missing := _ENVELOPE - place.keys():
        raise UsageError(
            f"rows of {event.name!r} have no {', '.join(sorted(missing))}",
            hint="Give each event type the columns that PatternEngine.columns names.",
        )
    columns = []
    for name in names:
        kind = event.field(name).arrow_type
        if name in place:
            column = batch.column(place[name])
            columns.append(column if column.type == kind else column.cast(kind))
        else:
            columns.append(pa.nulls(batch.num_rows, kind))
    return pa.RecordBatch.from_arrays(columns, names=list(names))


def read_batch(
    parts: Sequence[Chunk],
    events: Mapping[str, EventType],
    columns: Mapping[str, Sequence[str]],
    watermark: int,
) -> tuple[dict[str, KindRows], Clock]:
    """The rows of a micro-batch by event type, and how the watermark rose over them.

    Args:
        columns: what is read of each event type that a pattern names.
        watermark: the highest ``received_at`` before the batch.
    """
    rows: dict[str, KindRows] = {}
    offsets, received = [], []
    for kind in dict.fromkeys(p.kind for p in parts):
        mine = [p for p in parts if p.kind == kind and len(p)]
        if kind in columns and mine:
            rows[kind] = KindRows(events[kind], mine, columns[kind])
            offsets.append(rows[kind].offsets)
            received.append(rows[kind].received)
            continue
        for part in mine:
            if _RECEIVED in part.batch.schema.names:
                offsets.append(part.offsets)
                received.append(part.batch.column(_RECEIVED).to_numpy(zero_copy_only=False))
    clock = Clock(offsets, received, watermark)
    for kind_rows in rows.values():
        kind_rows.before, kind_rows.at = clock.around(kind_rows.offsets)
    return rows, clock


class Clock:
    """How the watermark, the highest ``received_at`` so far, rose over the rows of a batch."""

    def __init__(self, offsets: Sequence[Ints], received: Sequence[Ints], watermark: int) -> None:
        self.offsets = np.concatenate([np.empty(0, np.int64), *offsets])
        """Of all rows, ascending."""
        times = np.concatenate([np.empty(0, np.int64), *received])
        self._sorted = len(offsets) == 1 and not (self.offsets[1:] < self.offsets[:-1]).any()
        if not self._sorted:
            order = np.argsort(self.offsets, kind="stable")
            self.offsets, times = self.offsets[order], times[order]
        self._marks = np.maximum.accumulate(np.concatenate([[watermark], times]))

    @property
    def watermark(self) -> int:
        """After the last row."""
        return int(self._marks[-1])

    def around(self, offsets: Ints) -> tuple[Ints, Ints]:
        """The watermark before and with the rows at these offsets."""
        if len(offsets) == len(self.offsets) and self._sorted:
            places = np.arange(len(offsets))
        else:
            places = np.searchsorted(self.offsets, offsets)
        return self._marks[places], self._marks[places + 1]

    def reached(self, time: int) -> int:
        """The offset of the row that raised the watermark to a time; -1: no row did."""
        place = int(np.searchsorted(self._marks, time))
        return int(self.offsets[place - 1]) if 0 < place <= len(self.offsets) else -1


class PatternRows(NamedTuple):
    """What one pattern's kernel sees of a batch, sorted by offset, and where each row came from:
    the place of its event type in ``kinds``, its place among that type's rows."""

    rows: kernel.Rows
    kinds: tuple[str, ...]
    kind_of: Ints
    places: Ints


def pattern_rows(compilation: Compilation, batch: Mapping[str, KindRows]) -> PatternRows | None:
    """The rows that could move a pattern: with a key, and such that a step's columns let them
    pass, or all under ``strict``. None if there are none."""
    kinds = tuple(k for k in compilation.pattern.events if k in batch)
    found = [
        part
        for number, kind in enumerate(kinds)
        if len((part := _rows(compilation, kind, number, batch[kind]))[0])
    ]
    if not found:
        return None
    whole = found[0] if len(found) == 1 else [np.concatenate(c) for c in zip(*found, strict=True)]
    offsets = whole[2]
    if (offsets[1:] < offsets[:-1]).any():
        order = np.argsort(offsets, kind="stable")
        whole = [c[order] for c in whole]
    keys, times, offsets, before, at, masks, kind_of, from_, numbers = whole
    seen = kernel.Rows(keys, times, offsets, before, at, masks, np.ascontiguousarray(numbers))
    return PatternRows(seen, kinds, kind_of, from_)


def _rows(
    compilation: Compilation, kind: str, number: int, rows: KindRows
) -> list[npt.NDArray[Any]]:
    """What PatternRows holds of the rows of one event type."""
    keys = rows.keys(compilation.key(kind))
    masks = _masks(compilation, kind, rows)
    matter = keys != 0
    if not compilation.pattern.strict:
        matter &= masks != 0
    places = np.flatnonzero(matter)
    columns = (keys, rows.times, rows.offsets, rows.before, rows.at, masks)
    numbers = np.empty((len(places), len(compilation.columns)))
    for i, column in enumerate(compilation.columns):
        numbers[:, i] = rows.numbers(column)[places]
    return [*(c[places] for c in columns), np.full(len(places), number), places, numbers]


def _masks(compilation: Compilation, kind: str, rows: KindRows) -> Ints:
    masks = np.zeros(len(rows.offsets), np.int64)
    for event, bit, condition in compilation.conditions:
        if event == kind:
            masks |= 1 << bit if condition is None else rows.holds(condition) * (1 << bit)
    return masks


def no_rows(compilation: Compilation) -> kernel.Rows:
    """No row: only the watermark has moved."""
    none = np.empty(0, np.int64)
    return kernel.Rows(none, none, none, none, none, none, np.empty((0, len(compilation.columns))))
