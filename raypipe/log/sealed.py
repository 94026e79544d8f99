"""Reading history: sealed Parquet files as one sequence of offsets, and finding one id in them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from raypipe.errors import IntegrityError
from raypipe.log import mixing
from raypipe.log.files import check_file, damaged
from raypipe.log.identity import Hashes, id_column
from raypipe.log.manifest import SealedFile, SealedRange
from raypipe.log.port import OFFSET, Chunk, Offsets


class SealedReader:
    """Reads the files of one directory; each is checked against its sha256 once a process."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._checked: set[tuple[str, str]] = set()
        self._ids: dict[str, npt.NDArray[np.uint64]] = {}
        self._loading = threading.Lock()

    def path(self, file: SealedFile) -> Path:
        """Where a file lies, checked."""
        path = self._directory / file.name
        if (file.name, file.sha256) not in self._checked:
            check_file(path, file.sha256, file.min_offset)
            self._checked.add((file.name, file.sha256))
        return path

    def read(self, span: SealedRange, offset: int, limit: int) -> Iterator[Chunk]:
        """Rows of the range from ``offset`` on, at most ``limit``; kinds interleave.

        Holds one decoded row group a kind; each step ends where the first of them does.
        """
        streams = list(self.streams(span, offset).values())
        stop = min(span.end, offset + limit)
        while offset < stop:
            bound = min([stop, *(s.loaded for s in streams)])
            chunks = [chunk for s in streams for chunk in s.before(bound)]
            if sum(map(len, chunks)) != bound - offset:
                there = np.concatenate([np.empty(0, np.int64), *(c.offsets for c in chunks)])
                (missing, *_) = np.setdiff1d(np.arange(offset, bound), there)
                raise IntegrityError(f"offset {missing} is missing from its sealed range")
            yield from sorted(chunks, key=lambda c: int(c.offsets[0]))
            offset = bound

    def streams(self, span: SealedRange, offset: int) -> dict[str, Stream]:
        """The range's rows from ``offset`` on, by kind."""
        return {kind: Stream(self, files, offset) for kind, files in span.files.items()}

    def read_kind(self, span: SealedRange, kind: str, start: int, end: int) -> Iterator[Chunk]:
        """Rows of one kind with offsets in [start, end)."""
        stream = Stream(self, span.files.get(kind, ()), start)
        while stream.head < end:
            yield stream.take(end, end - start)

    def candidates(self, span: SealedRange, kind: str, hashes: Hashes) -> list[tuple[int, int]]:
        """(index into hashes, offset) of the rows whose id may be the one hashed, as the range's
        array has them: it may be that of ranges before it, too."""
        if kind not in span.ids:
            return []
        known, offsets = self.ids(span, kind)
        first = known.searchsorted(hashes)
        found = []
        for i in (known[np.minimum(first, len(known) - 1)] == hashes).nonzero()[0].tolist():
            last = known.searchsorted(hashes[i], "right")
            found += [(i, offset) for offset in offsets[first[i] : last].tolist()]
        return found

    def keep(self, ranges: Iterable[SealedRange]) -> None:
        """Let go of arrays that these ranges don't have: a deleted file takes room while mapped."""
        names = {ids.name for span in ranges for ids in span.ids.values()}
        with self._loading:
            self._ids = {name: array for name, array in self._ids.items() if name in names}

    def row(
        self, span: SealedRange, kind: str, offset: int, tenant: str, id: str
    ) -> pa.RecordBatch | None:
        """The row at this offset as a batch of one, if it bears that id; decodes its row group.

        None for a row that retention took.
        """
        file = next((f for f in span.files.get(kind, ()) if f.max_offset >= offset), None)
        if file is None:
            return None
        with _reading(self._directory / file.name, offset) as parquet:
            group = _group_of(parquet, offset)
            found = parquet.read_row_group(group, columns=[OFFSET, "tenant", id_column(kind)])
            at = int(found.column(0).to_numpy().searchsorted(offset))
            if (found.column(1)[at].as_py(), found.column(2)[at].as_py()) != (tenant, id):
                return None
            table = parquet.read_row_group(group).slice(at, 1).remove_column(0)
            schemas = mixing.schemas_in(parquet.metadata.metadata)
        row: pa.RecordBatch = table.combine_chunks().to_batches()[0]
        return row if schemas is None else mixing.restored(row, schemas)

    def ids(self, span: SealedRange, kind: str) -> npt.NDArray[np.uint64]:
        """The array [2, rows] of a range that has one, checked."""
        ids = span.ids[kind]
        with self._loading:
            if ids.name not in self._ids:
                path = self._directory / ids.name
                check_file(path, ids.sha256, span.start)
                # A plain view of the map: indexing numpy's memmap class costs microseconds more.
                self._ids[ids.name] = np.asarray(np.load(path, mmap_mode="r"))
            return self._ids[ids.name]


