"""Profiles of an event from the online store, beside the way to the worker and within its time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from features.profiles.lookup import ProfileReader, Profiles
from raypipe.errors import RaypipeError

PATIENCE_S = 0.25
"""Longest wait for the online store."""

PAUSE_S = 1.0
"""How long a store that failed isn't asked: requests must not queue up behind its timeouts."""

THREADS = 4

_log = logging.getLogger("raypipe.serving")


class OnlineProfiles:
    """Reads profiles in threads of its own; what can't be read in time is None, and logged."""

    def __init__(self, reader: ProfileReader) -> None:
        self._reader = reader
        self._threads = ThreadPoolExecutor(THREADS, "profiles")
        self._away_until = 0.0

    async def read(self, event: Mapping[str, Any]) -> Profiles | None:
        """The newest profiles of the event's keys; None when the store doesn't say."""
        if time.monotonic() < self._away_until:
            return None
        reading = asyncio.get_running_loop().run_in_executor(
            self._threads, self._reader.read, event
        )
        try:
            return await asyncio.wait_for(reading, PATIENCE_S)
        except (RaypipeError, TimeoutError) as e:
            self._away_until = time.monotonic() + PAUSE_S
            _log.error("no profiles for %s: %s", event["event_id"], e or "no answer in time")
            return None
