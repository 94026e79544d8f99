"""Live rows become a sealed range, under the same offsets.

1. Parquet and id arrays are written beside the running log, made durable and compared with the live
   rows: neither the write lock nor a transaction is held.
2. One small transaction enters the range into the manifest. From its commit on readers use the
   sealed form, before it the live one.
3. The live form, which no one reads any more, is swept: batches with their ids, front first, in
   transactions of a few milliseconds.

A crash leaves files without a name in the manifest, which the next opening removes, or rows left to
sweep, which the next compaction removes. Rows never change, so even a reader that looks in between
finds the same row in both forms.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import numpy as np

from raypipe.aborts import reach
from raypipe.errors import IntegrityError
from raypipe.log import books
from raypipe.log.database import PLACE_BITS, Database
from raypipe.log.history import History
from raypipe.log.live import Live, Stored, indexed
from raypipe.log.manifest import SealedRange
from raypipe.log.port import Chunk
from raypipe.log.writing import KindWriter, RangeFiles

RANGE_ROWS = 5_000_000
"""Most rows of a range, but for a single larger batch."""

HOLD_S = 0.005
"""How long a sweep deletes before it lets others write."""

_SWEEP_BATCHES = 256


@dataclass(frozen=True)
class Compacted:
    """What one compaction did."""

    ranges: tuple[tuple[int, int], ...]
    """Offsets [start, end) that were sealed."""
    rows: int
    live_bytes: int
    """Payload that the rows took while they were live."""
    sealed_bytes: int
    swept: int
    """Stored batches that were deleted; more than these ranges had if a crash had left some."""
    longest_hold_ms: float
    """Longest transaction of its own, from the moment it had the write lock."""


class Compaction:
    """Compacts one partition. One object makes one run."""

    def __init__(self, database: Database, live: Live, history: History, partition: int) -> None:
        self._db = database
        self._live = live
        self._history = history
        self._partition = partition
        self._low = partition << PLACE_BITS
        self._longest = 0.0
        self._swept = 0

    def run(self, until: int, least_rows: int, range_rows: int) -> Compacted:
        """Seal the live rows before offset ``until``, oldest first, and sweep them.

        Rows that would make a range of less than ``least_rows`` wait, unless they can't grow.
        """
        made: list[tuple[SealedRange, int]] = []
        while True:
            # Not over all ranges at once: whoever loads history waits for one at most.
            with self._history.sealing():
                self._sweep()
                done = self._seal(until, least_rows, range_rows)
                self._sweep()
            if done is None:
                break
            made.append(done)
        return Compacted(
            tuple((span.start, span.end) for span, _ in made),
            sum(span.end - span.start for span, _ in made),
            sum(size for _, size in made),
            self._history.size(name for span, _ in made for name in span.names),
            self._swept,
            self._longest * 1_000,
        )

    def _seal(self, until: int, least_rows: int, range_rows: int) -> tuple[SealedRange, int] | None:
        """Make the first live rows a range; it and the payload's bytes, None if there is none."""
        start = self._live.first(self._low, 0)
        if start is None or start >= until:
            return None
        stop = self._history.ranges(self._partition).next_start(start, until)
        if stop == until and until - start < least_rows:
            return None
        files = RangeFiles(self._history.directory, self._partition, start)
        try:
            span, size = self._write(files, start, stop, range_rows)
            if span.end == start:
                return None  # the only batch before the bound reaches over it
            reach("log.compact.written")
            files.publish()
            reach("log.compact.published")
            self._compare(span)
            with self._held() as db:
                self._history.add(db, self._partition, span, None)
                reach("log.compact.before_manifest")
            reach("log.compact.after_manifest")
        finally:
            files.discard()
        return span, size

    def _batches(self, start: int, stop: int, rows: int) -> Iterator[tuple[Stored, list[Chunk]]]:
        """Whole stored batches from ``start`` to at most ``stop``, of so many rows, or one."""
        end = start
        for stored, chunks in self._live.batches(self._low, start, stop - start):
            n = stored[1]
            # A batch that reaches over the bound came without its last rows.
            if end + n > stop or (end > start and end + n - start > rows):
                return
            yield stored, chunks
            end += n

    def _write(
        self, files: RangeFiles, start: int, stop: int, rows: int
    ) -> tuple[SealedRange, int]:
        writers: dict[str, KindWriter] = {}
        end, size = start, 0
        for stored, chunks in self._batches(start, stop, rows):
            for chunk in chunks:
                if chunk.kind not in writers:
                    writers[chunk.kind] = KindWriter(files, chunk.kind)
                writers[chunk.kind].add(chunk.offsets, chunk.batch, indexed=indexed(stored))
            end += stored[1]
            size += len(stored[5])
        by_kind = {kind: writer.finish() for kind, writer in writers.items()}
        ids = {kind: found for kind, w in writers.items() if (found := w.write_ids()) is not None}
        return SealedRange(start, end, by_kind, ids), size

    def _compare(self, span: SealedRange) -> None:
        """Raise IntegrityError unless the files hold what the live rows are."""
        sealed = self._history.reader.streams(span, span.start)
        for _, chunks in self._batches(span.start, span.end, span.end - span.start):
            for chunk in chunks:
                at = 0
                while at < len(chunk):
                    found = sealed[chunk.kind].take(span.end, len(chunk) - at)
                    if not _same(chunk, at, found):
                        raise IntegrityError(
                            f"{chunk.kind!r} from offset {chunk.offsets[at]} of partition "
                            f"{self._partition} reads otherwise from Parquet than it was logged",
                            hint="The rows stay live. Please report it with the event's schema.",
                        )
                    at += len(found)

    def _sweep(self) -> None:
        """Delete the live form of what is sealed."""
        while True:
            first = self._live.first(self._low, 0)
            span = None if first is None else self._history.ranges(self._partition).at(first)
            if first is None or span is None:
                return
            page = islice(self._live.batches(self._low, first, span.end - first), _SWEEP_BATCHES)
            work = [(stored, self._live.index_entries(stored)) for stored, _ in page]
            while work:
                with self._held() as db:
                    work = self._delete(db, work)
                    reach("log.compact.sweeping")
                reach("log.compact.swept")

    def _delete(
        self, db: sqlite3.Connection, work: list[tuple[Stored, list[tuple[int, int]]]]
    ) -> list[tuple[Stored, list[tuple[int, int]]]]:
        """Delete batches, the first one at least, while the time lasts; returns the others."""
        ends, done, appends = time.monotonic() + HOLD_S, 0, []
        for stored, entries in work:
            appends.append(self._live.delete(db, stored, entries))
            done += 1
            if time.monotonic() > ends:
                break
        books.forget(db, self._partition, appends)
        self._swept += done
        return work[done:]

    @contextmanager
    def _held(self) -> Iterator[sqlite3.Connection]:
        with self._db.write() as db:
            began = time.monotonic()
            yield db
        self._longest = max(self._longest, time.monotonic() - began)


def _same(chunk: Chunk, at: int, found: Chunk) -> bool:
    n = len(found)
    mine = chunk.batch.slice(at, n)
    if not np.array_equal(chunk.offsets[at : at + n], found.offsets):
        return False
    if not mine.schema.equals(found.batch.schema, check_metadata=True):
        return False
    # To Arrow no NaN equals another; as text they do, and no other values do.
    return mine.equals(found.batch) or repr(mine.to_pylist()) == repr(found.batch.to_pylist())
