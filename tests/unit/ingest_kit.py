"""Bulk events in one process: the ingest application over a real log and a real quarantine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from raypipe.clock import ManualClock
from raypipe.errors import Unavailable
from raypipe.events.quarantine import Quarantine
from raypipe.log.sqlite import SqliteLog
from raypipe.project import Project
from raypipe.runtime.sender import Sender
from raypipe.runtime.worker import protocol
from raypipe.runtime.worker.core import WorkerCore
from raypipe.runtime.worker.intake import Bulk
from raypipe.tenancy.keys import Credential, KeyStore, Presented
from serving.credentials import Credentials
from serving.events import Events
from serving.ingest import IngestApp
from serving.metrics import Metrics
from tests.unit.serving_kit import NOW, PROJECT, body

LIMIT = 65_536
DECLARED = len(PROJECT.events)
"""Rows of a new log before its first event."""
LINES = "application/x-ndjson"
ARROW = "application/vnd.apache.arrow.stream"


class CoreWorker:
    """A worker in this process: the same core, without sockets."""

    def __init__(self, home: Path, keys: KeyStore, clock: ManualClock) -> None:
        self.log = SqliteLog(home / "log")
        self.quarantine = Quarantine(home / "quarantine.db", clock)
        self.keys = keys
        self.failure: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.start()

    def start(self) -> None:
        self.core = WorkerCore(PROJECT, self.log, quarantine=self.quarantine)

    async def ingest(self, project: Project, bulk: Bulk) -> protocol.Ingested:
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        receipt = self.core.ingest(bulk)
        self.core.commit()
        return protocol.Ingested(
            1, receipt.received_at, receipt.first_offset, receipt.accepted, receipt.duplicates
        )

    async def figures(self, within_s: float) -> list[dict[str, float] | None]:
        try:
            return [await self.stats()]
        except Unavailable:
            return [None]

    async def stats(self) -> dict[str, float]:
        if self.failure is not None:
            raise self.failure
        return self.core.stats()

    async def verify(self, shown: Presented) -> Credential | None:
        return self.keys.verify(shown)


class Service:
    def __init__(self, home: Path) -> None:
        self.clock = ManualClock(NOW)
        keys = KeyStore(home / "tenants.db", self.clock)
        self.worker = CoreWorker(home, keys, self.clock)
        self.key = keys.create("default", ["events:write"])
        self.reader = keys.create("default", ["features:read"])
        self.other = keys.create("other", ["events:write"])
        self.events = Events(
            PROJECT, self.worker, "EUR", self.clock, body_limit=LIMIT, waiting_limit=2 * LIMIT
        )
        self.app = IngestApp(
            Credentials(self.worker), self.worker, self.events, Metrics("ingest"), 1.0
        )

    async def call(
        self,
        content: bytes | AsyncIterator[bytes],
        media: str = LINES,
        query: str = "",
        key: str | None = None,
        **headers: str,
    ) -> httpx.Response:
        sent = {"Content-Type": media, "Authorization": f"Bearer {key or self.key}"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post(f"/v1/events{query}", content=content, headers=sent)

    def post(self, content: bytes, *args: Any, **kwargs: Any) -> httpx.Response:
        return asyncio.run(self.call(content, *args, **kwargs))

    def logged(self) -> list[tuple[str, str]]:
        """Kind and id of every event, in order."""
        found = {}
        for chunk in self.worker.log.read(0, DECLARED, 10**6):
            names = chunk.batch.column("event_id").to_pylist()
            found |= dict(
                zip(chunk.offsets.tolist(), ((chunk.kind, n) for n in names), strict=True)
            )
        return [found[at] for at in sorted(found)]

    def sender(self, key: str | None = None, **options: Any) -> Sender:
        """What posts to this application as to a server."""
        return Sender("http://test", key or self.key, transport=_Direct(self.app), **options)


class _Direct(httpx.BaseTransport):
    """An ASGI application for a client that isn't asynchronous."""

    def __init__(self, app: Any) -> None:
        self._transport = httpx.ASGITransport(app)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        async def answer() -> httpx.Response:
            answer = await self._transport.handle_async_request(request)
            content = await answer.aread()
            return httpx.Response(answer.status_code, headers=answer.headers, content=content)

        return asyncio.run(answer())


def reading(event_id: str, **changes: Any) -> dict[str, Any]:
    return {"type": "reading"} | body(event_id=event_id, **changes)


def fault(event_id: str) -> dict[str, Any]:
    return {
        "type": "fault",
        "event_id": event_id,
        "event_time": NOW,
        "reading_id": "r",
        "sensor_id": "s-1",
    }


def lines(*rows: dict[str, Any]) -> bytes:
    return b"\n".join(json.dumps(row).encode() for row in rows)
