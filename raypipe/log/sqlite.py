"""The embedded event log: SQLite in WAL mode for live rows, sealed Parquet for history.

Layout of the directory: ``log.db`` (+ ``-wal``, ``-shm``, ``.lock``) and ``sealed/``. Nothing else
may write there. database.py has the tables, live.py and history.py the two halves.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raypipe.aborts import reach
from raypipe.durable import make_directory
from raypipe.errors import ConfigError, IntegrityError, Unavailable, UsageError
from raypipe.lake import Place
from raypipe.log import books
from raypipe.log.compaction import RANGE_ROWS, Compacted, Compaction
from raypipe.log.database import PLACE_BITS, Database, translated
from raypipe.log.export import Sealed, export
from raypipe.log.history import History
from raypipe.log.identity import hash_keys
from raypipe.log.live import Live, LiveBatch, LiveGroup
from raypipe.log.manifest import Ranges
from raypipe.log.merging import merge
from raypipe.log.newcomers import signed
from raypipe.log.port import Appended, Chunk, Expired, Group, Offsets, check_kind
from raypipe.log.retention import GRACE_MS, Retained, retain
from raypipe.log.sealing import Sealing
from raypipe.log.usage import Usage, usage

BUSY_TIMEOUT_MS = 10_000
"""How long a write waits for another writer."""

_POLL_S = 0.005
"""How often a waiting reader looks for the appends of other processes."""

_GLANCE = """
select exists(select 1 from ids where hash = ? and place between ? and ?), version from manifest
"""
"""The usual end of a search at once: no live row has the id, and what is sealed is as before."""

_MAX_PARTITION = (1 << 15) - 1


class SqliteLog:
    """The event log in one directory. One process writes; any number of processes read.

    Connections belong to threads, so one object serves all threads of a process.
    """

    def __init__(
        self,
        directory: Path,
        *,
        busy_timeout_ms: int = BUSY_TIMEOUT_MS,
        eager: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Open or make the log.

        Args:
            eager: entered while the write lock is held, for which others may wait.
        """
        make_directory(directory)
        self.directory = directory
        self._db = Database(directory / "log.db", timeout_ms=busy_timeout_ms, eager=eager)
        self._live = Live(self._db)
        self._history = History(directory / "sealed", self._db)
        self._grown = threading.Condition()

    @classmethod
    def open(cls, url: str) -> SqliteLog:
        """The log at ``sqlite:///directory`` (a fourth slash begins an absolute path)."""
        return cls(cls.directory_of(url))

    @staticmethod
    def directory_of(url: str) -> Path:
        """The directory that a URL names; raises ConfigError when it names none."""
        scheme, _, path = url.partition(":///")
        if scheme != "sqlite" or not path:
            raise ConfigError(
                f"{url!r} names no embedded event log", hint="Write sqlite:///DIRECTORY."
            )
        return Path(path)

    def __repr__(self) -> str:
        return f"SqliteLog({str(self.directory)!r})"

    def append(
        self,
        partition: int,
        batches: Sequence[Appended],
        *,
        producer: str,
        seq: int,
        epoch: int | None = None,
    ) -> list[Offsets]:
        """See EventLog.append."""
        low = _low(partition)
        sizes = [len(b) if isinstance(b, Group) else b[1].num_rows for b in batches]
        rows = [
            self._live.prepare_group(b) if isinstance(b, Group) else self._live.prepare(*b)
            for b, size in zip(batches, sizes, strict=True)
            if size
        ]
        with self._db.write() as db:
            standing = books.Standing(db, partition, producer, seq)
            base = standing.given(sizes)
            if base is None:
                standing.check_writer(epoch)
                ranges = self._history.ranges(partition, standing.manifest)
                self._check_new(db, _low(partition), ranges, rows)
                base = standing.end
                self._live.insert(db, low + base, rows, (producer, seq, epoch))
                books.add_rows(db, partition, (row.rows for row in rows))
                books.acknowledge(db, partition, producer, seq, base, sizes, sealed=False)
            reach("log.append.before_commit")
        reach("log.append.after_commit")
        self._wake()
        starts = accumulate(sizes, initial=base)
        return [np.arange(at, at + n, dtype=np.int64) for at, n in zip(starts, sizes, strict=False)]

    def _check_new(
        self,
        db: sqlite3.Connection,
        low: int,
        ranges: Ranges,
        rows: Sequence[LiveBatch | LiveGroup],
    ) -> None:
        batches = [r for r in rows if isinstance(r, LiveBatch)]
        self._live.check_new(db, low, batches)
        for live in batches:
            found = self._history.search(ranges, live.kind, live.hashes, live.keys)
            for row, offset, _ in found:
                raise live.duplicate(row, f"at sealed offset {offset}")

    def seal(
        self,
        partition: int,
        ordered: Mapping[str, Iterable[pa.RecordBatch]],
        count: int,
        *,
        producer: str,
        seq: int,
        epoch: int | None = None,
    ) -> tuple[int, int]:
        """See EventLog.seal."""
        _low(partition)
        self._db.settle()
        with self._history.sealing():
            with translated():
                db = self._db.connection
                done = books.acknowledged(db, partition, producer, seq, [count], sealed=True)
                if done is not None:
                    return done, done + count
                books.check_epoch(db, partition, epoch)
                start = books.next_offset(db, partition)
            sealing = Sealing(self._history.directory, partition, start, count)
            try:
                span = sealing.write(ordered)
                reach("log.seal.after_temp_write")
                with self._db.write() as db:
                    books.check_epoch(db, partition, epoch)
                    if books.next_offset(db, partition) != start:
                        raise Unavailable(
                            f"partition {partition} grew while a range was sealed at {start}",
                            hint="Seal again; history goes in while nothing is appended.",
                        )
                    sealing.publish()
                    reach("log.seal.after_rename")
                    self._history.add(db, partition, span, epoch)
                    books.add_rows(
                        db, partition, [{k: sum(f.rows for f in s) for k, s in span.files.items()}]
                    )
                    books.acknowledge(db, partition, producer, seq, start, [count], sealed=True)
                    reach("log.seal.before_manifest")
                reach("log.seal.after_manifest")
            finally:
                sealing.discard()
        self._wake()
        return span.start, span.end

    def sealed_range(self, partition: int, producer: str, seq: int) -> tuple[int, int] | None:
        """See EventLog.sealed_range."""
        with translated():
            return books.sealed(self._db.connection, partition, producer, seq)

    def read(
        self, partition: int, offset: int, max_events: int, wait_ms: int = 0
    ) -> Iterator[Chunk]:
        """See EventLog.read."""
        low = _low(partition)
        if offset < 0:
            raise UsageError(f"there is no offset {offset}; the first one is 0")
        self._check_kept(partition, offset)
        deadline = time.monotonic() + wait_ms / 1_000
        left = max_events
        while left > 0:
            end = self.end(partition)
            if offset >= end:
                if left < max_events or not self._wait(partition, offset, deadline):
                    return
                continue
            span = self._history.ranges(partition).at(offset)
            if span is not None:
                chunks = self._history.reader.read(span, offset, left)
            else:
                chunks = self._live.read(low, offset, left)
            before = offset
            try:
                for chunk in chunks:
                    yield chunk
                    offset += len(chunk)
                    left -= len(chunk)
            except IntegrityError:
                self._check_kept(partition, offset)
                raise
            # What was live a moment ago may be sealed now.
            if offset == before and self._history.ranges(partition).at(offset) is span:
                self._check_kept(partition, offset)
                raise IntegrityError(f"offset {offset} of partition {partition} is missing")

    def _check_kept(self, partition: int, offset: int) -> None:
        """Raise Expired for an offset that retention deleted."""
        first = self.first(partition)
        if offset < first:
            raise Expired(
                f"offset {offset} of partition {partition}: events before offset {first} were "
                "deleted",
                hint=f"Begin at offset {first}. The setting log_retention_days says how long "
                "events are kept.",
            )

    def _wait(self, partition: int, offset: int, deadline: float) -> bool:
        """Wait until the partition reaches beyond ``offset``; False at the deadline."""
        while self.end(partition) <= offset:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            with self._grown:
                self._grown.wait(min(left, _POLL_S))
        return True

    def _wake(self) -> None:
        with self._grown:
            self._grown.notify_all()

    def first(self, partition: int, kind: str | None = None) -> int:
        """See EventLog.first."""
        with translated():
            db = self._db.connection
            if kind is not None and not books.lost_rows(db, partition, kind):
                return 0
            return books.first_offset(db, partition)

    def end(self, partition: int) -> int:
        """See EventLog.end."""
        with translated():
            return books.next_offset(self._db.connection, partition)

    def find(
        self, partition: int, kind: str, tenant: str, id: str
    ) -> tuple[int, pa.RecordBatch] | None:
        """See EventLog.find."""
        keys = ([tenant], [id])
        hashes = hash_keys(kind, keys)
        low = _low(partition)
        values = (*signed(hashes), low, low + (1 << PLACE_BITS) - 1)
        live, manifest = self._one(_GLANCE, values)
        if live:
            found = self._live.find(low, kind, hashes, tenant, id)
            if found is not None:
                # Appends refuse ids that are sealed, so a live row is older than a sealed namesake.
                return found
            manifest = None  # it may have been sealed since
        ranges = self._history.ranges(partition, manifest)
        for _, offset, row in self._history.search(ranges, kind, hashes, keys):
            return offset, row
        return None

    def commit(self, group: str, partition: int, offset: int, state_ref: str) -> None:
        """See EventLog.commit."""
        _low(partition)
        with self._db.write() as db:
            end = books.next_offset(db, partition)
            if not 0 <= offset <= end:
                raise UsageError(
                    f"group {group!r} can't have used the rows before {offset}: "
                    f"partition {partition} ends at {end}"
                )
            db.execute(
                "insert or replace into consumer values(?, ?, ?, ?)",
                (group, partition, offset, state_ref),
            )

    def committed(self, group: str, partition: int) -> tuple[int, str] | None:
        """See EventLog.committed."""
        row = self._one(
            "select offset, state_ref from consumer where consumer = ? and partition = ?",
            (group, partition),
        )
        return (row[0], row[1]) if row else None

    def begin_epoch(self, partition: int) -> int:
        """See EventLog.begin_epoch."""
        _low(partition)
        self._db.settle()
        with self._db.write() as db:
            db.execute(
                "insert into epoch values(?, 1) on conflict do update set epoch = epoch + 1",
                (partition,),
            )
            return books.current_epoch(db, partition)

    @property
    def id(self) -> str:
        """See EventLog.id."""
        with self._db.write() as db:
            return books.identity(db)

    def export(
        self, partition: int, kind: str, directory: Place, start: int, end: int
    ) -> list[Place]:
        """See EventLog.export."""
        check_kind(kind)
        if start < min(end, self.first(partition, kind)):
            self._check_kept(partition, start)
        return export(
            lambda offset, rows: self.read(partition, offset, rows),
            (partition, kind),
            directory,
            start,
            min(end, self.end(partition)),
            sealed=Sealed(self._history.reader, self._history.ranges(partition)),
        )

    def compact(
        self,
        partition: int,
        until: int,
        *,
        least_rows: int = 1,
        range_rows: int = RANGE_ROWS,
    ) -> Compacted:
        """Turn live rows before offset ``until`` into sealed ranges; readers see no difference.

        Beside any writer, in any process. Raises IntegrityError, and leaves the rows live, when
        they don't come out of Parquet as they went in.
        """
        _low(partition)
        until = min(until, self.end(partition))
        run = Compaction(self._db, self._live, self._history, partition)
        return run.run(until, least_rows, range_rows)

    def retain(
        self, partition: int, kinds: Collection[str], before_ms: int, now_ms: int
    ) -> Retained:
        """Delete events, rows of these kinds, in front: whole sealed ranges in which nothing
        happened at or after ``before_ms``, up to what every consumer has used.

        A log that no one has used yet keeps all.
        """
        _low(partition)
        row = self._one("select min(offset) from consumer where partition = ?", (partition,))
        needed = row[0] or 0
        return retain(self._db, self._history, partition, kinds, before_ms, needed, now_ms)

    def merge_ids(self, partition: int, now_ms: int) -> int:
        """Merge arrays of sealed ids, so that ``find`` stays fast; returns the number of merges."""
        return merge(self._db, self._history, partition, now_ms)

    def remove_doomed(self, now_ms: int) -> int:
        """Remove files that were deleted or merged an hour before ``now_ms``; returns bytes."""
        with self._history.sealing():
            return self._history.remove_doomed(now_ms - GRACE_MS)

    def shrink(self, keep_bytes: int, seconds: float) -> int:
        """Give free pages of the database back but for so many bytes; returns the bytes.

        It stops after ``seconds``; others write in between. The file system has them after the
        next checkpoint. A database of an earlier version keeps its size and uses pages again.
        """
        return self._db.shrink(keep_bytes, seconds)

    def live_start(self, partition: int) -> int:
        """The offset of the first live row; the end when all rows are sealed."""
        first = self._live.first(_low(partition), 0)
        return self.end(partition) if first is None else first

    def partitions(self) -> list[int]:
        """Those that ever had a row."""
        with translated():
            rows = self._db.connection.execute("select distinct partition from kind order by 1")
            return [p for (p,) in rows]

    def file_bytes(self) -> dict[str, int]:
        """Bytes of the database file, and those of them that are free."""
        total, free, size = self._db.pages
        return {"file_bytes": total * size, "free_bytes": free * size}

    def usage(self, partition: int) -> Usage:
        """What the partition takes, live and sealed."""
        return usage(self._db, self._history, partition)

    def kinds(self, partition: int) -> list[str]:
        """See EventLog.kinds."""
        return sorted(self.counts(partition))

    def counts(self, partition: int) -> dict[str, int]:
        """See EventLog.counts."""
        with translated():
            return books.counts(self._db.connection, partition)

    def close(self) -> None:
        """See EventLog.close."""
        self._db.close()

    def _one(self, query: str, values: tuple[object, ...]) -> Any:
        with translated():
            return self._db.connection.execute(query, values).fetchone()


def _low(partition: int) -> int:
    """The place of a partition's offset 0."""
    if not 0 <= partition <= _MAX_PARTITION:
        raise UsageError(f"partition {partition} is not in 0..{_MAX_PARTITION}")
    return partition << PLACE_BITS
