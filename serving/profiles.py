"""Profiles of an event from the online store, beside the way to the worker and within its time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from features.profiles.lookup import ProfileReader, Profiles
from raypipe.errors import RaypipeError, Unavailable

PATIENCE_S = 0.25
"""Longest wait for a server."""

PAUSE_S = 1.0
"""How long a store that is away isn't asked: requests must not queue up behind its timeouts."""

THREADS = 4

_log = logging.getLogger("raypipe.serving")


class OnlineProfiles:
    """Reads profiles; what can't be read in time is None, and logged.

    The store is of one tenant: of the keys of another, which may be the same texts, nothing is
    known. A server is asked in threads of our own. An embedded store is read at once: that takes
    less than the way to a thread and back.
    """

    def __init__(
        self,
        reader: ProfileReader,
        tenant: str,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reader = reader
        self._tenant = tenant
        self._monotonic = monotonic
        self._threads = None if reader.embedded else ThreadPoolExecutor(THREADS, "profiles")
        self._away_until = -float("inf")

    async def read(self, event: Mapping[str, Any]) -> Profiles | None:
        """The newest profiles of the event's keys; None when the store doesn't say."""
        if event["tenant"] != self._tenant:
            return self._reader.unknown
        if self._monotonic() < self._away_until:
            return None
        try:
            if self._threads is None:
                return self._reader.read(event)
            reading = asyncio.get_running_loop().run_in_executor(
                self._threads, self._reader.read, event
            )
            return await asyncio.wait_for(reading, PATIENCE_S)
        except (RaypipeError, TimeoutError) as e:
            # A damaged value is of its key alone: the store goes on for the others.
            if isinstance(e, Unavailable | TimeoutError):
                self._away_until = self._monotonic() + PAUSE_S
            _log.error("no profiles for %s: %s", event["event_id"], str(e) or "no answer in time")
            return None

    def close(self) -> None:
        """Let the store go; who still waits for an answer gets none."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        self._reader.close()
