"""What stands before the application wherever Ray Serve takes HTTP: every request gets an answer
of ours.

Ray Serve calls ``middlewares`` in each proxy and, in HAProxy mode, in each replica, by the name
that raypipe.runtime.session exports.
"""

from __future__ import annotations

import uuid

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raypipe.errors import Unavailable
from raypipe.runtime.ingress.own import AWAY
from serving.problems import problem_of

REQUEST_ID = "x-request-id"
UNWATCHED = (
    # Serve would watch for the client's leaving in a task of its own, and cancel the request.
    (b"x-request-disconnect-disabled", b"?1"),
    (b"x-request-timeout-seconds", b"0"),
)
"""Headers by which Serve leaves a request alone once it has begun: its own, so they come last."""


def middlewares() -> list[Middleware]:
    """Outermost last."""
    return [Middleware(Answered)]


class Answered:
    """Answers with a 503 problem where the proxy gives no answer, or its own bare 503.

    The first happens when a replica died with the request, which would become a 500 without a
    reason; the second when all queues are full or no replica is up. A request that has begun is
    worked on to its end, also when its client has left: it may come again, and what waits for
    others has a deadline of its own.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["headers"] = [*scope["headers"], *UNWATCHED]
        started = bare = False

        async def tracked(message: Message) -> None:
            nonlocal started, bare
            if message["type"] == "http.response.start":
                bare = _is_bare(message)
                started = not bare
            if not bare:
                await send(message)

        await self._app(scope, receive, tracked)
        if not started:
            error = AWAY if bare else Unavailable("the replica went away", hint=AWAY.hint)
            # Serve's own middleware, which lies further in, has put one there.
            request_id = Headers(scope=scope).get(REQUEST_ID) or uuid.uuid4().hex
            problem = problem_of(error, request_id)
            problem.headers[REQUEST_ID] = request_id
            await problem(scope, receive, send)


def _is_bare(start: Message) -> bool:
    if start["status"] != 503:
        return False
    media = Headers(raw=list(start.get("headers", ()))).get("content-type", "")
    return not media.startswith("application/")
