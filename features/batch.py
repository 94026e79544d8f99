"""Window values of one key range: the kernel over its rows in log order, from a carried state on.

A block of rows is worked through in pieces, so memory follows a piece and the state of its keys,
whatever share of the rows one key has. A piece ends where a slice ends; each slice, view and key
range has files of its own, whose names and bytes depend on its rows alone: whoever computes them
again, in whatever block, writes the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from features.builds import JOURNAL, SNAPSHOT, File
from features.store.names import AT_EVENT, STATE, definition_folder
from raypipe.aborts import reach
from raypipe.lake import Place
from raypipe.log.port import OFFSET
from raypipe.project import Project
from raypipe.windows import kernel
from raypipe.windows.hashing import BUCKETS, bucket_of
from raypipe.windows.inputs import Inputs, key_hashes
from raypipe.windows.snapshot import part_bytes, read_part
from raypipe.windows.spec import WindowView
from raypipe.windows.state import Rows, Values, ViewState

TIMESTAMP = pa.timestamp("us", tz="UTC")
KNOWLEDGE = pa.timestamp("us")
"""Log offsets as timestamps (microseconds), the order in which Feast breaks ties."""

PIECE_ROWS = 131_072
"""Rows that the kernel gets at once: bounds what a task holds of their values."""

GROUP_ROWS = 131_072
"""Rows of a row group: bounds what a task holds of them before they are compressed."""

FILE_GROUPS = 8
"""Most row groups of a file: some 100 MB. It is held compressed until it is whole."""

Order = npt.NDArray[np.int64]
"""Row numbers of a block in log order."""


@dataclass(frozen=True, slots=True)
class EntityPass:
    """What one pass computes: views of one entity, and how wide their inputs are."""

    entity: str
    key: str
    views: tuple[WindowView, ...]
    kinds: tuple[str, ...]
    decision: str
    partitions: int

    @classmethod
    def of(
        cls,
        project: Project,
        entity: str,
        partitions: int,
        views: Sequence[WindowView] | None = None,
    ) -> EntityPass:
        """The pass over views of an entity of a project, by default all of them."""
        chosen = tuple(views or (v for v in project.views if v.entity == entity))
        kinds = tuple(dict.fromkeys([project.decision, *(k for v in chosen for k in v.events)]))
        return cls(entity, chosen[0].key, chosen, kinds, project.decision, partitions)


@dataclass(frozen=True, slots=True)
class Span:
    """Which rows a pass feeds to the kernel, and what it writes of them."""

    start: int
    """The states that it begins with hold every event before this offset."""
    end: int
    slices: tuple[tuple[int, int], ...]
    """Ascending offset ranges whose values are written; between them state alone is made."""
    parts: frozenset[int] | None = None
    """Key ranges; None for all."""
    states: Mapping[str, Mapping[int, File]] = field(default_factory=dict)
    """Where to begin, by view and key range; nowhere is from nothing."""
    keep: bool = True
    """Whether the states at the end are written."""
    journal: str = ""
    """Folder in JOURNAL for what a finished key range wrote; "" for none."""


class Written(msgspec.Struct, frozen=True):
    """What a pass wrote of one key range."""

    part: int
    rows: int
    """That it was fed."""
    files: dict[str, list[File]]
    """Values by view."""
    states: dict[str, File]
    """By view, if they were kept."""

    @property
    def all_files(self) -> list[File]:
        """Of values and of states."""
        return [*(f for files in self.files.values() for f in files), *self.states.values()]


def prepare(table: pa.Table, entity: EntityPass, kind: str, span: Span | None = None) -> pa.Table:
    """Reduce events of one type to what the kernel needs, with the key range of each row.

    The text of keys and ids travels along for the outputs; everything else is int64. Rows outside
    of the span are left out.
    """
    if span is not None:
        offsets = table.column("offset").to_numpy()
        inside = (offsets >= span.start) & (offsets < span.end)
        table = table if inside.all() else table.filter(pa.array(inside))
    columns = {
        "offset": table.column("offset"),
        "kind": pa.array(np.full(table.num_rows, entity.kinds.index(kind), np.int8)),
        "event_id": table.column("event_id"),
        "key_text": table.column(entity.key),
        "time": table.column("event_time"),
    }
    keys = key_hashes(entity.views[0], table)
    # Rows without a key enter no state: spread them instead of heaping them on one range.
    spread = np.where(keys == 0, table.column("offset").to_numpy() % BUCKETS, bucket_of(keys))
    columns["key"] = pa.array(keys)
    columns["part"] = pa.array((spread * entity.partitions // BUCKETS).astype(np.int32))
    for view in entity.views:
        amounts, hashes, flags = _fact_columns(view)
        if kind in view.events:
            facts = Inputs(view, kind).of_columns(table)
            found = [*facts.amounts.T, *facts.hashes.T, facts.flags]
        else:
            found = [np.zeros(table.num_rows, np.int64)] * (len(amounts) + len(hashes) + 1)
        columns |= {n: pa.array(x) for n, x in zip((*amounts, *hashes, flags), found, strict=True)}
    out = pa.table(columns)
    if span is not None and span.parts is not None:
        out = out.filter(pa.array(np.isin(out.column("part").to_numpy(), list(span.parts))))
    return out


def _fact_columns(view: WindowView) -> tuple[list[str], list[str], str]:
    """Names under which prepared rows carry a view's amounts, hashes and flags."""
    return (
        [f"a:{view.name}:{c}" for c in view.value_columns],
        [f"h:{view.name}:{s.column}" for s in view.sketches],
        f"f:{view.name}",
    )


