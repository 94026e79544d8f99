"""What every HTTP application here does: request ids, problem documents, keys, metrics."""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Message, Receive, Scope, Send

from raypipe.errors import BodyTooLarge, MalformedBody
from raypipe.tenancy.keys import Credential
from raypipe.tenancy.keys import Scope as KeyScope
from serving.auth import Verifier, authorize
from serving.decide import deadline
from serving.problems import problem_of

Handler = Callable[[Request], Awaitable[Response]]
Routes = Sequence[tuple[str, Handler, str]]
"""Path, handler, method."""

_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_NO_ROUTE = "(none)"


class Counted(Protocol):
    """Counts answers; a serving.metrics.Metrics does."""

    def answered(self, route: str, status: int) -> None:
        """Count a request."""

    def refused(self, code: str) -> None:
        """Count a problem document."""


class Face:
    """An ASGI application of some routes.

    ``patience_s`` is how long a key may take to be verified. ``echo_request_id`` is off where the
    server in front of this application already answers with X-Request-Id.
    """

    def __init__(
        self,
        routes: Routes,
        keys: Verifier,
        counted: Counted,
        *,
        patience_s: float,
        echo_request_id: bool,
    ) -> None:
        self._keys = keys
        self._counted = counted
        self._patience_s = patience_s
        self._echo = echo_request_id
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
            self._counted.refused(problem.code)
            await problem(scope, receive, tracked)
        finally:
            route = self._patterns.get(scope.get("endpoint"), _NO_ROUTE)
            self._counted.answered(route, status or 499)

    async def _authorize(self, request: Request, scope: KeyScope) -> Credential:
        async with deadline(self._patience_s):
            return await authorize(request.headers.get("authorization"), scope, self._keys)


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
        raise _too_large(limit, hint)
    chunks, size = [], 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise _too_large(limit, hint)
            if came is not None:
                came(len(chunk))
            chunks.append(chunk)
    except ClientDisconnect:
        raise MalformedBody("the connection ended within the body") from None
    return b"".join(chunks)


def _too_large(limit: int, hint: str) -> BodyTooLarge:
    return BodyTooLarge(f"the body is over {limit} bytes", hint=hint)


def idempotency_key(request: Request) -> str | None:
    """The header's value, also in the structured-field form of the IETF draft."""
    key = request.headers.get("idempotency-key")
    if key is not None and len(key) >= 2 and key[0] == key[-1] == '"':
        return key[1:-1]
    return key


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text: str = value.decode("latin-1")
            if _REQUEST_ID.fullmatch(text):
                return text
    return uuid.uuid4().hex
