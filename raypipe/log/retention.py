"""Old events go, from the front; records stay.

What goes are whole sealed ranges' files of the kinds that are events. Decisions, receipts and
whatever else raypipe recorded itself are not events: their files stay in the manifest, where
``find`` and ``export`` reach them, although no one can ``read`` the offsets between them any more.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from dataclasses import dataclass

from raypipe.aborts import reach
from raypipe.log import books
from raypipe.log.database import Database
from raypipe.log.history import History, changed
from raypipe.log.manifest import SealedRange

GRACE_MS = 3_600_000
"""How long a deleted file stays for those that were reading it."""


@dataclass(frozen=True)
class Retained:
    """What one retention did."""

    first: int
    """The first offset that can be read now."""
    expired: dict[str, int]
    """Deleted events by kind."""
    bytes: int
    """Of the files, which are removed when their readers had an hour."""


def retain(
    database: Database,
    history: History,
    partition: int,
    kinds: Collection[str],
    before_ms: int,
    until: int,
    now_ms: int,
) -> Retained:
    """Delete the events of the oldest ranges in which nothing happened at or after ``before_ms``.

    Args:
        kinds: those that are events.
        until: offset up to which no one needs the rows any more.
    """
    with history.sealing():
        with database.write() as db:
            first = books.first_offset(db, partition)
            spans = _old(history.ranges(partition).all, first, before_ms, until)
            files = [f for s in spans for kind in kinds for f in s.files.get(kind, ())]
            size = history.size(f.name for f in files)
            expired: dict[str, int] = {}
            if spans:
                first = spans[-1].end
                for file in files:
                    expired[file.kind] = expired.get(file.kind, 0) + file.rows
                books.expire(db, partition, first, expired.items())
                names = [f.name for f in files]
                for span in spans:
                    names += _forget(db, span, kinds)
                history.doom(db, names, now_ms)
                changed(db)
            reach("log.retain.before_commit")
        reach("log.retain.after_commit")
    return Retained(first, expired, size)


def _old(spans: list[SealedRange], first: int, before_ms: int, until: int) -> list[SealedRange]:
    """The ranges from ``first`` on, without a gap, that are old and no longer needed."""
    found: list[SealedRange] = []
    sure = 0
    for span in spans:
        if span.start < first:
            continue
        if span.start != first or span.end > until:
            break
        times = [f.max_event_time for files in span.files.values() for f in files]
        known = [t for t in times if t is not None]
        if known and max(known) >= before_ms:
            break
        found.append(span)
        first = span.end
        # A range in which nothing bears a time is as old as a later one that does.
        sure = len(found) if known else sure
    return found[:sure]


def _forget(db: sqlite3.Connection, span: SealedRange, kinds: Collection[str]) -> list[str]:
    """Take the events of a range out of the manifest; names of the id arrays that went along."""
    names = []
    for kind in kinds:
        db.execute("delete from sealed_file where range = ? and kind = ?", (span.id, kind))
        if kind in span.ids:
            db.execute("delete from sealed_ids where range = ? and kind = ?", (span.id, kind))
            names.append(span.ids[kind].name)
    if not set(span.files) - set(kinds):
        db.execute("delete from sealed_range where id = ?", (span.id,))
    return names
