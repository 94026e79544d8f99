"""Sums of what a user did before, by any key of the item, at any place of the log.

The same rows answer in training, for many moments at once, and in serving, for one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.recommend.rows import Integers

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Before:
    """Of each asked (key, offset): sums float64 [n, values]; the newest time, -1 for none, [n]."""

    sums: Doubles
    newest: Integers


class Past:
    """Events by key, summed up in log order.

    Args:
        key: int64 [n], below 0 for an event that counts for no key.
        offset: int64 [n], the place in the log.
        time: int64 ms [n].
        values: float64 [n, values].
    """

    def __init__(self, key: Integers, offset: Integers, time: Integers, values: Doubles) -> None:
        rows = np.flatnonzero(key >= 0)
        order = rows[np.lexsort((offset[rows], key[rows]))]
        self._keys = np.unique(key[order])
        self._offsets = np.unique(offset[order])
        self._places = self._place(key[order], offset[order])
        self._total = np.vstack([np.zeros((1, values.shape[1])), np.cumsum(values[order], axis=0)])
        self._newest = _running_max(time[order], key[order])

    def before(self, key: Integers, offset: Integers) -> Before:
        """What has a lower offset than asked; nothing for a key below 0 or one that never was."""
        codes = np.searchsorted(self._keys, key)
        known = np.zeros(len(key), np.bool_)
        inside = codes < len(self._keys)
        known[inside] = self._keys[codes[inside]] == key[inside]
        first = codes * (len(self._offsets) + 1)
        start = np.searchsorted(self._places, first)
        end = np.searchsorted(self._places, first + np.searchsorted(self._offsets, offset))
        start, end = (np.where(known, edge, 0) for edge in (start, end))
        newest = np.full(len(key), -1, np.int64)
        some = end > start
        newest[some] = self._newest[end[some] - 1]
        return Before(self._total[end] - self._total[start], newest)

    def _place(self, key: Integers, offset: Integers) -> Integers:
        """One number that sorts by key and offset; both are ranks, so it fits."""
        codes = np.searchsorted(self._keys, key)
        return codes * (len(self._offsets) + 1) + np.searchsorted(self._offsets, offset)


def _running_max(time: Integers, key: Integers) -> Integers:
    """The largest time so far within each key; late events don't take it back."""
    if not len(time):
        return time
    # Lifted apart by key, one running maximum serves all of them.
    low = int(time.min())
    codes = np.cumsum(np.concatenate([[0], key[1:] != key[:-1]]))
    step = int(time.max()) - low + 1
    out: Integers = np.maximum.accumulate(time - low + codes * step) - codes * step + low
    return out
