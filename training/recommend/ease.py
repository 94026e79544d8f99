"""EASE^R: the closed-form linear autoencoder, as far as memory allows.

Steck, Embarrassingly shallow autoencoders for sparse data, WWW 2019: with G = X'X + l I and
P = G^-1, the weights are B_ij = -P_ij / P_jj, 0 on the diagonal. G is dense, so the catalogue's
square must fit; beyond that the items with the most users get rows, and the others none.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from raypipe.errors import UsageError
from training.recommend.neighbours import NeighbourTable
from training.recommend.products import Run, in_process
from training.recommend.rows import Floats, Rows

_BLOCK = 1_024
"""Rows that are cut to their largest at once."""


@dataclass(frozen=True, slots=True)
class Ease:
    """The inverse by Cholesky in float32 and in place: one matrix of items x items.

    ``memory_mb`` bounds that matrix and what is cut from it at a time. A row keeps its
    ``neighbours`` weights of largest absolute value.
    """

    regularisation: float = 300.0
    neighbours: int = 500
    memory_mb: int = 2_048
    name: ClassVar[str] = "ease"

    @property
    def most_items(self) -> int:
        """Items whose square fits."""
        room = self.memory_mb * 2**20
        # 4 bytes a cell; a block of rows is held four times while it is cut.
        return int((-16 * _BLOCK + np.sqrt((16 * _BLOCK) ** 2 + 16 * room)) / 8)

    def fit(self, train: Rows, run: Run = in_process) -> NeighbourTable:
        """The work grows with the cube of the items; ``run`` is not used, it can't be divided.

        Raises UsageError for a memory bound that fits no item, or a regularisation not above 0.
        """
        if self.most_items < 1 or not self.regularisation > 0 or self.neighbours < 1:
            raise UsageError(
                f"{self} can't be fitted",
                hint="Give it 256 MB or more, a regularisation above 0, at least 1 neighbour.",
            )
        items = train.transposed()
        # By users, most first; then by code.
        chosen = np.sort(np.argsort(-items.sizes, kind="stable")[: self.most_items])
        weights = _weights(items.take(chosen), self.regularisation)
        rows, columns, values = _largest(weights, self.neighbours)
        shape = (len(items), len(items))
        table = Rows.of(chosen[rows], chosen[columns], values, shape)
        return NeighbourTable(table.best(self.neighbours))

    def describe(self) -> dict[str, Any]:
        """Parameters as plain data."""
        return asdict(self)


def _weights(items: Rows, regularisation: float) -> Floats:
    from scipy.linalg import lapack
    from scipy.sparse import csr_array

    x = csr_array((items.values, items.columns, items.starts), shape=(len(items), items.width))
    gram = np.zeros((len(items), len(items)), np.float32, order="F")
    users = x.T.tocsr()
    for first in range(0, len(items), _BLOCK):
        last = min(first + _BLOCK, len(items))
        gram[:, first:last] = (x @ users[:, first:last]).toarray()
    gram[np.diag_indices(len(items))] += regularisation
    factor, failed = lapack.spotrf(gram, lower=1, clean=0, overwrite_a=1)
    if not failed:
        inverse, failed = lapack.spotri(factor, lower=1, overwrite_c=1)
    if failed:
        raise UsageError(
            f"the items' matrix has no inverse at regularisation {regularisation}",
            hint="Give a larger one.",
        )
    return _mirrored(inverse)


def _mirrored(lower: Floats) -> Floats:
    """-P_ij / P_jj, 0 on the diagonal, from the lower half of P; block by block, in place."""
    size = len(lower)
    for first in range(0, size, _BLOCK):
        last = min(first + _BLOCK, size)
        square = lower[first:last, first:last]
        square[:] = np.tril(square) + np.tril(square, -1).T
        lower[first:last, last:] = lower[last:, first:last].T
    lower /= -np.diagonal(lower).copy()
    np.fill_diagonal(lower, 0)
    return lower


def _largest(
    weights: Floats, k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]:
    size = len(weights)
    k = min(k, size)
    rows, columns, values = [], [], []
    for first in range(0, size, _BLOCK):
        block = np.ascontiguousarray(weights[first : first + _BLOCK])
        best = np.argpartition(-np.abs(block), k - 1, axis=1)[:, :k]
        found = np.take_along_axis(block, best, axis=1)
        row, at = np.nonzero(found)
        rows.append(row + first)
        columns.append(best[row, at])
        values.append(found[row, at])
    return np.concatenate(rows), np.concatenate(columns), np.concatenate(values)
