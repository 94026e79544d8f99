"""When a call is sent again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from raypipe.client.refusals import Failed
from raypipe.errors import UsageError


@dataclass(frozen=True, slots=True)
class Retries:
    """How often and how soon.

    Before try n + 1 lies a pause drawn evenly from [0, min(cap_s, base_s * 2^n)], so that clients
    that failed together don't come again together; and never less than Retry-After asks for.
    ``tries`` 1 sends once.
    """

    tries: int = 5
    base_s: float = 0.1
    cap_s: float = 5.0

    def __post_init__(self) -> None:
        if self.tries < 1 or self.base_s < 0 or self.cap_s < 0:
            raise UsageError(
                f"{self} can't be followed", hint="At least one try, and pauses not below 0."
            )


class Attempts:
    """The tries of one call, all of them within ``timeout_s``."""

    def __init__(
        self,
        retries: Retries,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._retries = retries
        self._clock = clock
        self._draw = draw
        self._end = clock() + timeout_s
        self._made = 0

    @property
    def left_s(self) -> float:
        """How long the call may still take; a little where nothing is left, as a timeout of 0
        means none to some."""
        return max(self._end - self._clock(), 0.001)

    def pause_s(self, failed: Failed) -> float:
        """How long to wait before the next try; raises what failed when there is none."""
        self._made += 1
        highest = min(self._retries.cap_s, self._retries.base_s * 2.0 ** (self._made - 1))
        pause = max(failed.after_s, self._draw() * highest)
        if not failed.again or self._made >= self._retries.tries or pause >= self.left_s:
            raise failed.error
        return pause
