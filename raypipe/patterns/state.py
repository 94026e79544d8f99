"""State of one pattern for any number of keys: arrays that grow, the entry to the kernel."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe.errors import IntegrityError
from raypipe.patterns import kernel
from raypipe.patterns.expressions import DEEPEST
from raypipe.patterns.plan import Compilation

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

SNAPSHOT_FORMAT = "raypipe.patterns/1"
"""Of the words that a snapshot holds of a key: kernel.py says what they are."""

_LEAST_ROWS = 64
_OUT_ROWS = 256


class Found(NamedTuple):
    """Matches of one call, in the order in which they were completed.

    ``records`` int64 [matches, 1 + record words]: the row that completed it (-1: time did), the
    record. ``numbers`` float64 [matches, remembered]. ``used`` bool [rows]: whether a row went into
    a partial match.
    """

    records: Ints
    numbers: Floats
    used: npt.NDArray[np.bool_]

    def offsets(self, steps: int) -> Ints:
        """The offsets of all their events that records name, sorted, some twice."""
        return np.sort(_held(self.records[:, kernel.OUT_WORDS :], steps))


class PatternState:
    """Partial matches of one pattern. Not thread-safe."""

    def __init__(self, compilation: Compilation) -> None:
        self.compilation = compilation
        self._plan = compilation.plan
        self._ring = int(self._plan.words[kernel.P_RING])
        self._first = int(self._plan.words[kernel.P_FIRST]) if self._ring else 0
        self._remembered = len(self._plan.memory)
        self._absence = bool(self._plan.words[kernel.P_ABSENCE])
        self._state = self._empty()

    def _empty(self) -> kernel.State:
        top = np.zeros(kernel.TOP_WORDS, np.int64)
        top[[kernel.T_FREE_REC, kernel.T_FREE_RING]] = kernel.NONE
        rings = _LEAST_ROWS if self._ring else 1
        return kernel.State(
            np.zeros((_LEAST_ROWS, kernel.SLOT_WORDS), np.int64),
            np.zeros((_LEAST_ROWS, self.compilation.record_words), np.int64),
            np.zeros((_LEAST_ROWS, self._remembered), np.float64),
            np.zeros((rings, kernel.RING_WORDS + 2 * self._ring), np.int64),
            np.zeros((rings, self._ring * self._first), np.float64),
            np.zeros((self._most + _LEAST_ROWS, kernel.HEAP_WORDS), np.int64),
            top,
            np.zeros(DEEPEST),
        )

    @property
    def _most(self) -> int:
        """Matches that one row can complete."""
        return self.compilation.pattern.partials + 1

    @property
    def partials(self) -> int:
        """Partial matches that are kept; rings are not among them."""
        return int(self._state.top[kernel.T_LIVE])

    @property
    def dropped(self) -> int:
        """Partial matches that were given up because their key had too many."""
        return int(self._state.top[kernel.T_DROPPED])

    @property
    def keys(self) -> int:
        """Keys with a partial match or a ring, also with one that is over and not yet swept."""
        slots = self._state.slots
        held = (slots[:, kernel.HEAD] != kernel.NONE) | (slots[:, kernel.RING] != kernel.NONE)
        return int(np.count_nonzero(held & (slots[:, kernel.KEY] != 0)))

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(part.nbytes for part in self._state)

    def process(self, rows: kernel.Rows, watermark: int) -> Found:
        """Take rows in log order; then fire what the watermark has completed."""
        n, done = len(rows.keys), 0
        out = kernel.Out(
            np.empty((self._most + _OUT_ROWS, 1 + self.compilation.record_words), np.int64),
            np.empty((self._most + _OUT_ROWS, self._remembered)),
            np.zeros(n, np.uint8),
        )
        records, numbers = [], []
        top = self._state.top
        while done <= n:
            done = kernel.process(self._plan, self._state, rows, out, done, watermark)
            found = int(top[kernel.T_OUT])
            if found:
                records.append(out.records[:found].copy())
                numbers.append(out.numbers[:found].copy())
                top[kernel.T_OUT] = 0
            if done <= n:
                self._make_room(int(rows.before[done]) if done < n else watermark)
        return Found(
            np.concatenate([out.records[:0], *records]),
            np.concatenate([out.numbers[:0], *numbers]),
            out.used.view(np.bool_),
        )

    def _make_room(self, watermark: int) -> None:
        """Sweep if something is full; what is still over half full then doubles."""
        state, top = self._state, self._state.top
        full = (
            (top[kernel.T_SLOTS] + 1) * 2 > len(state.slots)
            or (top[kernel.T_FREE_REC] == kernel.NONE and top[kernel.T_RECS] == len(state.recs))
            or (top[kernel.T_FREE_RING] == kernel.NONE and top[kernel.T_RINGS] == len(state.rings))
            or top[kernel.T_HEAP] + self._most > len(state.heap)
        )
        if full:
            self.sweep(watermark)

    def sweep(self, watermark: int) -> None:
        """Free what is over, then give every part room for as much again."""
        keys = int(kernel.sweep(self._plan, self._state, watermark))
        state, top = self._state, self._state.top
        slots = np.zeros((_power(4 * keys), kernel.SLOT_WORDS), np.int64)
        top[kernel.T_SLOTS] = kernel.rehash(state.slots, slots)
        rings = int(np.count_nonzero(state.rings[:, kernel.G_COUNT]))
        records = _room(len(state.recs), int(top[kernel.T_LIVE]))
        ringed = _room(len(state.rings), rings) if self._ring else 1
        self._state = state._replace(
            slots=slots,
            recs=_grown(state.recs, records),
            numbers=_grown(state.numbers, records),
            rings=_grown(state.rings, ringed),
            ring_numbers=_grown(state.ring_numbers, ringed),
            heap=_grown(state.heap, _room(len(state.heap), int(top[kernel.T_HEAP]) + self._most)),
        )

    def offsets(self) -> Ints:
        """The offsets of all events that partial matches and rings hold, sorted, some twice."""
        state = self._state
        used = state.recs[: int(state.top[kernel.T_RECS])]
        held = _held(used[used[:, kernel.R_STEP] != kernel.NONE], len(self._plan.steps))
        counts = state.rings[:, [kernel.G_COUNT]]
        ringed = state.rings[:, kernel.RING_WORDS + self._ring :]
        ringed = ringed[np.arange(ringed.shape[1]) < counts]
        return np.sort(np.concatenate([held, ringed]))

    def snapshot(self, watermark: int) -> pa.Table:
        """All keys with what they hold, sorted by key hash: one row a key.

        Two states that saw the same rows give equal tables, however they came to them.
        """
        self.sweep(watermark)
        state, size = self._state, self._ring
        held = state.slots[state.slots[:, kernel.KEY] != 0]
        held = held[np.argsort(held[:, kernel.KEY], kind="stable")]
        counts = np.zeros(len(held), np.int64)
        order = kernel.walk(state, held, counts)
        records = state.recs[order]
        # Places in the pool are no part of the state.
        records[:, kernel.R_NEXT] = kernel.NONE
        ringed = held[:, kernel.RING] != kernel.NONE
        rings = state.rings[held[ringed, kernel.RING]]
        filled = np.zeros(len(held), np.int64)
        filled[ringed] = rings[:, kernel.G_COUNT]
        expire = np.zeros(len(held), np.int64)
        expire[ringed] = rings[:, kernel.G_EXPIRE]
        inside = np.arange(size) < rings[:, [kernel.G_COUNT]]
        at = kernel.RING_WORDS
        numbers = state.ring_numbers[held[ringed, kernel.RING]]
        numbers = numbers.reshape(len(rings), size, self._first)
        return pa.table(
            {
                "key": held[:, kernel.KEY],
                "records": _lists(counts, records),
                "numbers": _lists(counts, state.numbers[order]),
                "expire": expire,
                "times": _lists(filled, rings[:, at : at + size][inside]),
                "offsets": _lists(filled, rings[:, at + size :][inside]),
                "values": _lists(filled, numbers[inside]),
            }
        )

    def restore(self, table: pa.Table) -> None:
        """Add the keys of a snapshot; raises IntegrityError if one of them is known already."""
        state, top, size = self._state, self._state.top, self._ring
        keys = table.column("key").to_numpy()
        if np.isin(keys, state.slots[state.slots[:, kernel.KEY] != 0, kernel.KEY]).any():
            name = self.compilation.pattern.name
            raise IntegrityError(f"two snapshots of pattern {name!r} share a key")
        counts, records = _flat(table, "records", self.compilation.record_words)
        filled, times = _flat(table, "times", 1)
        ringed = filled > 0
        first, ring = int(top[kernel.T_RECS]), int(top[kernel.T_RINGS])
        self._reserve(len(keys), len(records), int(ringed.sum()))
        state, top = self._state, self._state.top
        starts = first + np.cumsum(counts) - counts
        state.recs[first : first + len(records)] = records
        links = np.arange(first + 1, first + 1 + len(records))
        links[(starts + counts - first)[counts > 0] - 1] = kernel.NONE
        state.recs[first : first + len(records), kernel.R_NEXT] = links
        if self._remembered:
            numbers = _flat(table, "numbers", self._remembered)[1]
            state.numbers[first : first + len(records)] = numbers
        rings = state.rings[ring : ring + int(ringed.sum())]
        rings[:, kernel.G_COUNT] = filled[ringed]
        rings[:, kernel.G_EXPIRE] = table.column("expire").to_numpy()[ringed]
        inside, at = np.arange(size) < filled[ringed][:, None], kernel.RING_WORDS
        rings[:, at : at + size][inside] = times[:, 0]
        rings[:, at + size :][inside] = _flat(table, "offsets", 1)[1][:, 0]
        if self._first:
            values = state.ring_numbers[ring : ring + len(rings)].reshape(-1, size, self._first)
            values[inside] = _flat(table, "values", self._first)[1]
        slots = np.full((len(keys), kernel.SLOT_WORDS), kernel.NONE, np.int64)
        slots[:, kernel.KEY] = keys
        slots[counts > 0, kernel.HEAD] = starts[counts > 0]
        slots[ringed, kernel.RING] = ring + np.arange(len(rings))
        top[kernel.T_SLOTS] += kernel.rehash(slots, state.slots)
        top[kernel.T_RECS] += len(records)
        top[kernel.T_LIVE] += len(records)
        top[kernel.T_RINGS] += len(rings)
        kernel.waiting(self._plan, state)

    def _reserve(self, keys: int, records: int, rings: int) -> None:
        """Room for so many more at the ends of the pools."""
        state, top = self._state, self._state.top
        slots = np.zeros((_power(4 * (int(top[kernel.T_SLOTS]) + keys)), kernel.SLOT_WORDS), int)
        top[kernel.T_SLOTS] = kernel.rehash(state.slots, slots)
        most = _room(len(state.recs), int(top[kernel.T_RECS]) + records)
        ringed = _room(len(state.rings), int(top[kernel.T_RINGS]) + rings) if self._ring else 1
        self._state = state._replace(
            slots=slots,
            recs=_grown(state.recs, most),
            numbers=_grown(state.numbers, most),
            rings=_grown(state.rings, ringed),
            ring_numbers=_grown(state.ring_numbers, ringed),
            heap=_grown(state.heap, most + self._most) if self._absence else state.heap,
        )


def _held(records: Ints, steps: int) -> Ints:
    """The offsets that records of a pattern of so many steps name."""
    head = kernel.REC_WORDS
    listed = records[:, head + 2 * steps :]
    listed = listed[np.arange(listed.shape[1]) < records[:, [kernel.R_LISTED]]]
    lasts = records[:, head + steps : head + 2 * steps][records[:, head : head + steps] > 0]
    return np.concatenate([listed, lasts])


def _lists(lengths: Ints, values: npt.NDArray[Any]) -> pa.LargeListArray:
    """Lists of so many rows each, a row's numbers one after the other."""
    width = values.shape[1] if values.ndim > 1 else 1
    ends = np.concatenate([[0], np.cumsum(lengths * width)])
    return pa.LargeListArray.from_arrays(ends, values.ravel())


def _flat(table: pa.Table, column: str, width: int) -> tuple[Ints, npt.NDArray[Any]]:
    """Rows of each list, and all rows [n, width]."""
    lists = table.column(column).combine_chunks()
    values = lists.flatten().to_numpy(zero_copy_only=False)
    lengths = lists.value_lengths().to_numpy() // width
    return lengths.astype(np.int64), values.reshape(-1, width)


def _power(least: int) -> int:
    return max(_LEAST_ROWS, 1 << (least - 1).bit_length()) if least else _LEAST_ROWS


def _room(rows: int, used: int) -> int:
    """Rows that leave as many free as are used."""
    return rows if 2 * used <= rows else _power(2 * used)


def _grown(array: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
    if rows == len(array):
        return array
    larger = np.zeros((rows, *array.shape[1:]), array.dtype)
    larger[: len(array)] = array
    return larger
