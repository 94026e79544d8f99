"""Confidence intervals by bootstrap over users (Efron & Tibshirani, 1993; percentile method).

Users are drawn again, not their items: what one user does is not independent.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from raypipe.errors import StageError, UsageError

REPEATS = 1_000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over users, and the bounds between which it lies in ``level`` of the repeats."""

    mean: float
    low: float
    high: float
    level: float = LEVEL
    users: int = 0

    def describe(self) -> dict[str, float]:
        """Plain data."""
        return asdict(self)

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


def bootstrap(
    values: npt.NDArray[np.float64],
    *,
    repeats: int = REPEATS,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """The interval of a mean of one figure per user, float64 [users].

    The same seed draws the same users, so intervals of several figures go together. For a
    comparison of two methods give the differences by user: that is far sharper than to compare
    their intervals.

    Raises StageError without users.
    """
    if not len(values):
        raise StageError("a mean over no user has no interval")
    if repeats < 1 or not 0 < level < 1:
        raise UsageError(f"{repeats} repeats at level {level} make no interval")
    rng = np.random.default_rng(seed)
    count = len(values)
    means = [float(values[rng.integers(0, count, count)].mean()) for _ in range(repeats)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high), level, count)
