"""What was refused, and why: nothing that came in is dropped silently."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from raypipe.clock import Clock, SystemClock

QUARANTINE_FILE = "quarantine.db"
"""In the home folder of the worker."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS refused (
    id INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    tenant TEXT NOT NULL,
    source TEXT NOT NULL,
    event_type TEXT NOT NULL,
    body TEXT NOT NULL,
    reasons TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS refused_by_tenant ON refused (tenant, source);
"""


class Refusal(NamedTuple):
    """A row to be kept: ``body`` is its text, ``reasons`` are ``pointer: reason``."""

    tenant: str
    source: str
    event_type: str
    body: str
    reasons: Sequence[str]


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """One quarantined row: ``body`` is its JSON text, ``reasons`` are ``pointer: reason``."""

    id: int
    at_ms: int
    tenant: str
    source: str
    event_type: str
    body: str
    reasons: tuple[str, ...]


class Quarantine:
    """A SQLite table of refused rows. Safe for several threads and processes."""

    def __init__(self, path: Path, clock: Clock | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, timeout=30, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_SCHEMA)

    def add(
        self,
        source: str,
        event_type: str,
        rows: Iterable[tuple[str, Iterable[str]]],
        *,
        tenant: str = "default",
    ) -> int:
        """Keep (JSON text, reasons) pairs in one durable transaction; returns how many.

        ``source`` says where the rows came from: a load, a route.
        """
        return self.keep(
            Refusal(tenant, source, event_type, body, list(reasons)) for body, reasons in rows
        )

    def keep(self, refusals: Iterable[Refusal]) -> int:
        """Keep rows of any source in one durable transaction; returns how many."""
        now = self._clock.now_ms()
        values = [(now, *r[:4], json.dumps(list(r.reasons))) for r in refusals]
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(
                "INSERT INTO refused (at_ms, tenant, source, event_type, body, reasons)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                values,
            )
        return len(values)

    def discard(self, source: str, *, tenant: str = "default") -> int:
        """Forget the rows of one source, as when a broken-off load starts over."""
        with self._lock:
            return self._db.execute(
                "DELETE FROM refused WHERE tenant = ? AND source = ?", (tenant, source)
            ).rowcount

    def counts(self, *, tenant: str | None = None) -> dict[str, dict[str, int]]:
        """Rows by event type and reason, most frequent first. A row counts once per reason."""
        with self._lock:
            found = self._db.execute(
                "SELECT event_type, r.value, count(*) FROM refused, json_each(reasons) AS r"
                " WHERE ?1 IS NULL OR tenant = ?1 GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2",
                (tenant,),
            ).fetchall()
        counts: dict[str, dict[str, int]] = {}
        for event_type, reason, rows in found:
            counts.setdefault(event_type, {})[reason] = rows
        return counts

    def rows(self, limit: int = 100, *, tenant: str | None = None) -> list[RefusedRow]:
        """The newest rows, newest first."""
        with self._lock:
            found = self._db.execute(
                "SELECT id, at_ms, tenant, source, event_type, body, reasons FROM refused"
                " WHERE ?1 IS NULL OR tenant = ?1 ORDER BY id DESC LIMIT ?2",
                (tenant, limit),
            ).fetchall()
        return [
            RefusedRow(number, at_ms, owner, source, event_type, body, tuple(json.loads(reasons)))
            for number, at_ms, owner, source, event_type, body, reasons in found
        ]

    def __len__(self) -> int:
        with self._lock:
            return int(self._db.execute("SELECT count(*) FROM refused").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()
