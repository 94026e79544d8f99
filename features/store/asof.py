"""Point-in-time joins: to each row what a view knew of its key at the row's time.

Every row comes back once and in its place. A view's row counts for a time when it is not later,
not older than the TTL and, with ``known_only``, was there by then (its ``created`` is not later).
Of several, the one with the newest time counts, then with the newest ``created``.

Keys and times become numbers, one binary search finds the places of the known rows, and then the
columns are taken from there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features.store.names import TIMESTAMP
from features.store.state import MOMENT
from raypipe.errors import StageError, UsageError
from raypipe.lake import Place

if TYPE_CHECKING:
    import ray.data
    from pyarrow import dataset as ds

Ints = npt.NDArray[np.int64]

ROWS_PER_TASK = 250_000
"""Rows that one task of a join on Ray holds, with their results."""

_EVER = 2**61
"""Microseconds: later than any time."""

_NEVER = -_EVER
_BITS = 62
"""Of a rank; one is left for what is before all, one for the sign."""


@dataclass(frozen=True)
class Source:
    """The rows of one view, in Parquet, and what is wanted of them."""

    view: str
    files: tuple[Place, ...]
    keys: tuple[str, ...]
    columns: tuple[str, ...]
    ttl_us: int = 0
    """Microseconds; 0 for no end."""
    created: str | None = None
    """Column of when a row was there."""
    timeless: bool = False
    """Rows are found by key alone, whatever their time is."""


def join(
    rows: pa.Table,
    sources: Sequence[Source],
    *,
    known_only: bool = True,
    few: bool = False,
) -> pa.Table:
    """The rows with the wanted columns of every source, null where nothing is known.

    Holds the rows and, of each source, what isn't too late or too old for all of them.

    Args:
        rows: the key columns of all sources and ``event_timestamp`` (timestamp[us, UTC]), which
            may be left out where every source is timeless. Null keys are unknown keys.
        known_only: whether ``created`` must not be later than the row's time; else it only
            decides between rows of one time.
        few: the rows have few of the sources' keys: the others are passed over as they are read.

    Returns:
        the rows as they are, then the columns of each source in the types of its files.

    Raises:
        UsageError: a needed column is missing or of another type, or a result's name is taken.
        StageError: a source has no files, or not the wanted columns.
    """
    _check(rows, sources)
    work = partial(_join_one, asked=_Asked(rows, sources), known_only=known_only, few=few)
    threads = 1 if few else max(min(len(sources), os.cpu_count() or 1), 1)
    with ThreadPoolExecutor(threads) as pool:
        for source, found in zip(sources, pool.map(work, sources), strict=True):
            for name in source.columns:
                rows = rows.append_column(name, found.column(name))
    return rows


def join_on_ray(
    rows: ray.data.Dataset,
    sources: Sequence[Source],
    *,
    known_only: bool = True,
    rows_per_task: int = ROWS_PER_TASK,
) -> ray.data.Dataset:
    """:func:`join` of more rows than memory holds: some at a time, each batch a task.

    A task reads of the sources only the keys of its rows, up to its newest time.
    """
    work = partial(_join_batch, sources=tuple(sources), known_only=known_only)
    return rows.map_batches(
        work, batch_size=rows_per_task, batch_format="pyarrow", zero_copy_batch=True
    )


def _join_batch(rows: pa.Table, sources: Sequence[Source], known_only: bool) -> pa.Table:
    return join(rows, sources, known_only=known_only, few=True)


def _check(rows: pa.Table, sources: Sequence[Source]) -> None:
    wanted = {k: pa.string() for s in sources for k in s.keys}
    if not all(s.timeless for s in sources):
        wanted[TIMESTAMP] = MOMENT
    for name, kind in wanted.items():
        found = rows.schema.field(name).type if name in rows.column_names else None
        if found != kind and not (name != TIMESTAMP and found is not None):
            raise UsageError(
                f"the rows of a point-in-time join need a column {name} of {kind}, not {found}"
            )
    names = [*rows.column_names, *(c for s in sources for c in s.columns)]
    doubled = sorted({n for n in names if names.count(n) > 1})
    if doubled:
        raise UsageError(f"a point-in-time join would have the columns {doubled} twice")
    for source in sources:
        if not source.files:
            raise StageError(
                f"view {source.view!r} has no files", hint="`raypipe features` computes them."
            )


class _Asked:
    """Keys and times of the asked rows, as numbers."""

    def __init__(self, rows: pa.Table, sources: Sequence[Source]) -> None:
        self.size = rows.num_rows
        self.times = np.full(self.size, _EVER)
        if TIMESTAMP in rows.column_names and rows.schema.field(TIMESTAMP).type == MOMENT:
            self.times = rows.column(TIMESTAMP).cast(pa.int64()).to_numpy()
        self.known: dict[str, pa.Array] = {}
        """By key column: its different values; a value's number is its place there."""
        self._numbers: dict[str, Ints] = {}
        for name in dict.fromkeys(k for s in sources for k in s.keys):
            found = rows.column(name).combine_chunks().dictionary_encode()
            self.known[name] = found.dictionary
            self._numbers[name] = _numbers(found.indices)

    def keys(self, source: Source) -> Ints:
        """The key of each asked row as a number; -1 where a part of it is null."""
        return _together([self._numbers[k] for k in source.keys], self._sizes(source))

    def keys_of(self, source: Source, rows: pa.Table) -> Ints:
        """Keys of the source's rows in the same numbers; -1 where nobody asks for them."""
        parts = [
            _numbers(pc.index_in(rows.column(k), value_set=self._values(k, rows)))
            for k in source.keys
        ]
        return _together(parts, self._sizes(source))

    def wanted(self, source: Source, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows of a source's batch whose keys are asked for."""
        for name in source.keys:
            found = pc.is_in(batch.column(name), value_set=self._values(name, batch))
            batch = batch.filter(found)
        return batch

    def _values(self, name: str, rows: pa.Table | pa.RecordBatch) -> pa.Array:
        return self.known[name].cast(rows.schema.field(name).type)

    def _sizes(self, source: Source) -> list[int]:
        return [len(self.known[k]) for k in source.keys]


def _numbers(indices: pa.Array | pa.ChunkedArray) -> Ints:
    found: Ints = pc.fill_null(indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def _together(parts: Sequence[Ints], sizes: Sequence[int]) -> Ints:
    """One number for the numbers of each part, -1 where one of them is."""
    if math.prod(sizes) >= 2**_BITS:
        raise UsageError(f"keys with {sizes} values are too many to be joined at once")
    out = np.zeros(len(parts[0]), np.int64)
    for part, size in zip(parts, sizes, strict=True):
        out = np.where((out < 0) | (part < 0), -1, out * size + part)
    return out


def _join_one(source: Source, *, asked: _Asked, known_only: bool, few: bool) -> pa.Table:
    """The wanted columns of one source for each asked row."""
    times = np.full(asked.size, _EVER) if source.timeless else asked.times
    known = _read(source, asked, times, few)
    keys, since = asked.keys_of(source, known), _microseconds(known.column(TIMESTAMP))
    made = _microseconds(known.column(source.created)) if source.created else np.zeros_like(since)
    counts = keys >= 0
    if source.created and known_only:
        counts &= made > _NEVER
    rows = np.flatnonzero(counts)
    rows, first, second = _timeline(keys, since, made, rows, known_only=known_only)
    ours = asked.keys(source)
    bits = _BITS - int(ours.max(initial=0)).bit_length()
    limits, ranks = _ranks(times, first, second, bits)
    # Only numbers are joined; the columns are taken afterwards.
    place = _newest(ours, limits, keys[rows], ranks)
    found = np.flatnonzero(place >= 0)
    place[found] = rows[place[found]]
    if source.ttl_us:
        place[found[times[found] - since[place[found]] > source.ttl_us]] = -1
    return _take(known.select(list(source.columns)), place)


def _timeline(
    keys: Ints, since: Ints, made: Ints, rows: Ints, *, known_only: bool
) -> tuple[Ints, Ints, Ints]:
    """Rows with the time from which each counts, and what decides between equal times."""
    if not known_only:
        return rows, since[rows], made[rows]
    key, at, there = keys[rows], since[rows], made[rows]
    usable = np.maximum(at, there)
    lag = there - at
    if not len(rows) or lag.max() <= 0 or lag.min() == lag.max():
        return rows, usable, there  # who is newer was there later, too
    # A row that comes in when a newer one of its key is there already never counts.
    order = np.lexsort((there, at, usable, key))
    newness = np.empty(len(rows), np.int64)
    newness[np.lexsort((there, at, key))] = np.arange(len(rows))
    newness = newness[order]  # keys come first in both orders, so it grows from key to key
    best = np.maximum.accumulate(newness)
    kept = order[np.append(True, newness[1:] > best[:-1])]
    return rows[kept], usable[kept], np.arange(len(kept))


def _ranks(times: Ints, first: Ints, second: Ints, most: int) -> tuple[Ints, Ints]:
    """Per time the greatest rank that counts, and per row its rank: by first, then by second.

    Ranks are below 2**most, unless there are more rows.
    """
    if not len(first):
        return np.full(len(times), -1), first
    # Mostly `second` is near `first`, or small: both fit into one number.
    ties = min((second - second.min(), _from_least(second - first)), key=np.max)
    low, bits = first.min(), int(ties.max()).bit_length()
    if int(first.max() - low).bit_length() + bits <= most:
        limits = np.clip(times - low, -1, first.max() - low)
        return (limits << bits) + (2**bits - 1), ((first - low) << bits) + ties
    order = np.lexsort((second, first))
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return np.searchsorted(first[order], times, side="right") - 1, ranks


def _from_least(numbers: Ints) -> Ints:
    found: Ints = numbers - numbers.min()
    return found


def _newest(asked: Ints, limits: Ints, known: Ints, ranks: Ints) -> Ints:
    """Per asked key the place of the known row with the greatest rank up to the limit, else -1."""
    if not len(known):
        return np.full(len(asked), -1)
    bits = int(ranks.max()).bit_length()
    rows = (known << bits) | ranks
    order = np.argsort(rows)
    wanted = np.where((asked < 0) | (limits < 0), -1, (asked << bits) | limits)
    turn = np.argsort(wanted)  # looked up in order, which caches like
    found = np.searchsorted(rows[order], wanted[turn], side="right") - 1
    place = order[found]
    place[(found < 0) | (known[place] != asked[turn])] = -1
    out = np.empty(len(asked), np.int64)
    out[turn] = place
    return out


def _take(columns: pa.Table, place: Ints) -> pa.Table:
    """The rows at these places, null where a place is negative."""
    missing = place < 0
    there = np.where(missing, 0, place)
    indices = pa.array(place, mask=missing)
    out = []
    for column in columns.combine_chunks().columns:
        whole = column.chunk(0) if column.num_chunks else pa.array([], column.type)
        if len(whole) and pa.types.is_floating(whole.type):
            out.append(_take_numbers(whole, there, missing))
        else:
            out.append(whole.take(indices))
    return pa.table(out, names=columns.column_names)


def _take_numbers(column: pa.Array, there: Ints, missing: npt.NDArray[np.bool_]) -> pa.Array:
    """As Arrow's take, in half of its time."""
    valid = ~missing
    if column.null_count:
        valid &= column.is_valid().to_numpy(zero_copy_only=False)[there]
    values = np.frombuffer(column.buffers()[1], column.type.to_pandas_dtype())[column.offset :]
    bitmap = pa.py_buffer(np.packbits(valid, bitorder="little"))
    return pa.Array.from_buffers(column.type, len(there), [bitmap, pa.py_buffer(values[there])])


def _read(source: Source, asked: _Asked, times: Ints, few: bool) -> pa.Table:
    """The source's rows that may count, with keys, times and the wanted columns."""
    import pyarrow.dataset as ds

    place = source.files[0]
    files = ds.dataset([f.key for f in source.files], filesystem=place.filesystem)
    created = [source.created] if source.created else []
    names = list(dict.fromkeys([*source.keys, TIMESTAMP, *created, *source.columns]))
    lacking = sorted(set(names) - set(files.schema.names))
    if lacking:
        raise StageError(
            f"the files of view {source.view!r} are not of today's declaration: no {lacking}",
            hint="`raypipe features` computes them again.",
        )
    scanner = files.scanner(names, filter=_between(files.schema, source, times))
    if not few:
        return scanner.to_table()
    schema = pa.schema([files.schema.field(n) for n in names])
    return pa.Table.from_batches(
        (asked.wanted(source, batch) for batch in scanner.to_batches()), schema
    )


def _between(schema: pa.Schema, source: Source, at: Ints) -> ds.Expression | None:
    """Times outside of which no row counts: whole row groups need not be read."""
    if source.timeless or not len(at):
        return None
    kind, time = schema.field(TIMESTAMP).type, pc.field(TIMESTAMP)

    def moment(microseconds: int) -> pa.Scalar:
        return pa.scalar(microseconds, pa.int64()).cast(MOMENT).cast(kind)

    found = time <= moment(int(at.max()))
    return found & (time >= moment(int(at.min()) - source.ttl_us)) if source.ttl_us else found


def _microseconds(column: pa.ChunkedArray) -> Ints:
    """Times as numbers; a null one is before all others."""
    moments = column.cast(pa.timestamp("us", column.type.tz)).cast(pa.int64())
    found: Ints = pc.fill_null(moments, _NEVER).to_numpy()
    return found
