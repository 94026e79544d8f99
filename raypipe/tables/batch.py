"""One micro-batch as tables read it: columns by event type, and where the watermark stood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.events.evolution import align
from raypipe.events.schema import EventType
from raypipe.log.port import Chunk
from raypipe.windows.conditions import Condition
from raypipe.windows.hashing import hash_column, single_text
from raypipe.windows.inputs import VALUE_SEED

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

ENVELOPE = ("tenant", "event_time", "received_at")

Columns = Mapping[str, pa.DataType]
"""Columns that are read of an event type, with their types."""

Group = tuple[str | bool | None, ...]
"""Values of the columns that a table groups by."""


class Part:
    """Rows of one event type in offset order; what several tables ask for is read once.

    ``columns`` are Arrow arrays [n] by name.
    """

    def __init__(self, kind: str, offsets: Ints, columns: Mapping[str, pa.Array]) -> None:
        self.kind = kind
        self.offsets = offsets
        self._columns = columns
        self._coded: dict[str, tuple[Ints, list[str | bool | None]]] = {}
        self._numbers: dict[str, Ints] = {}
        self._hashes: dict[str, Ints] = {}
        self._held: dict[str, Mask] = {}

    def __len__(self) -> int:
        return len(self.offsets)

    def where(self, mask: Mask) -> Part:
        """The rows of a mask alone."""
        kept = pa.array(mask)
        columns = {n: c.filter(kept) for n, c in self._columns.items()}
        return Part(self.kind, self.offsets[mask], columns)

    def numbers(self, name: str) -> Ints:
        """An integer column [n], 0 where it is null."""
        if name not in self._numbers:
            column = self._columns[name]
            column = column.fill_null(0) if column.null_count else column
            whole = np.frombuffer(column.buffers()[1], np.int64)
            self._numbers[name] = whole[column.offset : column.offset + len(column)]
        return self._numbers[name]

    def coded(self, name: str) -> tuple[Ints, list[str | bool | None]]:
        """A column of few values as places [n] in a list of them; null is a value."""
        if name not in self._coded:
            column = self._columns[name]
            only = single_text(column) if column.type == pa.string() else None
            if only is not None:
                self._coded[name] = np.zeros(len(self), np.int64), [only]
            else:
                coded = pc.dictionary_encode(column, null_encoding="encode")
                codes = coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
                self._coded[name] = codes, coded.dictionary.to_pylist()
        return self._coded[name]

    def hashes(self, name: str) -> Ints:
        """Hashes of a text column [n], 0 where it is null."""
        if name not in self._hashes:
            self._hashes[name] = hash_column(self._columns[name], VALUE_SEED)
        return self._hashes[name]

    def holds(self, condition: Condition) -> Mask:
        """Where a condition holds [n]."""
        if condition.text not in self._held:
            names = list(condition.columns)
            columns = [self._columns[n] for n in names]
            # A condition that reads no column still has to know how many rows there are.
            rows = pa.RecordBatch.from_arrays(
                columns or [self._columns["tenant"]], names or ["tenant"]
            )
            self._held[condition.text] = condition.of_columns(rows)
        return self._held[condition.text]


class Batch:
    """Rows of several event types; over all of them the offsets say the order."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        self.newest = max(int(p.numbers("received_at").max()) for p in parts)
        self.end = 1 + max(int(p.offsets[-1]) for p in parts)

    @cached_property
    def running(self) -> list[Ints]:
        """For each part's rows the newest ``received_at`` of the batch up to them."""
        offsets = np.concatenate([p.offsets for p in self.parts])
        received = np.concatenate([p.numbers("received_at") for p in self.parts])
        order = np.argsort(offsets, kind="stable")
        running = np.empty_like(received)
        running[order] = np.maximum.accumulate(received[order])
        return np.split(running, np.cumsum([len(p) for p in self.parts])[:-1])


def read(
    chunks: Sequence[Chunk], events: Mapping[str, EventType], columns: Mapping[str, Columns]
) -> Batch | None:
    """The rows of declared types, each with the columns that are asked of it; None if none came.

    Columns that older rows lack are null.
    """
    by_kind: dict[str, list[Chunk]] = {}
    for chunk in chunks:
        if chunk.kind in events and len(chunk):
            by_kind.setdefault(chunk.kind, []).append(chunk)
    parts = [_part(kind, found, events[kind], columns[kind]) for kind, found in by_kind.items()]
    return Batch(parts) if parts else None


def _part(kind: str, chunks: list[Chunk], event: EventType, wanted: Columns) -> Part:
    if len(chunks) == 1:
        return Part(kind, chunks[0].offsets, _columns(chunks[0].batch, event, wanted))
    offsets = np.concatenate([c.offsets for c in chunks])
    columns = _joined([c.batch for c in chunks], event, wanted)
    if not bool((np.diff(offsets) > 0).all()):
        order = np.argsort(offsets, kind="stable")
        offsets, places = offsets[order], pa.array(order)
        columns = {n: c.take(places) for n, c in columns.items()}
    return Part(kind, offsets, columns)


def _joined(
    batches: list[pa.RecordBatch], event: EventType, wanted: Columns
) -> dict[str, pa.Array]:
    schema = batches[0].schema
    # Rows that all lack a column are read whole: only whole ones can be aligned.
    whole = wanted.keys() <= set(schema.names)
    if not whole or any(not b.schema.equals(schema) for b in batches):
        found = [_columns(b, event, wanted) for b in batches]
        return {n: pa.concat_arrays([f[n] for f in found]) for n in wanted}
    # Single events come by the hundred: columns that nobody reads are not even looked at.
    places = [i for i in range(len(schema)) if schema.field(i).name in wanted]
    joined = pa.Table.from_batches(batches).select(places).combine_chunks()
    return _columns(joined.to_batches()[0], event, wanted)


def _columns(batch: pa.RecordBatch, event: EventType, wanted: Columns) -> dict[str, pa.Array]:
    places = [batch.schema.get_field_index(n) for n in wanted]
    if min(places) >= 0:
        found = [batch.column(i) for i in places]
        if all(c.type == t for c, t in zip(found, wanted.values(), strict=True)):
            return dict(zip(wanted, found, strict=True))
    today = align(batch, event)
    return {n: today.column(n) for n in wanted}
