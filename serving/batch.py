"""Many decisions in one request: each row is decided as if it had come alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from raypipe.errors import BodyTooLarge, MalformedBody, UnsupportedMedia, UsageError
from raypipe.ingest.media import Media, media_of, unpacked
from raypipe.ledger.record import DecisionRecord
from serving import schemas
from serving.decide import Decider
from serving.entrance import Admitted, Entrance
from serving.exchange import headers_of, idempotency_key
from serving.explain import Explainer, wants_reasons
from serving.face import read_body
from serving.problems import problem_of

if TYPE_CHECKING:
    from raypipe.config import Settings

LANES = 64
"""Rows of a request in work at once: the worker commits those that wait for it together."""

_HINT = "Send the rows in several requests."
_array = msgspec.json.Decoder(list[msgspec.Raw])


class Counted(Protocol):
    """Counts answers; a serving.metrics.Metrics does."""

    def decided(self, record: DecisionRecord, replayed: bool, seconds: float) -> None:
        """Count an answered decision."""

    def refused(self, code: str) -> None:
        """Count a problem document."""


class Limits(msgspec.Struct, frozen=True):
    """What one request may carry: rows, bytes of its body unpacked, bytes of a row."""

    rows: int
    body_bytes: int
    row_bytes: int

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """As the settings say."""
        return cls(settings.batch_rows, settings.batch_body_bytes, settings.body_limit_bytes)


class Batches:
    """Answers batch requests."""

    def __init__(
        self, limits: Limits, explainer: Explainer, counted: Counted, entrance: Entrance
    ) -> None:
        self._limits = limits
        self._entrance = entrance
        # Other requests find places too.
        self._lanes = max(1, min(LANES, entrance.gate.places // 2))
        self._explainer = explainer
        self._counted = counted

    async def take(
        self, request: Request, admitted: Admitted, decider: Decider, started: float
    ) -> Response:
        """Decide about each row, in order. 200 when all were decided, otherwise 207.

        Rows begin in the order of the request, so that an event is seen by the windows of those
        after it. They share one deadline: those that it finds unanswered are Unavailable.

        Args:
            started: when the request came, by time.perf_counter.

        Raises InputError for a body that can't be read.
        """
        explain = wants_reasons(request.scope.get("query_string", b""))
        rows = await self._rows(request)
        request_id: str = request.scope["raypipe.request_id"]
        results: list[schemas.BatchRow] = [schemas.BatchRow(500)] * len(rows)
        waiting = iter(enumerate(rows))

        async def lane() -> None:
            for number, row in waiting:
                try:
                    self._check(row)
                    with await self._entrance.place(admitted):
                        record, replayed = await decider.decide(
                            admitted.credential.tenant, row, None, admitted.budget
                        )
                except Exception as e:  # noqa: BLE001 - a row's error is the row's answer
                    results[number] = self._problem(e, f"{request_id}/{number}")
                    continue
                if explain:
                    record = await self._explainer.tried(record, decider.judge)
                self._counted.decided(record, replayed, time.perf_counter() - started)
                results[number] = schemas.BatchRow(200, schemas.answer(record, replayed))

        async with asyncio.TaskGroup() as lanes:
            for _ in range(min(self._lanes, len(rows))):
                lanes.create_task(lane())
        failed = sum(r.decision is None for r in results)
        answer = schemas.DecidedBatch(len(rows) - failed, failed, results)
        return Response(
            msgspec.json.encode(answer), 207 if failed else 200, media_type="application/json"
        )

    async def _rows(self, request: Request) -> list[bytes]:
        if idempotency_key(headers_of(request.scope)) is not None:
            raise UsageError(
                "a batch takes no Idempotency-Key", hint="Each row is known by its own event_id."
            )
        media = media_of(request.headers.get("content-type", ""))
        if media is Media.ARROW:
            raise UnsupportedMedia(
                "decisions are not asked for in Arrow",
                hint=f"Send {Media.ARRAY} or {Media.LINES}.",
            )
        packed = await read_body(request, self._limits.body_bytes, _HINT)
        encoding = request.headers.get("content-encoding", "")
        body = unpacked(packed, encoding, self._limits.body_bytes)
        rows = list(_split(body, media))
        if not rows:
            raise MalformedBody("the body has no events", hint="Send at least one row.")
        if len(rows) > self._limits.rows:
            raise BodyTooLarge(
                f"the body has {len(rows)} rows, over {self._limits.rows}", hint=_HINT
            )
        return rows

    def _check(self, row: bytes) -> None:
        if len(row) > self._limits.row_bytes:
            raise BodyTooLarge(f"the row is over {self._limits.row_bytes} bytes")

    def _problem(self, error: Exception, request_id: str) -> schemas.BatchRow:
        problem = problem_of(error, request_id)
        self._counted.refused(problem.code)
        written: Any = msgspec.Raw(problem.body)
        return schemas.BatchRow(problem.status_code, problem=written)


def _split(body: bytes, media: Media) -> Iterator[bytes]:
    """The rows as they came; what is in them is each one's own matter."""
    if media is Media.LINES:
        return (line for line in body.split(b"\n") if line.strip())
    try:
        return (bytes(row) for row in _array.decode(body))
    except msgspec.ValidationError:
        raise MalformedBody("the body is no JSON array of events", hint=_ROWS) from None
    except (msgspec.DecodeError, RecursionError) as e:
        raise MalformedBody(f"the body is not JSON: {e}", hint=_ROWS) from None


_ROWS = "Send [{...}, {...}], or one object a line as application/x-ndjson."
