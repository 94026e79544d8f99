"""The way of an event: to the owner of its primary key whole, to those of its other keys in part.

The keys of an event type are those of the views that count it, in the order in which the project
declares the views; of the decision event, of all views. The first key is the primary one. An event
that lacks it belongs to its next key that is there, one without any key to its own id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe.errors import DeclarationError
from raypipe.events.schema import ENVELOPE
from raypipe.log.port import Chunk, Group, Part, check_kind
from raypipe.ownership.buckets import NOBODY, Workers, owned, owner, owners
from raypipe.project import Project
from raypipe.windows.hashing import hash_text, key_seed
from raypipe.windows.inputs import Inputs, hash_keys

PREFIX = "projected_"
"""Begins the kind of a projection; the event type follows."""

PRIMARY, AT = "_primary", "_offset"
"""Columns of a projection: the partition that has the whole event, and its offset there."""

_EVENT = ""
"""The entity of an event's own id."""

_ENVELOPE = tuple(f.name for f in ENVELOPE)

_seed = lru_cache(maxsize=65_536)(key_seed)


@dataclass(frozen=True, slots=True)
class Key:
    """A key of an event type, and the columns that its entity's views read of such events."""

    entity: str
    column: str
    reads: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Way:
    """Where one event goes.

    ``others`` has for each further owner the part of the event that it is told. ``views`` are the
    owners of the project's views for this event, in declared order, the primary where it has no
    such key; none where the event reads none.
    """

    primary: int
    others: Mapping[int, dict[str, Any]]
    views: tuple[int, ...]


