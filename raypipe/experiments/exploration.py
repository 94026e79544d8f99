"""Lists that explore, with the chance of everything that they show.

What a policy never shows is never known to be good. Here a list is drawn, and each place is logged
with its propensity, so that ``slates`` can say later what another policy would have earned.
Candidates come best first; a list is places among them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raypipe.errors import UsageError
from raypipe.experiments.moments import Floats

Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Lists:
    """``picked`` [n, k] places of the candidates, ``propensity`` [n, k] of each."""

    picked: Places
    propensity: Floats


def shuffled(
    lists: int, candidates: int, k: int, epsilon: float, rng: np.random.Generator
) -> Lists:
    """The k best candidates, or with chance ``epsilon`` a list drawn from all of them.

    Propensities are those of a candidate at its place, whatever stands elsewhere. ``epsilon`` 1
    shows each candidate at each place alike: from such lists looks by place are estimated.

    Raises UsageError for a share or a length that can't be.
    """
    if not (0.0 <= epsilon <= 1.0 and 1 <= k <= candidates):
        raise UsageError(
            f"lists of {k} of {candidates} candidates, {epsilon:g} of them drawn",
            hint="Give a share from 0 to 1, and no more places than candidates.",
        )
    drawn = np.argsort(rng.random((lists, candidates)), axis=1)[:, :k]
    explored = rng.random(lists) < epsilon
    picked = np.where(explored[:, None], drawn, np.arange(k))
    return Lists(picked, shuffled_chance(picked, candidates, epsilon))


def shuffled_chance(picked: Places, candidates: int, epsilon: float) -> Floats:
    """How likely ``shuffled`` puts each of these candidates at its place, [n, k].

    >>> shuffled_chance(np.array([[0, 3]]), 4, 0.2).round(2).tolist()
    [[0.85, 0.05]]
    """
    best = picked == np.arange(picked.shape[1])
    out: Floats = (1.0 - epsilon) * best + epsilon / candidates
    return out


def plackett_luce(scores: Floats, k: int, rng: np.random.Generator) -> Lists:
    """Place after place, one of those that are left, by softmax of its score [n, candidates].

    Plackett, *The analysis of permutations*, Applied Statistics 24, 1975; drawn at once by adding
    Gumbel noise and sorting (Yellott 1977). Propensities are of each place given those above it.

    Raises UsageError for more places than candidates.
    """
    if not 1 <= k <= scores.shape[1]:
        raise UsageError(
            f"lists of {k} of {scores.shape[1]} candidates",
            hint="Ask for no more places than there are candidates.",
        )
    noisy = scores + rng.gumbel(size=scores.shape)
    picked = np.argsort(-noisy, axis=1, kind="stable")[:, :k]
    return Lists(picked, plackett_luce_chance(scores, picked))


def plackett_luce_chance(scores: Floats, picked: Places) -> Floats:
    """How likely each pick was after those above it, [n, k].

    >>> even = plackett_luce_chance(np.zeros((1, 4)), np.array([[2, 0, 1]]))
    >>> even.round(3).tolist()
    [[0.25, 0.333, 0.5]]
    """
    rows = np.arange(len(scores))
    left = scores - scores.max(axis=1, keepdims=True)
    out = np.empty(picked.shape)
    for place in range(picked.shape[1]):
        mine = left[rows, picked[:, place]]
        out[:, place] = np.exp(mine - np.logaddexp.reduce(left, axis=1))
        left[rows, picked[:, place]] = -np.inf
    return out
