"""Whether the worker is there, as the decisions of one replica notice it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from raypipe.errors import RaypipeError, Unavailable

SILENT_S = 0.5
"""A worker that answers nobody for so long, while it is asked, is away."""

LOOK_S = 0.1
"""How often it is looked whether the worker can be reached."""


class Reachable(Protocol):
    """A raypipe.runtime.worker.client.WorkerClient is one."""

    @property
    def reachable(self) -> bool:
        """Whether the connection stood when last heard of."""


class Presence:
    """Counts those who wait for the worker, and keeps others from waiting in vain.

    The first ones wait: a worker that died may be back soon. Once it could not be reached for
    ``patience_s`` while somebody asked, or one has waited in vain for as long as it could, nobody
    waits any more, until ``back`` is called; nor do others while ``most`` wait for a worker that
    can't be reached.
    """

    def __init__(
        self,
        worker: Reachable,
        most: int,
        patience_s: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker = worker
        self._most = most
        self._patience_s = patience_s
        self._monotonic = monotonic
        self._asking: set[asyncio.Timeout] = set()
        self._heard = monotonic()
        self._unreached: float | None = None
        """Since when somebody has asked a worker that can't be reached."""
        self.away = False

    @property
    def worth_asking(self) -> bool:
        """Whether another request should wait for the worker."""
        return not self.away and (len(self._asking) < self._most or self._worker.reachable)

    @contextmanager
    def asking(self, limit: asyncio.Timeout) -> Iterator[None]:
        """A request waits for the worker while the block runs; it ends well with an answer.

        Args:
            limit: how long it may wait; now, once the worker is away.
        """
        if not self._asking:
            self._heard = self._monotonic()  # nobody asked before: that was no silence
        self._asking.add(limit)
        try:
            yield
            self._heard = self._monotonic()
        except RaypipeError as e:
            if not isinstance(e, Unavailable):
                self._heard = self._monotonic()  # a refusal is an answer too
            raise
        finally:
            self._asking.discard(limit)

    async def watch(self) -> None:
        """Look whether the worker can be reached, until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_S)

    def look(self) -> None:
        """The worker is away if it could not be reached for too long."""
        if self._worker.reachable or not self._asking:
            self._unreached = None
            return
        now = self._monotonic()
        if self._unreached is None:
            self._unreached = now
        if now - self._unreached >= self._patience_s:
            self._leave()

    def in_vain(self) -> None:
        """A request has waited for as long as it could."""
        if not self._worker.reachable or self._monotonic() - self._heard >= SILENT_S:
            self._leave()

    def _leave(self) -> None:
        self.away = True
        for limit in self._asking:
            if not limit.expired():
                limit.reschedule(0.0)  # at once: the loop's clock is past it

    def back(self) -> None:
        """The worker has answered somebody."""
        self.away = False
