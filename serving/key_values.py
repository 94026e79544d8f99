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
from serving.decide import deadline

if TYPE_CHECKING:
    import feast

    from features.online import OnlineRow
    from raypipe.config import Settings

ANSWER_S = 1.0
"""How long the worker has to answer."""

OPEN_S = 30.0
"""How long the online store has: importing Feast, which happens once, takes seconds."""

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
    """Answers for the entities of a project that have windows.

    ``stored`` belongs to one tenant: the online store knows no others.
    """

    def __init__(
        self,
        project: Project,
        worker: LiveState,
        stored: StoredState,
        stored_tenant: str,
        clock: Clock,
    ) -> None:
        self._project = project
        self._worker = worker
        self._stored = stored
        self._stored_tenant = stored_tenant
        self._clock = clock

    async def read(
        self, tenant: str, entity: str, key: str, *, away: bool = False
    ) -> schemas.KeyFeatures:
        """The values of a key as of now.

        Args:
            away: whether the worker is known to be away, so that it isn't asked.

        Raises NotFound for an entity without windows or an empty key, Unavailable when neither the
        worker nor the store answers.
        """
        views = [v for v in self._project.views if v.entity == entity]
        if not views or not key:
            known = ", ".join(dict.fromkeys(v.entity for v in self._project.views))
            what = f"there is no entity {entity!r} with windows" if key else "the key is empty"
            raise NotFound(what, hint=f"Ask for /v1/features/ENTITY/KEY; entities: {known}.")
        now = self._clock.now_ms()
        if not away:
            try:
                async with deadline(ANSWER_S):
                    values = await self._worker.read(tenant, entity, key, now)
                return self._answer(entity, key, now, values, None)
            except Unavailable as e:
                _log.info("answering from the online store: %s", e.detail)
        if tenant != self._stored_tenant:
            raise Unavailable(
                "the worker is away, and the online store holds another tenant's state",
                hint="Retry.",
            )
        async with deadline(OPEN_S):
            rows = [await asyncio.to_thread(self._stored.read, v, key, now) for v in views]
        values = {}
        for view, row in zip(views, rows, strict=True):
            values |= aged(view, row, now)
        times = [row.event_time for row in rows if row.event_time is not None]
        return self._answer(entity, key, now, values, now - min(times, default=now))

    def _answer(
        self, entity: str, key: str, now: int, values: Mapping[str, float], age: int | None
    ) -> schemas.KeyFeatures:
        return schemas.KeyFeatures(
            entity=entity,
            key=key,
            as_of=now,
            values={n: v if math.isfinite(v) else None for n, v in values.items()},
            degraded=age is not None,
            age_ms=age,
            definition_hash=self._project.definition_hash,
        )


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
    """The Feast online store of a home, opened at the first question."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._opening = threading.Lock()
        self._store: feast.FeatureStore | None = None

    def read(self, view: WindowView, key: str, now: int) -> OnlineRow:
        """The key's last written row. Raises Unavailable when nothing was registered here."""
        from features import online
        from features.store.repo import open_store

        with self._opening:
            if self._store is None:
                self._store = open_store(self._settings.home, self._settings.online_url)
        try:
            [row] = online.read(self._store, view, [key], now)
        except NotFound as e:
            raise Unavailable(
                f"the worker is away, and the online store can't answer: {e.detail}", hint="Retry."
            ) from e
        return row
