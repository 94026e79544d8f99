"""API keys, as the worker that holds them knows them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from raypipe.errors import Unavailable
from raypipe.tenancy.keys import Credential, Presented
from serving.key_shelf import KeyShelf

FRESH_S = 1.0
"""How long an answer is believed: a revoked key is refused everywhere after this."""

AGAIN_S = FRESH_S / 2
"""When a key in use is asked for again, beside the requests: they don't wait for it."""

AWAY_S = 300.0
"""How long a read believes it while the worker, which alone can say more, is away."""

_LIMIT = 10_000

_log = logging.getLogger("raypipe.serving")


class KeyHolder(Protocol):
    """Verifies keys; a raypipe.runtime.worker.client.WorkerClient does."""

    async def verify(self, shown: Presented) -> Credential | None:
        """The credential behind a key, or None."""


class Credentials:
    """Verifies keys with the worker, and remembers the good ones for a moment.

    Args:
        shelf: where the replicas of a node tell each other of good ones.
    """

    def __init__(
        self,
        holder: KeyHolder,
        clock: Callable[[], float] = time.monotonic,
        shelf: KeyShelf | None = None,
    ) -> None:
        self._holder = holder
        self._clock = clock
        self._shelf = shelf
        self._known: dict[bytes, tuple[float, Credential]] = {}
        self._asking: dict[bytes, asyncio.Task[Credential | None]] = {}

    def fresh(self, text: str) -> Credential | None:
        """The credential behind a key that the worker confirmed within FRESH_S, else None."""
        shown = Presented.parse(text)
        return None if shown is None else self._fresh(shown)

    async def verify(self, text: str) -> Credential | None:
        """The credential behind a key, or None when it is malformed, unknown, wrong or revoked.

        Waits for the worker: put a deadline around it.
        """
        shown = Presented.parse(text)
        return None if shown is None else self._fresh(shown) or await self._ask(shown)

    def _fresh(self, shown: Presented) -> Credential | None:
        since, known = self._known.get(shown.digest, (-FRESH_S, None))
        age = self._clock() - since
        if age >= FRESH_S:
            return None
        if age >= AGAIN_S and shown.digest not in self._asking:
            task = asyncio.get_running_loop().create_task(self._ask(shown))
            self._asking[shown.digest] = task
            task.add_done_callback(lambda done: self._asked(shown, done))
        return known

    async def _ask(self, shown: Presented) -> Credential | None:
        now = self._clock()
        found = await self._holder.verify(shown)
        if found is None:
            if self._known.pop(shown.digest, None) is not None and self._shelf is not None:
                self._shelf.drop(shown.digest)
            return None
        if self._shelf is not None:
            self._shelf.put(shown.digest, found)
        if len(self._known) >= _LIMIT:
            self._known.clear()
        self._known[shown.digest] = (now, found)
        return found

    def _asked(self, shown: Presented, task: asyncio.Task[Credential | None]) -> None:
        del self._asking[shown.digest]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.info("a key can't be asked for now: %s", error)  # the next request asks itself

    @property
    def remembered(self) -> Remembered:
        """Knows what the worker said lately, for reads while it is away."""
        return Remembered(self._known, self._clock, self._shelf)


class Remembered:
    """Verifies keys without the worker: only those that it confirmed within AWAY_S."""

    def __init__(
        self,
        known: Mapping[bytes, tuple[float, Credential]],
        clock: Callable[[], float],
        shelf: KeyShelf | None = None,
    ) -> None:
        self._known = known
        self._clock = clock
        self._shelf = shelf

    def fresh(self, text: str) -> None:
        """None: what it remembers is for reads alone."""

    async def verify(self, text: str) -> Credential | None:
        """The credential, None for a malformed key; raises Unavailable when it isn't remembered."""
        shown = Presented.parse(text)
        if shown is None:
            return None
        since, known = self._known.get(shown.digest, (-AWAY_S, None))
        if known is not None and self._clock() - since < AWAY_S:
            return known
        known = None if self._shelf is None else self._shelf.get(shown.digest)
        if known is None:
            raise Unavailable("the worker, which knows the API keys, is away", hint="Retry.")
        return known
