"""Exact path-dependent TreeSHAP by looking values up instead of walking trees.

With z_i the share of covered rows that satisfy the conditions of feature i on the way to a leaf of
value V, and h_i whether the row does, the contribution of feature j is, by the diagonal formula for
the Shapley value (Owen, Multilinear Extensions of Games, 1972),

    V (h_j - z_j) * integral over s in [0, 1] of product over i != j of (z_i (1 - s) + h_i s).

The integrand is a polynomial, so that a Gauss-Legendre rule gives it exactly; every factor is
positive, so that the product over the others is the product over all divided by one, without
cancellation. All h of a piece (serving/scoring/cut.py) come from its bits, so that the sum over its
leaves is tabulated for every combination of bits; a row costs its bits, one look-up a piece, and
one sum by feature.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from serving.scoring.cut import VALUE_BYTES, Piece

Row = npt.NDArray[np.float32]
Shares = npt.NDArray[np.float64]

_LARGEST = np.finfo(np.float32).max
_AT_ONCE = 1 << 20
"""Values that are computed together while a table is made: 8 MB for each temporary array."""
_LEAVES = 4
"""A piece has about so many leaves."""


@dataclass(frozen=True, slots=True)
class _Block:
    """Pieces whose bits fill as many bytes and whose cases have as many values.

    Bits of a piece lie beside each other, padded with some that never hold.
    """

    feature: npt.NDArray[np.intp]
    low: Row
    high: Row
    missing: npt.NDArray[np.bool_]
    mask: np.dtype[Any]
    first: npt.NDArray[np.intp]
    """Of each piece, the place of its first case."""
    cases: npt.NDArray[np.float32]
    """[cases, width]"""
    column: npt.NDArray[np.intp]
    """The feature of each value of a case: [pieces * width]; one too many is the padding's."""


class Table:
    """Contributions of rows by the tables of a model's pieces; ``features`` is their number."""

    def __init__(self, pieces: Sequence[Piece], features: int) -> None:
        ordered = sorted(pieces, key=_shape)
        self._features = features
        self._blocks = [
            _block(list(same), features) for _, same in groupby(ordered, lambda p: _shape(p)[:2])
        ]

    @property
    def size(self) -> int:
        """Bytes of the tabulated values."""
        return sum(block.cases.nbytes for block in self._blocks)

    def shares(self, row: Row) -> Shares:
        """Each feature's contribution to the margin of ``row``, float32 [features]."""
        # The upper end of an open interval is infinite: an infinite value is the largest one.
        values = np.minimum(row, _LARGEST)
        some_missing = bool(np.isnan(values).any())
        found = np.zeros(self._features + 1)
        for block in self._blocks:
            value = values.take(block.feature)
            holds = (value >= block.low) & (value < block.high)
            if some_missing:
                holds |= np.isnan(value) & block.missing
            case = block.first + np.packbits(holds, bitorder="little").view(block.mask)
            shares = block.cases.take(case, axis=0)
            found += np.bincount(block.column, shares.ravel(), self._features + 1)
        return found[:-1]


