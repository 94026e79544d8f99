"""The largest entries of each row of a sparse product, without ever holding the product.

Neighbours of items and items for users are both this: rows of ``a @ b``, scaled, without some
columns, cut to the k best. One row's sum runs in the order of its entries and in float64, so the
result does not depend on how rows are divided among processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from numba import njit

from raypipe.errors import UsageError
from training.recommend.rows import Codes, Floats, Integers, Rows, empty

Doubles = npt.NDArray[np.float64]

_OUT_CELLS = 4_000_000
"""Cells of a chunk's dense output: 32 MB."""


@dataclass(frozen=True, slots=True)
class Product:
    """What is to be computed: ``(a @ b)[i, j] * gain[j] / (left[i] * right[j] + shrink)``.

    Only positive entries count, and none that ``skip`` has. ``left`` float64 [rows of a], ``right``
    and ``gain`` float64 [width of b].
    """

    a: Rows
    b: Rows
    k: int
    skip: Rows
    left: Doubles
    right: Doubles
    gain: Doubles
    shrink: float

    @classmethod
    def of(
        cls,
        a: Rows,
        b: Rows,
        k: int,
        *,
        skip: Rows | None = None,
        norms: tuple[Doubles, Doubles] | None = None,
        gain: Doubles | None = None,
        shrink: float = 0.0,
    ) -> Product:
        """A product; without ``norms`` it is not divided.

        Raises UsageError for shapes that don't fit and for k < 1.
        """
        if a.width != len(b) or k < 1:
            raise UsageError(f"{a} times {b} for the best {k} of a row can't be")
        left, right = norms or (_constant(0.0, len(a)), _constant(0.0, b.width))
        return cls(
            a=a,
            b=b,
            k=min(k, b.width),
            skip=skip or empty(len(a), b.width),
            left=_frozen(left),
            right=_frozen(right),
            gain=_constant(1.0, b.width) if gain is None else _frozen(gain),
            shrink=float(shrink) if norms else 1.0,
        )

    def rows(self, first: int, last: int) -> Rows:
        """Rows ``first`` to ``last`` (excluded): the best first, equal ones by column."""
        columns = np.empty((last - first, self.k), np.int32)
        scores = np.empty((last - first, self.k), np.float32)
        sizes = np.zeros(last - first + 1, np.int64)
        _top(
            first, last, self.a.starts, self.a.columns, self.a.values,
            self.b.starts, self.b.columns, self.b.values, self.skip.starts, self.skip.columns,
            self.left, self.right, self.gain, self.shrink, columns, scores, sizes[1:],
        )  # fmt: skip
        kept = np.arange(self.k) < sizes[1:, None]
        return Rows(np.cumsum(sizes), columns[kept], scores[kept], self.b.width)

    def chunks(self, least: int = 1) -> list[tuple[int, int]]:
        """Ranges of rows with about equal work, at least so many (as far as there are rows)."""
        count = len(self.a)
        if not count:
            return []
        parts = min(count, max(least, -(-count * self.k // _OUT_CELLS)))
        if parts == 1:
            return [(0, count)]
        # A row costs a multiplication for each entry of the rows of b that it reaches.
        work = np.concatenate([[0], np.cumsum(self.b.sizes[self.a.columns])])[self.a.starts]
        work = work + np.arange(count + 1)
        edges = np.searchsorted(work, np.linspace(0, work[-1], parts + 1)[1:-1])
        edges = np.unique(np.concatenate([[0], edges, [count]]))
        return [(int(i), int(j)) for i, j in pairwise(edges)]


Run = Callable[[Product], Iterator[Rows]]
"""Computes all rows of a product, chunk by chunk in order."""


def in_process(product: Product) -> Iterator[Rows]:
    """All chunks, one after the other, on this thread."""
    for first, last in product.chunks():
        yield product.rows(first, last)


def on_ray(product: Product) -> Iterator[Rows]:
    """All chunks as tasks of the current Ray session; the matrices are stored once."""
    import ray

    from raypipe.runtime.session import cpus

    task = ray.remote(num_cpus=1)(_chunk)
    stored = ray.put(product)
    # Four a core, so that the last one to end does not keep the others waiting.
    waiting = [task.remote(stored, *chunk) for chunk in product.chunks(least=4 * cpus())]
    for ready in waiting:
        yield ray.get(ready)


def gathered(product: Product, run: Run = in_process) -> Rows:
    """All rows of a product."""
    parts = list(run(product))
    return Rows.joined(parts) if parts else empty(0, product.b.width)


def _chunk(product: Product, first: int, last: int) -> Rows:
    return product.rows(first, last)


def _frozen(values: Doubles) -> Doubles:
    out = np.ascontiguousarray(values, np.float64).view()
    out.flags.writeable = False
    return out


@lru_cache(maxsize=16)
def _constant(value: float, count: int) -> Doubles:
    """A history alone would pay more for these than for its product."""
    return _frozen(np.full(count, value))


@njit(cache=True, nogil=True)
def _top(
    first: int,
    last: int,
    a_starts: Integers,
    a_columns: Codes,
    a_values: Floats,
    b_starts: Integers,
    b_columns: Codes,
    b_values: Floats,
    skip_starts: Integers,
    skip_columns: Codes,
    left: Doubles,
    right: Doubles,
    gain: Doubles,
    shrink: float,
    columns: npt.NDArray[np.int32],
    scores: npt.NDArray[np.float32],
    sizes: Integers,
) -> None:
    width, k = len(right), columns.shape[1]
    # A single row pays for these: only the two marks are filled, and they are narrow.
    total = np.empty(width, np.float64)
    met = np.full(width, -1, np.int32)
    barred = np.full(width, -1, np.int32)
    touched = np.empty(width, np.int32)
    keys = np.empty(width, np.int64)
    one = np.empty(1, np.float32)
    bits = one.view(np.int32)
    for i in range(first, last):
        count = 0
        for p in range(skip_starts[i], skip_starts[i + 1]):
            barred[skip_columns[p]] = i
        for p in range(a_starts[i], a_starts[i + 1]):
            u, weight = a_columns[p], np.float64(a_values[p])
            for q in range(b_starts[u], b_starts[u + 1]):
                j = b_columns[q]
                if met[j] != i:
                    met[j] = i
                    total[j] = 0.0
                    touched[count] = j
                    count += 1
                total[j] += weight * b_values[q]
        found = 0
        for t in range(count):
            j = touched[t]
            if barred[j] == i:
                continue
            one[0] = total[j] * gain[j] / (left[i] * right[j] + shrink)
            if one[0] > 0:
                # Positive floats are ordered as their bits are: one integer ranks by score, then
                # by column, and no two are equal.
                keys[found] = (np.int64(bits[0]) << 32) | np.int64(0x7FFFFFFF - j)
                found += 1
        kept = min(found, k)
        if found > k:
            best = np.sort(np.partition(keys[:found], found - k)[found - k :])
        else:
            best = np.sort(keys[:found])
        for t in range(kept):
            key = best[kept - 1 - t]
            columns[i - first, t] = 0x7FFFFFFF - np.int32(key & 0x7FFFFFFF)
            bits[0] = np.int32(key >> 32)
            scores[i - first, t] = one[0]
        sizes[i - first] = kept
