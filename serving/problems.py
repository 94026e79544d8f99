"""Errors as RFC 9457 problem documents. Whatever happens, the caller gets one."""

from __future__ import annotations

import json
import logging
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

from raypipe.errors import Forbidden, Overloaded, RaypipeError, Unauthenticated, Unavailable

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1

_log = logging.getLogger("raypipe.serving")


class Problem(Response):
    """A problem document; ``code`` says in one word what happened."""

    media_type = MEDIA_TYPE

    def __init__(
        self,
        status: int,
        code: str,
        title: str,
        detail: str,
        request_id: str,
        *,
        hint: str = "",
        errors: list[dict[str, str]] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        body: dict[str, Any] = {
            "type": f"/docs#problem-{code}",
            "title": title,
            "status": status,
            "detail": detail,
            "code": code,
            "request_id": request_id,
        }
        if hint:
            body["hint"] = hint
        if errors:
            body["errors"] = errors
        self.code = code
        # Plain ASCII: a lone surrogate that a client sent can be quoted back to it.
        super().__init__(json.dumps(body).encode("ascii"), status, headers)


def problem_of(error: Exception, request_id: str) -> Problem:
    """The answer to any exception; what the caller must not see is logged with its request id."""
    if isinstance(error, RaypipeError):
        return _from_raypipe(error, request_id)
    if isinstance(error, HTTPException):
        return _from_http(error, request_id)
    _log.error("request %s failed", request_id, exc_info=error)
    return _internal("internal", request_id)


def _from_raypipe(error: RaypipeError, request_id: str) -> Problem:
    if error.status >= 500 and not isinstance(error, Unavailable):
        _log.error("request %s failed", request_id, exc_info=error)
        return _internal(error.code, request_id)
    headers: dict[str, str] = {}
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = 'Bearer realm="raypipe"'
    elif isinstance(error, Forbidden):
        headers["WWW-Authenticate"] = 'Bearer realm="raypipe", error="insufficient_scope"'
    elif isinstance(error, Unavailable | Overloaded):
        headers["Retry-After"] = str(RETRY_AFTER_S)
    return Problem(
        error.status,
        error.code,
        error.headline,
        error.detail,
        request_id,
        hint=error.hint,
        errors=[{"pointer": v.pointer, "detail": v.reason} for v in error.violations],
        headers=headers,
    )


def _from_http(error: HTTPException, request_id: str) -> Problem:
    title = HTTPStatus(error.status_code).phrase
    details = {404: "There is no such route.", 405: "The route does not have this method."}
    return Problem(
        error.status_code,
        title.lower().replace(" ", "_"),
        title,
        details.get(error.status_code, error.detail),
        request_id,
        hint="The routes are listed at /docs.",
        headers=dict(error.headers or {}),
    )


def _internal(code: str, request_id: str) -> Problem:
    return Problem(
        500,
        code,
        "Internal error",
        "The request could not be answered.",
        request_id,
        hint="The server's log names the cause under this request_id. A retry with the same "
        "event_id is safe.",
    )
