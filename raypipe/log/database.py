"""The SQLite files under a log: tables, connections, the one writer at a time."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from raypipe.durable import rewrite, sync_directory
from raypipe.errors import IntegrityError, Unavailable
from raypipe.log.files import writing
from raypipe.log.port import LogUnwritable

FORMAT = 2
"""Version of the tables below, kept in the file's user_version."""

_SHRINK_PAGES = 512
"""Pages that are given back while others wait."""

PLACE_BITS = 44
"""A place is partition << PLACE_BITS | offset: one integer key keeps a commit to few pages."""

_TABLES = f"""
create table batch(
  place integer primary key, n integer not null, kind text not null, schema integer not null,
  producer text not null, seq integer not null, epoch integer, crc integer not null,
  partition integer generated always as (place >> {PLACE_BITS}) virtual,
  base_offset integer generated always as (place & {(1 << PLACE_BITS) - 1}) virtual,
  payload blob not null);
create table schema(id integer primary key, digest blob not null unique, ipc blob not null);
create table ids(hash integer, place integer, primary key(hash, place)) without rowid;
create table ack(
  partition integer, producer text, seq integer, base_offset integer not null,
  sizes text not null, sealed integer not null,
  primary key(partition, producer, seq)) without rowid;
create table kind(
  partition integer, kind text, rows integer not null,
  primary key(partition, kind)) without rowid;
create table epoch(partition integer primary key, epoch integer not null);
create table consumer(
  consumer text, partition integer, offset integer not null, state_ref text not null,
  primary key(consumer, partition)) without rowid;
create table sealed_range(
  id integer primary key, partition integer not null, start integer not null,
  end integer not null, epoch integer);
create unique index sealed_end on sealed_range(partition, end);
create table sealed_file(
  range integer, kind text, name text not null unique, rows integer not null,
  sha256 text not null, min_offset integer not null, max_offset integer not null,
  min_event_time integer, max_event_time integer,
  primary key(range, kind, min_offset)) without rowid;
create table sealed_ids(
  range integer, kind text, name text not null unique, rows integer not null,
  sha256 text not null, primary key(range, kind)) without rowid;
"""

_UPKEEP_TABLES = """
create table manifest(version integer not null);
insert into manifest values(0);
create table horizon(partition integer primary key, first integer not null);
create table expired(
  partition integer, kind text, rows integer not null,
  primary key(partition, kind)) without rowid;
create table forgotten(
  partition integer, producer text, seq integer not null,
  primary key(partition, producer)) without rowid;
create table doomed(name text primary key, since integer not null) without rowid;
"""
"""What format 2 added."""


class Damaged(IntegrityError):
    """SQLite finds its own file broken."""


@dataclass(frozen=True)
class Layout:
    """The tables of a file, their version, and whether a commit outlives a power cut."""

    format: int
    tables: str
    durable: bool
    added: tuple[str, ...] = ()
    """What each later format added: a file of an earlier one gets it when it is opened."""


LOG = Layout(FORMAT, _TABLES, durable=True, added=(_UPKEEP_TABLES,))


