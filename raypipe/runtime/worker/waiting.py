"""Keys that wait for the online store, handed out in sweeps.

A sweep is what waited at one moment, in the order of the keys, which is how a store has them: its
rows are neighbours there and share pages. A page of 20 rows is then written once for those of them
that changed, and not 20 times.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from raypipe.runtime.worker.hash_queue import HashQueue
from raypipe.windows.hashing import Ints, hash_column

SWEEP_KEYS = 65_536
"""Keys that are sorted at once, in some 10 ms; more of them in another thread."""

_ALONE = 4_096
"""Keys of single events that are gathered into an array."""

_EMPTY = pa.array([], pa.string())


class _Sorting(NamedTuple):
    keys: pa.Array
    done: Future[pa.Array]


class Waiting:
    """Keys of one view. Not thread-safe.

    A key waits once, but for one that changes while its sweep is under way: it waits for the next
    one too.

    Args:
        seed: of its keys' hashes.
        beside: sorts long sweeps.
        sweep_keys: the longest that is sorted at once.
    """

    def __init__(self, seed: int, beside: ThreadPoolExecutor, sweep_keys: int = SWEEP_KEYS) -> None:
        self._seed = seed
        self._beside = beside
        self._sweep_keys = sweep_keys
        self._queue = HashQueue()
        self._arrays: deque[pa.Array] = deque()
        self._alone: dict[str, None] = {}
        """Keys of single events: an array for each would cost more than counting it."""
        self._sweep = _EMPTY
        """What is left of the one that is under way."""
        self._next: _Sorting | None = None

    def __len__(self) -> int:
        swept = len(self._sweep) + (len(self._next.keys) if self._next else 0)
        return len(self._queue) + len(self._alone) + swept

    def add(self, keys: pa.Array, hashes: Ints) -> None:
        """Have keys wait, which are not null; they may come more than once."""
        new = self._queue.add(hashes)
        if new.any():
            # Always a copy: a column would keep its whole batch in memory.
            self._arrays.append(keys.filter(pa.array(new)))

    def add_keys(self, keys: pa.Array) -> None:
        """The same by the keys alone."""
        self.add(keys, hash_column(keys, self._seed))

    def add_one(self, key: str) -> None:
        """Have one key wait."""
        self._alone[key] = None
        if len(self._alone) >= _ALONE:
            self._gather()

    def _gather(self) -> None:
        if self._alone:
            keys = pa.array(list(self._alone), pa.string())
            self._alone = {}
            self.add_keys(keys)

    def take(self, limit: int) -> pa.Array:
        """The next ones of the sweep, at most ``limit``; they wait no more."""
        self._gather()
        if not len(self._sweep):
            self._sweep = self._begun()
        taken, self._sweep = self._sweep.slice(0, limit), self._sweep.slice(limit)
        # Late: what changes from here on waits for the sweep after the next.
        late = len(self._sweep) <= self._sweep_keys // 4
        if late and self._next is None and len(self._queue) > self._sweep_keys:
            keys = self._pop(len(self._queue))
            self._next = _Sorting(keys, self._beside.submit(_sorted, keys))
        return taken

    def _begun(self) -> pa.Array:
        ready, self._next = self._next, None
        return _sorted(self._pop(self._sweep_keys)) if ready is None else ready.done.result()

    def _pop(self, limit: int) -> pa.Array:
        """Those that wait longest for a sweep."""
        found, left = [_EMPTY], limit
        while left and self._arrays:
            keys = self._arrays.popleft()
            if len(keys) > left:
                self._arrays.appendleft(keys.slice(left))
                keys = keys.slice(0, left)
            found.append(keys)
            left -= len(keys)
        self._queue.drop(limit - left)
        return pa.concat_arrays(found)

    def keys(self) -> list[pa.Array]:
        """All that wait; one may be there twice."""
        self._gather()
        return [*self._arrays, self._sweep, *([self._next.keys] if self._next else [])]


def _sorted(keys: pa.Array) -> pa.Array:
    return keys.take(pc.sort_indices(keys))
