"""Decisions that were answered while the log was out of reach, until the log has them.

One file for each node, shared by all processes on it that decide: the first decision about an event
wins among them. A row is there when ``keep`` returns and leaves when the log has it.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from raypipe.aborts import reach
from raypipe.clock import Clock, SystemClock
from raypipe.durable import make_directory
from raypipe.errors import Conflict, IntegrityError, RaypipeError, Unavailable
from raypipe.ledger import record as ledger
from raypipe.log.database import Database, Layout, translated

SPILL_FILE = "spill.db"

BUSY_TIMEOUT_MS = 500
"""How long a write waits for another process."""

_LAYOUT = Layout(
    1,
    """
create table spilled(
  number integer primary key autoincrement, tenant text not null, event_id text not null,
  at_ms integer not null, body_hash blob not null, event blob not null, record blob not null,
  crc integer not null, unique(tenant, event_id));
""",
    durable=True,
)
_MARK = 8
_log = logging.getLogger("raypipe.spill")
_SELECT = "select number, tenant, event_id, body_hash, event, record, crc from spilled "


class Spilled(NamedTuple):
    """An event, the hash of its body and the decision about it that its client was told."""

    event: dict[str, Any]
    body_hash: bytes
    record: ledger.DecisionRecord
    number: int = 0


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits for the log on a node: rows, and since when, ms UTC (None without rows)."""

    rows: int
    since: int | None


