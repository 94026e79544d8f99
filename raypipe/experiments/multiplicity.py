"""Many questions of one experiment, with the errors among all answers held down.

Both take p values that hold at any time, as ``sequential`` and nothing else here makes them. Those
are one over an e-value, and then neither procedure asks how the questions depend on each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raypipe.errors import UsageError


@dataclass(frozen=True, slots=True)
class Corrected:
    """One of several answers.

    ``adjusted`` is the smallest alpha for all at which this one is an effect. ``level`` is the
    alpha at which it was judged here: its interval at that level leaves out zero if, and only if,
    ``significant``.
    """

    p: float
    adjusted: float
    level: float
    significant: bool


def holm(p_values: Sequence[float], alpha: float) -> list[Corrected]:
    """The chance that any answer is a false one is at most alpha.

    Holm, *A simple sequentially rejective multiple test procedure*, Scand. J. Statist. 6, 1979.

    >>> [c.significant for c in holm([0.01, 0.04, 0.03], 0.05)]
    [True, False, False]
    """
    p = _checked(p_values)
    m = len(p)
    order = np.argsort(p, kind="stable")
    adjusted = np.minimum(np.maximum.accumulate(p[order] * np.arange(m, 0, -1)), 1.0)
    rejected = int((adjusted <= alpha).sum())  # adjusted values rise
    out = [Corrected(0.0, 0.0, 0.0, False)] * m
    for rank, (place, value) in enumerate(zip(order.tolist(), adjusted.tolist(), strict=True)):
        level = alpha / (m - min(rank, rejected))
        out[place] = Corrected(float(p[place]), value, level, rank < rejected)
    return out


def benjamini_hochberg(p_values: Sequence[float], alpha: float) -> list[Corrected]:
    """Of the answers that are called effects, the expected share of false ones is at most alpha.

    Benjamini & Hochberg, *Controlling the false discovery rate*, JRSS B 57, 1995. On one over
    e-values this is e-BH (Wang & Ramdas, *False discovery rate control with e-values*, JRSS B 84,
    2022), and intervals at ``level`` keep the share of those that miss below alpha (Xu, Wang &
    Ramdas, *Post-selection inference for e-value based confidence intervals*, 2022).
    """
    from scipy.stats import false_discovery_control

    p = _checked(p_values)
    if not len(p):
        return []
    adjusted = false_discovery_control(p, method="bh")
    significant = adjusted <= alpha
    level = alpha * max(int(significant.sum()), 1) / len(p)
    return [
        Corrected(float(a), float(b), level, bool(s))
        for a, b, s in zip(p, adjusted, significant, strict=True)
    ]


def _checked(p_values: Sequence[float]) -> np.ndarray:
    p = np.array(p_values, np.float64)
    if not ((p >= 0.0) & (p <= 1.0)).all():
        raise UsageError(f"p values {p.tolist()}", hint="Each is from 0 to 1.")
    return p
