"""Sparse float32 rows as three arrays: what a product reads, a file maps and a Ray task is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raypipe.errors import StageError

Integers = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Rows:
    """A sparse matrix by rows, read-only.

    Row r has ``values[starts[r]:starts[r + 1]]`` in the columns of the same places, each column at
    most once. Shapes: ``starts`` int64 [n + 1], ``columns`` int32 and ``values`` float32 [entries].
    """

    starts: Integers
    columns: Codes
    values: Floats
    width: int

    def __post_init__(self) -> None:
        # Read-only throughout, as mapped files and Ray's objects are: kernels compile once.
        for name, kind in (("starts", "i8"), ("columns", "i4"), ("values", "f4")):
            array = np.ascontiguousarray(getattr(self, name), kind).view()
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __repr__(self) -> str:
        return f"Rows({len(self)} x {self.width}, {len(self.columns)} entries)"

    @classmethod
    def of(
        cls,
        rows: npt.NDArray[np.integer],
        columns: npt.NDArray[np.integer],
        values: npt.NDArray[np.floating],
        shape: tuple[int, int],
    ) -> Rows:
        """Entries in any order, sorted by row and column; those of one place are summed (float64).

        >>> m = Rows.of(np.array([1, 0, 1]), np.array([2, 1, 2]), np.array([1.0, 2.0, 3.0]), (2, 3))
        >>> m.starts.tolist(), m.columns.tolist(), m.values.tolist()
        ([0, 1, 2], [1, 2], [2.0, 4.0])
        """
        place = rows.astype(np.int64) * shape[1] + columns
        found, where = np.unique(place, return_inverse=True)
        summed = np.bincount(where, values, len(found))
        row, column = np.divmod(found, max(shape[1], 1))
        starts = starts_of(np.bincount(row, minlength=shape[0]))
        return cls(starts, column.astype(np.int32), summed.astype(np.float32), shape[1])

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """The rows of all parts, one under the other."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            starts_of(np.concatenate([p.sizes for p in parts])),
            np.concatenate([p.columns for p in parts]),
            np.concatenate([p.values for p in parts]),
            parts[0].width,
        )

    @property
    def sizes(self) -> Integers:
        """Entries of each row, int64 [n]."""
        return self.starts[1:] - self.starts[:-1]

    @property
    def row_of(self) -> Integers:
        """Row of each entry, int64 [entries]."""
        return np.repeat(np.arange(len(self)), self.sizes)

    @property
    def nbytes(self) -> int:
        """Memory of the three arrays."""
        return self.starts.nbytes + self.columns.nbytes + self.values.nbytes

    def row(self, place: int) -> tuple[Codes, Floats]:
        """Columns and values of one row."""
        part = slice(self.starts[place], self.starts[place + 1])
        return self.columns[part], self.values[part]

    def take(self, rows: npt.NDArray[np.integer]) -> Rows:
        """The rows at these places, in this order."""
        if len(rows) == len(self) and (rows == np.arange(len(self))).all():
            return self
        sizes = self.sizes[rows]
        starts = starts_of(sizes)
        entries = np.arange(starts[-1]) + np.repeat(self.starts[rows] - starts[:-1], sizes)
        return Rows(starts, self.columns[entries], self.values[entries], self.width)

    def with_values(self, values: npt.NDArray[np.floating]) -> Rows:
        """Other values in the same places."""
        return Rows(self.starts, self.columns, values.astype(np.float32), self.width)

    def transposed(self) -> Rows:
        """Columns as rows; the entries of each in ascending order."""
        from scipy.sparse import csr_array

        shape = (len(self), self.width)
        turned = csr_array((self.values, self.columns, self.starts), shape=shape).tocsc()
        return Rows(turned.indptr, turned.indices, turned.data, len(self))

    def best(self, k: int) -> Rows:
        """The k largest values of each row, largest first, equal ones by column."""
        row = self.row_of
        order = np.lexsort((self.columns, -self.values, row))
        kept = order[np.arange(len(order)) - self.starts[row[order]] < k]
        sizes = np.minimum(self.sizes, k)
        return Rows(starts_of(sizes), self.columns[kept], self.values[kept], self.width)

    def first(self, k: int) -> Rows:
        """The first k entries of each row."""
        kept = np.arange(len(self.columns)) - self.starts[self.row_of] < k
        sizes = np.minimum(self.sizes, k)
        return Rows(starts_of(sizes), self.columns[kept], self.values[kept], self.width)

    def dense(self) -> npt.NDArray[np.float32]:
        """As a float32 array [n, width]; for small ones and tests."""
        out = np.zeros((len(self), self.width), np.float32)
        out[self.row_of, self.columns] = self.values
        return out

    def require_width(self, width: int, what: str) -> None:
        """Raise StageError unless these rows are about so many columns."""
        if self.width != width:
            raise StageError(
                f"{what} has {self.width} items, the retriever knows {width}",
                hint="Items are places in one list of ids: use that of the retriever.",
            )


def empty(rows: int, width: int) -> Rows:
    """Rows without an entry."""
    return Rows(np.zeros(rows + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), width)


def starts_of(sizes: npt.NDArray[np.integer]) -> Integers:
    """Where rows of these sizes begin, and the end of the last, int64 [n + 1]."""
    starts = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=starts[1:])
    return starts
