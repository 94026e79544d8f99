"""Writing history: batches with positions become the Parquet files and id arrays of one range.

Nothing here makes them visible. Files are written under temporary names, made durable, then
renamed; the adapter's manifest decides. What a crash leaves behind is no one's until then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raypipe.aborts import reach
from raypipe.errors import IntegrityError, UsageError
from raypipe.log import files
from raypipe.log.identity import Hashes, hash_keys, keys
from raypipe.log.manifest import SealedFile, SealedIds, SealedRange
from raypipe.log.port import OFFSET, POSITION, Offsets, check_kind

_FILE_GROUPS = files.FILE_ROWS // files.GROUP_ROWS


class Sealing:
    """The files of one range in the making, starting at offset ``start`` of ``partition``."""

    def __init__(self, directory: Path, partition: int, start: int, count: int) -> None:
        if count < 1:
            raise UsageError(f"a sealed range has at least one row, not {count}")
        self._directory = directory
        self._stem = f"{partition:05d}-{start:012d}"
        self._start = start
        self._seen: npt.NDArray[np.bool_] = np.zeros(count, dtype=np.bool_)
        self._names: list[str] = []

    def write(self, ordered: Mapping[str, Iterable[pa.RecordBatch]]) -> SealedRange:
        """Write and sync all files under temporary names.

        Raises IntegrityError unless the positions are 0 to count - 1, each once.
        """
        by_kind: dict[str, tuple[SealedFile, ...]] = {}
        ids: dict[str, SealedIds] = {}
        for kind in ordered:
            check_kind(kind)
        for kind, batches in ordered.items():
            writer = _KindWriter(self, kind)
            for batch in batches:
                if batch.num_rows:
                    writer.add(self._place(kind, batch), batch)
            if written := writer.finish():
                by_kind[kind] = written
                ids[kind] = writer.write_ids()
        missing = len(self._seen) - int(self._seen.sum())
        if missing:
            raise IntegrityError(
                f"{missing} of {len(self._seen)} positions came in no batch, "
                f"the first is {int(np.argmin(self._seen))}",
                hint="Over all kinds the positions must be 0 to count - 1, each once.",
            )
        return SealedRange(self._start, self._start + len(self._seen), by_kind, ids)

    def publish(self) -> None:
        """Give the finished files their names, durably."""
        with files.writing("sealed files"):
            for name in self._names:
                path = self._directory / name
                files.temporary(path).replace(path)
            files.sync_directory(self._directory)

    def discard(self) -> None:
        """Remove what has no name yet. Named files stay: the manifest may know them already."""
        for name in self._names:
            files.temporary(self._directory / name).unlink(missing_ok=True)

    def new_file(self, kind: str, suffix: str) -> tuple[str, Path]:
        """A name within this range and the temporary path to write it at."""
        name = f"{self._stem}-{kind}{suffix}"
        self._names.append(name)
        return name, files.temporary(self._directory / name)

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


class _KindWriter:
    """The files of one kind: full row groups, a new file when one is full or the schema grew."""

    def __init__(self, sealing: Sealing, kind: str) -> None:
        self._sealing = sealing
        self._kind = kind
        self._last = -1
        self._schema: pa.Schema | None = None
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._open: _Part | None = None
        self._done: list[SealedFile] = []
        self._hashes: list[Hashes] = []
        self._offsets: list[Offsets] = []

    def add(self, offsets: Offsets, batch: pa.RecordBatch) -> None:
        if offsets[0] <= self._last:
            raise IntegrityError(f"positions of {self._kind!r} don't ascend over its batches")
        self._last = int(offsets[-1])
        self._hashes.append(hash_keys(self._kind, keys(self._kind, batch)))
        self._offsets.append(offsets)
        schema = batch.schema.remove(0).insert(0, pa.field(OFFSET, pa.int64(), nullable=False))
        if self._schema is not None and not schema.equals(self._schema, check_metadata=True):
            self._close()
        self._schema = schema
        columns = [pa.array(offsets), *batch.columns[1:]]
        self._pending.append(pa.RecordBatch.from_arrays(columns, schema=schema))
        self._pending_rows += batch.num_rows
        while self._pending_rows >= files.GROUP_ROWS:
            self._flush(files.GROUP_ROWS)

    def _flush(self, rows: int) -> None:
        table = pa.Table.from_batches(self._pending)
        if self._open is None:
            name, path = self._sealing.new_file(self._kind, f"-{len(self._done):04d}.parquet")
            self._open = _Part(self._kind, name, path, table.schema)
        self._open.write(table.slice(0, rows))
        self._pending = table.slice(rows).to_batches()
        self._pending_rows = table.num_rows - min(rows, table.num_rows)
        if self._open.groups == _FILE_GROUPS:
            self._done.append(self._open.finish())
            self._open = None

    def _close(self) -> None:
        if self._pending_rows:
            self._flush(self._pending_rows)
        if self._open is not None:
            self._done.append(self._open.finish())
            self._open = None

    def finish(self) -> tuple[SealedFile, ...]:
        self._close()
        return tuple(self._done)

    def write_ids(self) -> SealedIds:
        hashes, offsets = np.concatenate(self._hashes), np.concatenate(self._offsets)
        order = np.argsort(hashes, kind="stable")
        name, path = self._sealing.new_file(self._kind, "-ids.npy")
        with files.writing(name), path.open("wb") as f:
            np.save(f, np.stack([hashes[order], offsets[order].astype(np.uint64)]))
        with files.writing(name):
            return SealedIds(self._kind, name, len(hashes), files.sync(path))


class _Part:
    """One Parquet file in the making."""

    def __init__(self, kind: str, name: str, path: Path, schema: pa.Schema) -> None:
        self.groups = 0
        self._kind, self._name, self._path = kind, name, path
        self._rows, self._first, self._last = 0, -1, -1
        self._times: list[int] = []
        with files.writing(name):
            self._writer: pq.ParquetWriter = files.parquet_writer(path, schema)

    def write(self, group: pa.Table) -> None:
        with files.writing(self._name):
            self._writer.write_table(group, row_group_size=len(group))
        self.groups += 1
        self._rows += len(group)
        self._last = group.column(0)[-1].as_py()
        if self._first < 0:
            self._first = group.column(0)[0].as_py()
        if "event_time" in group.schema.names:
            span = pc.min_max(group.column("event_time")).as_py()
            self._times += [t for t in span.values() if t is not None]

    def finish(self) -> SealedFile:
        with files.writing(self._name):
            self._writer.close()
            digest = files.sync(self._path)
        reach("log.seal.file_written")
        times = self._times
        return SealedFile(
            kind=self._kind,
            name=self._name,
            rows=self._rows,
            sha256=digest,
            min_offset=self._first,
            max_offset=self._last,
            min_event_time=min(times, default=None),
            max_event_time=max(times, default=None),
        )
