"""Lists as events of the log, one row for each place: what was shown to whom, how likely that was,
and by which versions. Durable before the answer leaves, so that clicks can be judged by it.
"""

from __future__ import annotations

import hashlib
from typing import Any, Protocol

from raypipe.events.rows import batch_of
from raypipe.log.port import Group
from raypipe.project import Project
from raypipe.runtime.worker import protocol
from raypipe.runtime.worker.intake import Bulk
from serving.recommend.body import Item, Listed

KIND = "recommendation"
SOURCE = "/v1/recommendations"


class Taker(Protocol):
    """Takes rows in; a raypipe.runtime.worker.client.WorkerClient does."""

    async def ingest(self, project: Project, bulk: Bulk) -> protocol.Ingested:
        """Returns when the rows are durable."""


class Recorder:
    """Writes lists. A project that declares no ``recommendation`` event records none."""

    def __init__(self, project: Project, worker: Taker) -> None:
        self._project = project
        self._worker = worker
        names = {event.name for event in project.events}
        self._schema = project.event(KIND).arrow_schema if KIND in names else None

    @property
    def on(self) -> bool:
        """Whether lists are recorded."""
        return self._schema is not None

    async def record(
        self,
        listed: Listed,
        tenant: str,
        user: str | None,
        session: str | None,
        now_ms: int,
        profile_time: int | None,
    ) -> None:
        """Returns when all rows are durable. Raises Unavailable and what the worker says."""
        if self._schema is None or not listed.items:
            return
        name = listed.recommendation_id or ""
        common = {
            "tenant": tenant,
            "event_time": now_ms,
            "received_at": now_ms,
            "recommendation_id": name,
            "customer_id": user,
            "session_id": session,
            "explored": listed.explored,
            "policy": listed.models.policy,
            "ranker": listed.models.ranker,
            "profile_time": profile_time,
        }
        rows = [
            {**common, "event_id": f"{name}-{place}", "place": place, **_columns(item)}
            for place, item in enumerate(listed.items, 1)
        ]
        batch = batch_of(rows, self._schema)
        told = hashlib.sha256(name.encode()).digest()
        bulk = Bulk(tenant, Group.of(KIND, batch), now_ms, SOURCE, told)
        await self._worker.ingest(self._project, bulk)


def _columns(item: Item) -> dict[str, Any]:
    return {
        "item_id": item.item_id,
        "score": item.score,
        "propensity": item.propensity,
        "sponsored": item.sponsored,
        "reason": item.reason.kind,
    }
