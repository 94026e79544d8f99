"""Reads what training starts from: the batch features' tables and the log's exported events.

All tables are brought into log order and zipped by offset; nothing is joined.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raypipe.errors import IntegrityError, LeakageError, NotFound
from raypipe.events.schema import EventType
from raypipe.project import Project
from raypipe.windows.spec import WindowView

_REBUILD = "Run `raypipe features` again."


@dataclass(frozen=True)
class FeatureFiles:
    """The batch features on disk, as their manifest lists them."""

    root: Path
    tenant: str
    end_offset: int
    events: dict[str, list[str]]
    """Parquet files of the log that the features were made of, by event type."""
    sha256: dict[str, str]

    @classmethod
    def open(cls, root: Path, project: Project) -> FeatureFiles:
        """Read the manifest; raises when there is none or it is of other declarations."""
        path = root / "manifest.json"
        try:
            manifest = json.loads(path.read_bytes())
            made_by = manifest["definition_hash"]
            files = cls(
                root,
                manifest["tenant"],
                manifest["end_offset"],
                manifest["events"],
                manifest["files"],
            )
        except FileNotFoundError as e:
            raise NotFound(f"no features at {root}", hint="Run `raypipe features` first.") from e
        except (ValueError, KeyError) as e:
            raise IntegrityError(f"{path} is not a manifest: {e!r}", hint=_REBUILD) from e
        if made_by != project.definition_hash:
            raise IntegrityError(
                f"the features at {root} were made by other declarations "
                f"({made_by[:12]}) than project {project.name!r} has now "
                f"({project.definition_hash[:12]})",
                hint=_REBUILD,
            )
        return files

    def read(self, entity: str, columns: Sequence[str]) -> OffsetTable:
        """The at_event table of an entity in offset order, every file checked by its hash."""
        prefix = f"at_event/{entity}/"
        names = sorted(n for n in self.sha256 if n.startswith(prefix))
        if not names:
            raise IntegrityError(f"the manifest lists no {prefix} files", hint=_REBUILD)
        tables = []
        for name in names:
            path = self.root / name
            _check_hash(path, self.sha256[name])
            tables.append(_read(path, ["offset", *columns]))
        return OffsetTable(pa.concat_tables(tables), f"features of {entity}")


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
                f"{what}: offset {self.offsets[doubled[0]]} occurs more than once", hint=_REBUILD
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
    paths: Sequence[Path], event: EventType, columns: Sequence[str], *, end_offset: int
) -> OffsetTable:
    """Events of one type before ``end_offset``, of all tenants, in log order.

    A column that the declaration gained after a file was written is null there.
    """
    fields = [event.field(c) for c in dict.fromkeys(["tenant", *columns])]
    schema = pa.schema([("offset", pa.int64()), *((f.name, f.arrow_type) for f in fields)])
    optional = frozenset(f.name for f in fields if not f.required)
    tables = [_read(p, schema.names, optional) for p in paths]
    table = pa.concat_tables([schema.empty_table(), *tables], promote_options="default")
    return OffsetTable(table.filter(pc.less(table.column("offset"), end_offset)), event.name)


def require_equal_offsets(events: OffsetTable, features: OffsetTable, entity: str) -> None:
    """Refuse to zip tables that are not about the same events."""
    a, b = events.offsets, features.offsets
    if np.array_equal(a, b):
        return
    missing, extra = np.setdiff1d(a, b), np.setdiff1d(b, a)
    example = int(missing[0] if len(missing) else extra[0])
    raise IntegrityError(
        f"features of {entity!r} and the log don't have the same events: {len(missing)} without "
        f"features, {len(extra)} without event, the first at offset {example}",
        hint=_REBUILD,
    )


def _read(path: Path, columns: Sequence[str], optional: frozenset[str] = frozenset()) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            present = set(file.schema_arrow.names)
            lacking = [n for n in columns if n not in present | optional]
            if lacking:
                raise IntegrityError(f"{path} lacks the columns {lacking}", hint=_REBUILD)
            return file.read(columns=[n for n in columns if n in present])
    except FileNotFoundError as e:
        raise IntegrityError(f"{path} is missing", hint=_REBUILD) from e
    except pa.ArrowInvalid as e:
        raise IntegrityError(f"{path} is not readable Parquet: {e}", hint=_REBUILD) from e


def _check_hash(path: Path, expected: str) -> None:
    try:
        with path.open("rb") as f:
            found = hashlib.file_digest(f, "sha256").hexdigest()
    except FileNotFoundError as e:
        raise IntegrityError(f"{path} is missing", hint=_REBUILD) from e
    if found != expected:
        raise IntegrityError(
            f"{path} has sha256 {found[:12]}, its manifest says {expected[:12]}", hint=_REBUILD
        )
