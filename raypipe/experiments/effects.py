"""What an arm does to a metric: the difference to the control, and the relative lift.

All is computed from Moments. A ratio of sums (value of all units over rows of all units) is brought
to a mean by the delta method, so that what follows, CUPED and sequential intervals, knows means
only. An interval takes the number of standard errors it is wide from whoever asks: a normal
quantile for one planned look, a boundary of ``sequential`` for any number of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from raypipe.errors import UsageError
from raypipe.experiments.moments import Moments


class Interval(NamedTuple):
    """From ``low`` to ``high``, both included; infinite where nothing is known."""

    low: float
    high: float

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high


def linearised(ratio: Moments) -> Moments:
    """A ratio metric as a mean: columns (numerator, denominator, others...) -> (ratio, others...).

    A unit's part of the ratio R = mean(num) / mean(den) is R + (num - R den) / mean(den): their
    mean is R, and their variance over n is the delta method's variance of R (Deng, Knoblich & Lu,
    *Applying the delta method in metric analytics*, KDD 2018).

    Raises UsageError if the denominators sum to zero.
    """
    if ratio.n and ratio.mean[1] == 0.0:
        raise UsageError("a ratio of which the denominators sum to zero", hint="Check its events.")
    value, per = (ratio.mean[0] / ratio.mean[1], ratio.mean[1]) if ratio.n else (0.0, 1.0)
    k = len(ratio.mean)
    matrix = np.zeros((k - 1, k))
    matrix[0, :2] = 1.0 / per, -value / per
    matrix[1:, 2:] = np.eye(k - 2)
    shift = np.zeros(k - 1)
    shift[0] = value
    return ratio.linear(matrix, shift)


class Estimate(NamedTuple):
    """A mean of ``n`` units and the variance of that mean."""

    value: float
    variance: float
    n: int


def estimate(moments: Moments) -> Estimate:
    """Of the first column."""
    variance = float(moments.covariance[0, 0]) / moments.n if moments.n > 1 else math.nan
    return Estimate(float(moments.mean[0]), variance, moments.n)


@dataclass(frozen=True, slots=True)
class Effect:
    """A treated arm against the control."""

    control: Estimate
    treated: Estimate

    @property
    def n(self) -> int:
        """Units of both arms."""
        return self.control.n + self.treated.n

    @property
    def difference(self) -> float:
        """Treated less control."""
        return self.treated.value - self.control.value

    @property
    def error(self) -> float:
        """The standard error of the difference; variances of the arms may differ (Welch 1947)."""
        return math.sqrt(self.treated.variance + self.control.variance)

    @property
    def lift(self) -> float:
        """The difference over the size of the control's mean; NaN if that is zero."""
        return self.difference / abs(self.control.value) if self.control.value else math.nan

    def z(self, ratio: float = 1.0) -> float:
        """Standard errors between the treated mean and ``ratio`` times the control's.

        0 where both are the same constant, so that what varies in no unit shows nothing.
        """
        apart = self.treated.value - ratio * self.control.value
        error = math.sqrt(self.treated.variance + ratio**2 * self.control.variance)
        if error == 0.0:
            return math.copysign(math.inf, apart) if apart else 0.0
        return apart / error

    def interval(self, width: float) -> Interval:
        """Of the difference, ``width`` standard errors to both sides."""
        half = width * self.error
        return Interval(self.difference - half, self.difference + half)

    def lift_interval(self, width: float) -> Interval:
        """Of the lift: all ratios r of the means with ``|z(r)| <= width``.

        That is Fieller's set (*Some problems in interval estimation*, JRSS B 16, 1954). It is
        without bounds where the control's mean can't be told from zero.
        """
        c, vc, _ = self.control
        t, vt, _ = self.treated
        # |t - r c|^2 <= width^2 (vt + r^2 vc), a parabola in r that opens upwards if a > 0.
        a, b, e = c * c - width**2 * vc, c * t, t * t - width**2 * vt
        if not a > 0.0:
            return Interval(-math.inf, math.inf)
        root = math.sqrt(max(b * b - a * e, 0.0))
        ratios = ((b - root) / a, (b + root) / a)
        low, high = sorted((r - 1.0) * math.copysign(1.0, c) for r in ratios)
        return Interval(low, high)
