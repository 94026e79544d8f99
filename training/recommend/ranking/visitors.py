"""What visitors did up to a place in the log, as arrays that a replica maps: nobody reads the whole
log again to know his customers."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from training.recommend.rows import Codes, Integers, starts_of

KEPT = 1_000
"""Newest interactions that are kept of a visitor: the rare one with more is ranked by these."""

ARRAYS = ("starts", "item", "kind", "time", "offset")


@dataclass(frozen=True)
class Done:
    """Interactions of one visitor in log order, [n] each; as in Interactions."""

    item: Codes
    kind: npt.NDArray[np.uint8]
    time: Integers
    offset: Integers

    def __len__(self) -> int:
        return len(self.item)

    def at(self, rows: Integers) -> Done:
        """Those at some places, in their order."""
        return Done(self.item[rows], self.kind[rows], self.time[rows], self.offset[rows])


NOTHING = Done(
    np.zeros(0, np.int32), np.zeros(0, np.uint8), np.zeros(0, np.int64), np.zeros(0, np.int64)
)


@dataclass(frozen=True)
class Visitors:
    """Interactions by visitor: those of ``ids[i]``, which ascend, are ``starts[i]`` to
    ``starts[i + 1]`` of the other arrays, in log order."""

    ids: pa.StringArray
    starts: Integers
    item: Codes
    kind: npt.NDArray[np.uint8]
    time: Integers
    offset: Integers

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Visitors({len(self)}, {len(self.item)} interactions)"

    @classmethod
    def of(
        cls,
        ids: pa.StringArray,
        who: npt.NDArray[np.integer],
        done: Done,
        *,
        kept: int = KEPT,
    ) -> Visitors:
        """From interactions in any order, ``who`` [n] being places in ``ids``, which ascend."""
        order = np.lexsort((done.offset, who))
        size = np.bincount(who, minlength=len(ids))
        left = np.repeat(starts_of(size)[1:], size) - np.arange(len(order))
        order = order[left <= kept]
        mine = done.at(order)
        starts = starts_of(np.minimum(size, kept))
        return cls(ids, starts, mine.item, mine.kind, mine.time, mine.offset)

    def find(self, visitor: str) -> Done | None:
        """What a visitor did; None for one that was never seen."""
        ids = self.ids
        place = bisect_left(ids, visitor, key=pa.StringScalar.as_py)
        if place == len(ids) or ids[place].as_py() != visitor:
            return None
        part = slice(self.starts[place], self.starts[place + 1])
        return Done(self.item[part], self.kind[part], self.time[part], self.offset[part])

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All but the ids."""
        return {name: getattr(self, name) for name in ARRAYS}

    @classmethod
    def of_arrays(cls, ids: pa.StringArray, arrays: Mapping[str, npt.NDArray[Any]]) -> Visitors:
        """The same again, over the same memory."""
        return cls(ids, *(arrays[name] for name in ARRAYS))
