"""Decisions while the worker is away: from the last state that it wrote, kept on this node."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np

from raypipe.aborts import reach
from raypipe.errors import RaypipeError
from raypipe.ledger.record import NOWHERE, WORKER_AWAY, DecisionRecord, OwnerOffsets
from raypipe.ledger.spill import Spilled, other_body
from raypipe.project import Project
from raypipe.vector.assemble import WINDOW_VALUE
from serving.deadlines import LEAST_S, Reserve
from serving.decide import Decided, Known, Observation, Profiles
from serving.key_values import StoredState, aged
from serving.presence import Presence

NO_WINDOWS = "no_windows"
"""Why besides: windows can't be read, or are of another tenant: the policy's on_error answers."""

READERS = 4
PROFILES_S = 0.1

_log = logging.getLogger("raypipe.serving")

Judging = Callable[[Observation, Known | None, tuple[str, ...]], DecisionRecord]
"""Decides about what is known of an event, and of what is not, why the decision is degraded."""


class Keeping(Protocol):
    """Keeps decisions on this node; a serving.spill.SpillWriter does."""

    async def keep(self, one: Spilled) -> DecisionRecord:
        """Store a decision durably; the first one about its event."""

    def find(self, tenant: str, event_id: str) -> Spilled | None:
        """The decision about an event, while it waits for the log."""


class Logged(Protocol):
    """What the log says without its worker, as far as this node has it."""

    async def find(self, event: Mapping[str, Any], body_hash: bytes) -> DecisionRecord | None:
        """The decision about an event; raises Conflict when its id came with another body."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """An event that no worker has seen yet, with the windows that were written of its keys."""

    event: Mapping[str, Any]
    windows: bytes
    offset: int = NOWHERE
    own: bytes = b""
    owner_offsets: OwnerOffsets = msgspec.UNSET
    decision: bytes | None = None


class Fallback:
    """Answers without the worker, never without a record.

    Args:
        stored: the online store, which knows the windows of ``tenant`` alone.
        logged: None where this node can't read the log.
    """

    def __init__(
        self,
        project: Project,
        stored: StoredState,
        tenant: str,
        spill: Keeping,
        presence: Presence,
        logged: Logged | None = None,
        reserve_s: float = LEAST_S,
    ) -> None:
        self._project = project
        self._stored = stored
        self._tenant = tenant
        self._spill = spill
        self._logged = logged
        self._readers = ThreadPoolExecutor(READERS, "fallback")
        self.presence = presence
        self.reserve = Reserve(reserve_s)

    async def warm(self) -> None:
        """Open what is read, so that the first decision without the worker does not wait for it."""
        event: dict[str, Any] = dict.fromkeys((v.key for v in self._project.views), "none")
        event |= {"tenant": self._tenant, "event_id": "none", "event_time": 0, "received_at": 0}
        await self._windows(event)
        if self._logged is not None:
            await self._logged.find(event, b"")

    def patience(self, left_s: float) -> float:
        """How long a request waits for the worker; 0: not at all."""
        return left_s - self.reserve.of(left_s) if self.presence.worth_asking else 0.0

    def told(self, event: Mapping[str, Any], body_hash: bytes) -> DecisionRecord | None:
        """What a client was told about an event that the log may not have yet.

        Raises Conflict when its id came with another body.
        """
        found = self._spill.find(event["tenant"], event["event_id"])
        if found is not None and found.body_hash != body_hash:
            raise other_body(event["event_id"])
        return None if found is None else found.record

    async def decide(
        self,
        event: dict[str, Any],
        body_hash: bytes,
        judging: Judging,
        profiles: Profiles,
        mine: DecisionRecord | None,
    ) -> Decided:
        """The decision about an event, durable on this node.

        Args:
            mine: one that was sent to the worker, which may have recorded it: no other is made.

        Raises Conflict for an id that came with another body, Unavailable when nothing can be kept.
        """
        began = time.monotonic()
        known = self.told(event, body_hash)
        if known is None and self._logged is not None:
            known = await self._logged.find(event, body_hash)
        if known is not None:
            return Decided(known, True)
        if mine is None:
            mine = await self._judged(event, judging, profiles)
        kept = await self._spill.keep(Spilled(event, body_hash, mine.told))
        reach("serving.after_spill")
        self.reserve.took(time.monotonic() - began)
        return Decided(kept, kept != mine.told)

    async def _judged(
        self, event: dict[str, Any], judging: Judging, profiles: Profiles
    ) -> DecisionRecord:
        reading = asyncio.ensure_future(self._profiles(event, profiles))
        windows = await self._windows(event)
        known = await reading
        why = (WORKER_AWAY,) if windows is not None else (WORKER_AWAY, NO_WINDOWS)
        seen = Remembered(event, windows or b"")
        return judging(seen, known if windows is not None else None, why)

    async def _profiles(self, event: Mapping[str, Any], profiles: Profiles) -> Known | None:
        try:
            async with asyncio.timeout(PROFILES_S):
                return await profiles.read(event)
        except TimeoutError:
            return None

    async def _windows(self, event: Mapping[str, Any]) -> bytes | None:
        """Window values as a worker gives them, NaN where nothing certain is known; None when the
        store doesn't answer or is of another tenant."""
        if event["tenant"] != self._tenant:
            return None
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._readers, self._read, event)
        except RaypipeError as e:
            _log.error("no windows for %s: %s", event["event_id"], e.detail)
            return None

    def _read(self, event: Mapping[str, Any]) -> bytes:
        now = max(event["event_time"], event["received_at"])
        values: list[float] = []
        for view in self._project.views:
            key = event[view.key]
            if key is None:
                values += [np.nan] * len(view.columns)
            else:
                values += aged(view, self._stored.read(view, key, now), now).values()
        return np.array(values, WINDOW_VALUE).tobytes()
