"""The days of a profile: which have ended, and which offsets are theirs.

They are the days of the log (features/intake.py), in log order. What came after a day was finished
counts to the next one, whatever day it bears: finished days never change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.builds import Day
from features.intake import day_number
from raypipe.clock import DAY_MS

Ints = npt.NDArray[np.int64]


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


def finished(known: Sequence[Day], begin: int, *, after: int | None, today: int) -> Days | None:
    """The days that ended since an offset; None when there is none.

    A day has ended when today is a later one, by the clock. Days without rows before the first and
    after the last row are left out.

    Args:
        known: days of the log, in its order.
        begin: offset from which rows are new.
        after: the last day that was finished before, if any: older rows count to the next.
    """
    starts: list[tuple[int, int]] = []
    end = begin
    for day in known:
        number = day_number(day.day) if after is None else max(day_number(day.day), after + 1)
        if day.end <= begin or number >= today:
            continue
        if not starts or starts[-1][0] != number:
            starts.append((number, max(day.start, begin)))
        end = day.end
    if not starts:
        return None
    first = starts[0][0] if after is None else after + 1
    return Days(first, starts[-1][0], starts[0][1], end, tuple(starts))


def midnight(days: Ints) -> Ints:
    """Milliseconds UTC at which days end [n]."""
    return (days + 1) * DAY_MS
