"""What was refused, and why: nothing that came in is dropped silently.

A row is open until it is settled: resolved (sent again and taken), replaced (sent again and refused
again, which made a new row) or dropped by somebody with a note. Settled rows stay. A tenant keeps
at most ``limit_rows`` rows: then the oldest settled ones make room, and where there is none, rows
are refused without being kept. Both are counted.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from raypipe.clock import Clock, SystemClock
from raypipe.durable import make_directory, rewrite
from raypipe.events import quarantine_sql as sql

QUARANTINE_FILE = "quarantine.db"
"""In the home folder of the worker."""

LIMIT_ROWS = 1_000_000


class State(StrEnum):
    """What became of a refused row."""

    OPEN = "open"
    RESOLVED = "resolved"
    REPLACED = "replaced"
    DROPPED = "dropped"


class Refusal(NamedTuple):
    """A row to be kept: ``body`` is its text, ``reasons`` are ``pointer: reason``.

    ``request`` is the idempotency key of the request that brought it, if it had one.
    """

    tenant: str
    source: str
    event_type: str
    body: str
    reasons: Sequence[str]
    request: str = ""


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """One quarantined row: ``body`` is its JSON text, ``reasons`` are ``pointer: reason``.

    ``resolved_at`` is when it was settled, ms UTC; ``note`` says how.
    """

    id: int
    at_ms: int
    tenant: str
    source: str
    event_type: str
    body: str
    reasons: tuple[str, ...]
    state: State = State.OPEN
    resolved_at: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows are meant; every part narrows it down.

    ``reason`` is a part of a reason, ``source`` the beginning of a source.
    """

    tenant: str | None = None
    ids: tuple[int, ...] | None = None
    event_type: str | None = None
    source: str | None = None
    reason: str | None = None
    settled: bool = False

    def parameters(self) -> dict[str, object]:
        """As the queries name them."""
        return {
            "tenant": self.tenant,
            "ids": None if self.ids is None else json.dumps(self.ids),
            "event_type": self.event_type,
            "source": self.source,
            "reason": self.reason,
            "settled": self.settled,
        }


class Sending(NamedTuple):
    """Rows that are being sent again: the ids in the order of the lines of ``body``."""

    key: str
    event_type: str
    body: bytes
    ids: tuple[int, ...]


class Tally(NamedTuple):
    """A tenant's rows: those in the file, those that were refused without being kept, and settled
    ones that made room."""

    kept: int = 0
    unkept: int = 0
    forgotten: int = 0


