"""Writing history: batches with positions become the files of one range."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe.errors import IntegrityError, UsageError
from raypipe.log.manifest import SealedFile, SealedIds, SealedRange
from raypipe.log.port import POSITION, Offsets, check_kind
from raypipe.log.writing import KindWriter, RangeFiles


class Sealing(RangeFiles):
    """``count`` rows of history in the making, starting at offset ``start`` of ``partition``."""

    def __init__(self, directory: Path, partition: int, start: int, count: int) -> None:
        if count < 1:
            raise UsageError(f"a sealed range has at least one row, not {count}")
        super().__init__(directory, partition, start)
        self._start = start
        self._seen: npt.NDArray[np.bool_] = np.zeros(count, dtype=np.bool_)

    def write(self, ordered: Mapping[str, Iterable[pa.RecordBatch]]) -> SealedRange:
        """Write and sync all files under temporary names.

        Raises IntegrityError unless the positions are 0 to count - 1, each once.
        """
        by_kind: dict[str, tuple[SealedFile, ...]] = {}
        ids: dict[str, SealedIds] = {}
        for kind in ordered:
            check_kind(kind)
        for kind, batches in ordered.items():
            writer = KindWriter(self, kind)
            schema: pa.Schema | None = None
            for batch in batches:
                if batch.num_rows:
                    offsets = self._place(kind, batch)
                    rows = batch.remove_column(0)
                    # History seldom changes its schema: each one's rows get plain files.
                    if schema is not None and not rows.schema.equals(schema, check_metadata=True):
                        writer.close_file()
                    schema = rows.schema
                    writer.add(offsets, rows)
            if written := writer.finish():
                by_kind[kind] = written
            if found := writer.write_ids():
                ids[kind] = found
        missing = len(self._seen) - int(self._seen.sum())
        if missing:
            raise IntegrityError(
                f"{missing} of {len(self._seen)} positions came in no batch, "
                f"the first is {int(np.argmin(self._seen))}",
                hint="Over all kinds the positions must be 0 to count - 1, each once.",
            )
        return SealedRange(self._start, self._start + len(self._seen), by_kind, ids)

    def _place(self, kind: str, batch: pa.RecordBatch) -> Offsets:
        if batch.schema.names[0] != POSITION or batch.column(0).null_count:
            raise UsageError(
                f"a batch of {kind!r} leads with {batch.schema.names[0]!r}, not {POSITION!r}",
                hint=f"Put int64 {POSITION!r} without nulls before the event's columns.",
            )
        positions = batch.column(0).to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
        bad = (positions < 0) | (positions >= len(self._seen))
        if not bad.any():
            bad = self._seen[positions]
            bad[1:] |= positions[1:] <= positions[:-1]
        if bad.any():
            raise IntegrityError(
                f"position {positions[np.argmax(bad)]} of {kind!r} is outside of "
                f"0..{len(self._seen) - 1}, doubled or not ascending"
            )
        self._seen[positions] = True
        offsets: Offsets = positions + self._start
        return offsets
