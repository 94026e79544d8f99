"""Which event ids came lately: a set of 64-bit hashes that forgets the oldest.

The hashes are seeded with the log's own random name, so nobody outside can make two ids collide; by
chance two of ten million do with a probability of 3e-6.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.clock import MINUTE_MS
from raypipe.errors import IntegrityError
from raypipe.log.port import Chunk
from raypipe.runtime.worker.hash_queue import HashQueue
from raypipe.windows.hashing import hash_column, hash_text, key_seed, single_text

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

PART = b"part"
IDS = b"ids"
"""Metadata of a snapshot's table, and its value for this one."""

PAUSE_MS = MINUTE_MS
"""The most that a time without events counts for: when the server's clock jumps ahead, as that of a
machine that wakes, what came just before is no older for it."""


class KnownIds:
    """Which ids of one log came lately; see IdSet for how long that is."""

    def __init__(self, log_id: str, limit: int, horizon_ms: int) -> None:
        self._hasher = IdHasher(log_id)
        self._set = IdSet(limit, horizon_ms)

    def add(self, kind: str, batch: pa.RecordBatch, received_at: int) -> Mask:
        """Which of a batch's rows have new ids [n]; from now on all are known."""
        return self._set.add(self._hasher.batch(kind, batch), received_at)

    def claim(self, kind: str, event: Mapping[str, Any]) -> bool:
        """Whether one event's id is new; from now on it is known."""
        hashed = self._hasher.one(kind, event["tenant"], event["event_id"])
        return bool(self._set.add(np.array([hashed], np.int64), event["received_at"])[0])

    def remember(self, chunk: Chunk) -> None:
        """Know the ids of logged events."""
        received_at = int(pc.max(chunk.batch.column("received_at")).as_py())
        self.add(chunk.kind, chunk.batch, received_at)

    def pieces(self, ids: int) -> list[Callable[[], pa.Table]]:
        """All of it as tables for ``restore``; see IdSet.pieces."""
        return self._set.pieces(ids)

    def restore(self, table: pa.Table) -> bool:
        """Take over one of these tables; False if it is something else."""
        return self._set.restore(table)

    def stats(self) -> dict[str, float]:
        """Gauges."""
        return {
            "dedup_ids": float(len(self._set)),
            "dedup_bytes": float(self._set.nbytes),
            "dedup_span_seconds": self._set.span_ms / 1_000,
        }


class IdHasher:
    """Hashes ids of one log; the same over restarts."""

    def __init__(self, log_id: str) -> None:
        self._log_id = log_id
        self._seeds: dict[tuple[str, str], int] = {}

    def one(self, kind: str, tenant: str, event_id: str) -> int:
        """The hash of one event's id."""
        return hash_text(event_id, self._seed(kind, tenant))

    def batch(self, kind: str, batch: pa.RecordBatch) -> Ints:
        """The hashes of a batch's ids [n]; it has the columns tenant and event_id."""
        tenants, ids = batch.column("tenant"), batch.column("event_id")
        only = single_text(tenants)
        if only is not None:
            return hash_column(ids, self._seed(kind, only))
        out = np.empty(batch.num_rows, np.int64)
        for name in pc.unique(tenants).to_pylist():
            mask = pc.equal(tenants, name)
            out[mask.to_numpy(zero_copy_only=False)] = hash_column(
                ids.filter(mask), self._seed(kind, name)
            )
        return out

    def _seed(self, kind: str, tenant: str) -> int:
        seed = self._seeds.get((kind, tenant))
        if seed is None:
            seed = self._seeds[kind, tenant] = key_seed(f"{self._log_id}:{tenant}", kind)
        return seed


