"""64-bit hashes in the order in which they came, each once: a queue that knows its members."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from raypipe.windows.prefetch import prefetch

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_SMALLEST = 1 << 12

_AHEAD = 16
"""How many hashes before its own a place in the table is fetched: a large one is in no cache."""


class HashQueue:
    """Hashes other than 0, first in first out; each takes up to 24 bytes. Not thread-safe."""

    def __init__(self) -> None:
        self._table = np.zeros(2 * _SMALLEST, np.int64)
        self._ring = np.zeros(_SMALLEST, np.int64)
        self._first = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, hash: int) -> bool:
        return bool(_find(self._table, hash))

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self._table.nbytes + self._ring.nbytes

    def add(self, hashes: Ints) -> Mask:
        """Append those that aren't there yet; which ones [n], in order."""
        self._make_room(len(hashes))
        new = np.empty(len(hashes), np.bool_)
        self._count += int(_add(self._table, hashes, self._ring, self._first + self._count, new))
        return new

    def drop(self, count: int) -> None:
        """Forget the oldest ones."""
        if count:
            _remove(self._table, self._ring, self._first, count)
            self._first = (self._first + count) & (len(self._ring) - 1)
            self._count -= count

    def hashes(self) -> Ints:
        """All of them, oldest first [members]."""
        end = self._first + self._count
        if end <= len(self._ring):
            return self._ring[self._first : end].copy()
        return np.concatenate([self._ring[self._first :], self._ring[: end - len(self._ring)]])

    def _make_room(self, more: int) -> None:
        wanted = len(self._ring)
        while self._count + more > wanted:
            wanted *= 2
        if wanted == len(self._ring):
            return
        known = self.hashes()
        self._table = np.zeros(2 * wanted, np.int64)
        self._ring = np.zeros(wanted, np.int64)
        self._first = 0
        self._ring[: len(known)] = known
        _fill(self._table, known)


@njit(cache=True, inline="always")
def _home(table, hash):  # type: ignore[no-untyped-def]
    return hash & (len(table) - 1)


@njit(cache=True, nogil=True)
def _find(table, hash):  # type: ignore[no-untyped-def]
    at = _home(table, hash)
    while table[at] != 0:
        if table[at] == hash:
            return True
        at = (at + 1) & (len(table) - 1)
    return False


@njit(cache=True, nogil=True)
def _add(table, hashes, ring, end, new):  # type: ignore[no-untyped-def]
    mask = len(table) - 1
    added = 0
    for i in range(len(hashes)):
        if i + _AHEAD < len(hashes):
            prefetch(table, _home(table, hashes[i + _AHEAD]))
        hash = hashes[i]
        at = _home(table, hash)
        while table[at] != 0 and table[at] != hash:
            at = (at + 1) & mask
        new[i] = table[at] == 0
        if new[i]:
            table[at] = hash
            ring[(end + added) & (len(ring) - 1)] = hash
            added += 1
    return added


@njit(cache=True, nogil=True)
def _fill(table, hashes):  # type: ignore[no-untyped-def]
    mask = len(table) - 1
    for i in range(len(hashes)):
        if i + _AHEAD < len(hashes):
            prefetch(table, _home(table, hashes[i + _AHEAD]))
        at = _home(table, hashes[i])
        while table[at] != 0:
            at = (at + 1) & mask
        table[at] = hashes[i]


@njit(cache=True, nogil=True)
def _remove(table, ring, first, count):  # type: ignore[no-untyped-def]
    """Knuth's deletion for linear probing (TAOCP 6.4, algorithm R): no graves are left."""
    mask = len(table) - 1
    for i in range(count):
        if i + _AHEAD < count:
            prefetch(table, _home(table, ring[(first + i + _AHEAD) & (len(ring) - 1)]))
        hash = ring[(first + i) & (len(ring) - 1)]
        hole = _home(table, hash)
        while table[hole] != hash:
            hole = (hole + 1) & mask
        at = hole
        while True:
            at = (at + 1) & mask
            if table[at] == 0:
                break
            home = _home(table, table[at])
            # It may move back unless its home lies after the hole, seen round the table.
            if ((at - home) & mask) >= ((at - hole) & mask):
                table[hole] = table[at]
                hole = at
        table[hole] = 0
