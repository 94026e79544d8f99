"""How many units an experiment needs.

The test that is planned is the one that is used: the boundary of ``sequential``, with looks at even
distances. What looking costs stands beside it, as the units of a test with one look.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from raypipe.errors import UsageError
from raypipe.experiments.crossing import Walk
from raypipe.experiments.sequential import FIRST_UNITS, Mixture

_LARGEST_DRIFT = 20.0


@dataclass(frozen=True, slots=True)
class Baseline:
    """A metric's history: its mean, and the variance of one unit around it.

    For a ratio both are of its linearised form (``effects.linearised``); with CUPED the variance
    is what CUPED leaves.
    """

    mean: float
    variance: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Units until an effect of this size is found with this power.

    ``units`` are of both arms at the horizon. ``expected_units`` is the mean number at the first
    look that shows the effect, where it is as large as planned. ``fixed_units`` is what a test
    with one look at its end would need.
    """

    effect: float
    alpha: float
    power: float
    looks: int
    units: int
    by_arm: Mapping[str, int]
    expected_units: int
    fixed_units: int


@cache
def walk(looks: int, alpha: float) -> Walk:
    """What is looked at so often, evenly until the horizon, with the boundary of ``sequential``."""
    mixture = Mixture.tuned(1.0, alpha)
    times = [(i + 1) / looks for i in range(looks)]
    return Walk([mixture.critical(t, alpha) for t in times], times)


def drift_for(power: float, looks: int, alpha: float) -> float:
    """The effect in standard errors at the horizon that is found, on its side, with that power."""
    from scipy.optimize import brentq

    def lacking(drift: float) -> float:
        return float(walk(looks, alpha).crossing(drift).above.sum()) - power

    return float(brentq(lacking, 0.0, _LARGEST_DRIFT, xtol=1e-6))


def units_for(
    baseline: Baseline,
    effect: float,
    shares: Mapping[str, float],
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    looks: int = 28,
) -> Plan:
    """Units that find a relative ``effect``, with so many looks evenly over them.

    Args:
        shares: of two arms, control first; they need not sum to 1.

    Raises:
        UsageError: nothing could be found: no effect, no variance, or a mean of zero.
    """
    control, treated = _two(shares)
    size = abs(effect * baseline.mean)
    if not (size > 0.0 and baseline.variance > 0.0 and 0 < alpha < 1 and alpha < power < 1):
        raise UsageError(
            f"a plan for an effect of {effect:g} on a mean of {baseline.mean:g} with variance "
            f"{baseline.variance:g}, alpha {alpha:g} and power {power:g}",
            hint="Effect, mean and variance are not zero, and alpha < power < 1.",
        )
    drift = drift_for(power, looks, alpha)
    # The variance of the difference, times all units.
    spread = baseline.variance * (1.0 / control + 1.0 / treated)
    least = math.ceil(FIRST_UNITS / min(control, treated))
    units = max(math.ceil(spread * (drift / size) ** 2), least)
    found = walk(looks, alpha).crossing(size * math.sqrt(units / spread))
    first = sum(p * (i + 1) / looks for i, p in enumerate((found.above + found.below).tolist()))
    names = list(shares)
    return Plan(
        effect,
        alpha,
        power,
        looks,
        units,
        {name: math.ceil(units * s) for name, s in zip(names, (control, treated), strict=True)},
        math.ceil(units * (first + 1.0 - found.total)),
        math.ceil(spread * (_fixed_drift(alpha, power) / size) ** 2),
    )


def detectable(
    baseline: Baseline,
    units: int,
    shares: Mapping[str, float],
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    looks: int = 28,
) -> float:
    """The smallest relative effect that so many units of both arms find with that power."""
    control, treated = _two(shares)
    spread = baseline.variance * (1.0 / control + 1.0 / treated)
    drift = drift_for(power, looks, alpha)
    return drift * math.sqrt(spread / units) / abs(baseline.mean)


def _fixed_drift(alpha: float, power: float) -> float:
    from scipy.stats import norm

    return float(norm.isf(alpha / 2) + norm.ppf(power))


def _two(shares: Mapping[str, float]) -> tuple[float, float]:
    given = list(shares.values())
    if len(given) != 2 or not all(s > 0 for s in given):
        raise UsageError(
            f"shares {dict(shares)}", hint="Plan the control and one arm, each with a share."
        )
    return given[0] / sum(given), given[1] / sum(given)
