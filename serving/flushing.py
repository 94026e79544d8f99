"""The worker's changed windows into the online store, no faster than a budget."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

import pyarrow as pa

from raypipe.errors import NotFound, RaypipeError

BATCH_ROWS = 2_000
"""Keys of one step: milliseconds of the worker's time, one transaction of the store."""

IDLE_S = 0.5
PAUSE_S = 5.0
"""After the store did not take rows."""

_log = logging.getLogger("raypipe.flush")


class Changing(Protocol):
    """Knows what changed; a raypipe.runtime.worker.client.WorkerClient does."""

    async def changes(self, limit: int, *, written: bool) -> tuple[str, pa.Table] | None:
        """Some keys of a view after their newest events."""


class Writer(Protocol):
    """Writes states; a features.flush.StateWriter does."""

    def write(self, view: str, rows: pa.Table) -> int:
        """Put rows online where they are newer."""


class Flusher:
    """Writes what changed for as long as ``run`` runs.

    Args:
        open_writer: opens the online store; raises NotFound while there is none.
        rows_per_second: what the worker and the store are given to do at most.
    """

    def __init__(
        self, worker: Changing, open_writer: Callable[[], Writer], rows_per_second: int
    ) -> None:
        self._worker = worker
        self._open = open_writer
        self._step_s = BATCH_ROWS / rows_per_second
        self._writer: Writer | None = None
        self._written = False
        self.rows = 0
        self.failures = 0

    async def run(self) -> None:
        """Go on until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            begin = loop.time()
            next_s = await self.step()
            await asyncio.sleep(max(0.0, begin + next_s - loop.time()))

    async def step(self) -> float:
        """Write one batch; returns after how many seconds the next is due."""
        try:
            if self._writer is None:
                self._writer = await asyncio.to_thread(self._open)
            found = await self._worker.changes(BATCH_ROWS, written=self._written)
            self._written = False
            if found is None:
                return IDLE_S
            await asyncio.to_thread(self._writer.write, *found)
        except NotFound:
            return PAUSE_S  # before the first `raypipe features`
        except RaypipeError as e:
            self.failures += 1
            _log.warning("window states stay offline for now: %s", e)
            return PAUSE_S
        self._written = True
        self.rows += found[1].num_rows
        return self._step_s
