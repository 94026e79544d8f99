"""What every HTTP application here does: request ids, problem documents, keys, metrics."""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Message, Receive, Scope, Send

from raypipe.errors import MalformedBody, NotFound
from raypipe.tenancy.keys import Credential
from raypipe.tenancy.keys import Scope as KeyScope
from serving.auth import Verifier, authorize
from serving.decide import deadline
from serving.exchange import JSON, Direct, headers_of, refuse_size
from serving.problems import problem_of

Handler = Callable[[Request], Awaitable[Response]]
Routes = Sequence[tuple[str, Handler, str]]
"""Path, handler, method."""

_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_KNOWN_ID = "raypipe.request_id"
_NO_ROUTE = "(none)"
_REPLACEMENT = "\ufffd"
_JSON = JSON.encode("ascii")


class Counted(Protocol):
    """Counts answers; a serving.http_metrics.HttpMetrics does."""

    def answered(self, route: str, status: int) -> None:
        """Count a request."""

    def refused(self, code: str) -> None:
        """Count a problem document."""


class Face:
    """An ASGI application of some routes.

    ``patience_s`` is how long a key may take to be verified. ``echo_request_id`` is off where the
    server in front of this application already answers with X-Request-Id. ``direct`` are routes by
    method and path that are answered without Starlette; they precede ``routes``.
    """

    def __init__(
        self,
        routes: Routes,
        keys: Verifier,
        counted: Counted,
        *,
        patience_s: float,
        echo_request_id: bool,
        direct: Mapping[tuple[str, str], Direct] | None = None,
    ) -> None:
        self._keys = keys
        self._counted = counted
        self._patience_s = patience_s
        self._echo = echo_request_id
        self._direct = dict(direct or {})
        # The router knows them too: for the methods of a path, and below a root path.
        routes = (
            *((path, _through(answer), method) for (method, path), answer in self._direct.items()),
            *routes,
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
        answer = self._direct.get((scope["method"], scope["path"]))
        if answer is not None:
            await self._answer(answer, scope, receive, send)
            return
        request_id = _request_id(scope)
        scope["app"] = self  # makes the router raise its 404 and 405 instead of answering in text
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
            _require_text(scope)
            await self.router(scope, receive, tracked)
        except Exception as e:
            if status:
                raise  # half an answer has left; only a broken connection can say so
            problem = problem_of(e, request_id)
            self._counted.refused(problem.code)
            await problem(scope, receive, tracked)
        finally:
            route = self._patterns.get(scope.get("endpoint"), _NO_ROUTE)
            self._counted.answered(route, status or 499)

    async def _answer(self, answer: Direct, scope: Scope, receive: Receive, send: Send) -> None:
        status = 0
        try:
            try:
                body = await answer(scope, receive)
                headers = [
                    (b"content-type", _JSON),
                    (b"content-length", str(len(body)).encode("ascii")),
                ]
                status = 200
            except Exception as e:  # noqa: BLE001 - every exception becomes a problem document
                problem = problem_of(e, _request_id(scope))
                self._counted.refused(problem.code)
                headers, status = problem.raw_headers, problem.status_code
                body = bytes(problem.body)
            if self._echo:
                headers.append((b"x-request-id", _request_id(scope).encode("ascii")))
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        finally:
            self._counted.answered(scope["path"], status or 499)

    async def _authorize(self, request: Request, scope: KeyScope) -> Credential:
        async with deadline(self._patience_s):
            return await authorize(request.headers.get("authorization"), scope, self._keys)


def _through(answer: Direct) -> Handler:
    async def handler(request: Request) -> Response:
        body = await answer(request.scope, request.receive)
        return Response(body, media_type=JSON)

    return handler


async def read_body(
    request: Request, limit: int, hint: str, came: Callable[[int], None] | None = None
) -> bytes:
    """The body as it came; raises BodyTooLarge over ``limit`` bytes, as soon as that is known.

    Args:
        came: told of the bytes of each piece before the next is read.
    """
    declared = request.headers.get("content-length", "")
    # The digits first: int() refuses thousands of them.
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > limit):
        refuse_size(limit, hint)
    chunks, size = [], 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                refuse_size(limit, hint)
            if came is not None:
                came(len(chunk))
            chunks.append(chunk)
    except ClientDisconnect:
        raise MalformedBody("the connection ended within the body") from None
    return b"".join(chunks)


def _require_text(scope: Scope) -> None:
    """Raise NotFound for a path that is no UTF-8: the server puts U+FFFD where it is not, and that
    may be a key of its own."""
    if _REPLACEMENT in scope["path"]:
        try:
            unquote_to_bytes(scope["raw_path"]).decode()
        except UnicodeDecodeError:
            raise NotFound("the path is not UTF-8, as every id is") from None


def _request_id(scope: Scope) -> str:
    """The client's, or a new one; the same whenever it is asked for."""
    known: str | None = scope.get(_KNOWN_ID)
    if known is None:
        given = headers_of(scope).get(b"x-request-id", b"").decode("latin-1")
        known = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope[_KNOWN_ID] = known
    return known
