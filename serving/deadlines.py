"""How long a decision may take: the client's budget, and what of it the last resort needs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from raypipe.errors import MalformedBody, Violation

HEADER = "X-Deadline-Ms"

LEAST_S = 0.2
"""What is kept for it in any case."""

_DIGITS = 9
_GAIN, _DEVIATION_GAIN, _DEVIATIONS = 1 / 8, 1 / 4, 4


@dataclass(frozen=True, slots=True)
class Budget:
    """Time until the answer must leave, from the request's arrival on; the clock's steps don't
    change it."""

    seconds: float
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds, negative when it is over."""
        return self.began + self.seconds - time.monotonic()


def budget_of(header: str | None, limit_ms: int) -> Budget:
    """The client's budget in milliseconds, at most ``limit_ms``, which also stands for none.

    Raises MalformedBody for a header that is no positive whole number.

    >>> budget_of("250", 5_000).seconds, budget_of(None, 5_000).seconds
    (0.25, 5.0)
    """
    if header is None:
        return Budget(limit_ms / 1_000)
    text = header.strip()
    if not (text.isascii() and text.isdecimal() and int(text[:_DIGITS]) > 0):
        raise MalformedBody(
            f"the header {HEADER} is wrong",
            hint=f"Send the milliseconds that you wait, 1 to {limit_ms}, or leave it out.",
            violations=(Violation(f"/headers/{HEADER}", "a positive whole number is expected"),),
        )
    wanted = limit_ms if len(text) > _DIGITS else int(text)
    return Budget(min(wanted, limit_ms) / 1_000)


class Reserve:
    """What the last resort takes, as smoothed mean and deviation (Jacobson 1988, as TCP's timeout).

    Args:
        least_s: kept in any case, also before it was measured.

    >>> reserve = Reserve(0.005)
    >>> for _ in range(100):
    ...     reserve.took(0.01)
    >>> 0.01 <= reserve.of(1.0) < 0.011
    True
    """

    def __init__(self, least_s: float = LEAST_S) -> None:
        self._least_s = least_s
        self._mean = 0.0
        self._deviation = 0.0

    def took(self, seconds: float) -> None:
        """It was used, and took so long."""
        off = seconds - self._mean
        self._mean += _GAIN * off
        self._deviation += _DEVIATION_GAIN * (abs(off) - self._deviation)

    def of(self, left_s: float) -> float:
        """How much of the time that is left must be kept for it: half of it at most."""
        wanted = max(self._least_s, self._mean + _DEVIATIONS * self._deviation)
        return min(wanted, max(left_s, 0.0) / 2)
