"""Thompson sampling as shares of traffic, with a floor, so that every propensity is known.

Thompson, *On the likelihood that one unknown probability exceeds another in view of the evidence of
two samples*, Biometrika 25, 1933: an arm gets traffic with the probability that it is the best
one. That probability is computed, not drawn, and becomes the arm's share until the next update;
assignment hashes units into the shares. So what is logged as a propensity is exact: it is the share
itself, whatever error the computation of the share had.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raypipe.errors import UsageError
from raypipe.experiments.effects import Estimate

if TYPE_CHECKING:
    from raypipe.experiments.moments import Floats

FLOOR = 0.05
"""The least share of an arm; also what keeps the weights of off-policy estimates below 20."""

_NODES = 24
_TAILS = (1e-14, 1e-9, 1e-6, 1e-4, 1e-3, 0.01, 0.05, 0.2, 0.35)


@dataclass(frozen=True, slots=True)
class Posterior:
    """What is believed of an arm's mean: ``beta(a, b)`` or ``norm(mean, standard deviation)``."""

    kind: str
    first: float
    second: float

    @classmethod
    def of_counts(cls, successes: int, failures: int) -> Posterior:
        """Of yes and no, from a uniform prior."""
        return cls("beta", 1.0 + successes, 1.0 + failures)

    @classmethod
    def of_mean(cls, found: Estimate) -> Posterior:
        """Of a mean of many units, from a flat prior."""
        return cls("norm", found.value, math.sqrt(found.variance))

    @property
    def distribution(self) -> Any:
        """SciPy's."""
        from scipy import stats

        return getattr(stats, self.kind)(self.first, self.second)


@dataclass(frozen=True, slots=True)
class Shares:
    """Of each arm: the probability that it is best, and its share of the traffic.

    ``error`` is how far the probabilities, integrated one by one, were from summing to 1.
    """

    best: Mapping[str, float]
    share: Mapping[str, float]
    error: float


def thompson(
    arms: Mapping[str, Posterior], *, floor: float = FLOOR, lower_is_better: bool = False
) -> Shares:
    """Shares by the probability of being best; none is below ``floor``.

    Raises UsageError for a floor that the arms can't all have, or that is zero: an arm without
    traffic is never estimated again.

    >>> found = thompson({"a": Posterior.of_counts(4, 6), "b": Posterior.of_counts(4, 6)})
    >>> {name: round(share, 9) for name, share in found.share.items()}
    {'a': 0.5, 'b': 0.5}
    """
    if not (len(arms) > 1 and 0.0 < floor * len(arms) < 1.0):
        raise UsageError(
            f"a floor of {floor:g} for {len(arms)} arms",
            hint="Two arms at least are expected, and a floor above 0 that leaves something over.",
        )
    probabilities = _best([p.distribution for p in arms.values()], lower_is_better)
    whole = float(probabilities.sum())
    best = dict(zip(arms, (probabilities / whole).tolist(), strict=True))
    rest = 1.0 - floor * len(arms)
    return Shares(best, {n: floor + rest * p for n, p in best.items()}, abs(whole - 1.0))


def _best(distributions: list[Any], lower: bool) -> Floats:
    """The integrals of each density times the chance that all others are worse.

    Gauss-Legendre between quantiles of all arms, so that a narrow arm among wide ones is seen.
    """
    tails = [*_TAILS, 0.5, *(1.0 - t for t in _TAILS)]
    edges = np.unique(np.concatenate([d.ppf(tails) for d in distributions]))
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    half = np.diff(edges)[:, None] / 2.0
    x = ((edges[:-1, None] + half) + half * nodes).ravel()
    w = (half * weights).ravel()
    densities = np.array([d.pdf(x) for d in distributions])
    worse = np.array([(d.sf if lower else d.cdf)(x) for d in distributions])
    return np.array(
        [
            (w * densities[i]) @ np.prod(np.delete(worse, i, axis=0), axis=0)
            for i in range(len(distributions))
        ]
    )
