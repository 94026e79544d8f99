"""How likely a drifting estimate crosses a boundary at some look, and at which one.

Numerical integration over the looks, after Armitage, McPherson & Rowe, *Repeated significance tests
on accumulating data*, JRSS A 132, 1969; Jennison & Turnbull, *Group sequential methods*, 2000,
chapter 19.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from raypipe.errors import UsageError
from raypipe.experiments.moments import Floats

_NODES = 256


class Crossing(NamedTuple):
    """The chance that a look [k] is the first outside, above and below."""

    above: Floats
    below: Floats

    @property
    def total(self) -> float:
        """The chance that any look is outside."""
        return float(self.above.sum() + self.below.sum())


def crossing(boundary: Sequence[float], times: Sequence[float], drift: float = 0.0) -> Crossing:
    """Of a z value that starts without information.

    Args:
        boundary: at each look, how many standard errors are outside, to both sides.
        times: the information at each look as part of the whole; rising, the last may be 1.
        drift: the true effect in standard errors at time 1.

    Raises:
        UsageError: times that don't rise, or not one boundary for each.

    Looking five times at 5 % finds something in 14 % of experiments without an effect:

    >>> round(crossing([1.96] * 5, [0.2, 0.4, 0.6, 0.8, 1.0]).total, 3)
    0.142
    """
    from scipy.stats import norm

    if len(boundary) != len(times) or not times or np.diff([0.0, *times]).min() <= 0.0:
        raise UsageError(
            f"{len(boundary)} boundaries at {len(times)} times",
            hint="Give one boundary for each look, and times that rise from above 0.",
        )
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    above, below = np.zeros(len(times)), np.zeros(len(times))
    # The sum of what was observed is at these places, inside so far, with this mass at each.
    at, mass, before = np.zeros(1), np.ones(1), 0.0
    for look, (width, time) in enumerate(zip(boundary, times, strict=True)):
        edge, step = width * np.sqrt(time), np.sqrt(time - before)
        mean = at + drift * (time - before)
        above[look] = mass @ norm.sf((edge - mean) / step)
        below[look] = mass @ norm.cdf((-edge - mean) / step)
        inside = edge * nodes
        density = norm.pdf((inside[:, None] - mean) / step) @ mass / step
        at, mass, before = inside, density * weights * edge, time
    return Crossing(above, below)
