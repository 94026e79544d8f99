"""Reads what training starts from: a build of the features and the log's exported events.

All tables are brought into log order and zipped by offset; nothing is joined.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.builds import REBUILD, Build
from raypipe.errors import IntegrityError, LeakageError
from raypipe.events.schema import EventType
from raypipe.lake import Place
from raypipe.project import Project
from raypipe.windows.spec import WindowView


def open_build(lake: Place, project: Project) -> Build:
    """The current features; raises when there are none or they are of other declarations."""
    build = Build.current(lake)
    made_by = build.manifest.definition_hash
    if made_by != project.definition_hash:
        raise IntegrityError(
            f"the features at {build.place.url} were made by other declarations "
            f"({made_by[:12]}) than project {project.name!r} has now "
            f"({project.definition_hash[:12]})",
            hint=REBUILD,
        )
    return build


def read_features(build: Build, view: str, columns: Sequence[str]) -> OffsetTable:
    """The at_event table of a view in offset order, every file checked by its hash."""
    files = build.files_of("at_event", view)
    if not files:
        raise IntegrityError(f"the manifest lists no at_event files of {view!r}", hint=REBUILD)
    tables = [_read_checked(build.place / n, files[n], ["offset", *columns]) for n in sorted(files)]
    return OffsetTable(pa.concat_tables(tables), f"features of {view}")


class OffsetTable:
    """A table seen in log order, one row per offset."""

    def __init__(self, table: pa.Table, what: str) -> None:
        offsets = table.column("offset").to_numpy()
        order = np.argsort(offsets, kind="stable")
        self.offsets: npt.NDArray[np.int64] = offsets[order]
        self._order = order
        self._table = table
        doubled = np.flatnonzero(np.diff(self.offsets) == 0)
        if len(doubled):
            raise IntegrityError(
                f"{what}: offset {self.offsets[doubled[0]]} occurs more than once", hint=REBUILD
            )

    def __len__(self) -> int:
        return len(self.offsets)

    def floats(self, name: str) -> npt.NDArray[np.float64]:
        """A float64 column [n] in log order, null as NaN."""
        return self._in_order(name).astype(np.float64, copy=False)

    def newest(self, view: WindowView) -> npt.NDArray[np.int64]:
        """The newest offset that each row's values of a view used, int64 [n]."""
        name = f"newest_{view.name}"
        if self._table.column(name).null_count:
            raise LeakageError(f"{name} has nulls: nothing proves what view {view.name!r} knew")
        return self._in_order(name).astype(np.int64, copy=False)

    def arrow(self) -> pa.Table:
        """The whole table in log order."""
        return self._table.take(pa.array(self._order))

    def _in_order(self, name: str) -> npt.NDArray[Any]:
        values = self._table.column(name).to_numpy(zero_copy_only=False)
        ordered: npt.NDArray[Any] = values[self._order]
        return ordered


def read_events(
    files: Sequence[Place], event: EventType, columns: Sequence[str], *, end_offset: int
) -> OffsetTable:
    """Events of one type before ``end_offset``, of all tenants, in log order.

    A column that the declaration gained after a file was written is null there.
    """
    fields = [event.field(c) for c in dict.fromkeys(["tenant", *columns])]
    schema = pa.schema([("offset", pa.int64()), *((f.name, f.arrow_type) for f in fields)])
    optional = frozenset(f.name for f in fields if not f.required)
    tables = [_read(f, schema.names, optional) for f in files]
    table = pa.concat_tables([schema.empty_table(), *tables], promote_options="default")
    return OffsetTable(table.filter(pc.less(table.column("offset"), end_offset)), event.name)


def require_equal_offsets(events: OffsetTable, features: OffsetTable, view: str) -> None:
    """Refuse to zip tables that are not about the same events."""
    a, b = events.offsets, features.offsets
    if np.array_equal(a, b):
        return
    missing, extra = np.setdiff1d(a, b), np.setdiff1d(b, a)
    example = int(missing[0] if len(missing) else extra[0])
    raise IntegrityError(
        f"features of {view!r} and the log don't have the same events: {len(missing)} without "
        f"features, {len(extra)} without event, the first at offset {example}",
        hint=REBUILD,
    )


def _read(place: Place, columns: Sequence[str], optional: frozenset[str] = frozenset()) -> pa.Table:
    try:
        with place.open() as file:
            return _columns(file, place, columns, optional)
    except FileNotFoundError as e:
        raise IntegrityError(f"{place.url} is missing", hint=REBUILD) from e


def _read_checked(place: Place, sha256: str, columns: Sequence[str]) -> pa.Table:
    try:
        data = place.buffer()
    except FileNotFoundError as e:
        raise IntegrityError(f"{place.url} is missing", hint=REBUILD) from e
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise IntegrityError(
            f"{place.url} has sha256 {found[:12]}, its manifest says {sha256[:12]}", hint=REBUILD
        )
    return _columns(pa.BufferReader(data), place, columns, frozenset())


def _columns(
    source: pa.NativeFile, place: Place, columns: Sequence[str], optional: frozenset[str]
) -> pa.Table:
    try:
        with pq.ParquetFile(source, pre_buffer=True) as file:
            present = set(file.schema_arrow.names)
            lacking = [n for n in columns if n not in present | optional]
            if lacking:
                raise IntegrityError(f"{place.url} lacks the columns {lacking}", hint=REBUILD)
            return file.read(columns=[n for n in columns if n in present])
    except pa.ArrowInvalid as e:
        raise IntegrityError(f"{place.url} is not readable Parquet: {e}", hint=REBUILD) from e
