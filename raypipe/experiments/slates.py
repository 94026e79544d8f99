"""What another policy's lists would have earned, from lists that were shown with propensities.

A list earns what its places earn, such as clicks. A place's reward may depend on the place and on
what stands there, not on the rest of the list (the examination hypothesis), so each place is
weighted by itself. ``sequential`` propensities are given what stands above, as those of
``plackett_luce``; weights are then products down to the place, and a reward may depend on what
stands above it too (McInerney et al., *Counterfactual evaluation of slate recommendations with
sequential reward interactions*, KDD 2020). Others, as those of ``shuffled``, are of a place alone.

A row is a list: intervals are over lists. All arrays are [n, k].
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from raypipe.errors import UsageError
from raypipe.experiments.moments import Floats
from raypipe.experiments.offpolicy import Value, effective_rows, mean_value


def ips(
    reward: npt.ArrayLike,
    propensity: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    sequential: bool = False,
    width: float | None = None,
) -> Value:
    """Inverse propensity scores of each place, summed by list; see ``offpolicy.ips``.

    Args:
        reward: of each place.
        propensity: with which it was shown there.
        target: how likely the other policy shows the same there.
        sequential: whether both are given what stands above.
        width: as of ``offpolicy.ips``.

    Raises UsageError for shapes that differ, and chances that are none.
    """
    y, w, _ = _weights(reward, propensity, target, sequential)
    return mean_value("ips", (w * y).sum(axis=1), _effective(w), width)


def snips(
    reward: npt.ArrayLike,
    propensity: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    sequential: bool = False,
    width: float | None = None,
) -> Value:
    """Self-normalised place by place; arguments as of ``ips``, the variance is the delta method's.

    Raises UsageError also where a place has no weight at all.
    """
    y, w, _ = _weights(reward, propensity, target, sequential)
    whole = w.sum(axis=0)
    if not (whole > 0.0).all():
        raise UsageError(
            f"place {int(np.argmin(whole)) + 1} never held what the other policy shows there",
            hint="Explore more, or judge shorter lists.",
        )
    mean = (w * y).sum(axis=0) / whole
    scores = (mean + w * (y - mean) * (len(w) / whole)).sum(axis=1)
    return mean_value("snips", scores, _effective(w), width)


def doubly_robust(
    reward: npt.ArrayLike,
    propensity: npt.ArrayLike,
    target: npt.ArrayLike,
    predicted: npt.ArrayLike,
    predicted_target: npt.ArrayLike,
    *,
    sequential: bool = False,
    width: float | None = None,
) -> Value:
    """A model's guess of each place, and the weighted mean of what it missed.

    For sequential ones that of Kiyohara et al. (*Doubly robust off-policy evaluation for ranking
    policies under the cascade behavior model*, WSDM 2022); other arguments as of ``ips``.

    Args:
        predicted: reward that a model expects of what was shown; it must not have learned from
            these rows.
        predicted_target: what it expects of the other policy there, on average (sequential: given
            what was shown above).
    """
    y, w, above = _weights(reward, propensity, target, sequential)
    q, q_target = np.asarray(predicted, np.float64), np.asarray(predicted_target, np.float64)
    if q.shape != y.shape or q_target.shape != y.shape:
        raise UsageError(
            f"predictions of shapes {q.shape} and {q_target.shape} for {y.shape} places",
            hint="Give one of each a place.",
        )
    scores = (above * q_target + w * (y - q)).sum(axis=1)
    return mean_value("dr", scores, _effective(w), width)


def _weights(
    reward: npt.ArrayLike, propensity: npt.ArrayLike, target: npt.ArrayLike, sequential: bool
) -> tuple[Floats, Floats, Floats]:
    """Rewards, weights, and the weights of what stands above each place."""
    y, p, t = (np.asarray(a, np.float64) for a in (reward, propensity, target))
    if not (y.ndim == 2 and y.shape == p.shape == t.shape and len(y) > 1):
        raise UsageError(
            f"rewards, propensities and targets of shapes {y.shape}, {p.shape}, {t.shape}",
            hint="Give one of each a place, and two lists at least.",
        )
    if not ((p > 0.0) & (p <= 1.0) & (t >= 0.0) & (t <= 1.0)).all():
        raise UsageError(
            "a propensity is not above 0 and at most 1, or a target not from 0 to 1",
            hint="What was shown had some chance to be shown: log it with the list.",
        )
    w: Floats = t / p
    above: Floats = np.ones(y.shape)
    if sequential:
        w = np.cumprod(w, axis=1, dtype=np.float64)
        above[:, 1:] = w[:, :-1]
    return y, w, above


def _effective(weights: Floats) -> float:
    """Of the place of which least is known."""
    return min(effective_rows(weights[:, place]) for place in range(weights.shape[1]))
