"""All that a worker keeps in memory about the past: what snapshots hold and replay completes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from raypipe.log.port import Chunk
from raypipe.project import Project
from raypipe.runtime.worker.changes import Changes
from raypipe.runtime.worker.exposures import ExposureCounts
from raypipe.runtime.worker.heard import Heard
from raypipe.runtime.worker.ids import KnownIds
from raypipe.runtime.worker.reviews import ReviewQueue
from raypipe.runtime.worker.snapshots import Piece
from raypipe.runtime.worker.watch import Watch
from raypipe.tables.engine import TableEngine
from raypipe.windows.engine import WindowEngine

PIECE_KEYS = 50_000
"""Keys of a piece of a snapshot: a few ten milliseconds of the worker's time."""

PIECE_IDS = 1_000_000
"""Known ids of one: a few milliseconds."""


class WorkerState:
    """The state of one partition as of an offset. Not thread-safe.

    Args:
        owned: buckets whose keys have their windows here; None: all.
    """

    def __init__(
        self, project: Project, ids: KnownIds, tenant: str, owned: range | None = None
    ) -> None:
        self.windows = WindowEngine(project.views, project.decision, owned)
        self.tables = TableEngine(project.tables, project.events)
        self.ids = ids
        self.changes = Changes(project.views, tenant, owned)
        self.watch = Watch(project.events)
        self.heard = Heard()
        self.reviews = ReviewQueue()
        self.exposures = ExposureCounts()

    def observe(self, kind: str, event: Mapping[str, Any], offset: int) -> bytes:
        """Count one event, whose id is known already; returns the window values before it."""
        self.changes.add_one(kind, event)
        return self.windows.observe(kind, event, offset)

    def apply(self, chunks: Sequence[Chunk]) -> None:
        """Count events, whose ids are known already, in offset order over all chunks."""
        self.changes.add(chunks)
        self.windows.apply(chunks)

    def committed(self, chunks: Sequence[Chunk]) -> None:
        """Events that were counted are durable now."""
        self.tables.take(chunks)
        self.watch.add(chunks)

    def replay(
        self, events: Sequence[Chunk], others: Sequence[Chunk], parts: Sequence[Chunk] = ()
    ) -> None:
        """Count logged events, know their ids, and follow what other records say.

        Args:
            parts: projections of other workers' events, under the names of the event types.
        """
        self.apply([*events, *parts])
        for chunk in parts:
            self.heard.replay(chunk)
        self.tables.apply(events)
        for chunk in events:
            self.ids.remember(chunk)
        self.watch.replay([*events, *others])
        self.reviews.replay(others)
        self.exposures.replay(others)

    def take_changes(self, limit: int, *, written: bool) -> tuple[str, pa.Table] | None:
        """Some keys of a view that changed, as ``WindowEngine.latest`` gives them.

        Args:
            written: whether those that were taken before are online now; else they come again.

        None when nothing changed.
        """
        if not written:
            self.changes.undo()
        view, keys = self.changes.take(limit)
        return (view, self.windows.latest(view, self.changes.tenant, keys)) if len(keys) else None

    def settle(self) -> None:
        """The replay after a restore is over."""
        self.windows.settle()

    def pieces(self) -> list[Piece]:
        """The parts of a snapshot; before the last one is taken, all that the patterns wait for
        must be taken, and what they found logged."""
        windows = self.windows
        found: list[Piece] = [
            partial(self._windows, name, buckets) for name, buckets in windows.pieces(PIECE_KEYS)
        ]
        found += [partial(self._table, name) for name in self.tables.names]
        return [
            *found,
            lambda _: self.heard.snapshot(),
            *(partial(_made, make) for make in self.ids.pieces(PIECE_IDS)),
            lambda _: self.changes.snapshot(),
            lambda offset: [self.reviews.snapshot(offset)],
            lambda offset: [self.exposures.snapshot(offset)],
            self.watch.pieces,
        ]

    def _windows(self, name: str, buckets: range, offset: int) -> list[pa.Table]:
        return [self.windows.piece(name, buckets, offset)]

    def _table(self, name: str, offset: int) -> list[pa.Table]:
        """A table knows by itself what it has counted."""
        return [self.tables.piece(name)]

    def restore(self, table: pa.Table) -> None:
        """Take one of these parts over; raises IntegrityError if it is of another definition."""
        takers = (
            self.ids.restore,
            self.changes.restore,
            self.watch.restore,
            self.heard.restore,
            self.reviews.restore,
            self.exposures.restore,
        )
        if not any(take(table) for take in takers) and not self.tables.restore([table]):
            self.windows.restore([table])

    def stats(self) -> dict[str, float]:
        """Gauges."""
        return {
            "keys": float(self.windows.keys),
            "state_bytes": float(self.windows.nbytes),
            "too_old": float(self.windows.too_old),
            "waiting_changes": float(len(self.changes)),
            **self.ids.stats(),
            **self.tables.stats,
            **self.watch.stats(),
            **self.heard.stats(),
        }


def _made(make: Callable[[], pa.Table], offset: int) -> list[pa.Table]:
    return [make()]