def _ints(table: pa.Table, names: Sequence[str]) -> npt.NDArray[np.int64]:
    out = np.empty((table.num_rows, len(names)), np.int64)
    for i, name in enumerate(names):
        out[:, i] = table.column(name).to_numpy()
    return out


def run_views(
    table: pa.Table, entity: EntityPass, *, after: bool = True
) -> dict[str, tuple[Values, ViewState]]:
    """Run every view of an entity, from nothing, over prepared rows that are sorted by offset."""
    out = {}
    for view in entity.views:
        state = ViewState(view)
        out[view.name] = (state.process(_rows(table, view, entity, after=after)), state)
    return out


def _rows(
    table: pa.Table, view: WindowView, entity: EntityPass, *, read: bool = True, after: bool = True
) -> Rows:
    """What one view gets of prepared rows in log order."""
    kinds = table.column("kind").to_numpy()
    reads = np.where(kinds == entity.kinds.index(entity.decision), kernel.READ if read else 0, 0)
    update = kernel.UPDATE | (kernel.READ_AFTER if after else 0)
    counted = np.where(_counted(view, entity, kinds), update, 0)
    amounts, hashes, flags = _fact_columns(view)
    key, time, offset = (np.ascontiguousarray(table.column(c)) for c in ("key", "time", "offset"))
    return Rows(
        key,
        time,
        offset,
        (reads | counted).astype(np.uint8),
        _ints(table, amounts),
        _ints(table, hashes),
        np.ascontiguousarray(table.column(flags)),
    )


def _counted(
    view: WindowView, entity: EntityPass, kinds: npt.NDArray[np.int8]
) -> npt.NDArray[np.bool_]:
    """Which rows a view counts [n]."""
    return np.isin(kinds, [entity.kinds.index(kind) for kind in view.events])


def write_block(table: pa.Table, entity: EntityPass, out: Place, span: Span) -> list[Written]:
    """Run the key ranges of a block of prepared rows, in any order, and write their files."""
    if not table.num_rows:
        return []
    table = table.combine_chunks()
    parts = table.column("part").to_numpy()
    order = np.lexsort((table.column("offset").to_numpy(), parts))
    cuts = np.flatnonzero(np.diff(parts[order])) + 1
    return [
        _write_part(table, order[low:high], entity, out, span)
        for low, high in pairwise([0, *cuts.tolist(), len(order)])
    ]


def _write_part(
    table: pa.Table, order: Order, entity: EntityPass, out: Place, span: Span
) -> Written:
    part = table.column("part")[int(order[0])].as_py()
    files, states = {}, {}
    for view in entity.views:
        # One view after the other: what is held of values is that of one.
        state = ViewState(view)
        carried = span.states.get(view.name, {}).get(part)
        if carried is not None:
            state.restore(read_part(out / carried.path, carried.sha256))
        writer = _Writer(view, entity, out, part)
        for piece, of in _pieces(table, order, span):
            wanted = of is not None
            rows = _rows(piece, view, entity, read=wanted, after=wanted)
            values = state.process(rows)
            if of is not None:
                writer.add(of, piece, values)
        files[view.name] = writer.finish()
        if span.keep:
            states[view.name] = _write_state(state, view, out, part, span.end)
    done = Written(part, len(order), files, states)
    reach("features.files_written")
    if span.journal:
        name = f"{JOURNAL}/{span.journal}/part-{part:04d}.json"
        (out / name).write(msgspec.json.encode(done))
    reach("features.part_done")
    return done


def _write_state(state: ViewState, view: WindowView, out: Place, part: int, end: int) -> File:
    path = f"{SNAPSHOT}/{definition_folder(view)}/{end:012d}/part-{part:04d}.arrow"
    return _store(out, path, part_bytes(state.snapshot()), end, part)


def _store(out: Place, path: str, data: pa.Buffer, slice_start: int, part: int) -> File:
    return File(path, slice_start, part, data.size, (out / path).write(data))


def _pieces(
    table: pa.Table, order: Order, span: Span
) -> Iterator[tuple[pa.Table, tuple[int, int] | None]]:
    """The rows in log order, so many at once, each with the slice that it is of, if any."""
    offsets = table.column("offset").to_numpy()[order]
    bounds = sorted(
        {0, len(order)} | {int(np.searchsorted(offsets, o)) for s in span.slices for o in s}
    )
    for low, high in pairwise(bounds):
        first = int(offsets[low])
        of = next((s for s in span.slices if s[0] <= first < s[1]), None)
        for start in range(low, high, PIECE_ROWS):
            rows = order[start : min(start + PIECE_ROWS, high)]
            yield table.take(pa.array(rows)), of