class Ownership:
    """Who owns what of a project's events among ``workers`` workers."""

    def __init__(self, project: Project, workers: int) -> None:
        self.project = project
        self.workers = workers
        self.keys = {e.name: _keys(project, e.name) for e in project.events}
        self.schemas = {e.name: self._schema(e.name) for e in project.events}
        """Columns of the projections of each event type, as they lie in the log."""
        self._blank = {k: dict.fromkeys(s.names) for k, s in self.schemas.items()}
        self._viewed = [v.entity for v in project.views]
        for name in self.schemas:
            check_kind(projected(name))
            if projected(name) in self.schemas:
                raise DeclarationError(
                    f"event name {projected(name)!r} is taken by the projections of {name!r}",
                    hint="Use another name, or one worker.",
                )

    def _schema(self, kind: str) -> pa.Schema:
        event = self.project.event(kind)
        read = dict.fromkeys(c for k in self.keys[kind] for c in (k.column, *k.reads))
        fields = [event.arrow_schema.field(n) for n in _ENVELOPE]
        fields += [
            event.arrow_schema.field(n).with_nullable(True) for n in read if n not in _ENVELOPE
        ]
        return pa.schema(
            [
                *fields,
                pa.field(PRIMARY, pa.int32(), nullable=False),
                pa.field(AT, pa.int64(), nullable=False),
                pa.field("body_hash", pa.binary(32)),
                pa.field("windows", pa.binary()),
            ]
        )

    def buckets(self, worker: int) -> range:
        """The buckets that a worker owns."""
        return owned(worker, self.workers)

    def of_key(self, tenant: str, entity: str, key: str) -> int:
        """The owner of one key."""
        return owner(hash_text(key, _seed(tenant, entity)), self.workers)

    def way(self, kind: str, event: Mapping[str, Any]) -> Way:
        """Where one validated event goes."""
        tenant = event["tenant"]
        owners = {
            key.entity: owner(hash_text(event[key.column], _seed(tenant, key.entity)), self.workers)
            for key in self.keys[kind]
        }
        primary = next((w for w in owners.values() if w != NOBODY), NOBODY)
        if primary == NOBODY:
            primary = owner(hash_text(event["event_id"], _seed(tenant, _EVENT)), self.workers)
        others: dict[int, dict[str, Any]] = {}
        for key in self.keys[kind]:
            worker = owners[key.entity]
            if worker not in (primary, NOBODY):
                part = others.setdefault(worker, {n: event[n] for n in _ENVELOPE})
                part |= {n: event[n] for n in (key.column, *key.reads)}
        views: tuple[int, ...] = ()
        if kind == self.project.decision:
            found = (owners[entity] for entity in self._viewed)
            views = tuple(primary if w == NOBODY else w for w in found)
        return Way(primary, others, views)

    def whole(
        self, kind: str, part: Mapping[str, Any], primary: int, offset: int
    ) -> dict[str, Any]:
        """A part of an event, as ``way`` gave it, with every column of a projection."""
        return {**self._blank[kind], **part, PRIMARY: primary, AT: offset}

    def primaries(self, kind: str, batch: pa.RecordBatch) -> Workers:
        """The primary owner of each row of validated events [n]."""
        return self._owners(kind, pa.Table.from_batches([batch]))[0]

    def _owners(self, kind: str, table: pa.Table) -> tuple[Workers, list[Workers]]:
        """The primary owner of each row [n], and the owner of each key."""
        found = [
            owners(hash_keys(table, key.column, key.entity), self.workers)
            for key in self.keys[kind]
        ]
        primary = np.full(table.num_rows, NOBODY, np.int32)
        for mine in found:
            primary = np.where(primary == NOBODY, mine, primary)
        if (primary == NOBODY).any():
            ids = owners(hash_keys(table, "event_id", _EVENT), self.workers)
            primary = np.where(primary == NOBODY, ids, primary)
        return primary, found

    def projection(self, chunk: Chunk, primary: int, worker: int) -> Part | None:
        """What ``worker`` must be told of events that came in bulk and lie in ``primary``'s log.

        What only other workers' views read is null. The part's positions are those of its rows in
        the chunk. None where no row concerns the worker.
        """
        table = pa.Table.from_batches([chunk.batch])
        _, found = self._owners(chunk.kind, table)
        wanted = np.zeros(len(chunk), np.bool_)
        for mine in found:
            wanted |= mine == worker
        if primary == worker or not wanted.any():
            return None
        columns = {n: table.column(n) for n in _ENVELOPE}
        for key, mine in zip(self.keys[chunk.kind], found, strict=True):
            if (mine == worker).any():
                columns |= {n: table.column(n) for n in (key.column, *key.reads)}
        schema = self.schemas[chunk.kind]
        rows = len(chunk)
        columns[PRIMARY] = pa.array(np.full(rows, primary, np.int32))
        columns[AT] = pa.array(chunk.offsets)
        whole = pa.table(
            [columns.get(f.name, pa.nulls(rows, f.type)) for f in schema], schema=schema
        )
        batch = whole.filter(pa.array(wanted)).combine_chunks().to_batches()[0]
        return Part(projected(chunk.kind), batch, np.flatnonzero(wanted).astype(np.int32))

    def split(self, group: Group) -> dict[int, tuple[Group, npt.NDArray[np.int64]]]:
        """A bulk request's rows by primary owner, and their places in the request."""
        primaries = np.empty(len(group), np.int32)
        for part in group.parts:
            primaries[part.positions] = self.primaries(part.kind, part.batch)
        found = {}
        for worker in np.unique(primaries).tolist():
            mine = primaries == worker
            found[worker] = group.keep(mine), np.flatnonzero(mine)
        return found


def projected(kind: str) -> str:
    """The kind of an event type's projections."""
    return PREFIX + kind


def projected_id(event_id: str, body_hash: bytes) -> str:
    """The id of one event's projection: with the body, because the primary alone refuses ids.

    An event that its primary lost in a crash may have left a projection; under the same id
    another body may follow.
    """
    return f"{event_id}@{body_hash[:8].hex()}"


def _keys(project: Project, kind: str) -> tuple[Key, ...]:
    reads: dict[tuple[str, str], dict[str, None]] = {}
    for view in project.views:
        counts = kind in view.events
        if counts or kind == project.decision:
            mine = reads.setdefault((view.entity, view.key), {})
            mine |= dict.fromkeys(Inputs(view, kind).columns if counts else ())
    return tuple(Key(entity, key, tuple(read)) for (entity, key), read in reads.items())


def merge_windows(widths: Sequence[int], views: Sequence[int], found: Mapping[int, bytes]) -> bytes:
    """The window values of an event from those that the owners of its views gave.

    Args:
        widths: bytes of each view's values.
        views: owner of each view, as ``Way.views``.
        found: what each worker gave: all views, of which its own ones count.
    """
    at, parts = 0, []
    for width, worker in zip(widths, views, strict=True):
        parts.append(found[worker][at : at + width])
        at += width
    return b"".join(parts)
