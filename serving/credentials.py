"""API keys, as the worker that holds them knows them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from raypipe.tenancy.keys import Credential, Presented

FRESH_S = 1.0
"""How long an answer is believed: a revoked key is refused everywhere after this."""

_LIMIT = 10_000


class KeyHolder(Protocol):
    """Verifies keys; a raypipe.runtime.worker.client.WorkerClient does."""

    async def verify(self, shown: Presented) -> Credential | None:
        """The credential behind a key, or None."""


class Credentials:
    """Verifies keys with the worker, and remembers the good ones for a moment."""

    def __init__(self, holder: KeyHolder, clock: Callable[[], float] = time.monotonic) -> None:
        self._holder = holder
        self._clock = clock
        self._known: dict[bytes, tuple[float, Credential]] = {}

    async def verify(self, text: str) -> Credential | None:
        """The credential behind a key, or None when it is malformed, unknown, wrong or revoked.

        Waits for the worker: put a deadline around it.
        """
        shown = Presented.parse(text)
        if shown is None:
            return None
        now = self._clock()
        since, known = self._known.get(shown.digest, (-FRESH_S, None))
        if known is not None and now - since < FRESH_S:
            return known
        found = await self._holder.verify(shown)
        if found is None:
            self._known.pop(shown.digest, None)
            return None
        if len(self._known) >= _LIMIT:
            self._known.clear()
        self._known[shown.digest] = (now, found)
        return found
