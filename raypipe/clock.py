"""Injected time. All times inside raypipe are int64 milliseconds UTC."""

from __future__ import annotations

import time
from typing import Protocol

SECOND_MS = 1_000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS


class Clock(Protocol):
    """The only way that code of raypipe asks for the time of day."""

    def now_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC."""


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC."""
        return time.time_ns() // 1_000_000


class ManualClock:
    """A clock cranked by hand: tests and replays of history.

    >>> clock = ManualClock(1_000)
    >>> clock.advance(500)
    >>> clock.now_ms()
    1500
    """

    def __init__(self, now_ms: int) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        """The time that was set last."""
        return self._now_ms

    def set(self, now_ms: int) -> None:
        """Jump to a time, forwards or backwards."""
        self._now_ms = now_ms

    def advance(self, delta_ms: int) -> None:
        """Move by a number of milliseconds."""
        self._now_ms += delta_ms
