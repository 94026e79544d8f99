"""Which day each offset of the log belongs to.

A day is a range of offsets: it ends before the first event that arrived on a later day. So a row
whose clock was behind belongs to the day in which the log took it, and days are in log order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt

from features.store.duck import scan
from raypipe.clock import DAY_MS
from raypipe.lake import Place

Ints = npt.NDArray[np.int64]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC).date()


@dataclass(frozen=True)
class Days:
    """Finished days, numbered from 1970-01-01, and the offsets that are theirs."""

    first: int
    last: int
    begin: int
    """Offset of the first row."""
    end: int
    """Offset after the last row of the last day."""
    starts: tuple[tuple[int, int], ...]
    """(day, offset of its first row) of each day that has rows, ascending in both."""

    def of(self, offsets: Ints) -> Ints:
        """The day of each offset from ``begin`` on [n]."""
        days, starts = np.array(self.starts, np.int64).T
        found: Ints = days[np.searchsorted(starts, offsets, side="right") - 1]
        return found

    def newest(self, days: Ints) -> Ints:
        """The last offset of each of these days, or of the last before it that has rows [n]."""
        known = np.array([d for d, _ in self.starts], np.int64)
        ends = np.array([*(s for _, s in self.starts[1:]), self.end], np.int64) - 1
        at = np.searchsorted(known, days, side="right") - 1
        found: Ints = np.where(at < 0, self.begin - 1, ends[at])
        return found


def finished(
    files: Sequence[Place], begin: int, end: int, *, after: int | None, today: int
) -> Days | None:
    """The days that ended since an offset; None when there is none.

    A day has ended when today is a later one, by the clock; days without rows before the first
    and after the last row are left out.

    Args:
        files: exported events of all types.
        begin: offset from which rows are new.
        end: the log's end.
        after: the last day that was finished before, if any: older rows count to the next.
    """
    import duckdb

    if not files:
        return None
    with duckdb.connect() as con:
        scan(con, files).create_view("events")
        rows = con.execute(
            f'SELECT received_at // {DAY_MS} AS day, min("offset") FROM events'  # noqa: S608
            ' WHERE "offset" >= $begin AND "offset" < $end GROUP BY ALL ORDER BY ALL',
            {"begin": begin, "end": end},
        ).fetchall()
    starts: list[tuple[int, int]] = []
    bound = end
    for day, start in reversed(rows):
        if start < bound:  # else all of its rows came after those of a later day
            starts.append((max(day, after + 1) if after is not None else day, start))
            bound = start
    starts.reverse()
    # Several old days may now be one: it starts with the first of them.
    starts = [s for i, s in enumerate(starts) if not i or s[0] > starts[i - 1][0]]
    over = [s for s in starts if s[0] < today]
    if not over:
        return None
    stop = starts[len(over)][1] if len(over) < len(starts) else end
    first = over[0][0] if after is None else after + 1
    return Days(first, over[-1][0], over[0][1], stop, tuple(over))


def midnight(days: Ints) -> Ints:
    """Milliseconds UTC at which days end [n]."""
    return (days + 1) * DAY_MS


def day_name(day: int) -> str:
    """As YYYY-MM-DD."""
    return (_EPOCH + timedelta(days=day)).isoformat()
