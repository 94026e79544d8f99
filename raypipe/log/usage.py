"""How much of a partition is where."""

from __future__ import annotations

from dataclasses import dataclass

from raypipe.log import books
from raypipe.log.database import PLACE_BITS, Database
from raypipe.log.history import History


@dataclass(frozen=True)
class Usage:
    """What one partition of an embedded log consists of. Times are ms UTC."""

    partition: int
    first: int
    """The first offset that can be read."""
    end: int
    """The next offset to be given."""
    rows: dict[str, int]
    """That are there, by kind."""
    live_rows: int
    live_bytes: int
    """Of their payload."""
    sealed_ranges: int
    sealed_rows: int
    sealed_bytes: int
    """Of the ranges' files, arrays of ids included."""
    id_arrays: int
    """Arrays of sealed ids: what an id is looked for in."""
    oldest_event_ms: int | None
    """In the sealed ranges; None without one that bears a time."""


def usage(database: Database, history: History, partition: int) -> Usage:
    """Count it; reads the length of every live batch."""
    ranges = history.ranges(partition).all
    files = [f for span in ranges for of in span.files.values() for f in of]
    low = partition << PLACE_BITS
    with database.read() as db:
        first, end = books.first_offset(db, partition), books.next_offset(db, partition)
        rows = books.counts(db, partition)
        live_rows, live_bytes = db.execute(
            "select coalesce(sum(n), 0), coalesce(sum(length(payload)), 0) from batch"
            " where place >= ? and place < ?",
            (low, low + (1 << PLACE_BITS)),
        ).fetchone()
    kept = [f for f in files if f.min_offset >= first]
    times = [f.min_event_time for f in kept if f.min_event_time is not None]
    return Usage(
        partition=partition,
        first=first,
        end=end,
        rows=rows,
        live_rows=live_rows,
        live_bytes=live_bytes,
        sealed_ranges=len(ranges),
        sealed_rows=sum(f.rows for f in files),
        sealed_bytes=history.size(name for span in ranges for name in span.names),
        id_arrays=sum(len(span.ids) for span in ranges),
        oldest_event_ms=min(times, default=None),
    )
