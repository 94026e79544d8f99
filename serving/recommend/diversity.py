"""Maximal marginal relevance: each next item is as good as possible and unlike what stands above.

Carbonell & Goldstein, *The use of MMR, diversity-based reranking for reordering documents and
producing summaries*, SIGIR 1998: of what is left, take the item with the largest

    lambda * relevance - (1 - lambda) * (largest similarity to an item of the list so far)

Relevance is the score, brought to 0..1 within the request's candidates. Similarity is a weighted
sum of: the same category, the same brand, and how near an item stands in the neighbour table of the
retriever to the one in the list (its similarity over that of the nearest).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from raypipe.errors import DeclarationError
from serving.recommend.rules import Doubles, Integers

NEAREST = 100
"""Neighbours of an item that are looked at; what is further is as far as anything."""

_EPSILON = 1e-9


@dataclass(frozen=True, slots=True)
class Diversity:
    """``relevance`` is the method's lambda: 1 is the order of scores, 0 asks for difference alone.

    ``category``, ``brand`` and ``neighbours`` weigh the parts of similarity; at most 1 together.
    """

    relevance: float = 1.0
    category: float = 0.6
    brand: float = 0.4
    neighbours: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.relevance <= 1.0:
            raise DeclarationError(
                f"relevance weighs {self.relevance:g} against diversity",
                hint="Give 0 to 1; 1 is the order of scores.",
            )
        parts = (self.category, self.brand, self.neighbours)
        if not (min(parts) >= 0.0 and sum(parts) <= 1.0 + _EPSILON):
            raise DeclarationError(
                f"category, brand and neighbours weigh {', '.join(f'{p:g}' for p in parts)}",
                hint="Give 0 or more, together at most 1, so that similarity is from 0 to 1.",
            )


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The retriever's table of similar items, by item code: ``columns`` int32 and ``values``
    float32 of row i stand at ``starts[i]:starts[i + 1]``, best first; all read-only, as
    ``training.recommend.rows.Rows`` has them.
    """

    starts: Integers
    columns: npt.NDArray[np.int32]
    values: npt.NDArray[np.float32]

    @classmethod
    def none(cls) -> Neighbours:
        """No item has any."""
        return cls(_frozen("i8"), _frozen("i4"), _frozen("f4"))


def relevance(scores: npt.NDArray[np.floating], allowed: npt.NDArray[np.bool_]) -> Doubles:
    """Scores brought to 0..1 by the least and the largest of the allowed ones, float64 [n].

    >>> relevance(np.array([9.0, 3.0, 1.0, 2.0]), np.array([False, True, True, True])).tolist()
    [4.0, 1.0, 0.0, 0.5]
    """
    kept = scores[allowed].astype(np.float64)
    low, high = (kept.min(), kept.max()) if len(kept) else (0.0, 0.0)
    if not high > low:
        return np.ones(len(scores))
    brought: Doubles = (scores.astype(np.float64) - low) / (high - low)
    return brought


@njit(cache=True, nogil=True)
def raise_likeness(  # type: ignore[no-untyped-def]
    likeness, place, codes, order, category, brand, weights, starts, columns, values
):
    """Raise each candidate's largest similarity to the list, after the one at ``place`` came in.

    ``likeness`` float64 [m]; ``order`` sorts ``codes``; ``weights`` of category, brand, neighbours.
    """
    near = np.zeros(len(codes), np.float64)
    if weights[2] > 0.0 and codes[place] + 1 < len(starts):
        first, last = starts[codes[place]], starts[codes[place] + 1]
        for entry in range(first, min(last, first + NEAREST)):
            if values[entry] <= 0.0:
                break
            at = _found(codes, order, columns[entry])
            if at >= 0:
                near[at] = values[entry] / values[first]
    for i in range(len(codes)):
        alike = weights[2] * near[i]
        if category[i] >= 0 and category[i] == category[place]:
            alike += weights[0]
        if brand[i] >= 0 and brand[i] == brand[place]:
            alike += weights[1]
        likeness[i] = max(likeness[i], alike)


@njit(cache=True, nogil=True)
def _found(codes, order, wanted):  # type: ignore[no-untyped-def]
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        if codes[order[middle]] < wanted:
            low = middle + 1
        else:
            high = middle
    if low < len(order) and codes[order[low]] == wanted:
        return order[low]
    return -1


def _frozen(kind: str) -> npt.NDArray[np.generic]:
    out = np.zeros(0, kind)
    out.flags.writeable = False
    return out