class Stream:
    """One kind's rows of a range, from an offset on."""

    def __init__(self, reader: SealedReader, files: tuple[SealedFile, ...], offset: int) -> None:
        self._groups = _groups(reader, files, offset)
        self._offsets: Offsets = np.empty(0, dtype=np.int64)
        self._at = 0
        self._next_group(offset)

    @property
    def head(self) -> int:
        """The next offset; beyond every range when nothing is left."""
        return int(self._offsets[self._at]) if self._at < len(self._offsets) else 2**63 - 1

    @property
    def loaded(self) -> int:
        """The offset after the row group at hand; beyond every range when nothing is left."""
        return int(self._offsets[-1]) + 1 if len(self._offsets) else 2**63 - 1

    def before(self, bound: int) -> list[Chunk]:
        """The rows before offset ``bound`` of the row group at hand: a chunk a schema."""
        start, stop = self._at, int(np.searchsorted(self._offsets, bound))
        if start == stop:
            return []
        offsets, batch = self._offsets[start:stop], self._batch.slice(start, stop - start)
        kind, schemas = self._kind, self._schemas
        self._pass(stop)
        if schemas is None:
            return [Chunk(kind, offsets, batch)]
        return [Chunk(kind, offsets[at], rows) for at, rows in mixing.by_schema(batch, schemas)]

    def take(self, bound: int, limit: int) -> Chunk:
        """The rows before offset ``bound`` of the row group at hand, at most ``limit``: of one
        schema, as they were written."""
        start = self._at
        stop = min(int(np.searchsorted(self._offsets, bound)), start + limit)
        if self._schemas is not None:
            stop = min(stop, int(self._runs[np.searchsorted(self._runs, start, "right")]))
        batch = self._batch.slice(start, stop - start)
        if self._schemas is not None:
            batch = mixing.restored(batch, self._schemas)
        chunk = Chunk(self._kind, self._offsets[start:stop], batch)
        self._pass(stop)
        return chunk

    def _pass(self, stop: int) -> None:
        self._at = stop
        if stop == len(self._offsets):
            self._next_group(0)

    def _next_group(self, offset: int) -> None:
        self._at = 0
        self._offsets = np.empty(0, dtype=np.int64)
        for kind, table, schemas in self._groups:
            self._kind, self._schemas = kind, schemas
            if schemas is not None:
                self._runs = mixing.runs(table)
            self._offsets = table.column(0).to_numpy()
            self._batch = table.remove_column(0).combine_chunks().to_batches()[0]
            self._at = int(np.searchsorted(self._offsets, offset))
            return


def _groups(
    reader: SealedReader, files: tuple[SealedFile, ...], offset: int
) -> Iterator[tuple[str, pa.Table, list[pa.Schema] | None]]:
    for file in files:
        if file.max_offset < offset:
            continue
        with _reading(reader.path(file), file.min_offset) as parquet:
            schemas = mixing.schemas_in(parquet.metadata.metadata)
            for group in range(_group_of(parquet, offset), parquet.num_row_groups):
                yield file.kind, parquet.read_row_group(group), schemas


def _group_of(parquet: pq.ParquetFile, offset: int) -> int:
    """The first row group with rows at or after this offset, by its statistics."""
    meta = parquet.metadata
    for group in range(meta.num_row_groups):
        if meta.row_group(group).column(0).statistics.max >= offset:
            return group
    return int(meta.num_row_groups)


@contextmanager
def _reading(path: Path, offset: int) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
            yield parquet
    except (OSError, pa.ArrowException) as e:
        raise damaged(path, offset, str(e)) from e
