"""Chance in lists, so that what was not shown first can be judged later; with known propensities.

For a share of requests each place is drawn among what may stand there, with probabilities
proportional to ``exp(value / temperature)``: without diversity and caps this is the model of
Plackett (*The analysis of permutations*, JRSS C 24, 1975) and Luce (1959), whose lists Gumbel noise
on the values gives too (Yellott 1977). All other requests take the largest value everywhere.

A place's propensity is the probability of its item given the items above it, over all that chance
could do, the share included. So the product of the first t is that of the list's beginning, which
is what ``raypipe.experiments.offpolicy`` takes, and what estimators of lists are made of (McInerney
et al., *Counterfactual evaluation of slate recommendations with sequential reward interactions*,
KDD 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raypipe.errors import DeclarationError
from raypipe.windows.hashing import xxh64
from serving.recommend.rules import Doubles, Flags, check_places


@dataclass(frozen=True, slots=True)
class Exploration:
    """``share`` of requests are drawn with a ``temperature`` on the scale of values, 0..1.

    ``places`` are the ones, from 1, at which they may differ from the best; () is all.
    """

    share: float = 0.0
    temperature: float = 0.05
    places: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise DeclarationError(
                f"a share of {self.share:g} explores", hint="Give 0 to 1; 0.05 is usual."
            )
        if not self.temperature > 0.0:
            raise DeclarationError(
                f"the temperature is {self.temperature:g}",
                hint="Give more than 0; for no exploration give a share of 0.",
            )
        check_places("exploring", self.places)


def seed_of(request_id: str) -> int:
    """The seed of a request, by XXH64: the same id draws the same list."""
    return xxh64(request_id.encode())


def propensities(chance: Doubles, best: Flags, share: float) -> Doubles:
    """Of each place, given those above it, float64 [k].

    Two kinds of requests give lists: those that explore, and those that don't. As the list goes on,
    the probability that it is of the first kind is kept by Bayes' rule; one item that is not the
    best settles it.

    Args:
        chance: [k], the probability of each item in a request that explores.
        best: [k], whether each is the one that other requests take.
        share: of requests that explore.

    >>> propensities(np.array([0.5, 0.2]), np.array([True, True]), 0.5).round(4).tolist()
    [0.75, 0.7333]
    >>> propensities(np.array([0.5, 0.2]), np.array([True, False]), 0.5).round(4).tolist()
    [0.75, 0.0667]
    """
    out = np.zeros(len(chance))
    explores = share
    for place in range(len(chance)):
        drawn = explores * chance[place]
        out[place] = drawn + (1.0 - explores if best[place] else 0.0)
        if not out[place] > 0.0:
            break
        explores = drawn / out[place]
    return out
