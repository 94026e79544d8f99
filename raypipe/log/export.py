"""Rows of one kind as Parquet files led by their offset: what batch jobs read.

A file's name says partition, kind and the offsets it covers. Live rows are cut at multiples of
STEP, so an export that reaches further finds the full steps of an earlier one in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from raypipe.errors import IntegrityError
from raypipe.lake import Place
from raypipe.log import files
from raypipe.log.manifest import Ranges, SealedRange
from raypipe.log.port import OFFSET, Chunk
from raypipe.log.sealed import SealedReader

STEP = 250_000
"""Offsets that one exported file of live rows covers; its rows are held in memory once."""

Read = Callable[[int, int], Iterator[Chunk]]
"""Rows from an offset on, at most so many."""


class Sealed(NamedTuple):
    """History that lies in files already."""

    reader: SealedReader
    ranges: Ranges


def export(
    read: Read,
    what: tuple[int, str],
    directory: Place,
    start: int,
    end: int,
    *,
    sealed: Sealed | None = None,
) -> list[Place]:
    """See EventLog.export; ``what`` is (partition, kind), ``end`` at most the partition's end."""
    partition, kind = what
    found = []
    for piece in _pieces(sealed, kind, start, end):
        if isinstance(piece, Place):
            found.append(piece)
            continue
        span, low, high = piece
        place = directory / f"{partition:05d}-{kind}-{low:012d}-{high:012d}.parquet"
        if sealed is None or span is None:
            chunks = read(low, high - low)
        else:
            chunks = sealed.reader.read_kind(span, kind, low, high)
        if place.exists() or _write(place, kind, chunks):
            found.append(place)
    return found


def _pieces(
    sealed: Sealed | None, kind: str, start: int, end: int
) -> Iterator[Place | tuple[SealedRange | None, int, int]]:
    """Whole sealed files, and the spans of offsets between them, in order."""
    while start < end:
        span = sealed.ranges.at(start) if sealed else None
        if sealed is None or span is None:
            stop = min(end, (start // STEP + 1) * STEP)
            if sealed is not None:
                stop = sealed.ranges.next_start(start, stop)
            yield None, start, stop
        else:
            stop = min(span.end, end)
            for file in span.files.get(kind, ()):
                low, high = max(start, file.min_offset), min(stop, file.max_offset + 1)
                if (low, high) == (file.min_offset, file.max_offset + 1):
                    yield Place.at(sealed.reader.path(file))
                elif low < high:
                    yield span, low, high
        start = stop


def _write(place: Place, kind: str, chunks: Iterator[Chunk]) -> bool:
    """Write the kind's rows as one file; False when there are none."""
    found = [c for c in chunks if c.kind == kind]
    if not found:
        return False
    try:
        table = _unify([c.batch for c in found])
    except (pa.ArrowInvalid, pa.ArrowTypeError) as e:
        raise IntegrityError(f"batches of {kind!r} in {place.name} don't unify: {e}") from e
    offsets = pa.array(np.concatenate([c.offsets for c in found]))
    table = table.add_column(0, pa.field(OFFSET, pa.int64(), nullable=False), offsets)
    with (
        files.writing(place.name),
        place.writing() as sink,
        files.parquet_writer(sink, table.schema) as writer,
    ):
        writer.write_table(table, row_group_size=files.GROUP_ROWS)
    return True


def _unify(batches: list[pa.RecordBatch]) -> pa.Table:
    """One table with every column of any batch, null where a batch lacks it."""
    schemas = {b.schema for b in batches}
    common = set.intersection(*(set(s.names) for s in schemas))
    loose = {
        s: pa.schema([f if f.name in common else f.with_nullable(True) for f in s], s.metadata)
        for s in schemas
    }
    tables = [pa.Table.from_batches([b.cast(loose[b.schema])]) for b in batches]
    return pa.concat_tables(tables, promote_options="default")
