"""The sealed ranges of an embedded log: their manifest in SQLite, their files beside it."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from raypipe.durable import make_directory
from raypipe.log.database import Database, translated
from raypipe.log.files import TEMPORARY
from raypipe.log.identity import Hashes, Keys
from raypipe.log.manifest import Ranges, SealedFile, SealedIds, SealedRange
from raypipe.log.sealed import SealedReader

_OURS = (TEMPORARY, ".parquet", ".npy")
_NONE = Ranges([])


class History:
    """What is sealed, as the manifest says; a file that it doesn't name doesn't exist."""

    def __init__(self, directory: Path, database: Database) -> None:
        make_directory(directory)
        self.directory = directory
        self.reader = SealedReader(directory)
        self._db = database
        self._loaded: tuple[int | None, dict[int, Ranges]] = (None, {})
        self._remove_orphans()

    @contextmanager
    def sealing(self, *, wait: bool = True) -> Iterator[bool]:
        """Hold the directory for writing files; False when another holds it and wait is off."""
        fd = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(fd)

    def _remove_orphans(self) -> None:
        """Remove what a crash left half-made, unless someone is making it right now."""
        with self.sealing(wait=False) as alone:
            if not alone:
                return
            with translated():
                known = self._db.connection.execute(
                    "select name from sealed_file union all select name from sealed_ids"
                    " union all select name from doomed"
                ).fetchall()
            names = {name for (name,) in known}
            for path in self.directory.iterdir():
                if path.name not in names and path.name.endswith(_OURS):
                    path.unlink(missing_ok=True)

    def add(
        self, db: sqlite3.Connection, partition: int, span: SealedRange, epoch: int | None
    ) -> None:
        """Make a range visible, with the caller's transaction."""
        added = db.execute(
            "insert into sealed_range(partition, start, end, epoch) values(?, ?, ?, ?)",
            (partition, span.start, span.end, epoch),
        ).lastrowid
        for f in (f for files in span.files.values() for f in files):
            times = (f.min_event_time, f.max_event_time)
            db.execute(
                "insert into sealed_file values(?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (added, f.kind, f.name, f.rows, f.sha256, f.min_offset, f.max_offset, *times),
            )
        for i in span.ids.values():
            db.execute(
                "insert into sealed_ids values(?, ?, ?, ?, ?)",
                (added, i.kind, i.name, i.rows, i.sha256),
            )
        changed(db)

    def ranges(self, partition: int, version: int | None = None) -> Ranges:
        """The partition's ranges as of now, whoever sealed them.

        Args:
            version: the manifest's, if it was read just now.
        """
        loaded = self._loaded
        if version is not None and version == loaded[0]:
            return loaded[1].get(partition, _NONE)
        with translated():
            db = self._db.connection
            version = db.execute("select version from manifest").fetchone()[0]
            loaded = self._loaded
            if version != loaded[0]:
                loaded = self._loaded = (version, _load(db))
                self.reader.keep(span for found in loaded[1].values() for span in found.all)
        return loaded[1].get(partition, _NONE)

    def search(
        self, ranges: Ranges, kind: str, hashes: Hashes, keys: Keys
    ) -> Iterator[tuple[int, int, pa.RecordBatch]]:
        """(index into keys, offset, row) for the ranges' rows that bear one of these ids."""
        for span in ranges.all:
            for i, offset in self.reader.candidates(span, kind, hashes):
                home = ranges.at(offset)
                row = home and self.reader.row(home, kind, offset, keys[0][i], keys[1][i])
                if row is not None:
                    yield i, offset, row

    def size(self, names: Iterable[str]) -> int:
        """Bytes of those of these files that are there."""
        paths = [self.directory / name for name in names]
        return sum(p.stat().st_size for p in paths if p.exists())

    def doom(self, db: sqlite3.Connection, names: Iterable[str], now_ms: int) -> None:
        """Have files removed when whoever may be reading them has finished, and not before."""
        values = [(name, now_ms) for name in names]
        db.executemany("insert or replace into doomed values(?, ?)", values)

    def remove_doomed(self, before_ms: int) -> int:
        """Remove the files that were doomed before then; returns their bytes."""
        with translated():
            query = "select name from doomed where since <= ?"
            names = [n for (n,) in self._db.connection.execute(query, (before_ms,))]
        freed = self.size(names)
        for name in names:
            (self.directory / name).unlink(missing_ok=True)
        if names:
            with self._db.write() as db:
                db.executemany("delete from doomed where name = ?", [(n,) for n in names])
        return freed


def changed(db: sqlite3.Connection) -> None:
    """Have every process load the manifest again."""
    db.execute("update manifest set version = version + 1")


def _load(db: sqlite3.Connection) -> dict[int, Ranges]:
    files: dict[int, dict[str, list[SealedFile]]] = defaultdict(lambda: defaultdict(list))
    for id, *row in db.execute("select * from sealed_file order by range, kind, min_offset"):
        files[id][row[0]].append(SealedFile(*row))
    ids: dict[int, dict[str, SealedIds]] = defaultdict(dict)
    for id, *row in db.execute("select * from sealed_ids"):
        ids[id][row[0]] = SealedIds(*row)
    spans: dict[int, list[SealedRange]] = defaultdict(list)
    query = "select id, partition, start, end from sealed_range order by start"
    for id, partition, start, end in db.execute(query):
        by_kind = {kind: tuple(parts) for kind, parts in files[id].items()}
        spans[partition].append(SealedRange(start, end, by_kind, dict(ids[id]), id))
    return {partition: Ranges(found) for partition, found in spans.items()}
