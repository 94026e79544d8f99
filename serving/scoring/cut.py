"""Where to cut trees into pieces whose TreeSHAP values are few enough to be tabulated.

What a piece, a whole subtree, gives to a row's contributions depends only on which of its bits
hold: one for each feature on the way to it (is the value within the interval that leads there?)
and one for each split in it. So a piece of b bits has 2^b cases. Small pieces have few cases each,
large ones need fewer bits in all; where to cut is decided from the leaves up, by the work for a
row and the room that the cases take.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from serving.scoring.forest import Tree

MAX_BITS = 16
VALUE_BYTES = 4
_LANES = 4
_CASES_PER_UNIT = 64
"""Tabulated values that weigh as much as one element of work: a guess at what caches do."""


class Condition(NamedTuple):
    """What the way to a piece asks of one feature: low <= x < high, or NaN where that leads there.

    ``share`` is the part of the covered rows that satisfies it, at each split along the way.
    """

    low: float = -math.inf
    high: float = math.inf
    missing: bool = True
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Piece:
    """A subtree and the way to it. ``width`` is the number of values in a case, padded."""

    tree: Tree
    node: int
    way: dict[int, Condition]
    bits: int
    width: int

    @property
    def size(self) -> int:
        """Bytes of all its cases."""
        return VALUE_BYTES * self.width << self.bits


def cut(trees: Sequence[Tree]) -> list[Piece]:
    """Pieces that together have every leaf that depends on a feature."""
    return [piece for tree in trees if tree.left[0] >= 0 for piece in _cut_tree(tree)]


def _cut_tree(tree: Tree) -> list[Piece]:
    splits = [0] * len(tree.left)
    features: list[frozenset[int]] = [frozenset()] * len(tree.left)
    order, waiting = [], [0]
    while waiting:
        node = waiting.pop()
        order.append(node)
        if tree.left[node] >= 0:
            waiting += (tree.left[node], tree.right[node])
    for node in reversed(order):
        if (left := tree.left[node]) >= 0:
            right = tree.right[node]
            splits[node] = splits[left] + splits[right] + 1
            features[node] = features[left] | features[right] | {tree.feature[node]}

    def best(node: int, way: dict[int, Condition]) -> tuple[float, list[Piece]]:
        bits = len(way) + splits[node]
        width = -(-len(way.keys() | features[node]) // _LANES) * _LANES
        whole = [Piece(tree, node, way, bits, width)]
        cost = _cost(bits, width)
        if tree.left[node] < 0:
            return cost, whole
        left, right = (best(*_step(tree, node, way, on_left=on)) for on in (True, False))
        apart = left[0] + right[0]
        return (cost, whole) if cost <= apart else (apart, left[1] + right[1])

    return best(0, {})[1]


def _cost(bits: int, width: int) -> float:
    if bits > MAX_BITS:
        # Never better than its parts; a leaf as deep as that makes the table too large as a whole.
        return math.inf
    return 8 * -(-bits // 8) + width + (width << bits) / _CASES_PER_UNIT


def _step(
    tree: Tree, node: int, way: dict[int, Condition], *, on_left: bool
) -> tuple[int, dict[int, Condition]]:
    """A child and the way to it."""
    child = tree.left[node] if on_left else tree.right[node]
    feature, threshold = tree.feature[node], tree.threshold[node]
    low, high, missing, share = way.get(feature, Condition())
    condition = Condition(
        low if on_left else max(low, threshold),
        min(high, threshold) if on_left else high,
        missing and tree.missing_left[node] == on_left,
        share * tree.cover[child] / tree.cover[node],
    )
    return child, way | {feature: condition}
