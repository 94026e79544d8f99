"""What stands in Ray Serve's HTTP proxy, before the replicas: every request gets an answer of ours.

Ray Serve calls ``middlewares`` in each proxy, by the name that raypipe.runtime.session exports.
"""

from __future__ import annotations

import uuid

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raypipe.errors import Unavailable
from serving.problems import problem_of

REQUEST_ID = "x-request-id"


def middlewares() -> list[Middleware]:
    """Outermost last."""
    return [Middleware(Answered)]


class Answered:
    """Answers with a 503 problem where the proxy gives no answer, or its own bare 503.

    The first happens when a replica died with the request, which would become a 500 without a
    reason; the second when all queues are full or no replica is up.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
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
            detail = "no replica can take the request now" if bare else "the replica went away"
            error = Unavailable(
                detail, hint="Retry; an event counts once however often its event_id is sent."
            )
            # Serve's own middleware, which lies further in, has put one there.
            request_id = Headers(scope=scope).get(REQUEST_ID) or uuid.uuid4().hex
            problem = problem_of(error, request_id)
            problem.headers[REQUEST_ID] = request_id
            await problem(scope, receive, send)


def _is_bare(start: Message) -> bool:
    media = Headers(raw=list(start.get("headers", ()))).get("content-type", "")
    return start["status"] == 503 and not media.startswith("application/")
