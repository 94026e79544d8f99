"""64-bit hashes in the order in which they came, each once: a queue that knows its members.

Its table doubles without a pause: the members of a large one move to the new one little by little,
with what is added, and both are asked meanwhile.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from raypipe.windows.prefetch import prefetch

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_SMALLEST = 1 << 12

_AT_ONCE = 1 << 16
"""So many members move at once."""

_PACE = 4
"""Members that move for each hash that is added: all have moved long before the table is full."""

_NONE = np.empty(0, np.int64)

_AHEAD = 16
"""How many hashes before its own a place in the table is fetched: a large one is in no cache."""


class HashQueue:
    """Hashes other than 0, first in first out; each takes up to 24 bytes. Not thread-safe."""

    def __init__(self) -> None:
        self._table = np.zeros(2 * _SMALLEST, np.int64)
        self._ring = np.zeros(_SMALLEST, np.int64)
        self._first = 0
        self._count = 0
        self._old = _NONE
        """The table that is being left; it has all members that were there when that began."""
        self._unmoved = 0
        """How many members, the oldest ones, are in no other table."""
        self.dropped = 0
        """How many have left, in all."""

    def __len__(self) -> int:
        return self._count

    def __contains__(self, hash: int) -> bool:
        return bool(_find(self._table, hash) or (self._unmoved and _find(self._old, hash)))

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self._table.nbytes + self._ring.nbytes + self._old.nbytes

    def add(self, hashes: Ints) -> Mask:
        """Append those that aren't there yet; which ones [n], in order."""
        self._make_room(len(hashes))
        self._move(_PACE * len(hashes))
        new = np.empty(len(hashes), np.bool_)
        end = self._first + self._count
        self._count += int(_add(self._table, self._old, hashes, self._ring, end, new))
        return new

    def drop(self, count: int) -> None:
        """Forget the oldest ones."""
        self.dropped += count
        unmoved = min(count, self._unmoved)
        if unmoved:
            self._drop(self._old, unmoved)
            self._left(self._unmoved - unmoved)
        if count > unmoved:
            self._drop(self._table, count - unmoved)

    def _drop(self, table: Ints, count: int) -> None:
        _remove(table, self._ring, self._first, count)
        self._first = (self._first + count) & (len(self._ring) - 1)
        self._count -= count

    def hashes(self, begin: int = 0, end: int | None = None) -> Ints:
        """All of them, oldest first [members], or those from ``begin`` to ``end`` in that order."""
        first = self._first + begin
        last = self._first + (self._count if end is None else min(end, self._count))
        size = len(self._ring)
        if first >= size:
            first, last = first - size, last - size
        if last <= size:
            return self._ring[first:last].copy()
        return np.concatenate([self._ring[first:], self._ring[: last - size]])

    def _make_room(self, more: int) -> None:
        wanted = len(self._ring)
        while self._count + more > wanted:
            wanted *= 2
        if wanted == len(self._ring):
            return
        self._move(self._unmoved)
        ring, first = self._ring, self._first
        self._ring, self._first = np.zeros(wanted, np.int64), 0
        whole = min(self._count, len(ring) - first)
        self._ring[:whole] = ring[first : first + whole]
        self._ring[whole : self._count] = ring[: self._count - whole]
        self._old, self._unmoved = self._table, self._count
        self._table = np.zeros(2 * wanted, np.int64)
        self._move(_AT_ONCE)

    def _move(self, count: int) -> None:
        """Move so many members to the new table, the newest of the old one first: what is dropped
        meanwhile is the other end."""
        count = min(count, self._unmoved)
        if count:
            _fill(self._table, self._ring, self._first + self._unmoved - count, count)
            self._left(self._unmoved - count)

    def _left(self, unmoved: int) -> None:
        self._unmoved = unmoved
        if not unmoved:
            self._old = _NONE


def compile_queue() -> None:
    """Have the kernels ready before the first event."""
    queue = HashQueue()
    for first in (1, _SMALLEST):  # the second time its table doubles
        queue.add(np.arange(first, first + _SMALLEST))
    queue.drop(_SMALLEST)
    assert _SMALLEST + 1 in queue  # noqa: S101 - looked up to be compiled


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
def _add(table, old, hashes, ring, end, new):  # type: ignore[no-untyped-def]
    mask = len(table) - 1
    added = 0
    for i in range(len(hashes)):
        if i + _AHEAD < len(hashes):
            prefetch(table, _home(table, hashes[i + _AHEAD]))
            if len(old):
                prefetch(old, _home(old, hashes[i + _AHEAD]))
        hash = hashes[i]
        at = _home(table, hash)
        while table[at] != 0 and table[at] != hash:
            at = (at + 1) & mask
        new[i] = table[at] == 0 and not (len(old) and _find(old, hash))
        if new[i]:
            table[at] = hash
            ring[(end + added) & (len(ring) - 1)] = hash
            added += 1
    return added


@njit(cache=True, nogil=True)
def _fill(table, ring, first, count):  # type: ignore[no-untyped-def]
    mask, turn = len(table) - 1, len(ring) - 1
    for i in range(count):
        if i + _AHEAD < count:
            prefetch(table, _home(table, ring[(first + i + _AHEAD) & turn]))
        hash = ring[(first + i) & turn]
        at = _home(table, hash)
        while table[at] != 0:
            at = (at + 1) & mask
        table[at] = hash


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
