"""Which keys changed since they were last written online."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.log.port import Chunk
from raypipe.runtime.worker.ids import PART
from raypipe.windows.hashing import single_text
from raypipe.windows.spec import WindowView

CHANGES = b"changes"

_TOGETHER = 64
"""Arrays of keys that are joined into one, so that a key waits once."""

_ALONE = 4_096
"""Keys of single events that are gathered into an array."""

_EMPTY = pa.array([], pa.string())


class Changes:
    """Keys of one tenant that wait for the online store, by view. Not thread-safe."""

    def __init__(self, views: Sequence[WindowView], tenant: str) -> None:
        self.tenant = tenant
        self._views = {v.name: v for v in views}
        self._waiting: dict[str, list[pa.Array]] = {v.name: [] for v in views}
        self._alone: dict[str, dict[str, None]] = {v.name: {} for v in views}
        """Keys of single events: an array for each would cost more than counting it."""
        self._taken: tuple[str, pa.Array] | None = None

    def __len__(self) -> int:
        """How many wait; some may be counted more than once."""
        taken = 0 if self._taken is None else len(self._taken[1])
        alone = sum(map(len, self._alone.values()))
        return taken + alone + sum(len(a) for arrays in self._waiting.values() for a in arrays)

    def add(self, chunks: Sequence[Chunk]) -> None:
        """Note the keys of events."""
        for chunk in chunks:
            views = [v for v in self._views.values() if chunk.kind in v.events]
            if not views:
                continue
            batch = chunk.batch
            if single_text(batch.column("tenant")) != self.tenant:
                batch = batch.filter(pc.equal(batch.column("tenant"), self.tenant))
            for key in {v.key for v in views}:
                keys = pc.unique(batch.column(key)).drop_null().cast(pa.string())
                for view in views:
                    if view.key == key and len(keys):
                        self._append(view.name, keys)

    def add_one(self, kind: str, event: Mapping[str, Any]) -> None:
        """Note the keys of one event."""
        if event["tenant"] != self.tenant:
            return
        for view in self._views.values():
            if kind in view.events and event[view.key] is not None:
                alone = self._alone[view.name]
                alone[event[view.key]] = None
                if len(alone) >= _ALONE:
                    self._gather(view.name)

    def _gather(self, view: str) -> None:
        """Have keys of single events wait with the others."""
        if self._alone[view]:
            self._append(view, pa.array(list(self._alone[view]), pa.string()))
            self._alone[view] = {}

    def _append(self, view: str, keys: pa.Array) -> None:
        arrays = self._waiting[view]
        arrays.append(keys)
        if len(arrays) >= _TOGETHER:
            arrays[:] = [_joined(arrays)]

    def take(self, limit: int) -> tuple[str, pa.Array]:
        """A view and at most ``limit`` of its keys, those that wait longest first.

        What was taken before counts as written; ``undo`` says that it is not. An empty array when
        nothing waits.
        """
        self._taken = None
        for name in self._alone:
            self._gather(name)
        view = max(self._waiting, key=lambda v: sum(map(len, self._waiting[v])), default="")
        if not view or not self._waiting[view]:
            return view, _EMPTY
        keys = _joined(self._waiting[view])
        mine, rest = keys.slice(0, limit), keys.slice(limit)
        self._waiting[view] = [rest] if len(rest) else []
        self._taken = view, mine
        return self._taken

    def undo(self) -> None:
        """The keys that were taken last wait again."""
        if self._taken is not None:
            view, keys = self._taken
            self._waiting[view].insert(0, keys)
            self._taken = None

    def snapshot(self) -> pa.Table:
        """All that waits, for ``restore``."""
        for name in self._alone:
            self._gather(name)
        taken = {} if self._taken is None else dict([self._taken])
        views = [
            (name, _joined([*([taken[name]] if name in taken else []), *arrays]))
            for name, arrays in self._waiting.items()
        ]
        names = [name for name, _ in views]
        places = np.repeat(np.arange(len(views), dtype=np.int32), [len(keys) for _, keys in views])
        columns = {
            "view": pa.DictionaryArray.from_arrays(pa.array(places), pa.array(names, pa.string())),
            "key": pa.concat_arrays([_EMPTY, *(keys for _, keys in views)]),
        }
        return pa.table(columns).replace_schema_metadata({PART: CHANGES})

    def restore(self, table: pa.Table) -> bool:
        """Have these keys wait too; False if the table is something else."""
        if (table.schema.metadata or {}).get(PART) != CHANGES:
            return False
        for name in self._waiting:
            keys = table.column("key").filter(pc.equal(table.column("view").cast("string"), name))
            if len(keys):
                self._append(name, keys.combine_chunks().cast(pa.string()))
        return True


def _joined(arrays: Sequence[pa.Array]) -> pa.Array:
    if not arrays:
        return _EMPTY
    return arrays[0] if len(arrays) == 1 else pc.unique(pa.concat_arrays(arrays))