class _Writer:
    """Files of one view and key range, slice after slice."""

    def __init__(self, view: WindowView, entity: EntityPass, out: Place, part: int) -> None:
        self._view = view
        self._entity = entity
        self._kinds = [
            _Shards(out, f"{kind}/{definition_folder(view)}", part) for kind in (AT_EVENT, STATE)
        ]
        self._slice: tuple[int, int] | None = None

    def add(self, of: tuple[int, int], rows: pa.Table, values: Values) -> None:
        """Take the next rows of a slice with what the kernel found."""
        if of != self._slice:
            for shards in self._kinds:
                shards.begin(of)
            self._slice = of
        kinds = rows.column("kind").to_numpy()
        asked = np.flatnonzero(kinds == self._entity.kinds.index(self._entity.decision))
        counted = _counted(self._view, self._entity, kinds)
        at = np.flatnonzero(counted & (rows.column("key").to_numpy() != 0))
        before, after = self._kinds
        before.add(_event_rows(self._view, rows, asked, values))
        after.add(_state_rows(self._view, rows, at, values))

    def finish(self) -> list[File]:
        """All files."""
        return [f for shards in self._kinds for f in shards.finish()]


class _Shards:
    """Parquet files of one kind: what is in which depends on the slice's rows alone."""

    def __init__(self, out: Place, folder: str, part: int) -> None:
        self._out = out
        self._folder = folder
        self._part = part
        self._slice = (0, 0)
        self._number = 0
        self._pending: list[pa.Table] = []
        self._rows = 0
        self._groups = 0
        self._sink: pa.BufferOutputStream | None = None
        self._parquet: pq.ParquetWriter | None = None
        self._done: list[File] = []

    def begin(self, of: tuple[int, int]) -> None:
        """A new slice, with files of its own."""
        self.finish()
        self._slice, self._number = of, 0

    def add(self, table: pa.Table) -> None:
        self._pending.append(table)
        self._rows += table.num_rows
        while self._rows >= GROUP_ROWS:
            held = pa.concat_tables(self._pending)
            self._write(held.slice(0, GROUP_ROWS))
            self._pending = [held.slice(GROUP_ROWS)]
            self._rows -= GROUP_ROWS

    def finish(self) -> list[File]:
        if self._rows:
            self._write(pa.concat_tables(self._pending))
        self._pending, self._rows = [], 0
        self._close()
        return self._done

    def _write(self, group: pa.Table) -> None:
        if self._parquet is None:
            self._sink = pa.BufferOutputStream()
            self._parquet = pq.ParquetWriter(
                self._sink, group.schema, compression="lz4", use_dictionary=False
            )
        # In one chunk: where Parquet's pages end depends on it.
        self._parquet.write_table(group.combine_chunks(), row_group_size=GROUP_ROWS)
        self._groups += 1
        if self._groups == FILE_GROUPS:
            self._close()

    def _close(self) -> None:
        if self._parquet is None or self._sink is None:
            return
        self._parquet.close()
        start, end = self._slice
        name = f"part-{start:012d}-{end:012d}-{self._part:04d}-{self._number:03d}.parquet"
        path, data = f"{self._folder}/{name}", self._sink.getvalue()
        self._done.append(_store(self._out, path, data, start, self._part))
        self._number += 1
        self._groups, self._parquet, self._sink = 0, None, None


def _event_rows(view: WindowView, rows: pa.Table, at: Order, values: Values) -> pa.Table:
    columns = {
        "offset": rows.column("offset").take(at),
        "event_id": rows.column("event_id").take(at),
        "event_timestamp": _timestamps(rows.column("time").to_numpy()[at]),
    }
    columns |= {c: pa.array(values.before[at, i]) for i, c in enumerate(view.column_names)}
    columns[f"newest_{view.name}"] = pa.array(values.newest[at])
    return pa.table(columns)


def _state_rows(view: WindowView, rows: pa.Table, at: Order, values: Values) -> pa.Table:
    columns = {
        view.key: rows.column("key_text").take(at),
        "event_timestamp": _timestamps(values.clocks[at]),
        "created": pa.array(rows.column("offset").to_numpy()[at]).cast(KNOWLEDGE),
    }
    columns |= {c: pa.array(values.after[at, i]) for i, c in enumerate(view.column_names)}
    return pa.table(columns)


def _timestamps(milliseconds: npt.NDArray[np.int64]) -> pa.Array:
    return pa.array(milliseconds * 1_000, pa.int64()).cast(TIMESTAMP)


def columns_of(project: Project, plan: EntityPass, kind: str) -> dict[str, pa.DataType]:
    """The columns of an event type that a pass reads, with their declared types."""
    wanted = ["tenant", "event_id", "event_time", plan.key]
    for view in plan.views:
        if kind in view.events:
            wanted += Inputs(view, kind).columns
    schema = project.event(kind).arrow_schema
    return {OFFSET: pa.int64()} | {name: schema.field(name).type for name in wanted}
