"""Answers that are none: problem documents and lost connections as errors."""

from __future__ import annotations

import email.utils
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from raypipe.errors import (
    BodyTooLarge,
    Forbidden,
    NotFound,
    Overloaded,
    RaypipeError,
    Unauthenticated,
    Unavailable,
    Violation,
    error_of,
)

_TRY_AGAIN = (429, 503)


class _Place(msgspec.Struct):
    pointer: str = ""
    detail: str = ""


class Problem(msgspec.Struct):
    """A problem document (RFC 9457) as far as it is needed here."""

    code: str = ""
    title: str = ""
    detail: str = ""
    hint: str = ""
    request_id: str = ""
    errors: list[_Place] = []


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a try gave no answer; whether another one may, and how soon."""

    error: RaypipeError
    again: bool
    after_s: float = 0.0


def error(problem: Problem, status: int) -> RaypipeError:
    """The error that a problem names; by its status where it is none of ours.

    The request's id, by which the server's log knows it, is a note of the error.
    """
    kind = error_of(problem.code)
    if kind is RaypipeError:  # a server in front of ours, or a newer one
        kind = _BY_STATUS.get(status, RaypipeError)
    raised = kind(
        problem.detail or problem.title or f"the server answered {status}",
        hint=problem.hint,
        violations=tuple(Violation(p.pointer, p.detail) for p in problem.errors),
    )
    if problem.request_id:
        raised.add_note(f"request_id {problem.request_id}")
    return raised


_BY_STATUS: Mapping[int, type[RaypipeError]] = {
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    413: BodyTooLarge,
    429: Overloaded,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


def refused(status: int, headers: Mapping[str, str], body: bytes) -> Failed:
    """An answer that is no success."""
    try:
        problem = msgspec.json.decode(body, type=Problem)
    except msgspec.DecodeError:
        problem = Problem()
    return Failed(
        error(problem, status), status in _TRY_AGAIN, _after_s(headers.get("retry-after", ""))
    )


def unreachable(url: str, cause: Exception, *, again: bool) -> Failed:
    """A connection that wasn't made, or was lost before the answer."""
    reason = str(cause) or type(cause).__name__
    failed = Unavailable(f"{url} doesn't answer: {reason}", hint="Is it running? `raypipe status`")
    failed.__cause__ = cause
    return Failed(failed, again)


def _after_s(text: str) -> float:
    """Seconds that Retry-After asks for (RFC 9110: a number or a date); 0 for nothing sensible."""
    if text.isdecimal() and len(text) < 10:
        return float(text)
    try:
        at = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max(0.0, (at.astimezone(UTC) - datetime.now(UTC)).total_seconds())
