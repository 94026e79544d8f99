"""The HTTP face: routes, headers and limits. What is decided, and how, lies in decide.py."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope

from features.parity_report import Report
from raypipe.errors import NotFound, Unavailable
from raypipe.tenancy.keys import Scope as KeyScope
from serving import schemas
from serving.auth import Keys, authorize
from serving.autoscaling import Latencies
from serving.batch import Batches
from serving.batch import Limits as BatchLimits
from serving.deadlines import HEADER
from serving.decide import Decider, Worker, deadline
from serving.entrance import Entrance
from serving.events import Events
from serving.exchange import (
    JSON,
    headers_of,
    idempotency_key,
    read_body,
    require_json,
    text_of,
)
from serving.experiments import Experiments
from serving.explain import Explainer, wants_reasons
from serving.face import Face
from serving.http_metrics import CONTENT_TYPE
from serving.key_values import KeyValues
from serving.metrics import Metrics
from serving.reviews import Reviews
from serving.tables import TableReader

READ_TIMEOUT_S = 1.0
"""How long a read waits for the worker."""

LATELY_S = 2.0
"""Of what time the p95 is that the autoscaler is told."""

_DEADLINE = HEADER.lower().encode()
_log = logging.getLogger("raypipe.serving")


@dataclass(frozen=True)
class Documents:
    """Rendered once: the OpenAPI document and its page."""

    openapi: bytes
    page: bytes
    page_headers: dict[str, str]


class HttpApp(Face):
    """ASGI application of one replica.

    ``decider`` is None until a model is loaded, and is exchanged as a whole when another one is;
    a request keeps the one it began with. ``release`` is the number of the release that it is of.
    ``feature_names`` finds the features of an older model by its ``name@version``, ``last_parity``
    the last report of `raypipe parity`. ``patience_s`` is as in Face: a worker that Ray starts
    again is back within a decision's deadline.
    """

    def __init__(
        self,
        *,
        keys: Keys,
        entrance: Entrance,
        worker: Worker,
        key_values: KeyValues,
        tables: TableReader,
        events: Events,
        explainer: Explainer,
        reviews: Reviews,
        experiments: Experiments,
        metrics: Metrics,
        documents: Documents,
        feature_names: Callable[[str], Sequence[str] | None],
        last_parity: Callable[[], Report | None],
        replica: str,
        body_limit: int,
        batch_limits: BatchLimits,
        patience_s: float = READ_TIMEOUT_S,
        echo_request_id: bool = True,
    ) -> None:
        self.decider: Decider | None = None
        self.release = 0
        self.latencies = Latencies(LATELY_S)
        self._entrance = entrance
        self._known = keys
        self._metrics = metrics
        self._worker = worker
        self._events = events
        self._explainer = explainer
        self._batches = Batches(batch_limits, explainer, metrics, entrance)
        self._reviews = reviews
        self._experiments = experiments
        self._key_values = key_values
        self._tables = tables
        self._documents = documents
        self._feature_names = feature_names
        self._last_parity = last_parity
        self._replica = replica
        self._body_limit = body_limit
        super().__init__(
            (
                ("/v1/decisions:batch", self._decide_batch, "POST"),
                ("/v1/decisions/{decision_id}", self._decision, "GET"),
                ("/v1/decisions/{decision_id}/outcome", self._outcome, "POST"),
                ("/v1/reviews", self._list_reviews, "GET"),
                ("/v1/reviews/{decision_id}:claim", self._claim, "POST"),
                ("/v1/reviews/{decision_id}:verdict", self._verdict, "POST"),
                ("/v1/events", self._take_events, "POST"),
                ("/v1/features/{entity}/{key:path}", self._features, "GET"),
                ("/v1/tables/{name}", self._table, "GET"),
                ("/v1/experiments/{reference}", self._experiment, "GET"),
                ("/healthz", self._healthz, "GET"),
                ("/readyz", self._readyz, "GET"),
                ("/metrics", self._metrics_text, "GET"),
                ("/openapi.json", self._openapi, "GET"),
                ("/docs", self._docs, "GET"),
            ),
            keys,
            metrics,
            patience_s=patience_s,
            echo_request_id=echo_request_id,
            direct={("POST", "/v1/decisions"): self._decide},
        )

    async def _decide(self, scope: Scope, receive: Receive) -> bytes:
        started, headers = time.perf_counter(), headers_of(scope)
        with await self._entrance.enter(
            text_of(headers, b"authorization"),
            text_of(headers, _DEADLINE),
            KeyScope.DECISIONS_WRITE,
        ) as admitted:
            require_json(headers)
            explain, decider = wants_reasons(scope.get("query_string", b"")), self._loaded()
            body = await read_body(
                receive, headers, self._body_limit, "One event is a few hundred."
            )
            record, replayed = await decider.decide(
                admitted.credential.tenant, body, idempotency_key(headers), admitted.budget
            )
            if explain:
                record = await self._explainer.tried(record, decider.judge)
            answer = msgspec.json.encode(schemas.answer(record, replayed))
        took_s = time.perf_counter() - started
        self._metrics.decided(record, replayed, took_s)
        self.latencies.add(took_s)
        return answer

    async def _decide_batch(self, request: Request) -> Response:
        started = time.perf_counter()
        admitted = await self._entrance.admit(
            request.headers.get("authorization"),
            request.headers.get(HEADER),
            KeyScope.DECISIONS_WRITE,
        )
        return await self._batches.take(request, admitted, self._loaded(), started)

    async def _take_events(self, request: Request) -> Response:
        credential = await self._authorize(request, KeyScope.EVENTS_WRITE)
        return await self._events.take(request, credential.tenant)

    async def _decision(self, request: Request) -> Response:
        credential = await self._authorize(request, KeyScope.DECISIONS_READ)
        wanted = request.path_params["decision_id"]
        async with deadline(READ_TIMEOUT_S):
            record = await self._worker.decision(credential.tenant, wanted)
        if record is None or record.tenant != credential.tenant:
            raise NotFound("there is no decision of that id", hint="Ids start with 'dec_'.")
        if wants_reasons(request.scope.get("query_string", b"")):
            record = await self._explainer.explained(record, self._loaded().judge)
        return _json(schemas.detail(record, self._feature_names(record.model)))

    async def _outcome(self, request: Request) -> Response:
        credential = await self._authorize(request, KeyScope.OUTCOMES_WRITE)
        require_json(headers_of(request.scope))
        wanted = request.path_params["decision_id"]
        return _json(await self._reviews.outcome(request, credential, wanted))

    async def _list_reviews(self, request: Request) -> Response:
        credential = await self._authorize(request, KeyScope.REVIEWS_READ)
        return _json(await self._reviews.page(credential.tenant, request.query_params))

    async def _claim(self, request: Request) -> Response:
        credential = await self._authorize(request, KeyScope.REVIEWS_WRITE)
        wanted = request.path_params["decision_id"]
        return _json(await self._reviews.claim(request, credential, wanted))

    async def _verdict(self, request: Request) -> Response:
        credential = await self._authorize(request, KeyScope.REVIEWS_WRITE)
        require_json(headers_of(request.scope))
        wanted = request.path_params["decision_id"]
        return _json(await self._reviews.verdict(request, credential, wanted))

    async def _features(self, request: Request) -> Response:
        header, away = request.headers.get("authorization"), False
        try:
            async with deadline(READ_TIMEOUT_S):
                credential = await authorize(header, KeyScope.FEATURES_READ, self._known)
        except Unavailable:
            away = True
            credential = await authorize(header, KeyScope.FEATURES_READ, self._known.remembered)
        entity, key = request.path_params["entity"], request.path_params["key"]
        return _json(await self._key_values.read(credential.tenant, entity, key, away=away))

    async def _table(self, request: Request) -> Response:
        credential = await self._authorize(request, KeyScope.FEATURES_READ)
        name = request.path_params["name"]
        return _json(await self._tables.read(credential.tenant, name, request.query_params))

    async def _experiment(self, request: Request) -> Response:
        credential = await self._authorize(request, KeyScope.DECISIONS_READ)
        wanted = request.path_params["reference"]
        return _json(await self._experiments.read(credential.tenant, wanted))

    async def _healthz(self, request: Request) -> Response:
        return _json(schemas.Health("ok"))

    async def _readyz(self, request: Request) -> Response:
        decider = self._loaded()
        status: Literal["ready", "degraded"] = "ready"
        judge = decider.judge
        try:
            async with deadline(READ_TIMEOUT_S):
                await self._worker.stats()
        except Unavailable:
            if not decider.alone:
                raise
            status = "degraded"
        return _json(
            schemas.Readiness(
                status,
                judge.model,
                judge.policy.id,
                judge.definition_hash,
                self._replica,
                self.release,
            )
        )

    async def _metrics_text(self, request: Request) -> Response:
        figures = await self._worker.figures(READ_TIMEOUT_S)
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

    def _loaded(self) -> Decider:
        if self.decider is None:
            raise Unavailable("no model is loaded yet", hint="Wait until /readyz answers 200.")
        return self.decider


def _json(value: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(value), media_type=JSON)
