"""CUPED: what units did before explains part of what they do now, and is taken out.

Deng, Xu, Kohavi & Walker, *Improving the sensitivity of online controlled experiments by utilizing
pre-experiment data*, WSDM 2013. The covariate is of the time before the first exposure, so no arm
can have changed it, and the expected difference stays what it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from raypipe.experiments.effects import Estimate, estimate
from raypipe.experiments.moments import Floats, Moments


@dataclass(frozen=True, slots=True)
class Adjusted:
    """Arms with the covariate taken out.

    ``variance_ratio`` is what is left of a unit's variance, 1 - r^2 with r the correlation within
    the arms: experiments need that many times the units.
    """

    theta: float
    variance_ratio: float
    arms: Mapping[str, Estimate]


def adjust(arms: Mapping[str, Moments]) -> Adjusted:
    """From Moments of (metric, covariate) by arm.

    ``theta`` is one slope for all arms, of the deviations within them; so the difference between
    two arms is that of an analysis of covariance. An arm's mean is moved to the covariate's mean
    of all arms. A covariate that does not vary changes nothing.
    """
    within = np.zeros((2, 2))
    for m in arms.values():
        within += m.products
    (yy, xy), (_, xx) = within.tolist()
    theta = xy / xx if xx > 0.0 else 0.0
    n = sum(m.n for m in arms.values())
    middle = sum(m.n * float(m.mean[1]) for m in arms.values()) / n if n else 0.0
    return Adjusted(
        theta,
        1.0 - theta * xy / yy if yy > 0.0 else 1.0,
        {name: estimate(m.linear([[1.0, -theta]], theta * middle)) for name, m in arms.items()},
    )


def filled(covariate: Floats) -> Floats:
    """A covariate [n] for which units without a past (NaN) have the mean of those with one.

    They are not adjusted then. That a unit has a past was so before its exposure too, so this
    brings no bias.
    """
    known = covariate[~np.isnan(covariate)]
    return np.where(np.isnan(covariate), known.mean() if len(known) else 0.0, covariate)