class Quarantine:
    """A SQLite table of refused rows. Safe for several threads and processes."""

    def __init__(
        self, path: Path, clock: Clock | None = None, limit_rows: int = LIMIT_ROWS
    ) -> None:
        make_directory(path.parent)
        self._clock = clock or SystemClock()
        self._limit_rows = limit_rows
        self._wal = path.with_name(path.name + "-wal")
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, timeout=30, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        with self._writing():
            self._db.execute(sql.SCHEMA)
            there = {row[1] for row in self._db.execute("PRAGMA table_info(refused)")}
            for name, kind in sql.ADDED.items():
                if name not in there:
                    self._db.execute(f"ALTER TABLE refused ADD COLUMN {name} {kind}")
        self._db.executescript(sql.REST)

    def settle(self) -> None:
        """Have all that was found here on the disk for sure; a worker that starts calls it."""
        with self._writing():
            rewrite(self._wal)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One durable transaction, alone on the file."""
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield

    def add(
        self,
        source: str,
        event_type: str,
        rows: Iterable[tuple[str, Iterable[str]]],
        *,
        tenant: str = "default",
    ) -> int:
        """Keep (JSON text, reasons) pairs in one durable transaction; returns how many were kept.

        ``source`` says where the rows came from: a load, a route.
        """
        return self.keep(
            Refusal(tenant, source, event_type, body, list(reasons)) for body, reasons in rows
        )

    def keep(self, refusals: Iterable[Refusal]) -> int:
        """Keep rows of any source in one durable transaction; returns how many were kept.

        Rows that an earlier try of the same request left are replaced: it was not answered.
        """
        now = self._clock.now_ms()
        ordered = sorted(refusals, key=lambda r: r.tenant)
        kept = 0
        with self._writing():
            self._db.executemany(
                "DELETE FROM refused WHERE tenant = ? AND request = ? AND request <> ''"
                " AND state = 'open' AND batch = ''",
                {(r.tenant, r.request) for r in ordered if r.request},
            )
            for tenant, group in groupby(ordered, key=lambda r: r.tenant):
                rows = list(group)
                room = self._room(tenant, len(rows))
                kept += min(room, len(rows))
                self._db.executemany(
                    "INSERT INTO refused (at_ms, tenant, source, event_type, body, reasons,"
                    " request) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    [(now, *r[:4], json.dumps(list(r.reasons)), r.request) for r in rows[:room]],
                )
                if room < len(rows):
                    self._count(tenant, "unkept", len(rows) - room)
        return kept

    def _room(self, tenant: str, rows: int) -> int:
        """How many of so many new rows there is room for, after settled ones went for them."""
        excess = self._tally(tenant).kept + rows - self._limit_rows
        if excess <= 0:
            return rows
        gone = self._db.execute(
            "DELETE FROM refused WHERE id IN (SELECT id FROM refused WHERE tenant = ?"
            " AND state IN ('resolved', 'replaced', 'dropped') ORDER BY id LIMIT ?)",
            (tenant, excess),
        ).rowcount
        if gone:
            self._count(tenant, "forgotten", gone)
        return max(0, rows - excess + gone)

    def _count(self, tenant: str, column: str, rows: int) -> None:
        self._db.execute(
            f"INSERT INTO tally (tenant, kept, {column}) VALUES (?1, 0, ?2)"  # noqa: S608
            f" ON CONFLICT (tenant) DO UPDATE SET {column} = {column} + ?2",
            (tenant, rows),
        )

    def tally(self, tenant: str) -> Tally:
        """How many rows of a tenant there are, and how many there are no more."""
        with self._lock:
            return self._tally(tenant)

    def _tally(self, tenant: str) -> Tally:
        found = self._db.execute(
            "SELECT kept, unkept, forgotten FROM tally WHERE tenant = ?", (tenant,)
        ).fetchone()
        return Tally(*found) if found else Tally()

    def discard(self, source: str, *, tenant: str = "default") -> int:
        """Forget the rows of one source, as when a broken-off load starts over."""
        with self._lock:
            return self._db.execute(
                "DELETE FROM refused WHERE tenant = ? AND source = ?", (tenant, source)
            ).rowcount

    def counts(
        self, where: Selection | None = None, *, tenant: str | None = None
    ) -> dict[str, dict[str, int]]:
        """Rows by event type and reason, most frequent first. A row counts once per reason."""
        where = where or Selection(tenant)
        with self._lock:
            found = self._db.execute(sql.COUNTS, where.parameters()).fetchall()
        counts: dict[str, dict[str, int]] = {}
        for event_type, reason, rows in found:
            counts.setdefault(event_type, {})[reason] = rows
        return counts

    def rows(
        self, limit: int = 100, *, where: Selection | None = None, tenant: str | None = None
    ) -> list[RefusedRow]:
        """The newest rows, newest first."""
        return self._select("ORDER BY id DESC LIMIT :limit", where or Selection(tenant), limit)

    def oldest(
        self, where: Selection, after: int, limit: int, until: int | None = None
    ) -> list[RefusedRow]:
        """Rows that are not being sent, with ids over ``after`` up to ``until``, oldest first."""
        rest = (
            "AND id > :after AND (:until IS NULL OR id <= :until) AND batch = ''"
            " ORDER BY id LIMIT :limit"
        )
        return self._select(rest, where, limit, after, until)

    def _select(
        self, rest: str, where: Selection, limit: int, after: int = 0, until: int | None = None
    ) -> list[RefusedRow]:
        bound = {"limit": limit, "after": after, "until": until}
        with self._lock:
            found = self._db.execute(sql.ROWS + rest, where.parameters() | bound).fetchall()
        return [
            RefusedRow(
                number, at_ms, owner, source, kind, body, tuple(json.loads(why)), State(state), *end
            )
            for number, at_ms, owner, source, kind, body, why, state, *end in found
        ]

    def explain(self, reasons: Mapping[int, Sequence[str]]) -> None:
        """Give rows new reasons."""
        with self._writing():
            self._db.executemany(
                "UPDATE refused SET reasons = ? WHERE id = ?",
                [(json.dumps(list(why)), number) for number, why in reasons.items()],
            )

    def drop(self, where: Selection, note: str) -> int:
        """Give rows up; they stay, with the note. Rows that are being sent are left out."""
        with self._writing():
            return self._db.execute(
                sql.DROP, where.parameters() | {"now": self._clock.now_ms(), "note": note}
            ).rowcount

    def begin(self, sending: Sending, tenant: str) -> bool:
        """Note durably what is about to be sent, so that it can be sent again as it was.

        False, and nothing was noted, if one of the rows was settled or is being sent already.
        """
        ids = json.dumps(sending.ids)
        free = "id IN (SELECT value FROM json_each(?)) AND state = 'open' AND batch = ''"
        with self._writing():
            found = self._db.execute(f"SELECT count(*) FROM refused WHERE {free}", (ids,))  # noqa: S608
            if found.fetchone()[0] != len(sending.ids):
                return False
            self._db.execute(
                f"UPDATE refused SET batch = ? WHERE {free}",  # noqa: S608
                (sending.key, ids),
            )
            self._db.execute(
                "INSERT INTO sending VALUES (?, ?, ?, ?)",
                (sending.key, tenant, sending.event_type, sending.body),
            )
        return True

    def unfinished(self, tenant: str) -> list[Sending]:
        """What was begun and not ended."""
        with self._lock:
            found = self._db.execute(
                "SELECT key, event_type, body FROM sending WHERE tenant = ? ORDER BY rowid",
                (tenant,),
            ).fetchall()
            return [Sending(key, kind, body, self._sent(key)) for key, kind, body in found]

    def _sent(self, key: str) -> tuple[int, ...]:
        found = self._db.execute(
            "SELECT id FROM refused WHERE batch = ? AND batch <> '' ORDER BY id", (key,)
        )
        return tuple(number for (number,) in found)

    def end(self, key: str, settled: Mapping[int, tuple[State, str]]) -> None:
        """Settle the rows of what was sent, each with a note; others of it are open again."""
        now = self._clock.now_ms()
        with self._writing():
            self._db.executemany(
                "UPDATE refused SET state = ?, resolved_at = ?, note = ?"
                " WHERE id = ? AND batch = ? AND state = 'open'",
                [(state, now, note, number, key) for number, (state, note) in settled.items()],
            )
            self._db.execute(
                "UPDATE refused SET batch = '' WHERE batch = ? AND batch <> ''", (key,)
            )
            self._db.execute("DELETE FROM sending WHERE key = ?", (key,))

    def __len__(self) -> int:
        with self._lock:
            return int(self._db.execute("SELECT count(*) FROM refused").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()
