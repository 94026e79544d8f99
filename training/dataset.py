"""The training table: one row per decided event whose label is known, in log order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features.builds import Build
from raypipe.clock import DAY_MS
from raypipe.errors import DeclarationError, IntegrityError, NotFound, StageError
from raypipe.events.schema import Kind, Tag
from raypipe.lake import Place
from raypipe.project import Project
from raypipe.vector.assemble import Assembler, raw_columns
from training.arrays import array_of, write_array
from training.inputs import (
    OffsetTable,
    open_build,
    read_events,
    read_features,
    require_equal_offsets,
)
from training.labels import labels
from training.leakage import check_no_leak
from training.profiles import read_profiles

_BLOCK = 131_072
"""Rows assembled at a time: bounds the float64 copies of the window columns."""

_ABOUT = "dataset.json"


@dataclass(frozen=True)
class Origin:
    """Where a dataset comes from."""

    project: str
    model: str
    definition_hash: str
    tenant: str
    as_of_ms: int
    horizon_ms: int


@dataclass(frozen=True)
class Dataset:
    """Feature vectors, labels and what a split and an evaluation need, in log order.

    Shapes: ``x`` float32 [n, len(names)], ``y`` uint8 [n], ``offsets`` and ``event_time`` int64
    [n]; ``keys`` maps each key column to int32 codes [n] (-1: missing), so no key text is kept.
    """

    names: tuple[str, ...]
    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    event_time: npt.NDArray[np.int64]
    origin: Origin
    keys: Mapping[str, npt.NDArray[np.int32]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        return f"Dataset(rows={len(self)}, features={len(self.names)}, positives={self.positives})"

    @property
    def positives(self) -> int:
        """Number of positive rows."""
        return int(self.y.sum())

    def fingerprint(self) -> str:
        """sha256 over names, offsets, labels and feature values."""
        digest = hashlib.sha256(json.dumps([self.names, list(self.x.shape)]).encode())
        for array in (self.offsets, self.y, self.x):
            for start in range(0, len(array), _BLOCK):
                digest.update(np.ascontiguousarray(array[start : start + _BLOCK]).data)
        return digest.hexdigest()

    def add_column(
        self,
        name: str,
        values: npt.NDArray[np.floating],
        newest: npt.NDArray[np.int64],
    ) -> Dataset:
        """The dataset with one more feature.

        Args:
            name: the feature's name.
            values: one value per row [n].
            newest: the newest log offset that each value used, int64 [n], -1 for none.

        Raises:
            LeakageError: a value used its own event or a later one.
        """
        if name in self.names:
            raise DeclarationError(f"the dataset already has a column {name!r}")
        if len(values) != len(self):
            raise DeclarationError(f"column {name!r}: {len(values)} values for {len(self)} rows")
        check_no_leak(self.offsets, {name: newest})
        column = values.astype(np.float32).reshape(-1, 1)
        return replace(self, names=(*self.names, name), x=np.hstack([self.x, column]))

    def save(self, folder: Place) -> str:
        """Write ``.npy`` files and, last, ``dataset.json`` into a new folder; the fingerprint."""
        fingerprint = self.fingerprint()
        arrays: dict[str, npt.NDArray[Any]] = {
            "x": self.x,
            "y": self.y,
            "offsets": self.offsets,
            "event_time": self.event_time,
            **{f"key.{k}": codes for k, codes in self.keys.items()},
        }
        for name, array in arrays.items():
            write_array(folder / f"{name}.npy", array)
        about = {
            "names": self.names,
            "keys": list(self.keys),
            "origin": asdict(self.origin),
            "fingerprint": fingerprint,
        }
        (folder / _ABOUT).write(json.dumps(about, indent=2).encode())
        return fingerprint

    @classmethod
    def load(cls, folder: Place, *, verify: bool = True) -> Dataset:
        """A saved dataset, memory-mapped where it is local; ``verify`` compares the fingerprint."""
        try:
            about = json.loads((folder / _ABOUT).read())
        except FileNotFoundError as e:
            raise NotFound(f"no dataset at {folder.url}") from e

        def array(name: str) -> npt.NDArray[Any]:
            return array_of((folder / f"{name}.npy").buffer())

        dataset = cls(
            names=tuple(about["names"]),
            x=array("x"),
            y=array("y"),
            offsets=array("offsets"),
            event_time=array("event_time"),
            origin=Origin(**about["origin"]),
            keys={k: array(f"key.{k}") for k in about["keys"]},
        )
        if verify and dataset.fingerprint() != about["fingerprint"]:
            raise IntegrityError(
                f"the dataset at {folder.url} is not what was written",
                hint="Train again without --resume.",
            )
        return dataset


def build(
    project: Project,
    lake: Place,
    *,
    model: str,
    as_of_ms: int | None = None,
) -> Dataset:
    """Assemble the training table of a model as it was known at ``as_of_ms``.

    Holds the window and profile columns of all entities in memory (8 bytes a value).

    Args:
        project: declares events, windows, profiles, derived features, label and model.
        lake: has the features, and the events that they were made of.
        model: name of the declared model.
        as_of_ms: label events after it are unknown; decided events younger than the label's
            horizon before it are left out. By default the newest event's time.

    Raises:
        IntegrityError: files are not those of the manifest, or not about the same events.
        LeakageError: a view's values used their own event or a later one.
    """
    made = open_build(lake, project)
    decision, label = project.decision_event, project.label
    read = partial(_read_kind, project, made)
    tenant = made.manifest.tenant
    used = {g.key for g in project.groups}
    keys = [
        f.name
        for f in decision.fields
        if f.kind is Kind.STRING and (Tag.KEY in f.tags or f.name in used)
    ]
    envelope = ("event_id", "event_time", "received_at")
    decided = read(project.decision, [*envelope, *project.raw_names, *keys])
    truths = read(label.event, ["event_time", label.reference]).arrow()
    if not len(decided):
        raise StageError(f"no {project.decision!r} events to learn from", hint="Load some first.")
    tables = _read_views(project, made, decided)
    log = decided.arrow()
    mine = pc.equal(log.column("tenant"), tenant).to_numpy()
    known = truths.filter(pc.equal(truths.column("tenant"), tenant))
    event_time = log.column("event_time").to_numpy()
    if as_of_ms is None:
        as_of_ms = max(
            int(t.max()) for t in (event_time, known.column("event_time").to_numpy()) if len(t)
        )
    y, labelled = labels(label, log.column("event_id"), event_time, known, as_of_ms=as_of_ms)
    rows = np.flatnonzero(labelled & mine)
    if not len(rows):
        raise StageError(
            f"none of {len(event_time)} events is older than the label horizon of "
            f"{label.horizon_ms / DAY_MS:.1f} days",
            hint="Load more history.",
        )
    assembler = Assembler(project, project.model(model))
    raw = raw_columns(decision, log)
    windows = {n: table.floats(n) for n, table in tables.items()}
    arrived = log.column("received_at").to_numpy()
    profiles = read_profiles(project.profiles, lake, log, arrived, decided.offsets)
    x = np.empty((len(rows), len(assembler.features)), np.float32)
    for start in range(0, len(rows), _BLOCK):
        part = rows[start : start + _BLOCK]
        x[start : start + len(part)] = assembler.columns(
            {n: v[part] for n, v in raw.items()},
            {n: v[part] for n, v in windows.items()},
            {n: v[part] for n, v in profiles.items()},
        )
    return Dataset(
        names=assembler.features,
        x=x,
        y=y[rows],
        offsets=decided.offsets[rows],
        event_time=event_time[rows],
        origin=Origin(
            project.name, model, project.definition_hash, tenant, as_of_ms, label.horizon_ms
        ),
        keys={k: _codes(log.column(k))[rows] for k in keys},
    )


def _read_kind(project: Project, made: Build, kind: str, columns: Sequence[str]) -> OffsetTable:
    end = made.manifest.end_offset
    return read_events(made.events(kind), project.event(kind), columns, end_offset=end)


def _read_views(project: Project, made: Build, decided: OffsetTable) -> dict[str, OffsetTable]:
    """The table that holds each window column, zipped with the log and proven free of leaks."""
    holder: dict[str, OffsetTable] = {}
    for view in project.views:
        names = view.column_names
        table = read_features(made, view.name, [*names, f"newest_{view.name}"])
        require_equal_offsets(decided, table, view.name)
        check_no_leak(
            decided.offsets, {f"view {view.name!r} [{', '.join(names)}]": table.newest(view)}
        )
        holder.update(dict.fromkeys(names, table))
    return holder


def _codes(column: pa.ChunkedArray) -> npt.NDArray[np.int32]:
    indices = pc.dictionary_encode(column.combine_chunks()).indices
    codes: npt.NDArray[np.int32] = pc.fill_null(indices, -1).to_numpy(zero_copy_only=False)
    return codes.astype(np.int32, copy=False)
