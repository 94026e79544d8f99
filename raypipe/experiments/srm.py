"""Sample ratio mismatch: whether the arms have the units that their shares say.

A share of units that is not the declared one means that assignment, exposure or the log loses units
by arm, and then no figure of the experiment counts (Fabijan et al., *Diagnosing sample ratio
mismatch in online controlled experiments*, KDD 2019).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from raypipe.errors import UsageError
from raypipe.experiments.moments import Floats

ALPHA = 0.001
"""The rate of false alarms over the whole life of an experiment."""

CONCENTRATION = 10_000.0
"""The prior's weight in units: what is looked for first is off by about a hundredth."""


@dataclass(frozen=True, slots=True)
class RatioCheck:
    """Units by arm beside what their shares say.

    ``p_now`` is of the chi-square test, for one look. ``p`` holds however often it is looked at,
    and it alone decides.
    """

    units: Mapping[str, int]
    expected: Mapping[str, float]
    p_now: float
    p: float
    mismatch: bool


def check_ratio(
    units: Mapping[str, int], shares: Mapping[str, float], alpha: float = ALPHA
) -> RatioCheck:
    """Compare counted units with shares, which need not sum to 1.

    ``p`` is one over the Bayes factor of a Dirichlet prior around the shares against the shares
    (Lindon & Malek, *Anytime-valid inference for multinomial count data*, NeurIPS 2022): under
    the right shares the factor is a martingale, so the chance that it ever passes 1 / alpha is at
    most alpha (Ville's inequality).

    Raises UsageError if an arm has no positive share, or the arms are not the same.
    """
    if set(units) != set(shares) or not all(s > 0 for s in shares.values()):
        raise UsageError(
            f"units of {', '.join(sorted(units))} beside shares of {', '.join(sorted(shares))}",
            hint="Each arm needs its units and a positive share.",
        )
    whole = sum(shares.values())
    ideal = np.array([shares[name] / whole for name in units])
    seen = np.array(list(units.values()), np.float64)
    n = float(seen.sum())
    if not n:
        return RatioCheck(dict(units), dict.fromkeys(units, 0.0), 1.0, 1.0, False)
    p = min(1.0, math.exp(min(-_log_bayes_factor(seen, ideal), 0.0)))
    return RatioCheck(
        dict(units),
        dict(zip(units, (n * ideal).tolist(), strict=True)),
        _chi_square(seen, n * ideal),
        p,
        p < alpha,
    )


def _log_bayes_factor(seen: Floats, ideal: Floats) -> float:
    from scipy.special import gammaln

    prior = CONCENTRATION * ideal
    mixed = gammaln(CONCENTRATION) - gammaln(CONCENTRATION + seen.sum())
    mixed += (gammaln(prior + seen) - gammaln(prior)).sum()
    return float(mixed - (seen * np.log(ideal)).sum())


def _chi_square(seen: Floats, expected: Floats) -> float:
    from scipy.special import chdtrc

    return float(chdtrc(len(seen) - 1, ((seen - expected) ** 2 / expected).sum()))
