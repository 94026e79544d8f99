"""An HTTP exchange without Starlette, for the route that every microsecond of counts.

A Starlette request and its router cost more than reading, checking and judging an event. The rules
are those of the other routes: of a repeated header the first counts, header text is Latin-1.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import NoReturn

from starlette.types import Receive, Scope

from raypipe.errors import BodyTooLarge, MalformedBody, UnsupportedMedia

JSON = "application/json"

Headers = Mapping[bytes, bytes]
"""By name in lower case."""
Direct = Callable[[Scope, Receive], Awaitable[bytes]]
"""Answers a request with the bytes of a JSON document and 200, or raises."""

_JSON = JSON.encode()


def headers_of(scope: Scope) -> Headers:
    """The request's headers."""
    return dict(scope["headers"][::-1])


def text_of(headers: Headers, name: bytes) -> str | None:
    """One header's value; None when it isn't there."""
    value = headers.get(name)
    return None if value is None else value.decode("latin-1")


def idempotency_key(headers: Headers) -> str | None:
    """The header's value, also in the structured-field form of the IETF draft."""
    key = text_of(headers, b"idempotency-key")
    if key is not None and len(key) >= 2 and key[0] == key[-1] == '"':
        return key[1:-1]
    return key


def require_json(headers: Headers) -> None:
    """Raises UnsupportedMedia for anything but plain JSON in UTF-8."""
    if headers.get(b"content-type") != _JSON:
        media, _, parameters = (text_of(headers, b"content-type") or "").partition(";")
        charset = _parameter(parameters, "charset")
        if media.strip().lower() != JSON or charset.lower() not in ("", "utf-8", "utf8"):
            raise UnsupportedMedia(
                f"this route reads {JSON} in UTF-8 only", hint=f"Send 'Content-Type: {JSON}'."
            )
    encoding = text_of(headers, b"content-encoding")
    if encoding is not None and encoding.lower() != "identity":
        raise UnsupportedMedia("this route reads no compressed bodies", hint="Send it plain.")


def _parameter(text: str, name: str) -> str:
    for part in text.split(";"):
        key, _, value = part.partition("=")
        if key.strip().lower() == name:
            return value.strip().strip('"')
    return ""


async def read_body(receive: Receive, headers: Headers, limit: int, hint: str) -> bytes:
    """The body as it came; raises BodyTooLarge over ``limit`` bytes, as soon as that is known."""
    declared = headers.get(b"content-length", b"")
    # The digits first: int() refuses thousands of them.
    if declared.isdigit() and (len(declared) > 18 or int(declared) > limit):
        refuse_size(limit, hint)
    pieces, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise MalformedBody("the connection ended within the body")
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > limit:
            refuse_size(limit, hint)
        more = message.get("more_body", False)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def refuse_size(limit: int, hint: str) -> NoReturn:
    """Raises BodyTooLarge."""
    raise BodyTooLarge(f"the body is over {limit} bytes", hint=hint)
