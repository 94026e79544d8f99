"""The files of one sealed range in the making: Parquet by kind, and arrays of id hashes.

Nothing here makes them visible. Files are written under temporary names, made durable, then
renamed; the adapter's manifest decides. What a crash leaves behind is no one's until then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raypipe.aborts import reach
from raypipe.durable import sync_directory
from raypipe.errors import IntegrityError
from raypipe.log import files, mixing
from raypipe.log.identity import Hashes, hash_keys, keys
from raypipe.log.manifest import SealedFile, SealedIds
from raypipe.log.port import OFFSET, Offsets

_FILE_GROUPS = files.FILE_ROWS // files.GROUP_ROWS
_OFFSET_FIELD = pa.field(OFFSET, pa.int64(), nullable=False)


class RangeFiles:
    """The files of one range that starts at offset ``start`` of ``partition``."""

    def __init__(self, directory: Path, partition: int, start: int) -> None:
        self._directory = directory
        self._stem = f"{partition:05d}-{start:012d}"
        self._names: list[str] = []

    def new_file(self, kind: str, suffix: str) -> tuple[str, Path]:
        """A name within this range and the temporary path to write it at."""
        name = f"{self._stem}-{kind}{suffix}"
        self._names.append(name)
        return name, files.temporary(self._directory / name)

    def publish(self) -> None:
        """Give the finished files their names, durably."""
        with files.writing("sealed files"):
            for name in self._names:
                path = self._directory / name
                files.temporary(path).replace(path)
            sync_directory(self._directory)

    def discard(self) -> None:
        """Remove what has no name yet. Named files stay: the manifest may know them already."""
        for name in self._names:
            files.temporary(self._directory / name).unlink(missing_ok=True)


class KindWriter:
    """The files of one kind: full row groups, a new file when one is full.

    A file holds rows of one schema unless others come before it is closed.
    """

    def __init__(self, range_files: RangeFiles, kind: str) -> None:
        self._files = range_files
        self._kind = kind
        self._last = -1
        self._pending: deque[tuple[Offsets, pa.RecordBatch]] = deque()
        self._pending_rows = 0
        self._open: _Part | None = None
        self._done: list[SealedFile] = []
        self._hashes: list[Hashes] = []
        self._offsets: list[Offsets] = []

    def add(self, offsets: Offsets, batch: pa.RecordBatch, *, indexed: bool = True) -> None:
        """Write rows at these offsets; those that are indexed will be found by id."""
        if offsets[0] <= self._last:
            raise IntegrityError(f"positions of {self._kind!r} don't ascend over its batches")
        self._last = int(offsets[-1])
        if indexed:
            self._hashes.append(hash_keys(self._kind, keys(self._kind, batch)))
            self._offsets.append(offsets)
        self._pending.append((offsets, batch))
        self._pending_rows += batch.num_rows
        while self._pending_rows >= files.GROUP_ROWS:
            self._flush(files.GROUP_ROWS)

    def _flush(self, rows: int) -> None:
        group = self._take(rows)
        schemas: list[pa.Schema] = []
        for _, batch in group:
            if mixing.number_of(schemas, batch.schema) < 0:
                schemas.append(batch.schema)
        if self._open is not None and not self._open.takes(schemas):
            self._end_file()
        if self._open is None:
            whole = mixing.union(schemas)
            if whole is None:
                # A column changed its type: each schema's rows go to files of their own.
                self._flush_apart(group)
                return
            self._begin_file(schemas, whole)
        self._write(group)

    def _take(self, rows: int) -> list[tuple[Offsets, pa.RecordBatch]]:
        taken = []
        while rows and self._pending:
            offsets, batch = self._pending.popleft()
            if batch.num_rows > rows:
                self._pending.appendleft((offsets[rows:], batch.slice(rows)))
                offsets, batch = offsets[:rows], batch.slice(0, rows)
            rows -= batch.num_rows
            self._pending_rows -= batch.num_rows
            taken.append((offsets, batch))
        return taken

    def _flush_apart(self, group: list[tuple[Offsets, pa.RecordBatch]]) -> None:
        for part in group:
            schemas = [part[1].schema]
            if self._open is not None and not self._open.takes(schemas):
                self._end_file()
            if self._open is None:
                self._begin_file(schemas, schemas[0])
            self._write([part])

    def _begin_file(self, schemas: list[pa.Schema], whole: pa.Schema) -> None:
        name, path = self._files.new_file(self._kind, f"-{len(self._done):04d}.parquet")
        self._open = _Part(self._kind, name, path, schemas, whole)

    def _write(self, group: list[tuple[Offsets, pa.RecordBatch]]) -> None:
        assert self._open is not None  # noqa: S101 - for the type checker
        self._open.write(group)
        if self._open.groups == _FILE_GROUPS:
            self._end_file()

    def _end_file(self) -> None:
        if self._open is not None:
            self._done.append(self._open.finish())
            self._open = None

    def close_file(self) -> None:
        """Have what comes next begin a new file."""
        if self._pending_rows:
            self._flush(self._pending_rows)
        self._end_file()

    def finish(self) -> tuple[SealedFile, ...]:
        """Close the last file; all of them."""
        self.close_file()
        return tuple(self._done)

    def write_ids(self) -> SealedIds | None:
        """The array of the indexed rows' hashes; None when no row is indexed."""
        if not self._hashes:
            return None
        hashes, offsets = np.concatenate(self._hashes), np.concatenate(self._offsets)
        order = np.argsort(hashes, kind="stable")
        name, path = self._files.new_file(self._kind, "-ids.npy")
        with files.writing(name), path.open("wb") as f:
            np.save(f, np.stack([hashes[order], offsets[order].astype(np.uint64)]))
        with files.writing(name):
            return SealedIds(self._kind, name, len(hashes), files.sync(path))


