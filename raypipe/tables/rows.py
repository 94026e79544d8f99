"""Where the rows of one table lie: arrays that grow, found by window, tenant and group."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from raypipe.tables.batch import Group, Ints
from raypipe.tables.sketch import Registers, estimate
from raypipe.tables.spec import Kind, Measure

_Number = TypeVar("_Number", np.int64, np.uint8)

OTHER = None
"""The group of all values beyond a window's most groups."""

ROW_BYTES = 300
"""About what Python holds of a row beside its values."""


@dataclass(slots=True)
class Window:
    """Of one window: places of rows by tenant and group, and what came too late for it."""

    rows: dict[str, dict[Group | None, int]] = field(default_factory=dict)
    late: dict[str, int] = field(default_factory=dict)


class Rows:
    """Rows of any number of windows. Sketches are there while a row is open, then their numbers.

    ``values`` is int64 [places, measures]; ``sketches`` uint8 [sketch places, registers] for each
    distinct measure by its number, ``sketch_of`` int64 [places] where a row has its sketches.
    """

    def __init__(self, measures: tuple[Measure, ...]) -> None:
        wide = {i: m.registers for i, m in enumerate(measures) if m.kind is Kind.DISTINCT}
        self.windows: dict[int, Window] = {}
        self.values: Ints = np.zeros((64, len(measures)), np.int64)
        self.sketches: dict[int, Registers] = {
            i: np.zeros((8, registers), np.uint8) for i, registers in wide.items()
        }
        self.sketch_of: Ints = np.full(64, -1, np.int64)
        self._free = list(range(64))[::-1]
        self._free_sketches = list(range(8))[::-1]

    def __len__(self) -> int:
        return len(self.values) - len(self._free)

    @property
    def nbytes(self) -> int:
        """Memory held, dictionaries estimated."""
        sketches = sum(s.nbytes for s in self.sketches.values())
        return self.values.nbytes + self.sketch_of.nbytes + sketches + ROW_BYTES * len(self)

    def find(self, window: int, tenant: str, group: Group | None) -> int:
        """The place of a row, -1 if there is none."""
        found = self.windows.get(window)
        return -1 if found is None else found.rows.get(tenant, {}).get(group, -1)

    def add(self, window: int, tenant: str, group: Group | None, *, is_open: bool = True) -> int:
        """A new row of zeros."""
        if not self._free:
            self._free = _more(len(self.values))
            self.values = _grown(self.values)
            self.sketch_of = np.concatenate([self.sketch_of, np.full_like(self.sketch_of, -1)])
        place = self._free.pop()
        rows = self.windows.setdefault(window, Window()).rows
        rows.setdefault(tenant, {})[group] = place
        if is_open and self.sketches:
            if not self._free_sketches:
                self._free_sketches = _more(len(next(iter(self.sketches.values()))))
                self.sketches = {i: _grown(s) for i, s in self.sketches.items()}
            self.sketch_of[place] = self._free_sketches.pop()
        return place

    def close(self, window: int) -> None:
        """Make the sketches of a window's rows numbers."""
        for rows in self.windows[window].rows.values():
            for place in rows.values():
                at = int(self.sketch_of[place])
                if at < 0:
                    continue
                for i, sketches in self.sketches.items():
                    self.values[place, i] = estimate(sketches[at])
                    sketches[at] = 0
                self.sketch_of[place] = -1
                self._free_sketches.append(at)

    def drop(self, window: int) -> None:
        """Forget a window that is closed."""
        for rows in self.windows.pop(window).rows.values():
            places = list(rows.values())
            self.values[places] = 0
            self._free += places

    def measured(self, place: int) -> list[int]:
        """The values of a row by measure, sketches estimated."""
        found: list[int] = self.values[place].tolist()
        at = int(self.sketch_of[place])
        if at >= 0:
            for i, sketches in self.sketches.items():
                found[i] = estimate(sketches[at])
        return found


def _grown(array: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
    return np.concatenate([array, np.zeros_like(array)])


def _more(size: int) -> list[int]:
    """The new places of an array that doubles, the lowest last."""
    return list(range(size, 2 * size))[::-1]
