"""The embedded online store: one SQLite file in WAL mode."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from features.store.packed.layout import ORDER_BYTES, SCHEMA_BYTES
from raypipe.errors import ConfigError, IntegrityError, Unavailable

TIMEOUT_S = 10.0
"""How long a write waits for other writers."""

_KEYS_PER_QUERY = 500

_TABLES = """
CREATE TABLE IF NOT EXISTS packed (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS packed_schema (schema BLOB PRIMARY KEY, described BLOB NOT NULL)
  WITHOUT ROWID;
"""
_ORDER = f"substr({{}}value, 1, {ORDER_BYTES})"
_SCHEMA = f"substr({{}}value, {ORDER_BYTES + 1}, {SCHEMA_BYTES})"
_PUT = f"""
INSERT INTO packed VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value
WHERE {_ORDER.format("excluded.")} > {_ORDER.format("packed.")}
  OR ({_ORDER.format("excluded.")} = {_ORDER.format("packed.")}
      AND {_SCHEMA.format("excluded.")} <> {_SCHEMA.format("packed.")})
"""  # noqa: S608 -- constants of this module


class SqliteBackend:
    """Packed values in one file; see Backend.

    Readers don't wait. Writers of all processes take turns on a lock file, because SQLite 3.7.0 to
    3.51.2 can lose a commit when two write at the same instant (sqlite.org/wal.html#walresetbug).
    """

    def __init__(self, path: Path, *, timeout_s: float = TIMEOUT_S) -> None:
        self.path = path
        self._timeout = timeout_s
        self._local = threading.local()
        self._sessions: weakref.WeakSet[_Session] = weakref.WeakSet()
        self._turn = threading.Lock()

    @classmethod
    def open(cls, url: str) -> SqliteBackend:
        """The store at ``sqlite:///file`` (a fourth slash begins an absolute path)."""
        _, _, path = url.partition(":///")
        if not path:
            raise ConfigError(f"{url!r} names no file", hint="Write sqlite:///FILE.")
        return cls(Path(path))

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See Backend.get."""
        found: dict[bytes, bytes] = {}
        with self._translated():
            db = self._connection()
            for i in range(0, len(keys), _KEYS_PER_QUERY):
                some = keys[i : i + _KEYS_PER_QUERY]
                found.update(db.execute(_select(len(some)), some).fetchall())
        return [found.get(key) for key in keys]

    def put(
        self, keys: Sequence[bytes], values: Sequence[bytes], schema: bytes, described: bytes
    ) -> int:
        """See Backend.put; all or nothing, and durable when this returns."""
        with self._writing() as db:
            db.execute("INSERT OR IGNORE INTO packed_schema VALUES (?, ?)", (schema, described))
            return db.executemany(_PUT, zip(keys, values, strict=True)).rowcount

    def described(self, schema: bytes) -> bytes | None:
        """See Backend.described."""
        with self._translated():
            row = (
                self._connection()
                .execute("SELECT described FROM packed_schema WHERE schema = ?", (schema,))
                .fetchone()
            )
        return None if row is None else bytes(row[0])

    def delete(self, keys: Sequence[bytes]) -> int:
        """See Backend.delete."""
        with self._writing() as db:
            return db.executemany("DELETE FROM packed WHERE key = ?", [(k,) for k in keys]).rowcount

    def scan(self, prefix: bytes) -> Iterator[bytes]:
        """See Backend.scan."""
        with self._translated():
            rows = self._connection().execute(
                "SELECT key FROM packed WHERE key >= ? AND key < ?", (prefix, _after(prefix))
            )
            yield from (row[0] for row in rows.fetchall())

    def drop(self, prefix: bytes) -> int:
        """See Backend.drop."""
        with self._writing() as db:
            return db.execute(
                "DELETE FROM packed WHERE key >= ? AND key < ?", (prefix, _after(prefix))
            ).rowcount

    def close(self) -> None:
        """See Backend.close."""
        for session in list(self._sessions):
            session.connection.close()
        self._local = threading.local()

    def _connection(self) -> sqlite3.Connection:
        session: _Session | None = getattr(self._local, "session", None)
        if session is None or session.process != os.getpid():  # SQLite must not cross a fork
            session = _Session(self.path, self._timeout)
            if not session.has_tables:
                with self._turn_of_processes():
                    session.create_tables()
            self._local.session = session
            self._sessions.add(session)
        return session.connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._turn, self._translated():
            db = self._connection()
            with self._turn_of_processes():
                db.execute("BEGIN IMMEDIATE")
                try:
                    yield db
                    db.execute("COMMIT")
                except BaseException:
                    if db.in_transaction:
                        db.execute("ROLLBACK")
                    raise

    @contextmanager
    def _turn_of_processes(self) -> Iterator[None]:
        deadline = time.monotonic() + self._timeout
        turn = os.open(self.path.with_name(f"{self.path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            while True:
                try:
                    fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise Unavailable(
                            f"another writer held {self.path} for more than {self._timeout:g} s"
                        ) from None
                    time.sleep(0.0005)
            yield
        finally:
            os.close(turn)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:
            raise
        except sqlite3.Error as e:
            name = getattr(e, "sqlite_errorname", "")
            if name in ("SQLITE_CORRUPT", "SQLITE_NOTADB"):
                raise IntegrityError(
                    f"the online store {self.path} is damaged: {e} ({name})",
                    hint="Remove the file, then materialise again.",
                ) from e
            raise Unavailable(
                f"the online store {self.path} doesn't answer: {e} ({name})",
                hint="Check that its folder exists, may be written and has free space.",
            ) from e


class _Session:
    """A connection that closes when its thread is gone."""

    def __init__(self, path: Path, timeout: float) -> None:
        self.process = os.getpid()
        self.connection = sqlite3.connect(
            path, timeout=timeout, isolation_level=None, check_same_thread=False
        )
        for pragma in ("synchronous=FULL", "cache_size=-32768"):
            self.connection.execute(f"PRAGMA {pragma}")

    @property
    def has_tables(self) -> bool:
        """Whether the file is a store already; a reader of one needs no turn."""
        found = self.connection.execute(
            "SELECT count(*) FROM sqlite_master WHERE name IN ('packed', 'packed_schema')"
        )
        return bool(found.fetchone()[0] == 2)

    def create_tables(self) -> None:
        """Make the file a store, unless another process just did."""
        self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.executescript(_TABLES)

    def __del__(self) -> None:
        if hasattr(self, "connection") and self.process == os.getpid():
            self.connection.close()


def _select(count: int) -> str:
    return f"SELECT key, value FROM packed WHERE key IN ({','.join('?' * count)})"  # noqa: S608


def _after(prefix: bytes) -> bytes:
    """The first key behind all that begin with a prefix; its last byte is a colon."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
