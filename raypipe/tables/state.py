"""The state of one table: it takes micro-batches in, and any cut of the log gives the same."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from raypipe.events.schema import EventType
from raypipe.tables.batch import ENVELOPE, Batch, Group, Ints, Mask, Part
from raypipe.tables.rows import OTHER, Rows, Window
from raypipe.tables.sketch import raise_registers
from raypipe.tables.spec import Kind, Measure, Table
from raypipe.windows.conditions import Condition

NEVER = -(2**62)
"""The watermark before the first event."""

_LOW_BITS = 20
_FEW = 8
"""Up to so many codes a row they are counted in an array; beyond, they are sorted."""

Combo = tuple[int, str, Group]
"""Window, tenant and group: what a row is of."""


@dataclass(slots=True)
class Placed:
    """Rows of a part that are in time, and which of ``combos`` each is of.

    ``which`` is int64 [n], None when all are of one; ``ones`` how many are of each combo.
    """

    part: Part
    combos: list[Combo]
    which: Ints | None
    ones: Ints

    def first(self, number: int) -> int:
        """The offset of a combo's first row."""
        at = 0 if self.which is None else int(np.argmax(self.which == number))
        return int(self.part.offsets[at])


class TableState:
    """Rows of one table. Not thread-safe."""

    def __init__(self, table: Table, events: Mapping[str, EventType]) -> None:
        self.table = table
        self.rows = Rows(table.stored)
        self.watermark = NEVER
        self.offset = 0
        """Events before it are counted: a replay that begins earlier counts none twice."""
        self.late = 0
        """Events that came when their window was final."""
        self.too_old = 0
        """Of these, the ones whose window was no longer kept."""
        self.other = 0
        """Events that are in the row of other groups."""
        self._undropped: list[int] = []
        self._unclosed: list[int] = []
        self._measures = {
            kind: [
                (i, m, Condition(m.where) if m.where else None)
                for i, m in enumerate(table.stored)
                if kind in table.of(m)
            ]
            for kind in table.events
        }

    def columns(self, kind: str) -> tuple[str, ...]:
        """What is read of events of a type."""
        if kind not in self._measures:
            return ENVELOPE
        names = [*ENVELOPE, *self.table.group_by]
        for _, measure, condition in self._measures[kind]:
            names += [measure.column] if measure.column else []
            names += condition.columns if condition else ()
        return tuple(dict.fromkeys(names))

    def apply(self, batch: Batch) -> None:
        """Take a micro-batch in, but for what is counted already."""
        after = max(self.watermark, batch.newest)
        found = (
            self._place(batch, i, after)
            for i, part in enumerate(batch.parts)
            if part.kind in self._measures
        )
        placed = [p for p in found if p is not None]
        self._admit(placed)
        for one in placed:
            self._add(one)
        self.watermark = after
        self.offset = max(self.offset, batch.end)
        self._settle()

    def final(self, window: int) -> bool:
        """Whether a window's rows change no more."""
        table = self.table
        return (window + 1) * table.span_ms + table.lateness_ms <= self.watermark

    def oldest(self, watermark: int) -> int:
        """The first window that is kept at a watermark."""
        return (watermark - self.table.keep_ms) // self.table.span_ms

    def _place(self, batch: Batch, number: int, after: int) -> Placed | None:
        part, table, new = batch.parts[number], self.table, None
        if part.offsets[0] < self.offset:
            new = part.offsets >= self.offset
            if not new.any():
                return None
            part = part.where(new)
        windows = part.numbers("event_time") // table.span_ms
        lowest = int(windows.min())
        if (lowest + 1) * table.span_ms + table.lateness_ms <= after:
            running = batch.running[number]
            clock = np.maximum(running if new is None else running[new], self.watermark)
            late = (windows + 1) * table.span_ms + table.lateness_ms <= clock
            if late.any():
                self._count_late(part, windows, clock, late)
                part, windows = part.where(~late), windows[~late]
                if not len(part):
                    return None
                lowest = int(windows.min())
        return self._combine(part, windows, lowest, int(windows.max()))

    def _combine(self, part: Part, windows: Ints, lowest: int, highest: int) -> Placed:
        tenants, names = part.coded("tenant")
        if lowest == highest and len(names) == 1 and not self.table.group_by:
            return Placed(part, [(lowest, str(names[0]), ())], None, np.array([len(part)]))
        code, size = windows - lowest, highest - lowest + 1
        code = code + size * tenants
        size *= len(names)
        groups = []
        for name in self.table.group_by:
            mine, values = part.coded(name)
            code = code + size * mine
            groups.append((size, values))
            size *= len(values)
        codes, which, ones = _distinct_codes(code, size)
        span = highest - lowest + 1
        combos: list[Combo] = [
            (
                lowest + c % span,
                str(names[c // span % len(names)]),
                tuple(values[c // step % len(values)] for step, values in groups),
            )
            for c in codes.tolist()
        ]
        return Placed(part, combos, which, ones)

    def _count_late(self, part: Part, windows: Ints, clock: Ints, late: Mask) -> None:
        tenants, names = part.coded("tenant")
        oldest = (clock - self.table.keep_ms) // self.table.span_ms
        self.late += int(late.sum())
        self.too_old += int((late & (windows < oldest)).sum())
        for i in np.flatnonzero(late & (windows >= oldest)).tolist():
            window, tenant = int(windows[i]), str(names[tenants[i]])
            counts = self._window(window).late
            counts[tenant] = counts.get(tenant, 0) + 1

    def _window(self, window: int) -> Window:
        found = self.rows.windows.get(window)
        if found is None:
            found = self.rows.windows[window] = Window()
            heapq.heappush(self._undropped, window)
        return found

    def _admit(self, placed: list[Placed]) -> None:
        """Make rows for what is new, in log order: of too many groups the first have their own."""
        new: dict[Combo, int] = {}
        for one in placed:
            for i, combo in enumerate(one.combos):
                if self.rows.find(*combo) < 0:
                    offset = one.first(i)
                    new[combo] = min(offset, new.get(combo, offset))
        for window, tenant, group in sorted(new, key=new.__getitem__):
            known = self._window(window).rows
            if not known:
                heapq.heappush(self._unclosed, window)
            mine = known.get(tenant, {})
            if not self.table.group_by or len(mine) - (OTHER in mine) < self.table.groups:
                self.rows.add(window, tenant, group)
            elif OTHER not in mine:
                self.rows.add(window, tenant, OTHER)

    def _add(self, one: Placed) -> None:
        part, which, rows = one.part, one.which, self.rows
        places = np.array([rows.find(*combo) for combo in one.combos])
        if (places < 0).any():
            for i in np.flatnonzero(places < 0).tolist():
                window, tenant, _ = one.combos[i]
                places[i] = rows.find(window, tenant, OTHER)
                self.other += int(one.ones[i])
        sums = np.zeros((len(places), rows.values.shape[1]), np.int64)
        for i, measure, condition in self._measures[part.kind]:
            holds = part.holds(condition) if condition else None
            match measure.kind:
                case Kind.COUNT:
                    sums[:, i] = one.ones if holds is None else _counts(which, len(places), holds)
                case Kind.SUM:
                    values = part.numbers(measure.column)
                    values = values if holds is None else np.where(holds, values, 0)
                    sums[:, i] = _sums(which, len(places), values)
                case Kind.DISTINCT:
                    hashes = part.hashes(measure.column)
                    hashes = hashes if holds is None else np.where(holds, hashes, 0)
                    at = rows.sketch_of[places if which is None else places[which]]
                    at = np.repeat(at, len(part)) if which is None else at
                    raise_registers(rows.sketches[i], at, hashes)
        np.add.at(rows.values, places, sums)

    def _settle(self) -> None:
        """Close windows that are final, drop those that are kept no longer."""
        while self._unclosed and self.final(self._unclosed[0]):
            self.rows.close(heapq.heappop(self._unclosed))
        while self._undropped and self._undropped[0] < self.oldest(self.watermark):
            self.rows.drop(heapq.heappop(self._undropped))

    def resume(self) -> None:
        """Take up what was restored into ``rows``: which windows are still to close and to drop."""
        self._undropped = sorted(self.rows.windows)
        self._unclosed = [
            w for w in self._undropped if self.rows.windows[w].rows and not self.final(w)
        ]


def measures_of(table: Table, row: list[int]) -> dict[str, int | float | None]:
    """All measures of a row by name, in declared order; ratios are made of the stored ones."""
    stored = dict(zip((m.name for m in table.stored), row, strict=True))
    found: dict[str, int | float | None] = {}
    for measure in table.measures:
        found[measure.name] = _ratio(measure, stored) if measure.parts else stored[measure.name]
    return found


def _ratio(measure: Measure, stored: Mapping[str, int]) -> float | None:
    above, below = (stored[part] for part in measure.parts)
    return above / below if below else None


def _distinct_codes(code: Ints, size: int) -> tuple[Ints, Ints, Ints]:
    """The different codes, all below ``size``; the place of each row's among them; how many."""
    if size > _FEW * len(code):
        codes, which, ones = np.unique(code, return_inverse=True, return_counts=True)
        return codes, which, ones
    counts = np.bincount(code, minlength=size)
    codes = np.flatnonzero(counts)
    return codes, (np.cumsum(counts > 0) - 1)[code], counts[codes]


def _counts(which: Ints | None, size: int, holds: Mask) -> Ints:
    if which is None:
        return np.array([np.count_nonzero(holds)])
    return np.bincount(which[holds], minlength=size)


def _sums(which: Ints | None, size: int, values: Ints) -> Ints:
    """Exact sums by group: in halves, whose float64 sums are whole numbers below 2**53."""
    if which is None:
        return np.array([values.sum()])
    high, low = values >> _LOW_BITS, values & ((1 << _LOW_BITS) - 1)
    sums = [np.bincount(which, half, size).astype(np.int64) for half in (high, low)]
    found: Ints = (sums[0] << _LOW_BITS) + sums[1]
    return found
