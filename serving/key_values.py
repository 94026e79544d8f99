"""What is known about one key now: from the worker, or from the online store while it is away."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from raypipe.clock import Clock
from raypipe.errors import NotFound, Unavailable
from raypipe.project import Project
from raypipe.windows.aggregates import Op
from raypipe.windows.spec import Column, WindowView
from serving import schemas
from serving.decide import NoProfiles, Profiles, deadline

if TYPE_CHECKING:
    from pathlib import Path

    from features.online import OnlineRow, StateReader

ANSWER_S = 1.0
"""How long the worker has to answer."""

STORE_S = 1.0
"""How long the online store has."""

_log = logging.getLogger("raypipe.serving")


class LiveState(Protocol):
    """Owner of the window state; a raypipe.runtime.worker.client.WorkerClient is."""

    async def read(self, tenant: str, entity: str, key: str, now: int) -> dict[str, float]:
        """Window values of one key as of ``now``, by column."""


class StoredState(Protocol):
    """What was written of the window state, and may be old."""

    def read(self, view: WindowView, key: str, now: int) -> OnlineRow:
        """The key's last known row; raises RaypipeError when the store can't tell."""


class KeyValues:
    """Answers for the entities of a project that have windows or profiles.

    ``stored`` and ``profiles`` belong to one tenant: the online store knows no others.
    """

    def __init__(
        self,
        project: Project,
        worker: LiveState,
        stored: StoredState,
        stored_tenant: str,
        clock: Clock,
        profiles: Profiles | None = None,
    ) -> None:
        self._project = project
        self._worker = worker
        self._stored = stored
        self._stored_tenant = stored_tenant
        self._clock = clock
        self._profiles: Profiles = profiles or NoProfiles()

    async def read(
        self, tenant: str, entity: str, key: str, *, away: bool = False
    ) -> schemas.KeyFeatures:
        """The values of a key as of now.

        Args:
            away: whether the worker is known to be away, so that it isn't asked.

        Raises NotFound for an entity without any or an empty key, Unavailable when neither the
        worker nor the store answers.
        """
        known = dict.fromkeys(g.entity for g in self._project.groups)
        if entity not in known or not key:
            what = f"there is no entity {entity!r} with features" if key else "the key is empty"
            raise NotFound(
                what, hint=f"Ask for /v1/features/ENTITY/KEY; entities: {', '.join(known)}."
            )
        now = self._clock.now_ms()
        if not away:
            try:
                async with deadline(ANSWER_S):
                    values = await self._worker.read(tenant, entity, key, now)
                return await self._answer(tenant, entity, key, now, values, None)
            except Unavailable as e:
                _log.info("answering from the online store: %s", e.detail)
        if tenant != self._stored_tenant:
            raise Unavailable(
                "the worker is away, and the online store holds another tenant's state",
                hint="Retry.",
            )
        views = [v for v in self._project.views if v.entity == entity]
        async with deadline(STORE_S):
            rows = [await asyncio.to_thread(self._stored.read, v, key, now) for v in views]
        values = {}
        for view, row in zip(views, rows, strict=True):
            values |= aged(view, row, now)
        times = [row.event_time for row in rows if row.event_time is not None]
        age = now - min(times, default=now)
        return await self._answer(tenant, entity, key, now, values, age)

    async def _answer(
        self,
        tenant: str,
        entity: str,
        key: str,
        now: int,
        windows: Mapping[str, float],
        age: int | None,
    ) -> schemas.KeyFeatures:
        names = [n for p in self._project.profiles if p.entity == entity for n in p.column_names]
        slow = await self._slow(tenant, entity, key) if names else {}
        values = {**windows, **dict.fromkeys(names, math.nan), **(slow or {})}
        return schemas.KeyFeatures(
            entity=entity,
            key=key,
            as_of=now,
            values={n: v if math.isfinite(v) else None for n, v in values.items()},
            degraded=age is not None or slow is None,
            age_ms=age,
            definition_hash=self._project.definition_hash,
        )

    async def _slow(self, tenant: str, entity: str, key: str) -> dict[str, float] | None:
        """Profile values that are known of the key, by name; None when the store doesn't say."""
        profiles = self._project.profiles
        asked = {p.key: key if p.entity == entity else None for p in profiles}
        event = {"event_id": f"{entity} {key}", "tenant": tenant, **asked}
        known = await self._profiles.read(event)
        if known is None:
            return None
        mine = {n for p in profiles if p.entity == entity for n in p.column_names}
        found = zip(self._project.profile_names, known.values, strict=True)
        return {name: value for name, value in found if name in mine}


def aged(view: WindowView, row: OnlineRow, now: int) -> dict[str, float]:
    """A stored row as of ``now``: NaN where its window has moved on, or nothing is known."""
    if row.event_time is None:
        return dict.fromkeys(view.column_names, math.nan)
    age = now - row.event_time
    return {c.name: row.values[c.name] if _holds(view, c, age) else math.nan for c in view.columns}


def _holds(view: WindowView, column: Column, age: int) -> bool:
    if column.op is Op.LAST:
        return True
    if column.op is Op.SINCE_LAST:
        return age <= 0
    shortest = view.spans[column.span if column.minus < 0 else column.minus]
    return age < 1_000 * shortest.length


class OnlineStore:
    """The online store of a home, opened at the first question: it may not be there before."""

    def __init__(self, project: Project, home: Path, online_url: str | None) -> None:
        self._where = project, home, online_url
        self._opening = threading.Lock()
        self._reader: StateReader | None = None

    def read(self, view: WindowView, key: str, now: int) -> OnlineRow:
        """The key's last written row. Raises Unavailable when the store isn't here."""
        from features.online import StateReader

        with self._opening:
            if self._reader is None:
                try:
                    self._reader = StateReader(*self._where)
                except NotFound as e:
                    raise Unavailable(
                        f"the worker is away, and so is its deputy: {e.detail}", hint=e.hint
                    ) from e
        return self._reader.read(view, key, now)
