"""Intervals and p values that hold however often, and whenever, an experiment is looked at.

Asymptotic confidence sequences: Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas, *Time-uniform
central limit theory and asymptotic confidence sequences*, Annals of Statistics 52, 2024
(arXiv:2103.06476). After n units an estimate with standard error ``se`` is known up to

    se sqrt( (1 + 1/s) (2 log(1/alpha) + log(1 + s)) ),    s = n rho^2,

at all n together, as n grows, with probability 1 - alpha. The boundary is Robbins' normal mixture
(*Statistical methods related to the law of the iterated logarithm*, Ann. Math. Statist. 41, 1970);
the mixture SPRT with a normal prior has the same one (Johari, Koomen, Pekelis & Walsh, *Always
valid inference*, Operations Research 70, 2022), and the p value here is theirs at the present look.
The paper above says why an estimated variance and values that are not normal may stand in it.
ADR 0028 says why this one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from raypipe.errors import UsageError

FIRST_UNITS = 200
"""Units of an arm before anything is said of it: the theory is of large numbers."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """A boundary. ``rho2`` says where it is tight; it has to be fixed before the data come."""

    rho2: float

    @classmethod
    def tuned(cls, n: float, alpha: float) -> Mixture:
        """Tightest at ``n`` units of both arms for ``alpha``.

        Ten times fewer units widen intervals by a quarter, ten times more by less than a tenth.

        >>> round(Mixture.tuned(1_000, 0.05).critical(1_000, 0.05), 3)
        3.035
        """
        from scipy.special import lambertw

        if not (n > 0 and 0 < alpha < 1):
            raise UsageError(
                f"a boundary for {n} units at alpha {alpha}",
                hint="Units are positive, alpha is between 0 and 1.",
            )
        best = -float(lambertw(-(alpha**2) / math.e, -1).real) - 1.0
        return cls(best / n)

    def critical(self, n: float, alpha: float) -> float:
        """How many standard errors the interval at ``n`` units is wide, to either side."""
        s = n * self.rho2
        if not s > 0.0:
            return math.inf
        return math.sqrt((1.0 + 1.0 / s) * (2.0 * math.log(1.0 / alpha) + math.log1p(s)))

    def log_evidence(self, z: float, n: float) -> float:
        """The logarithm of the e-value, how much better an effect explains the data than none.

        ``z`` is an estimate in standard errors from what is doubted.
        """
        s = n * self.rho2
        return 0.5 * (z * z * s / (1.0 + s) - math.log1p(s))

    def p_value(self, z: float, n: float) -> float:
        """One over the e-value, at most 1; at most ``alpha`` if, and only if, the interval at that
        alpha leaves out what is doubted.

        >>> boundary = Mixture(0.01)
        >>> round(boundary.p_value(boundary.critical(500, 0.05), 500), 12)
        0.05
        """
        return math.exp(-max(self.log_evidence(z, n), 0.0))