class _Part:
    """One Parquet file in the making."""

    def __init__(
        self, kind: str, name: str, path: Path, schemas: list[pa.Schema], whole: pa.Schema
    ) -> None:
        self.groups = 0
        self._kind, self._name, self._path = kind, name, path
        self._rows, self._first, self._last = 0, -1, -1
        self._times: list[int] = []
        self._schemas = schemas
        self._mixed = len(schemas) > 1
        self._whole = whole if self._mixed else schemas[0]
        columns = mixing.numbered(whole) if self._mixed else schemas[0]
        with files.writing(name):
            self._writer: pq.ParquetWriter = files.parquet_writer(
                path, columns.insert(0, _OFFSET_FIELD)
            )

    def takes(self, schemas: list[pa.Schema]) -> bool:
        """Whether rows of these schemas may go into this file."""
        new = [s for s in schemas if mixing.number_of(self._schemas, s) < 0]
        if new and not (self._mixed and all(mixing.holds(self._whole, s) for s in new)):
            return False
        self._schemas += new
        return True

    def write(self, group: list[tuple[Offsets, pa.RecordBatch]]) -> None:
        """Write one row group."""
        batches = [batch for _, batch in group]
        if self._mixed:
            runs = groupby(batches, key=lambda b: mixing.number_of(self._schemas, b.schema))
            batches = [mixing.spread(_joined(run), self._whole, number) for number, run in runs]
        offsets = np.concatenate([offsets for offsets, _ in group])
        table = pa.Table.from_batches(batches).add_column(0, _OFFSET_FIELD, pa.array(offsets))
        with files.writing(self._name):
            self._writer.write_table(table, row_group_size=len(table))
            files.flush(self._path)
        self.groups += 1
        self._rows += len(table)
        self._last = int(offsets[-1])
        if self._first < 0:
            self._first = int(offsets[0])
        if "event_time" in table.schema.names:
            span = pc.min_max(table.column("event_time")).as_py()
            self._times += [t for t in span.values() if t is not None]

    def finish(self) -> SealedFile:
        """Close the file and make it durable."""
        with files.writing(self._name):
            if self._mixed:
                self._writer.add_key_value_metadata(mixing.footer(self._schemas))
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


def _joined(batches: Iterable[pa.RecordBatch]) -> pa.RecordBatch:
    whole: pa.RecordBatch = pa.Table.from_batches(batches).combine_chunks().to_batches()[0]
    return whole
