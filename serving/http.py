"""The HTTP face: routes, headers and limits. What is decided, and how, lies in decide.py."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Message, Receive, Scope, Send

from features.parity_report import Report
from raypipe.errors import (
    BodyTooLarge,
    MalformedBody,
    NotFound,
    Unavailable,
    UnsupportedMedia,
)
from raypipe.tenancy.keys import Credential
from raypipe.tenancy.keys import Scope as KeyScope
from serving import schemas
from serving.auth import Keys, authorize
from serving.decide import Decider, Worker, deadline
from serving.key_values import KeyValues
from serving.metrics import CONTENT_TYPE, Metrics
from serving.problems import problem_of

JSON = "application/json"
READ_TIMEOUT_S = 1.0
"""How long a read waits for the worker."""

_log = logging.getLogger("raypipe.serving")
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_NO_ROUTE = "(none)"


@dataclass(frozen=True)
class Documents:
    """Rendered once: the OpenAPI document and its page."""

    openapi: bytes
    page: bytes
    page_headers: dict[str, str]


class HttpApp:
    """ASGI application of one replica.

    ``decider`` is None until a model is loaded, and is exchanged as a whole when another one is;
    a request keeps the one it began with. ``feature_names`` finds the features of an older model
    by its ``name@version``, ``last_parity`` the last report of `raypipe parity`. ``patience_s`` is
    how long a key may take to be verified; a worker that Ray starts again is back within a
    decision's deadline. ``echo_request_id`` is off where the server in front of this application
    already answers with X-Request-Id.
    """

    def __init__(
        self,
        *,
        keys: Keys,
        worker: Worker,
        key_values: KeyValues,
        metrics: Metrics,
        documents: Documents,
        feature_names: Callable[[str], Sequence[str] | None],
        last_parity: Callable[[], Report | None],
        replica: str,
        body_limit: int,
        patience_s: float = READ_TIMEOUT_S,
        echo_request_id: bool = True,
    ) -> None:
        self.decider: Decider | None = None
        self._keys = keys
        self._worker = worker
        self._key_values = key_values
        self._metrics = metrics
        self._documents = documents
        self._feature_names = feature_names
        self._last_parity = last_parity
        self._replica = replica
        self._body_limit = body_limit
        self._patience_s = patience_s
        self._echo = echo_request_id
        routes = (
            ("/v1/decisions", self._decide, "POST"),
            ("/v1/decisions/{decision_id}", self._decision, "GET"),
            ("/v1/features/{entity}/{key:path}", self._features, "GET"),
            ("/healthz", self._healthz, "GET"),
            ("/readyz", self._readyz, "GET"),
            ("/metrics", self._metrics_text, "GET"),
            ("/openapi.json", self._openapi, "GET"),
            ("/docs", self._docs, "GET"),
        )
        self._patterns: dict[Any, str] = {
            handler: path.replace(":path", "") for path, handler, _ in routes
        }
        self.router = Router(
            [Route(path, handler, methods=[method]) for path, handler, method in routes],
            redirect_slashes=False,
        )
        self.routes = self.router.routes  # Ray Serve labels its own metrics by these

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; every exception becomes a problem document."""
        if scope["type"] != "http":
            await self.router(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope["app"] = self  # makes the router raise its 404 and 405 instead of answering in text
        scope["raypipe.request_id"] = request_id
        status = 0

        async def tracked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._echo:
                    message.setdefault("headers", []).append(
                        (b"x-request-id", request_id.encode("ascii"))
                    )
            await send(message)

        try:
            await self.router(scope, receive, tracked)
        except Exception as e:
            if status:
                raise  # half an answer has left; only a broken connection can say so
            problem = problem_of(e, request_id)
            self._metrics.refused(problem.code)
            await problem(scope, receive, tracked)
        finally:
            route = self._patterns.get(scope.get("endpoint"), _NO_ROUTE)
            self._metrics.answered(route, status or 499)

    async def _decide(self, request: Request) -> Response:
        started = time.perf_counter()
        credential = await self._authorize(request, KeyScope.DECISIONS_WRITE)
        waited_s = time.perf_counter() - started
        _require_json(request)
        body = await self._read(request)
        record, replayed = await self._loaded().decide(
            credential.tenant, body, _idempotency_key(request), waited_s
        )
        answer = _json(schemas.answer(record, replayed))
        self._metrics.decided(record, replayed, time.perf_counter() - started)
        return answer

    async def _decision(self, request: Request) -> Response:
        credential = await self._authorize(request, KeyScope.DECISIONS_READ)
        wanted = request.path_params["decision_id"]
        async with deadline(READ_TIMEOUT_S):
            record = await self._worker.decision(credential.tenant, wanted)
        if record is None or record.tenant != credential.tenant:
            raise NotFound("there is no decision of that id", hint="Ids start with 'dec_'.")
        return _json(schemas.detail(record, self._feature_names(record.model)))

    async def _features(self, request: Request) -> Response:
        header, away = request.headers.get("authorization"), False
        try:
            async with deadline(READ_TIMEOUT_S):
                credential = await authorize(header, KeyScope.FEATURES_READ, self._keys)
        except Unavailable:
            away = True
            credential = await authorize(header, KeyScope.FEATURES_READ, self._keys.remembered)
        entity, key = request.path_params["entity"], request.path_params["key"]
        return _json(await self._key_values.read(credential.tenant, entity, key, away=away))

    async def _healthz(self, request: Request) -> Response:
        return _json(schemas.Health("ok"))

    async def _readyz(self, request: Request) -> Response:
        judge = self._loaded().judge
        async with deadline(READ_TIMEOUT_S):
            await self._worker.stats()
        return _json(
            schemas.Readiness(
                "ready", judge.model, judge.policy.id, judge.definition_hash, self._replica
            )
        )

    async def _metrics_text(self, request: Request) -> Response:
        try:
            async with deadline(READ_TIMEOUT_S):
                figures = await self._worker.stats()
        except Unavailable:
            figures = None
        try:
            parity = await asyncio.to_thread(self._last_parity)
        except (OSError, Unavailable) as e:
            _log.warning("the last parity report can't be read: %s", e)
            parity = None
        return Response(self._metrics.render(figures, parity), media_type=CONTENT_TYPE)

    async def _openapi(self, request: Request) -> Response:
        return Response(self._documents.openapi, media_type=JSON)

    async def _docs(self, request: Request) -> Response:
        return Response(
            self._documents.page, media_type="text/html", headers=self._documents.page_headers
        )

    async def _authorize(self, request: Request, scope: KeyScope) -> Credential:
        async with deadline(self._patience_s):
            return await authorize(request.headers.get("authorization"), scope, self._keys)

    def _loaded(self) -> Decider:
        if self.decider is None:
            raise Unavailable("no model is loaded yet", hint="Wait until /readyz answers 200.")
        return self.decider

    async def _read(self, request: Request) -> bytes:
        declared = request.headers.get("content-length", "")
        # The digits first: int() refuses thousands of them.
        if declared.isdecimal() and (len(declared) > 18 or int(declared) > self._body_limit):
            raise self._too_large()
        chunks, size = [], 0
        try:
            async for chunk in request.stream():
                size += len(chunk)
                if size > self._body_limit:
                    raise self._too_large()
                chunks.append(chunk)
        except ClientDisconnect:
            raise MalformedBody("the connection ended within the body") from None
        return b"".join(chunks)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(
            f"the body is over {self._body_limit} bytes", hint="One event is a few hundred."
        )


def _json(value: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(value), media_type=JSON)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text: str = value.decode("latin-1")
            if _REQUEST_ID.fullmatch(text):
                return text
    return uuid.uuid4().hex


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and len(key) >= 2 and key[0] == key[-1] == '"':
        return key[1:-1]  # the structured-field form of the IETF draft
    return key


def _require_json(request: Request) -> None:
    media, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = re.search(r"charset\s*=\s*\"?([^\s;\"]+)", parameters, re.IGNORECASE)
    if media.strip().lower() != JSON or (charset and charset[1].lower() not in ("utf-8", "utf8")):
        raise UnsupportedMedia(
            f"this route reads {JSON} in UTF-8 only", hint=f"Send 'Content-Type: {JSON}'."
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMedia("this route reads no compressed bodies", hint="Send it plain.")