class Database:
    """Connections (one a thread) to one SQLite file of a log, and its write lock.

    SQLite 3.7.0 to 3.51.2 can lose a commit when two connections write or checkpoint at the same
    instant (sqlite.org/wal.html#walresetbug), and Python brings the system's SQLite. So all
    writes, and the checkpoints inside them, take turns on a lock file; readers never need it.
    """

    def __init__(
        self,
        path: Path,
        layout: Layout = LOG,
        *,
        timeout_ms: int,
        eager: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Open or make the file.

        Args:
            eager: entered while others wait for this one's turn to end.
        """
        self.path = path
        self._eager = eager
        self._layout = layout
        self._timeout = timeout_ms / 1_000
        self._local = threading.local()
        self._sessions: weakref.WeakSet[_Session] = weakref.WeakSet()
        self._turn = threading.Lock()
        self._turn_file = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
        self._closed = False
        self._settled = False
        self._create()

    def _create(self) -> None:
        with translated():
            found = self.connection.execute("pragma user_version").fetchone()[0]
        if found == 0 or 0 < self._layout.format - found <= len(self._layout.added):
            with self.write() as db:
                found = db.execute("pragma user_version").fetchone()[0]
                missing = (self._layout.tables, *self._layout.added)[found:]
                for statement in "".join(missing).split(";"):
                    db.execute(statement)
                db.execute(f"pragma user_version = {self._layout.format}")
            sync_directory(self.path.parent)
        elif found != self._layout.format:
            raise IntegrityError(
                f"{self.path} has format {found}, this version reads {self._layout.format}",
                hint="Open it with the version of raypipe that wrote it.",
            )

    @property
    def connection(self) -> sqlite3.Connection:
        """This thread's connection, outside of any transaction."""
        session: _Session | None = getattr(self._local, "session", None)
        if session is None:
            if self._closed:
                raise Unavailable(f"{self.path} was closed")
            with translated():
                session = _Session(self.path, self._timeout, durable=self._layout.durable)
            self._local.session = session
            self._sessions.add(session)
        return session.connection

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A write transaction, durable when this returns; any exception undoes it.

        Raises LogUnwritable when the medium refuses, Unavailable when another writer doesn't end.
        """
        db = self.connection
        with self._turns(), translated():
            db.execute("begin immediate")
            try:
                yield db
                db.execute("commit")
            except BaseException:
                if db.in_transaction:
                    db.execute("rollback")
                raise

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A transaction that sees one moment. Keep it short: it holds up checkpoints."""
        db = self.connection
        with translated():
            db.execute("begin")
            try:
                yield db
            finally:
                db.execute("commit")

    def settle(self, *, again: bool = False) -> None:
        """Have all that was found here on the disk for sure, once: what a process that died left
        may never have come there. Call it before anything is built upon what was found.

        Args:
            again: also if that was done before, as after a write that was refused.

        Raises what ``write`` does.
        """
        if self._settled and not again:
            return
        with self.write(), writing(str(self.path)):
            # Each commit in the -wal file counts on those before it.
            rewrite(self.path.with_name(self.path.name + "-wal"))
            sync_directory(self.path.parent)
            sync_directory(self.path.parent.parent)
        self._settled = True

    def shrink(self, keep_bytes: int, seconds: float) -> int:
        """Give free pages back to the file system, but for so many bytes; returns the bytes.

        Pages at the file's end that hold rows move to free places, some at a time. Stops after
        ``seconds``. Does nothing to a file that format 1 made: its free pages are only used again.
        """
        deadline = time.monotonic() + seconds
        freed, (_, free, size) = 0, self.pages
        while free * size > keep_bytes and time.monotonic() < deadline:
            step = min(_SHRINK_PAGES, free - keep_bytes // size)
            with self._turns(), translated():
                # execute() would stop after one page: the pragma has a row for each, no column.
                self.connection.executescript(f"pragma incremental_vacuum({step})")
            _, left, _ = self.pages
            if left >= free:
                break
            freed += (free - left) * size
            free = left
        return freed

    @property
    def pages(self) -> tuple[int, int, int]:
        """Pages of the file, those of them that are free, and bytes of a page."""
        with translated():
            one = self.connection.execute
            names = ("page_count", "freelist_count", "page_size")
            total, free, size = (int(one(f"pragma {name}").fetchone()[0]) for name in names)
        return total, free, size

    @contextmanager
    def _turns(self) -> Iterator[None]:
        deadline = time.monotonic() + self._timeout
        with self._eager():
            if not self._turn.acquire(timeout=self._timeout):
                raise self._busy()
            try:
                self._take_turn(deadline)
                try:
                    yield
                finally:
                    fcntl.flock(self._turn_file, fcntl.LOCK_UN)
            finally:
                self._turn.release()

    def _take_turn(self, deadline: float) -> None:
        while True:
            try:
                fcntl.flock(self._turn_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise self._busy() from None
                time.sleep(0.0005)
            else:
                return

    def _busy(self) -> Unavailable:
        return Unavailable(
            f"another writer held {self.path} for more than {self._timeout:g} s",
            hint="Retry; a log has one process that appends.",
        )

    def close(self) -> None:
        """Close the connections of all threads, and the lock file."""
        if self._closed:
            return
        self._closed = True
        for session in list(self._sessions):
            session.connection.close()
        self._local = threading.local()
        os.close(self._turn_file)


class _Session:
    """A connection that closes when its thread is gone."""

    def __init__(self, path: Path, timeout: float, *, durable: bool) -> None:
        self.connection = sqlite3.connect(
            path, timeout=timeout, isolation_level=None, check_same_thread=False
        )
        for pragma in (
            # Of a new file alone, and before anything is written to it.
            "auto_vacuum=incremental",
            # Some systems' SQLite would write every byte of a freed row once more, as zeros.
            "secure_delete=fast",
            "journal_mode=wal",
            f"synchronous={'full' if durable else 'normal'}",
            "wal_autocheckpoint=4000",
            "journal_size_limit=67108864",
            "cache_size=-65536",
        ):
            self.connection.execute(f"pragma {pragma}")

    def __del__(self) -> None:
        if hasattr(self, "connection"):
            self.connection.close()


@contextmanager
def translated() -> Iterator[None]:
    """Say SQLite's errors in raypipe's words."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.Error as e:
        name = getattr(e, "sqlite_errorname", "")
        if name == "SQLITE_FULL" or name.startswith(("SQLITE_IOERR", "SQLITE_READONLY")):
            raise LogUnwritable(
                f"{e} ({name}); nothing was acknowledged",
                hint="Free space on the log's disk or check its health, then retry.",
            ) from e
        if name.startswith("SQLITE_BUSY") or name == "SQLITE_CANTOPEN":
            raise Unavailable(f"the log's database doesn't answer: {e} ({name})") from e
        raise Damaged(
            f"the log's database is damaged: {e} ({name})", hint="Restore it from a backup."
        ) from e
