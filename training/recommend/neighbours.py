"""Item neighbours: tables of the most similar items, and the methods that make them.

A history's score of an item is the sum of the item's similarities to what the history has, each
times its weight. The table is the whole model; it is stored, mapped and cut like any file.

- ItemKNN: cosine with shrinkage (Deshpande & Karypis, Item-based top-N recommendation algorithms,
  TOIS 2004; the shrink term of Bell & Koren, 2007).
- RP3beta: random walks of three steps, dampened by popularity (Paudel, Christoffel, Newell &
  Bernstein, Updatable, accurate, diverse, and scalable recommendations, TiiS 2017; P3alpha by
  Cooper et al., WWW 2014).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from numba import njit

from raypipe.errors import UsageError
from training.recommend.port import Arrays
from training.recommend.products import Doubles, Product, Run, gathered, in_process
from training.recommend.rows import Rows


@dataclass(frozen=True)
class NeighbourTable:
    """Each item's most similar items, best first; similarity may be negative (EASE^R)."""

    table: Rows
    kind: ClassVar[str] = "neighbours"

    def __post_init__(self) -> None:
        self.table.require_width(len(self.table), "a neighbour table of as many rows")

    def __repr__(self) -> str:
        return f"NeighbourTable({self.width} items, {len(self.table.columns)} neighbours)"

    @property
    def width(self) -> int:
        """Items of the catalogue."""
        return self.table.width

    def retrieve(self, histories: Rows, k: int, *, seen: Rows | None = None) -> Rows:
        """As the port says; an item without a positive score does not come."""
        histories.require_width(self.width, "a history")
        known = histories if seen is None else seen
        return gathered(Product.of(histories, self.table, k, skip=known))

    def similar(self, item: int, k: int) -> Rows:
        """One row: an item's k most similar ones."""
        columns, values = self.table.row(item)
        size = min(k, len(columns))
        return Rows(np.array([0, size]), columns[:size], values[:size], self.width)

    def because(self, items: Rows, item: int) -> int | None:
        """The item of a history (one row) that speaks most for another one; None if none does."""
        found = int(self.because_each(items, np.array([item], np.int32))[0])
        return None if found < 0 else found

    def because_each(self, items: Rows, wanted: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """The same of several items, each once, [n]; -1 where none does."""
        codes, weights = items.row(0)
        place = np.full(self.width, -1, np.int64)
        place[wanted] = np.arange(len(wanted))
        out = np.full(len(wanted), -1, np.int32)
        table = self.table
        _because(codes, weights, table.starts, table.columns, table.values, place, out)
        return out

    def settings(self) -> dict[str, Any]:
        """Nothing but the table."""
        return {}

    def arrays(self) -> Arrays:
        """The table's three arrays."""
        return {
            "starts": self.table.starts,
            "columns": self.table.columns,
            "values": self.table.values,
        }

    @classmethod
    def of_arrays(cls, settings: dict[str, Any], arrays: Arrays) -> NeighbourTable:
        """The table again, over the same memory."""
        starts = arrays["starts"]
        return cls(Rows(starts, arrays["columns"], arrays["values"], len(starts) - 1))


@dataclass(frozen=True, slots=True)
class ItemKNN:
    """Cosine of the items' columns, ``x_i x_j / (|x_i| |x_j| + shrink)``, the k largest a row."""

    neighbours: int = 200
    shrink: float = 10.0
    name: ClassVar[str] = "itemknn"

    def fit(self, train: Rows, run: Run = in_process) -> NeighbourTable:
        """Needs a float64 sum per item and chunk, and the table."""
        _check_neighbours(self.neighbours)
        items = train.transposed()
        norms = np.sqrt(_sums(items, items.values.astype(np.float64) ** 2))
        product = Product.of(
            items,
            train,
            self.neighbours,
            skip=diagonal(len(items)),
            norms=(norms, norms),
            shrink=self.shrink,
        )
        return NeighbourTable(gathered(product, run))

    def describe(self) -> dict[str, Any]:
        """Parameters as plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class RP3Beta:
    """Three steps of a random walk from a user: item, user, item.

    With the walk's probabilities P to the power alpha, the similarity of i to j is
    ``sum_u P_iu P_uj / degree(j)^beta``; the k largest of a row are kept and divided by their sum.
    """

    neighbours: int = 800
    alpha: float = 0.6
    beta: float = 0.1
    normalise: bool = True
    name: ClassVar[str] = "rp3beta"

    def fit(self, train: Rows, run: Run = in_process) -> NeighbourTable:
        """Needs a float64 sum per item and chunk, and the table."""
        _check_neighbours(self.neighbours)
        items = train.transposed()
        degree = np.maximum(items.sizes, 1).astype(np.float64)
        product = Product.of(
            _walk(items, self.alpha),
            _walk(train, self.alpha),
            self.neighbours,
            skip=diagonal(len(items)),
            gain=degree**-self.beta,
        )
        table = gathered(product, run)
        if self.normalise:
            table = _shares(table)
        return NeighbourTable(table)

    def describe(self) -> dict[str, Any]:
        """Parameters as plain data."""
        return asdict(self)


@njit(cache=True, nogil=True)
def _because(
    codes: npt.NDArray[np.int32],
    weights: npt.NDArray[np.float32],
    starts: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int32],
    values: npt.NDArray[np.float32],
    place: npt.NDArray[np.int64],
    out: npt.NDArray[np.int32],
) -> None:
    best = np.zeros(len(out), np.float64)
    for entry in range(len(codes)):
        code, weight = codes[entry], np.float64(weights[entry])
        for at in range(starts[code], starts[code + 1]):
            wanted = place[columns[at]]
            if wanted >= 0:
                part = weight * values[at]
                if part > best[wanted]:
                    best[wanted] = part
                    out[wanted] = code


def diagonal(size: int) -> Rows:
    """Each item itself, for leaving it out of its own neighbours."""
    items = np.arange(size + 1)
    return Rows(items, items[:-1].astype(np.int32), np.ones(size, np.float32), size)


def _walk(rows: Rows, alpha: float) -> Rows:
    return rows.with_values(_shares(rows).values.astype(np.float64) ** alpha)


def _shares(rows: Rows) -> Rows:
    total = _sums(rows, rows.values)
    return rows.with_values(rows.values / np.repeat(np.where(total > 0, total, 1), rows.sizes))


def _sums(rows: Rows, values: npt.NDArray[np.floating]) -> Doubles:
    return np.bincount(rows.row_of, values, len(rows)).astype(np.float64, copy=False)


def _check_neighbours(count: int) -> None:
    if count < 1:
        raise UsageError(f"{count} neighbours an item", hint="At least 1 is needed.")
