"""Whether the worker is there, as the decisions of one replica notice it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from raypipe.errors import RaypipeError, Unavailable

SILENT_S = 0.5
"""A worker that answers nobody for so long, while it is asked, is away."""


class Reachable(Protocol):
    """A raypipe.runtime.worker.client.WorkerClient is one."""

    @property
    def reachable(self) -> bool:
        """Whether the connection stood when last heard of."""


class Presence:
    """Counts those who wait for the worker, and keeps others from waiting in vain.

    The first ones wait as long as they can afford: a worker that died is back soon. Once one of
    them waited in vain, or ``most`` wait for a worker that can't be reached, the others don't wait
    until ``back`` is called.
    """

    def __init__(
        self, worker: Reachable, most: int, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._worker = worker
        self._most = most
        self._monotonic = monotonic
        self._asking = 0
        self._heard = monotonic()
        self.away = False

    @property
    def worth_asking(self) -> bool:
        """Whether another request should wait for the worker."""
        return not self.away and (self._asking < self._most or self._worker.reachable)

    @contextmanager
    def asking(self) -> Iterator[None]:
        """A request waits for the worker while the block runs; it ends well with an answer."""
        if not self._asking:
            self._heard = self._monotonic()  # nobody asked before: that was no silence
        self._asking += 1
        try:
            yield
            self._heard = self._monotonic()
        except RaypipeError as e:
            if not isinstance(e, Unavailable):
                self._heard = self._monotonic()  # a refusal is an answer too
            raise
        finally:
            self._asking -= 1

    def in_vain(self) -> None:
        """A request has waited for as long as it could."""
        if not self._worker.reachable or self._monotonic() - self._heard >= SILENT_S:
            self.away = True

    def back(self) -> None:
        """The worker has answered somebody."""
        self.away = False
