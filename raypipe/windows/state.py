"""Keyed window state of one view: arrays that grow, the one entry to the kernel, snapshots."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe.errors import IntegrityError
from raypipe.windows import kernel
from raypipe.windows.hashing import BUCKETS
from raypipe.windows.layout import Floats, Ints, Layout
from raypipe.windows.spec import WindowView

SNAPSHOT_FORMAT = "raypipe.windows/2"
"""Of the words that a snapshot holds of a key: kernel.py says what they are."""

THRIFTY_WORDS = 2**17
"""From a megabyte on, an array grows by a quarter, and gaps of a quarter are closed before; below
that it doubles, and gaps are of a half."""


@dataclass(frozen=True, slots=True)
class Rows:
    """n rows for one view, in log order.

    ``keys`` are key hashes (0: the row has no such key), ``times`` ms, ``modes`` bits of
    kernel.READ, UPDATE and READ_AFTER, ``amounts`` int64 [n, value columns] with
    |amount| < 2**40, ``hashes`` int64 [n, sketches] (0: no value), ``flags`` int64 [n] with a bit
    for each of the view's filters that the row passes.
    """

    keys: Ints
    times: Ints
    offsets: Ints
    modes: npt.NDArray[np.uint8]
    amounts: Ints
    hashes: Ints
    flags: Ints


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

    def __init__(self, view: WindowView, slots: int = 64, words: int = 1_024) -> None:
        self.view = view
        self.layout = Layout(view)
        self._slots = np.zeros((slots, kernel.SLOT_WORDS), np.int64)
        self._arena = np.zeros(words, np.int64)
        self._sums = np.zeros(4 * self._kept_words, np.int64)
        self._free = np.full(self.layout.classes, -1, np.int64)
        self._top = np.zeros(kernel.TOP_WORDS, np.int64)
        self._top[kernel.TOP_KEPT] = 1
        # Edges, figures, ranks, one event, one tile.
        self._scratch = (
            np.full((kernel.SCRATCH_ROWS, len(view.spans)), kernel.NEVER, np.int64),
            np.empty(len(view.spans) * self.layout.figures),
            np.empty(kernel.RANKS, np.int64),
            np.empty(self.layout[kernel.EVENT_WORDS], np.int64),
            np.empty(self.layout[kernel.TILE_WORDS], np.int64),
        )
        # What one row finds: making arrays for it would cost as much as finding it.
        self._found = np.empty((1, len(view.columns))), np.empty(1, np.int64), np.empty(0, np.int64)

    @property
    def _kept_words(self) -> int:
        return self.layout[kernel.SPANS] * self.layout[kernel.TILE_WORDS]

    @property
    def keys(self) -> int:
        """Number of known keys."""
        return int(self._top[kernel.TOP_KEYS])

    @property
    def too_old(self) -> int:
        """Events that came after every window had left them; they are in no window's value."""
        return int(self._top[kernel.TOP_OLD])

    @property
    def nbytes(self) -> int:
        """Memory held by slots, entries and kept accumulators."""
        return self._slots.nbytes + self._arena.nbytes + self._sums.nbytes

    def process(self, rows: Rows) -> Values:
        """Read and update in log order; grows as needed."""
        # For what must not be written, as arrays of Arrow, the kernel would be compiled once more.
        rows = Rows(
            *(np.require(getattr(rows, f.name), requirements=("C", "W")) for f in fields(Rows))
        )
        n, columns = len(rows.keys), len(self.view.columns)
        wants_after = bool(n and np.bitwise_or.reduce(rows.modes) & kernel.READ_AFTER)
        out = np.empty((2 * n if wants_after else n, columns))
        newest, clocks = np.empty(n, np.int64), np.empty(n if wants_after else 0, np.int64)
        done = 0
        while done < n:
            done = self._kernel(done, rows, out, newest, clocks)
            if done < n:
                self._grow()
        return Values(out[:n], newest, out[n:], clocks)

    def one(self, rows: Rows) -> Floats:
        """Read or update with one row, which asks for no values after it; the values before it
        [columns], which stand until the next call."""
        before, newest, clocks = self._found
        while not self._kernel(0, rows, before, newest, clocks):
            self._grow()
        values: Floats = before[0]
        return values

    def _kernel(self, done: int, rows: Rows, out: Floats, newest: Ints, clocks: Ints) -> int:
        found: int = kernel.process(
            self._slots, self._arena, self._sums, self._free, self._top, self.layout.words,
            self.layout.plan, self.layout.tables, *self._scratch, done, rows.keys, rows.times,
            rows.offsets, rows.modes, rows.amounts, rows.hashes, rows.flags, out, newest, clocks,
        )  # fmt: skip
        return found

    def clocks(self, keys: Ints) -> Ints:
        """Time of the newest event of each key in ms [n]; kernel.NEVER for unknown ones."""
        out = np.empty(len(keys), np.int64)
        kernel.clocks_of(self._slots, keys, out)
        return out

    def _grow(self) -> None:
        top = self._top
        if kernel.crowded(self._slots, top):
            rows = _larger(self._slots) // kernel.SLOT_WORDS + 1
            larger = np.zeros((rows, kernel.SLOT_WORDS), np.int64)
            kernel.rehash(self._slots, larger)
            self._slots = larger
        elif (top[kernel.TOP_KEPT] + 1) * self._kept_words > len(self._sums):
            # In place where the system can: a copy would need the memory twice.
            self._sums.resize(len(self._sums) * 2, refcheck=False)
        elif top[kernel.TOP_FREE] * (4 if _thrifty(self._arena) else 2) > len(self._arena):
            order = self._by_place()
            kernel.pack(self._slots, order, self._arena, self._free, top, self.layout.words)
        else:
            self._arena.resize(_larger(self._arena), refcheck=False)

    def _by_place(self) -> Ints:
        """The used slots in the order of their blocks.

        Sorted by one digit after the other, the least significant first (Knuth, TAOCP 5.2.5,
        algorithm R): numpy's sort takes five times as long.
        """
        both, other = np.empty((2, self.keys), np.int64)
        kernel.blocks(self._slots, both)
        counts = np.empty(1 << kernel.SORT_BITS, np.int64)
        bits = len(self._arena).bit_length()
        for low in range(0, bits, kernel.SORT_BITS):
            kernel.sort_digit(both, other, kernel.SLOT_BITS + low, counts)
            both, other = other, both
        order: Ints = both & kernel.SLOT_MASK
        return order

    def snapshot(self, buckets: range = range(BUCKETS)) -> pa.Table:
        """The keys of some buckets in canonical form: sorted by hash, compacted at their clocks.

        Two states that saw the same events give equal tables, however they came to them.
        """
        used = np.empty(len(self._slots), np.int64)
        used = used[: kernel.select(self._slots, buckets.start, buckets.stop, used)]
        order = used[np.argsort(self._slots[used, kernel.KEY])]
        sizes = np.empty(len(order), np.int64)
        edges, _, _, _, tile = self._scratch
        kernel.canonical_sizes(
            self._slots, order, self._arena, self.layout.words, edges, tile, sizes
        )
        words = np.empty(int(sizes.sum()), np.int64)
        kernel.gather(self._slots, order, self._arena, self.layout.words, words)
        return pa.table(
            {
                "key": self._slots[order, kernel.KEY],
                "clock": self._slots[order, kernel.CLOCK],
                "newest": self._slots[order, kernel.NEWEST],
                "words": pa.LargeListArray.from_arrays(
                    np.concatenate([[0], np.cumsum(sizes)]), words
                ),
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
                hint="The declaration or the format changed: compute the features again "
                "(`raypipe features`).",
            )
        if not table.num_rows:
            return
        table = table.combine_chunks()
        lists = table.column("words").chunk(0)
        ends, words = lists.offsets.to_numpy(), lists.values.to_numpy()
        keys, clocks, newest = (
            np.ascontiguousarray(table.column(c).to_numpy()) for c in ("key", "clock", "newest")
        )
        done = 0
        while done < len(keys):
            done = kernel.scatter(
                self._slots, self._arena, self._free, self._top, self.layout.words, done, keys,
                clocks, newest, ends, words,
            )  # fmt: skip
            if done < 0:
                raise IntegrityError(f"two snapshots of view {self.view.name!r} share a key")
            if done < len(keys):
                self._grow()


def _thrifty(array: Ints) -> bool:
    return array.size >= THRIFTY_WORDS


def _larger(array: Ints) -> int:
    """Words that an array should grow to."""
    return array.size + array.size // 4 if _thrifty(array) else array.size * 2
