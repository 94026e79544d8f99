"""Bulk events over HTTP: a body to rows, rows to the worker, and a result for every row."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from raypipe.clock import Clock, SystemClock
from raypipe.errors import Conflict, InputError, MalformedBody, Overloaded
from raypipe.ingest.bulk import Bulk, BulkReader
from raypipe.ingest.lines import TYPE, compile_lines
from raypipe.ingest.media import Media, media_of, unpacked
from raypipe.project import Project
from raypipe.runtime.worker import intake, protocol
from serving import schemas
from serving.decide import deadline
from serving.exchange import headers_of, idempotency_key
from serving.face import read_body

if TYPE_CHECKING:
    from raypipe.config import Settings

ANSWER_S = 30.0
"""How long a request waits for the worker; sent again after that, no row counts twice."""

SOURCE = "/v1/events"
"""What the quarantine says of where rows came from."""

_INLINE_BYTES = 16_384
_KEY_LIMIT = 128
_HINT = "Send the events in several requests."


class BulkWorker(Protocol):
    """Takes rows in; a raypipe.runtime.worker.client.WorkerClient does."""

    async def ingest(self, project: Project, bulk: intake.Bulk) -> protocol.Ingested:
        """Returns when the rows are durable."""


class Events:
    """Answers bulk requests.

    Args:
        body_limit: bytes of a body, unpacked.
        waiting_limit: bytes of bodies in work, over which requests are refused with Overloaded.
    """

    def __init__(
        self,
        project: Project,
        worker: BulkWorker,
        currency: str,
        clock: Clock,
        *,
        body_limit: int,
        waiting_limit: int,
    ) -> None:
        self._project = project
        self._worker = worker
        self._reader = BulkReader(project.events, currency)
        self._clock = clock
        self._body_limit = body_limit
        self._waiting_limit = waiting_limit
        self.waiting_bytes = 0

    @classmethod
    def of(cls, settings: Settings, project: Project, worker: BulkWorker) -> Events:
        """As the settings say; ready for its first request."""
        compile_lines()
        return cls(
            project,
            worker,
            settings.currency,
            SystemClock(),
            body_limit=settings.ingest_body_bytes,
            waiting_limit=settings.ingest_waiting_bytes,
        )

    async def take(self, request: Request, tenant: str) -> Response:
        """Take a request's rows in. 200 when none was refused, otherwise 207.

        Raises InputError for a body that can't be read, Overloaded, Conflict for a known
        idempotency key with another body, Unavailable when the worker doesn't answer.
        """
        key = _checked(idempotency_key(headers_of(request.scope)))
        media = media_of(request.headers.get("content-type", ""))
        with self._waiting() as wait:
            body = await read_body(request, self._body_limit, _HINT, wait)
            received_at = self._clock.now_ms()
            bulk = await self._read(request, media, body, tenant, received_at)
            if not bulk.rows:
                raise MalformedBody("the body has no events", hint="Send at least one row.")
            request_hash = hashlib.sha256(body).digest()
            ingested = await self._ingest(bulk, tenant, received_at, request_hash, key)
            if ingested.received_at != received_at:
                # A retry: what was too far in the future then may be fine now.
                first = ingested.received_at
                bulk = await self._read(request, media, body, tenant, first)
                if ingested.first_offset == protocol.SEVERAL_LOGS:
                    # Which worker has which row can only be told of the rows as they were then.
                    ingested = await self._ingest(bulk, tenant, first, request_hash, key)
        return Response(
            msgspec.json.encode(_taken(bulk, ingested)),
            207 if bulk.refused else 200,
            media_type="application/json",
        )

    async def _ingest(
        self, bulk: Bulk, tenant: str, received_at: int, body_hash: bytes, key: str | None
    ) -> protocol.Ingested:
        refused = [(r.kind, r.body, r.reasons) for r in bulk.refused]
        async with deadline(ANSWER_S):
            return await self._worker.ingest(
                self._project,
                intake.Bulk(tenant, bulk.group, received_at, SOURCE, body_hash, key, refused),
            )

    async def _read(
        self, request: Request, media: Media, body: bytes, tenant: str, received_at: int
    ) -> Bulk:
        """The rows of a body; in a thread if that takes long."""
        kind = request.query_params.get(TYPE)
        encoding = request.headers.get("content-encoding", "")

        def read() -> Bulk:
            plain = unpacked(body, encoding, self._body_limit)
            return self._reader.read(plain, media, kind, tenant, received_at)

        return await asyncio.to_thread(read) if len(body) > _INLINE_BYTES or encoding else read()

    @contextmanager
    def _waiting(self) -> Iterator[Callable[[int], None]]:
        """Counts the bytes of a request that is in work; raises Overloaded over the limit."""
        held = 0

        def wait(size: int) -> None:
            nonlocal held
            if self.waiting_bytes + size > self._waiting_limit:
                raise Overloaded(
                    f"{self.waiting_bytes} bytes of bulk events are in work",
                    hint="Send the request again after the time in Retry-After.",
                )
            self.waiting_bytes += size
            held += size

        try:
            yield wait
        finally:
            self.waiting_bytes -= held


def _checked(key: str | None) -> str | None:
    if key is not None and not (0 < len(key) <= _KEY_LIMIT and key.isascii() and key.isprintable()):
        raise InputError(
            "the Idempotency-Key is unfit", hint=f"Use 1 to {_KEY_LIMIT} printable characters."
        )
    return key


def _taken(bulk: Bulk, ingested: protocol.Ingested) -> schemas.Taken:
    numbers = np.frombuffer(ingested.duplicates, "<i4")
    if ingested.accepted + len(numbers) != len(bulk.accepted):
        raise Conflict(
            "the same request was answered under other declarations",
            hint="Its rows are in; look them up, or send them with another Idempotency-Key.",
        )
    doubled = bulk.accepted[numbers]
    found = [schemas.Exceptional(r.row, "refused", r.reasons) for r in bulk.refused]
    found += [schemas.Exceptional(row, "duplicate") for row in doubled.tolist()]
    return schemas.Taken(
        accepted=ingested.accepted,
        duplicates=len(doubled),
        refused=len(bulk.refused),
        first_offset=ingested.first_offset
        if ingested.accepted and ingested.first_offset != protocol.SEVERAL_LOGS
        else None,
        exceptions=tuple(sorted(found, key=lambda e: e.row)),
    )
