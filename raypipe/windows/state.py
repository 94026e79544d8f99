"""Keyed window state of one view: arrays that grow, the one entry to the kernel, snapshots."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe.errors import IntegrityError
from raypipe.windows import kernel
from raypipe.windows.spec import Op, WindowView

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

SNAPSHOT_FORMAT = "raypipe.windows/1"

_STATS = {
    Op.SUM: kernel.SUM,
    Op.MEAN: kernel.MEAN,
    Op.MIN: kernel.MIN,
    Op.MAX: kernel.MAX,
    Op.STD: kernel.STD,
}


@dataclass(frozen=True, slots=True)
class Rows:
    """n rows for one view, in log order.

    ``keys`` are key hashes (0: the row has no such key), ``times`` ms, ``modes`` bits of
    kernel.READ, UPDATE and READ_AFTER, ``amounts`` int64 [n, value columns] with
    |amount| < 2**40, ``hashes`` int64 [n, sketches] (0: no value).
    """

    keys: Ints
    times: Ints
    offsets: Ints
    modes: npt.NDArray[np.uint8]
    amounts: Ints
    hashes: Ints


@dataclass(frozen=True, slots=True)
class Values:
    """What the kernel found: float64 [n, columns] before and (if asked for) after each row.

    ``newest`` is the newest offset that the values before used, -1 for none; ``clocks`` the key's
    clock in ms after the row. Rows that did not ask hold arbitrary numbers.
    """

    before: Floats
    newest: Ints
    after: Floats
    clocks: Ints


class ViewState:
    """State of one window view for any number of keys. Not thread-safe."""

    def __init__(self, view: WindowView, slots: int = 64, tiles: int = 256) -> None:
        self.view = view
        self._reaches = np.array([s.length // s.hop for s in view.spans], np.int64)
        self._hops = np.array([s.hop for s in view.spans], np.int64)
        self._values = len(view.value_columns)
        self._sketches = np.array([bits // 64 for _, bits in view.sketches], np.int64)
        self._words = (
            kernel.TILE_VALUES + kernel.VALUE_WORDS * self._values + int(self._sketches.sum())
        )
        self._plan, self._tables = _plan(view)
        self._scratch = np.zeros((len(view.spans), self._words), np.int64)
        self._slots = np.zeros((slots, kernel.SLOT_WORDS), np.int64)
        self._arena = np.zeros((tiles, self._words), np.int64)
        self._hot = np.zeros((4, len(view.spans), self._words), np.int64)
        self._free = np.full(48, -1, np.int64)
        self._top = np.zeros(kernel.TOP_WORDS, np.int64)

    @property
    def keys(self) -> int:
        """Number of known keys."""
        return int(self._top[kernel.TOP_KEYS])

    @property
    def too_old(self) -> int:
        """Events that came after every window had left them; they are in no value."""
        return int(self._top[kernel.TOP_OLD])

    @property
    def nbytes(self) -> int:
        """Memory held by slots, tiles and kept accumulators."""
        return self._slots.nbytes + self._arena.nbytes + self._hot.nbytes

    def process(self, rows: Rows) -> Values:
        """Read and update in log order; grows as needed."""
        n, columns = len(rows.keys), len(self.view.columns)
        wants_after = bool(n and np.bitwise_or.reduce(rows.modes) & kernel.READ_AFTER)
        values = Values(
            np.empty((n, columns)),
            np.empty(n, np.int64),
            np.empty((n if wants_after else 0, columns)),
            np.empty(n if wants_after else 0, np.int64),
        )
        done = 0
        while done < n:
            done = kernel.process(
                self._slots, self._arena, self._hot, self._free, self._top, self._reaches,
                self._hops, self._values, self._sketches, self._plan, self._tables, self._scratch,
                done, rows.keys, rows.times, rows.offsets, rows.modes, rows.amounts, rows.hashes,
                values.before, values.newest, values.after, values.clocks,
            )  # fmt: skip
            if done < n:
                self._grow()
        return values

    def _grow(self) -> None:
        if (self._top[kernel.TOP_KEYS] + 1) * 2 > len(self._slots):
            larger = np.zeros((len(self._slots) * 2, kernel.SLOT_WORDS), np.int64)
            kernel.rehash(self._slots, larger)
            self._slots = larger
        elif self._top[kernel.TOP_HOT] >= len(self._hot):
            self._hot = _doubled(self._hot)
        else:
            self._arena = _doubled(self._arena)

    def snapshot(self) -> pa.Table:
        """All keys in canonical form: sorted by key hash, compacted at each key's own clock.

        Two states that saw the same events give equal tables, however they came to them.
        """
        used = np.flatnonzero(self._slots[:, kernel.KEY])
        order = used[np.argsort(self._slots[used, kernel.KEY], kind="stable")]
        counts = np.empty(len(order), np.int64)
        kernel.canonical_lengths(
            self._slots, order, self._arena, self._reaches, self._hops, self._values, counts
        )
        tiles = np.empty((int(counts.sum()), self._words), np.int64)
        kernel.gather(self._slots, order, self._arena, tiles)
        ends = np.concatenate([[0], np.cumsum(counts * self._words)])
        return pa.table(
            {
                "key": self._slots[order, kernel.KEY],
                "clock": self._slots[order, kernel.CLOCK],
                "newest": self._slots[order, kernel.NEWEST],
                "tiles": pa.LargeListArray.from_arrays(ends, tiles.reshape(-1)),
            }
        ).replace_schema_metadata(
            {
                "format": SNAPSHOT_FORMAT,
                "view": self.view.name,
                "definition": self.view.definition_hash,
            }
        )

    def restore(self, table: pa.Table) -> None:
        """Add the keys of a snapshot; raises IntegrityError if it is of another definition.

        Parts of a partitioned state are restored one after the other; their keys are disjoint.
        """
        meta = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        expected = {"format": SNAPSHOT_FORMAT, "definition": self.view.definition_hash}
        found = {k: meta.get(k, "") for k in expected}
        if found != expected:
            raise IntegrityError(
                f"snapshot of view {meta.get('view')!r} has {found}, expected {expected}",
                hint="The declaration changed: compute the features again (`raypipe features`).",
            )
        if not table.num_rows:
            return
        table = table.combine_chunks()
        lists = table.column("tiles").chunk(0)
        ends = lists.offsets.to_numpy()
        counts = np.diff(ends) // self._words
        tiles = lists.values.to_numpy()[ends[0] : ends[-1]].reshape(-1, self._words)
        keys, clocks, newest = (
            np.ascontiguousarray(table.column(c).to_numpy()) for c in ("key", "clock", "newest")
        )
        done = 0
        while done < len(keys):
            done = kernel.scatter(
                self._slots, self._arena, self._free, self._top, done, keys, clocks, newest,
                counts, np.ascontiguousarray(tiles),
            )  # fmt: skip
            if done < 0:
                raise IntegrityError(f"two snapshots of view {self.view.name!r} share a key")
            if done < len(keys):
                self._grow()


def _doubled(array: Ints) -> Ints:
    """Twice the rows; the new ones hold anything."""
    out = np.empty((len(array) * 2, *array.shape[1:]), array.dtype)
    out[: len(array)] = array
    return out


def _plan(view: WindowView) -> tuple[Ints, Floats]:
    """Outputs as kernel instructions, and the linear-counting estimates for each number of bits."""
    tables = [
        bits * math.log(bits / (bits - k)) if k < bits else bits * math.log(2 * bits)
        for _, bits in view.sketches
        for k in range(bits + 1)
    ]
    first_sketch = 1 + kernel.STATS * len(view.value_columns)
    sketches = [name for name, _ in view.sketches]
    plan = np.zeros((len(view.columns), kernel.PLAN_WORDS), np.int64)
    for row, c in zip(plan, view.columns, strict=True):
        match c.op:
            case Op.SINCE_LAST:
                stat = -1
            case Op.COUNT:
                stat = 0
            case Op.DISTINCT:
                stat = first_sketch + sketches.index(c.column)
            case _:
                value = view.value_columns.index(c.column)
                stat = 1 + kernel.STATS * value + _STATS[c.op]
        row[:] = (c.span, c.minus, stat)
    return plan, np.array(tables or [0.0])
