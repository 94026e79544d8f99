"""Which keys changed since they were last written online."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.log.port import Chunk
from raypipe.runtime.worker.ids import PART
from raypipe.runtime.worker.waiting import SWEEP_KEYS, Waiting
from raypipe.windows.hashing import (
    Ints,
    bucket,
    bucket_of,
    hash_column,
    hash_text,
    key_seed,
    single_text,
)
from raypipe.windows.spec import WindowView

CHANGES = b"changes"

_EMPTY = pa.array([], pa.string())


class Changes:
    """Keys of one tenant that wait for the online store, by view. Not thread-safe.

    Args:
        owned: buckets whose keys are noted; None: all.
        sweep_keys: see Waiting.
    """

    def __init__(
        self,
        views: Sequence[WindowView],
        tenant: str,
        owned: range | None = None,
        *,
        sweep_keys: int = SWEEP_KEYS,
    ) -> None:
        self.tenant = tenant
        self._owned = owned
        self._views = list(views)
        beside = ThreadPoolExecutor(1, "sweep")
        self._waiting = {
            v.name: Waiting(key_seed(tenant, v.entity), beside, sweep_keys) for v in views
        }
        self._taken: tuple[str, pa.Array] | None = None

    def __len__(self) -> int:
        """How many wait; some may be counted twice."""
        taken = 0 if self._taken is None else len(self._taken[1])
        return taken + sum(map(len, self._waiting.values()))

    def add(self, chunks: Sequence[Chunk]) -> None:
        """Note the keys of events."""
        for chunk in chunks:
            views = [v for v in self._views if chunk.kind in v.events]
            if not views:
                continue
            batch = chunk.batch
            if single_text(batch.column("tenant")) != self.tenant:
                batch = batch.filter(pc.equal(batch.column("tenant"), self.tenant))
            hashed: dict[tuple[str, str], tuple[pa.Array, Ints]] = {}
            for view in views:
                of = view.key, view.entity
                if of not in hashed:
                    keys = batch.column(view.key).drop_null()
                    hashes = hash_column(keys, key_seed(self.tenant, view.entity))
                    hashed[of] = self._mine(keys, hashes)
                self._waiting[view.name].add(*hashed[of])

    def _mine(self, keys: pa.Array, hashes: Ints) -> tuple[pa.Array, Ints]:
        """The keys that are owned, and their hashes."""
        if self._owned is None:
            return keys, hashes
        buckets = bucket_of(hashes)
        mine = (buckets >= self._owned.start) & (buckets < self._owned.stop)
        return keys.filter(pa.array(mine)), hashes[mine]

    def add_one(self, kind: str, event: Mapping[str, Any]) -> None:
        """Note the keys of one event."""
        if event["tenant"] != self.tenant:
            return
        for view in self._views:
            key = event[view.key] if kind in view.events else None
            if key is not None and (self._owned is None or self._owns(view, key)):
                self._waiting[view.name].add_one(key)

    def _owns(self, view: WindowView, key: str) -> bool:
        hashed = hash_text(key, key_seed(self.tenant, view.entity))
        return self._owned is None or bucket(hashed) in self._owned

    def take(self, limit: int) -> tuple[str, pa.Array]:
        """A view and at most ``limit`` of its keys, in the order of the keys.

        What was taken before counts as written; ``undo`` says that it is not. An empty array when
        nothing waits.
        """
        self._taken = None
        view = max(self._waiting, key=lambda v: len(self._waiting[v]), default="")
        if not view or not self._waiting[view]:
            return view, _EMPTY
        self._taken = view, self._waiting[view].take(limit)
        return self._taken

    def undo(self) -> None:
        """The keys that were taken last wait again."""
        if self._taken is not None:
            view, keys = self._taken
            self._waiting[view].add_keys(keys)
            self._taken = None

    def snapshot(self) -> Callable[[], list[pa.Table]]:
        """What makes a table of all that waits now, for ``restore``."""
        found = {name: waiting.keys() for name, waiting in self._waiting.items()}
        if self._taken is not None:
            found[self._taken[0]].append(self._taken[1])
        return lambda: [_table(found)]

    def restore(self, table: pa.Table) -> bool:
        """Have these keys wait too; False if the table is something else."""
        if (table.schema.metadata or {}).get(PART) != CHANGES:
            return False
        for name, waiting in self._waiting.items():
            keys = table.column("key").filter(pc.equal(table.column("view").cast("string"), name))
            if len(keys):
                waiting.add_keys(keys.combine_chunks().cast(pa.string()))
        return True


def _table(found: Mapping[str, Sequence[pa.Array]]) -> pa.Table:
    keys = {name: pa.concat_arrays([_EMPTY, *arrays]) for name, arrays in found.items()}
    places = np.repeat(np.arange(len(keys), dtype=np.int32), [len(k) for k in keys.values()])
    names = pa.array(list(keys), pa.string())
    columns = {
        "view": pa.DictionaryArray.from_arrays(pa.array(places), names),
        "key": pa.concat_arrays([_EMPTY, *keys.values()]),
    }
    return pa.table(columns).replace_schema_metadata({PART: CHANGES})