class Spill:
    """The spill of a node. Safe for all threads and processes.

    Args:
        limit_bytes: of the file; no row is taken beyond it.

    Raises LogUnwritable and Unavailable when the medium refuses.
    """

    def __init__(self, folder: Path, limit_bytes: int, clock: Clock | None = None) -> None:
        make_directory(folder, 0o700)
        self._limit = limit_bytes
        self._clock = clock or SystemClock()
        self._db = Database(folder / SPILL_FILE, _LAYOUT, timeout_ms=BUSY_TIMEOUT_MS)
        # A row that a process left which died may be in memory alone, and is answered from now on.
        self._db.settle()
        self._duty = os.open(folder / "duty.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._mark = _open_mark(folder / "mark")
        self._seen, self._some = b"", False
        self._refused = False

    @property
    def some(self) -> bool:
        """Whether there are rows. Cheap enough to ask for each request."""
        mark = self._mark[:_MARK]
        if mark != self._seen:
            with translated():
                found = self._db.connection.execute("select 1 from spilled limit 1").fetchone()
            self._seen, self._some = mark, found is not None
        return self._some

    def keep(self, given: Sequence[Spilled]) -> list[ledger.DecisionRecord | RaypipeError]:
        """Store decisions durably, in one commit; for each what its client may be told.

        That is the decision that was stored first about its event; Conflict if its event came with
        another body, Unavailable when the file is full. Raises LogUnwritable, and nothing is
        stored, when the medium refuses.
        """
        if self._refused:
            self._db.settle(again=True)
        self._refused = True
        kept = self._keep(given)
        self._refused = False
        self._changed()
        return kept

    def _keep(self, given: Sequence[Spilled]) -> list[ledger.DecisionRecord | RaypipeError]:
        kept: list[ledger.DecisionRecord | RaypipeError] = []
        with self._db.write() as db:
            total, free, size = self._db.pages
            room = self._limit - (total - free) * size
            for one in given:
                found = _find(db, one.record.tenant, one.record.event_id)
                if found is not None:
                    kept.append(_first(found, one.body_hash))
                    continue
                row = _row(one)
                room -= len(row[4]) + len(row[5])
                if room < 0:
                    kept.append(_full(self._limit))
                    continue
                values = (*row[1:3], self._clock.now_ms(), *row[3:])
                db.execute(
                    "insert into spilled(tenant, event_id, at_ms, body_hash, event, record, crc) "
                    "values(?, ?, ?, ?, ?, ?, ?)",
                    values,
                )
                kept.append(one.record)
            reach("spill.before_commit")
        reach("spill.after_commit")
        return kept

    def find(self, tenant: str, event_id: str) -> Spilled | None:
        """The decision about an event, while it waits."""
        with translated():
            return _find(self._db.connection, tenant, event_id)

    def rows(self, after: int, limit: int) -> tuple[list[Spilled], int]:
        """Rows with a ``number`` over ``after``, oldest first, and the number to go on after.

        Damaged rows are left out, and stay.
        """
        with translated():
            found = self._db.connection.execute(
                _SELECT + "where number > ? order by number limit ?", (after, limit)
            ).fetchall()
        whole = []
        for row in found:
            try:
                whole.append(_spilled(row))
            except IntegrityError as e:
                _log.error("%s", e)
        return whole, found[-1][0] if found else after

    def remove(self, numbers: Sequence[int]) -> None:
        """Rows that the log has now."""
        with self._db.write() as db:
            db.executemany("delete from spilled where number = ?", [(n,) for n in numbers])
        self._changed()

    def backlog(self) -> Backlog:
        """What waits."""
        with translated():
            return _backlog(self._db.connection)

    @contextmanager
    def on_duty(self) -> Iterator[bool]:
        """Whether this process is the one of its node that hands rows over, within the block."""
        try:
            fcntl.flock(self._duty, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(self._duty, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give up file and locks; rows stay."""
        self._db.close()
        self._mark.close()
        os.close(self._duty)

    def _changed(self) -> None:
        """Have all processes look again: before a client is told of a row."""
        self._mark[:_MARK] = os.urandom(_MARK)


def backlog(folder: Path) -> Backlog:
    """What waits in a node's spill, without opening it for writing; raises Unavailable."""
    file = folder / SPILL_FILE
    if not file.is_file():
        return Backlog(0, None)
    with translated():
        db = sqlite3.connect(file, timeout=BUSY_TIMEOUT_MS / 1_000)
        try:
            db.execute("pragma query_only = on")
            return _backlog(db)
        finally:
            db.close()


def _backlog(db: sqlite3.Connection) -> Backlog:
    rows, since = db.execute("select count(*), min(at_ms) from spilled").fetchone()
    return Backlog(rows, since)


def _open_mark(path: Path) -> mmap.mmap:
    """Eight bytes that all processes of the node see: another value means other rows."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_size < _MARK:
            os.ftruncate(descriptor, _MARK)
        return mmap.mmap(descriptor, _MARK)
    finally:
        os.close(descriptor)


def _row(one: Spilled) -> tuple[int, str, str, bytes, bytes, bytes, int]:
    event, record = msgspec.msgpack.encode(one.event), ledger.encode(one.record)
    crc = zlib.crc32(record, zlib.crc32(event, zlib.crc32(one.body_hash)))
    return (0, one.record.tenant, one.record.event_id, one.body_hash, event, record, crc)


def _spilled(row: Sequence[Any]) -> Spilled:
    number, tenant, event_id, body_hash, event, record, crc = row
    if zlib.crc32(record, zlib.crc32(event, zlib.crc32(body_hash))) != crc:
        raise IntegrityError(
            f"the spilled decision about event {event_id!r} of {tenant!r} is damaged",
            hint="Check the disk. Its client was answered; ask it for the answer.",
        )
    return Spilled(msgspec.msgpack.decode(event), body_hash, ledger.decode(record), number)


def _find(db: sqlite3.Connection, tenant: str, event_id: str) -> Spilled | None:
    given = (tenant, event_id)
    row = db.execute(_SELECT + "where tenant = ? and event_id = ?", given).fetchone()
    return None if row is None else _spilled(row)


def _first(found: Spilled, body_hash: bytes) -> ledger.DecisionRecord | RaypipeError:
    if found.body_hash == body_hash:
        return found.record
    return other_body(found.record.event_id)


def other_body(event_id: str) -> Conflict:
    """An id that was decided about with another body."""
    return Conflict(
        f"event_id {event_id!r} came before with another body",
        hint="Send a new event_id, or the same body to get the stored answer.",
    )


def _full(limit: int) -> Unavailable:
    return Unavailable(
        f"the worker is away, and this node's spill has its {limit} bytes",
        hint="Retry; raise spill_bytes if workers are away for longer.",
    )
