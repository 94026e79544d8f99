"""What another policy would have earned, from what this one did.

Each logged row has the reward, the propensity with which the logging policy took its action, and
the probability with which the other policy would take the same action there. The propensity has to
be above zero wherever the other policy's probability is; a bandit's floor sees to that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raypipe.errors import UsageError
from raypipe.experiments.effects import Interval
from raypipe.experiments.moments import Floats

_NO_SKEW = 1e-6


@dataclass(frozen=True, slots=True)
class Value:
    """The mean reward of the other policy.

    ``effective`` is how many rows drawn from it would tell as much, (sum w)^2 / sum w^2 (Kish
    1965); where it is small, the interval says more than it knows.
    """

    method: str
    value: float
    error: float
    interval: Interval
    n: int
    effective: float


def ips(
    reward: npt.ArrayLike,
    propensity: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    width: float | None = None,
) -> Value:
    """Inverse propensity scores: the mean of weight times reward; weight = target / propensity.

    Horvitz & Thompson, *A generalization of sampling without replacement from a finite universe*,
    JASA 47, 1952. Unbiased; the variance is that of the rows.

    Args:
        reward, propensity, target: [n], of the action that was taken.
        width: standard errors to each side; None: 95 % at one look. A boundary of ``sequential``
            makes the interval valid at any time, also where the propensities were adapted.
    """
    y, w = _weights(reward, propensity, target)
    return _mean("ips", w * y, w, width)


def snips(
    reward: npt.ArrayLike,
    propensity: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    width: float | None = None,
) -> Value:
    """Self-normalised: weighted rewards over the sum of weights; arguments as those of ``ips``.

    Swaminathan & Joachims, *The self-normalized estimator for counterfactual learning*, NIPS 2015.
    Biased by the order of 1/n, but unmoved by adding a constant to all rewards, and seldom wild.
    The variance is the delta method's.
    """
    y, w = _weights(reward, propensity, target)
    whole = float(w.sum())
    if not whole > 0.0:
        raise UsageError("the other policy takes none of the logged actions", hint="Log others.")
    value = float((w * y).sum() / whole)
    return _mean("snips", value + w * (y - value) * (len(w) / whole), w, width)


def doubly_robust(
    reward: npt.ArrayLike,
    propensity: npt.ArrayLike,
    target: npt.ArrayLike,
    predicted: npt.ArrayLike,
    predicted_target: npt.ArrayLike,
    *,
    width: float | None = None,
) -> Value:
    """A model's guess, and the weighted mean of what it missed; other arguments as ``ips``.

    Dudik, Langford & Li, *Doubly robust policy evaluation and learning*, ICML 2011. Unbiased with
    the right propensities whatever the model is, as long as it did not learn from these rows; the
    better the model, the narrower.

    Args:
        predicted: [n], the reward that a model expects of the logged action.
        predicted_target: [n], what it expects of the other policy's action there, on average.
    """
    y, w = _weights(reward, propensity, target)
    q, q_target = np.asarray(predicted, np.float64), np.asarray(predicted_target, np.float64)
    if q.shape != y.shape or q_target.shape != y.shape:
        raise UsageError(
            f"predictions of shapes {q.shape} and {q_target.shape} for {len(y)} rows",
            hint="Give one of each a row.",
        )
    return _mean("dr", q_target + w * (y - q), w, width)


def _weights(
    reward: npt.ArrayLike, propensity: npt.ArrayLike, target: npt.ArrayLike
) -> tuple[Floats, Floats]:
    y, p, t = (np.asarray(a, np.float64) for a in (reward, propensity, target))
    if not (y.ndim == 1 and y.shape == p.shape == t.shape and len(y) > 1):
        raise UsageError(
            f"rewards, propensities and targets of shapes {y.shape}, {p.shape}, {t.shape}",
            hint="Give one of each a row, and two rows at least.",
        )
    if not ((p > 0.0) & (p <= 1.0) & (t >= 0.0) & (t <= 1.0)).all():
        raise UsageError(
            "a propensity is not above 0 and at most 1, or a target not from 0 to 1",
            hint="What was taken had some chance to be taken: log it with the decision.",
        )
    return y, t / p


def _mean(method: str, scores: Floats, weights: Floats, width: float | None) -> Value:
    return mean_value(method, scores, effective_rows(weights), width)


def effective_rows(weights: Floats) -> float:
    """(sum w)^2 / sum w^2, 0 without any weight."""
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / squares if squares else 0.0


def mean_value(method: str, scores: Floats, effective: float, width: float | None) -> Value:
    """The mean of one score a row [n], with the interval of a skewed mean; ``width`` as ``ips``."""
    from scipy.stats import norm

    n = len(scores)
    value = float(scores.mean())
    apart = scores - value
    error = float(scores.std(ddof=1)) / math.sqrt(n)
    spread = float(np.mean(apart**2))
    skew = float(np.mean(apart**3)) / spread**1.5 / math.sqrt(n) if spread else 0.0
    wide = float(norm.isf(0.025)) if width is None else width
    interval = Interval(
        value - error * _unskewed(wide, skew), value - error * _unskewed(-wide, skew)
    )
    return Value(method, value, error, interval, n, effective)


def _unskewed(z: float, skew: float) -> float:
    """The quantile of a studentised mean where the normal's is ``z``.

    Hall, *On the removal of skewness by transformation*, JRSS B 54, 1992; ``skew`` is the rows'
    over sqrt(n). Rare large losses, such as fraud, move a mean and its error together, and the
    normal interval then misses too often on the side of the losses.

    >>> round(_unskewed(1.96, -0.3), 3), round(_unskewed(-1.96, -0.3), 3)
    (2.65, -1.63)
    """
    if abs(skew) < _NO_SKEW:
        return z
    return 3.0 / skew * (float(np.cbrt(1.0 + skew * (z - skew / 6.0))) - 1.0)
