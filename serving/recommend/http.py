"""The HTTP face of the recommender: routes, query and metrics. Lists are made at the desk."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NoReturn

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from raypipe.errors import UsageError
from raypipe.tenancy.keys import Scope as KeyScope
from serving.auth import Verifier
from serving.autoscaling import Latencies
from serving.deadlines import HEADER
from serving.entrance import Admission, Entrance
from serving.exchange import JSON, headers_of, read_body, require_json, text_of
from serving.face import Face
from serving.http import LATELY_S, Documents
from serving.http_metrics import CONTENT_TYPE
from serving.recommend import body as bodies
from serving.recommend.body import BODY_LIMIT, MOST, Alive, FilterBody, Listed, Ready, Wanted
from serving.recommend.desk import Desk
from serving.recommend.metrics import RecommendMetrics

PREFIX = "/v1/recommendations"

_DEADLINE = HEADER.lower().encode()


class RecommendApp(Face):
    """ASGI application of one replica; ``desk`` has the version that answers."""

    def __init__(
        self,
        *,
        desk: Desk,
        keys: Verifier,
        entrance: Entrance,
        metrics: RecommendMetrics,
        documents: Documents,
        replica: str,
        patience_s: float,
        echo_request_id: bool = True,
    ) -> None:
        self.latencies = Latencies(LATELY_S)
        self._desk = desk
        self._entrance = entrance
        self._metrics = metrics
        self._documents = documents
        self._replica = replica
        super().__init__(
            (
                (f"{PREFIX}/similar/{{item_id:path}}", self._similar, "GET"),
                (f"{PREFIX}/trending", self._trending, "GET"),
                (f"{PREFIX}/healthz", self._healthz, "GET"),
                (f"{PREFIX}/readyz", self._readyz, "GET"),
                (f"{PREFIX}/metrics", self._metrics_text, "GET"),
                (f"{PREFIX}/openapi.json", self._openapi, "GET"),
                (f"{PREFIX}/docs", self._docs, "GET"),
            ),
            keys,
            metrics,
            patience_s=patience_s,
            echo_request_id=echo_request_id,
            direct={("POST", PREFIX): self._recommend},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; paths are whole, wherever the application is mounted."""
        if scope["type"] == "http" and (root := scope.get("root_path", "")):
            path = scope["path"]
            whole = path if path.startswith(root) else root.rstrip("/") + path
            scope = {**scope, "root_path": "", "path": whole}
        await super().__call__(scope, receive, send)

    async def _recommend(self, scope: Scope, receive: Receive) -> bytes:
        started, headers = time.perf_counter(), headers_of(scope)
        with await self._entrance.enter(
            text_of(headers, b"authorization"),
            text_of(headers, _DEADLINE),
            KeyScope.RECOMMENDATIONS_READ,
        ) as admitted:
            require_json(headers)
            data = await read_body(receive, headers, BODY_LIMIT, "A request is some hundred bytes.")
            wanted = bodies.read(data)
            listed = await self._desk.recommend(wanted, admitted.credential.tenant, admitted.budget)
        self._answered(started, listed)
        return msgspec.json.encode(listed)

    async def _similar(self, request: Request) -> Response:
        started, item = time.perf_counter(), request.path_params["item_id"]
        wanted = _wanted(request.query_params, ("k",))
        with await self._admit(request) as admitted:
            listed = self._desk.similar(item, wanted.k, admitted.credential.tenant, admitted.budget)
        self._answered(started, listed)
        return _json(listed)

    async def _trending(self, request: Request) -> Response:
        started = time.perf_counter()
        wanted = _wanted(request.query_params, ("k", "category", "brand"))
        with await self._admit(request) as admitted:
            listed = self._desk.trending(wanted, admitted.credential.tenant, admitted.budget)
        self._answered(started, listed)
        return _json(listed)

    async def _admit(self, request: Request) -> Admission:
        return await self._entrance.enter(
            request.headers.get("authorization"),
            request.headers.get(HEADER),
            KeyScope.RECOMMENDATIONS_READ,
        )

    def _answered(self, started: float, listed: Listed) -> None:
        took_s = time.perf_counter() - started
        self._metrics.listed(took_s, listed.explored, listed.degraded_by)
        self.latencies.add(took_s)

    async def _healthz(self, request: Request) -> Response:
        return _json(Alive("ok"))

    async def _readyz(self, request: Request) -> Response:
        stage = self._desk.stage
        engine = stage.engine
        return _json(
            Ready(
                "ready",
                engine.loaded.retriever.reference,
                engine.loaded.reference,
                engine.selection.reference,
                engine.width,
                stage.offset,
                self._replica,
            )
        )

    async def _metrics_text(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)

    async def _openapi(self, request: Request) -> Response:
        return Response(self._documents.openapi, media_type=JSON)

    async def _docs(self, request: Request) -> Response:
        return Response(
            self._documents.page, media_type="text/html", headers=self._documents.page_headers
        )


def _wanted(query: Mapping[str, str], known: tuple[str, ...]) -> Wanted:
    """A request from a query; raises UsageError for a wrong one."""
    unknown = sorted(set(query) - set(known))
    if unknown:
        raise UsageError(
            f"unknown parameter {unknown[0][:60]!r}", hint=f"There are {', '.join(known)}."
        )
    k = query.get("k", "10")
    if not (k.isascii() and k.isdecimal() and 1 <= int(k[:9]) <= MOST):
        _refuse("k", k, f"Give a number from 1 to {MOST}.")
    for name in ("category", "brand"):
        if not 1 <= len(query.get(name, "x")) <= 256:
            _refuse(name, query[name], "Give 1 to 256 characters.")
    words = {n: [query[n]] if n in query else None for n in ("category", "brand")}
    filters = FilterBody(categories=words["category"], brands=words["brand"])
    return Wanted(k=int(k), filters=filters)


def _refuse(name: str, value: str, hint: str) -> NoReturn:
    raise UsageError(f"{name}={value[:30]!r}", hint=hint)


def _json(value: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(value), media_type=JSON)
