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

_NODES = 192


class Crossing(NamedTuple):
    """The chance that a look [k] is the first outside, above and below."""

    above: Floats
    below: Floats

    @property
    def total(self) -> float:
        """The chance that any look is outside."""
        return float(self.above.sum() + self.below.sum())


class Walk:
    """A z value that starts without information, with a boundary at each look.

    Looking five times at 5 % finds something in 14 % of experiments without an effect:

    >>> round(Walk([1.96] * 5, [0.2, 0.4, 0.6, 0.8, 1.0]).crossing().total, 3)
    0.142
    """

    def __init__(self, boundary: Sequence[float], times: Sequence[float]) -> None:
        """``boundary`` is, at each look, how many standard errors are outside, to both sides;
        ``times`` are the information at each as part of the whole.

        Raises UsageError for times that don't rise from above 0, or not one boundary for each.
        """
        if len(boundary) != len(times) or not times or np.diff([0.0, *times]).min() <= 0.0:
            raise UsageError(
                f"{len(boundary)} boundaries at {len(times)} times",
                hint="Give one boundary for each look, and times that rise from above 0.",
            )
        self._times = list(times)
        self._edges = [width * float(np.sqrt(t)) for width, t in zip(boundary, times, strict=True)]
        # Before each look the sum of what was observed is at these places, with this mass at each,
        # if there is no drift and no look before was outside.
        self._at, self._mass = [np.zeros(1)], [np.ones(1)]
        nodes, weights = np.polynomial.legendre.leggauss(_NODES)
        for before, time, edge in zip([0.0, *times], times[:-1], self._edges[:-1], strict=False):
            step = float(np.sqrt(time - before))
            inside = edge * nodes
            apart = (inside[:, None] - self._at[-1]) / step
            density = np.exp(-0.5 * apart**2) @ self._mass[-1] / (step * np.sqrt(2.0 * np.pi))
            self._at.append(inside)
            self._mass.append(density * weights * edge)

    def crossing(self, drift: float = 0.0) -> Crossing:
        """With a true effect of ``drift`` standard errors at time 1.

        A drift multiplies the density of a path that has come to x at time t by
        exp(drift x - drift^2 t / 2), whatever way it took.
        """
        from scipy.special import ndtr

        above, below = np.zeros(len(self._times)), np.zeros(len(self._times))
        before = 0.0
        for look, (time, edge) in enumerate(zip(self._times, self._edges, strict=True)):
            at, step = self._at[look], float(np.sqrt(time - before))
            mass = self._mass[look] * np.exp(drift * at - 0.5 * drift**2 * before)
            mean = at + drift * (time - before)
            above[look] = mass @ ndtr((mean - edge) / step)
            below[look] = mass @ ndtr((-edge - mean) / step)
            before = time
        return Crossing(above, below)