class IdSet:
    """The last ids, at most ``limit`` and none that came over ``horizon_ms`` before the newest.

    Args:
        limit: ids to remember; each takes up to 24 bytes.
        horizon_ms: by the server's clock as it stands in the log (``received_at``), in which a
            pause is at most PAUSE_MS long and which stands still while it is set back.
    """

    def __init__(self, limit: int, horizon_ms: int) -> None:
        self._limit = limit
        self._horizon_ms = horizon_ms
        self._queue = HashQueue()
        self._now = 0
        """Milliseconds of that clock."""
        self._latest: int | None = None
        """The ``received_at`` that it goes on from."""
        self._marks: deque[tuple[int, int]] = deque()
        """(time of that clock, ids) of what came together, oldest first."""
        self._restored: list[Ints] = []
        """Of tables that others are to follow."""

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self._queue.nbytes

    @property
    def span_ms(self) -> int:
        """How far back it reaches now."""
        return self._marks[-1][0] - self._marks[0][0] if self._marks else 0

    def __contains__(self, hash: int) -> bool:
        return hash in self._queue

    def add(self, hashes: Ints, received_at: int) -> Mask:
        """Remember ids that came at one time; which of them were new [n], in order."""
        now = self._pass(received_at)
        self._forget(now)
        new = self._queue.add(hashes)
        added = int(np.count_nonzero(new))
        if added:
            if self._marks and self._marks[-1][0] == now:
                added += self._marks.pop()[1]
            self._marks.append((now, added))
        self._forget(now)
        return new

    def _pass(self, received_at: int) -> int:
        """Have time pass until then; the time that it is."""
        step = 0 if self._latest is None else received_at - self._latest
        self._now += min(max(step, 0), PAUSE_MS)
        # Servers differ by a little; a clock that was set back by more goes on from there.
        if self._latest is None or step > 0 or step < -PAUSE_MS:
            self._latest = received_at
        return self._now

    def hashes(self) -> Ints:
        """All of it, oldest first [ids]."""
        return self._queue.hashes()

    def pieces(self, ids: int) -> list[Callable[[], pa.Table]]:
        """What makes all of it as tables of so many ids, to be called and restored in this order.

        Ids may come and go between the calls: the last table says what belongs to the set by then.
        """
        first = self._queue.dropped
        starts = [first + ids * n for n in range(len(self._queue) // ids + 1)]
        last = starts.pop()
        return [
            *(partial(self._piece, start, start + ids) for start in starts),
            partial(self._last_piece, last),
        ]

    def _piece(self, begin: int, end: int | None = None) -> pa.Table:
        """Ids by how many came before them, as far as they are still there."""
        gone = self._queue.dropped
        until = None if end is None else max(end - gone, 0)
        hashes = self._queue.hashes(max(begin - gone, 0), until)
        return pa.table({"hash": hashes}, metadata={PART: IDS})

    def _last_piece(self, begin: int) -> pa.Table:
        marks = json.dumps(list(self._marks)).encode()
        clock = json.dumps([self._now, self._latest]).encode()
        meta = {PART: IDS, b"marks": marks, b"clock": clock}
        return self._piece(begin).replace_schema_metadata(meta)

    def restore(self, table: pa.Table) -> bool:
        """Take over one of these tables; False if it is something else. The set must be empty
        before the first.

        Raises IntegrityError for what an earlier version wrote.
        """
        meta = table.schema.metadata or {}
        if meta.get(PART) != IDS:
            return False
        self._restored.append(table.column("hash").to_numpy())
        if b"marks" not in meta:
            return True  # others follow
        if b"clock" not in meta:
            raise IntegrityError("the known ids are of an earlier version")
        self._now, self._latest = json.loads(meta[b"clock"])
        self._marks = deque((at, ids) for at, ids in json.loads(meta[b"marks"]))
        hashes = np.concatenate(self._restored)
        self._restored.clear()
        # The first ones left the set after their table was made.
        self._queue.add(hashes[len(hashes) - sum(ids for _, ids in self._marks) :])
        return True

    def _forget(self, now: int) -> None:
        drop, over = 0, len(self._queue) - self._limit
        while self._marks:
            at, ids = self._marks[0]
            if at < now - self._horizon_ms or drop + ids <= over:
                drop += ids
                self._marks.popleft()
            elif drop < over:
                self._marks[0] = (at, ids - (over - drop))
                drop = over
            else:
                break
        self._queue.drop(drop)
