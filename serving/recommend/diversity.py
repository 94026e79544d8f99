"""Maximal marginal relevance: each next item is as good as possible and unlike what stands above.

Carbonell & Goldstein, *The use of MMR, diversity-based reranking for reordering documents and
producing summaries*, SIGIR 1998: of what is left, take the item with the largest

    lambda * relevance - (1 - lambda) * (largest similarity to an item of the list so far)

Relevance is the score, brought to 0..1 within the request's candidates. Similarity is a weighted
sum of: the same category, the same brand, and how near an item stands in the neighbour table of the
retriever to the one in the list (its similarity over that of the nearest; 100 are looked at).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raypipe.errors import DeclarationError
from serving.recommend.rules import Doubles, Integers

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
                f"lambda, the weight of relevance, is {self.relevance:g}",
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
        starts, columns, values = (np.zeros(0, kind) for kind in ("i8", "i4", "f4"))
        for array in (starts, columns, values):
            array.flags.writeable = False
        return cls(starts, columns, values)


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