def _shape(piece: Piece) -> tuple[int, int, int]:
    return -(-piece.bits // 8), piece.width, piece.bits


def _block(pieces: list[Piece], features: int) -> _Block:
    size, width, _ = _shape(pieces[0])
    bits = 8 * size
    shape = len(pieces), bits
    feature = np.zeros(shape, np.intp)
    low = np.full(shape, np.inf, np.float32)
    high = np.full(shape, np.inf, np.float32)
    missing = np.zeros(shape, np.bool_)
    column = np.full((len(pieces), width), features, np.intp)
    for number, piece in enumerate(pieces):
        for bit, (of, at_least, under, with_missing) in enumerate(_bits(piece)):
            feature[number, bit] = of
            low[number, bit], high[number, bit] = at_least, under
            missing[number, bit] = with_missing
        columns = _columns(piece)
        column[number, : len(columns)] = list(columns)
    counts = [1 << piece.bits for piece in pieces]
    return _Block(
        feature.ravel(),
        low.ravel(),
        high.ravel(),
        missing.ravel(),
        np.dtype(f"<u{size}"),
        np.cumsum([0, *counts[:-1]], dtype=np.intp),
        np.concatenate([_cases(list(same)) for _, same in groupby(pieces, lambda p: p.bits)]),
        column.ravel(),
    )


def _splits(piece: Piece) -> Iterator[int]:
    """The nodes of a piece that are no leaves, from the top, left before right."""
    waiting = [piece.node]
    while waiting:
        node = waiting.pop()
        if piece.tree.left[node] >= 0:
            yield node
            waiting += (piece.tree.right[node], piece.tree.left[node])


def _bits(piece: Piece) -> Iterator[tuple[int, float, float, bool]]:
    """Feature, low, high, missing of each bit: the way's, then the splits'."""
    for feature, way in piece.way.items():
        yield feature, way.low, way.high, way.missing
    tree = piece.tree
    for node in _splits(piece):
        yield tree.feature[node], -np.inf, tree.threshold[node], tree.missing_left[node]


def _columns(piece: Piece) -> dict[int, int]:
    """The column of each feature among the values of a case."""
    split = (piece.tree.feature[node] for node in _splits(piece))
    return {f: n for n, f in enumerate(dict.fromkeys((*piece.way, *split)))}


class _Asked(NamedTuple):
    """What the way to a leaf asks of a feature: z, and the bits that must hold, and must not."""

    share: float = 1.0
    held: int = 0
    unheld: int = 0


def _leaves(piece: Piece) -> Iterator[tuple[float, dict[int, _Asked]]]:
    """Each leaf's value and what is asked, by feature."""
    tree = piece.tree
    bit_of = {node: 1 << len(piece.way) + n for n, node in enumerate(_splits(piece))}
    way = {f: _Asked(w.share, 1 << n) for n, (f, w) in enumerate(piece.way.items())}
    waiting = [(piece.node, way)]
    while waiting:
        node, way = waiting.pop()
        if (left := tree.left[node]) < 0:
            yield tree.value[node], way
            continue
        feature, bit = tree.feature[node], bit_of[node]
        share, held, unheld = way.get(feature, _Asked())
        for child, one, other in ((tree.right[node], 0, bit), (left, bit, 0)):
            part = share * tree.cover[child] / tree.cover[node]
            asked = _Asked(part, held | one, unheld | other)
            waiting.append((child, way | {feature: asked}))


def _cases(pieces: list[Piece]) -> npt.NDArray[np.float32]:
    """All cases of pieces with equal bits and width: [pieces * 2**bits, width]."""
    step = max(1, _AT_ONCE * VALUE_BYTES // (pieces[0].size * _LEAVES))
    parts = [_tabulate(pieces[at : at + step]) for at in range(0, len(pieces), step)]
    return np.concatenate(parts)


def _tabulate(pieces: list[Piece]) -> npt.NDArray[np.float32]:
    leaves = [list(_leaves(piece)) for piece in pieces]
    starts = np.cumsum([0, *map(len, leaves[:-1])])
    width, cases = pieces[0].width, np.arange(1 << pieces[0].bits)[:, None]
    # A column that a leaf does not ask for has z = h = 1: a factor of 1, and no contribution.
    value = np.empty((sum(map(len, leaves)), 1, 1))
    z = np.ones((len(value), 1, width))
    held, unheld = (np.zeros((len(value), 1, width), np.int64) for _ in range(2))
    number, longest = 0, 1
    for piece, mine in zip(pieces, leaves, strict=True):
        columns = _columns(piece)
        for leaf, way in mine:
            value[number] = leaf
            longest = max(longest, len(way))
            for feature, asked in way.items():
                at = number, 0, columns[feature]
                z[at], held[at], unheld[at] = asked
            number += 1
    h = ((cases & held) == held) & ((cases & unheld) == 0)
    integral = np.zeros(h.shape)
    for s, weight in _rule(longest - 1):
        factors = z * (1 - s) + h * s
        integral += weight * factors.prod(axis=2, keepdims=True) / factors
    shares = value * (h - z) * integral
    return np.add.reduceat(shares, starts, axis=0).reshape(-1, width).astype(np.float32)


def _rule(degree: int) -> Iterator[tuple[float, float]]:
    """Points and weights that integrate polynomials of a degree over [0, 1] exactly."""
    points, weights = np.polynomial.legendre.leggauss(degree // 2 + 1)
    return zip((points + 1) / 2, weights / 2, strict=True)
