"""A request body to a JSON object, strictly: what two readers could read differently is refused."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import msgspec

from raypipe.errors import InputError, MalformedBody, Violation

MAX_DEPTH = 32


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in ``body``.

    Raises MalformedBody for anything that isn't UTF-8 JSON by RFC 8259, has a key twice (RFC 8259
    leaves its meaning open), the literals NaN or Infinity, or nests deeper than MAX_DEPTH; raises
    InputError when it is JSON but no object.
    """
    return _flat(body) or _strict(body)


def _flat(body: bytes) -> dict[str, Any] | None:
    """An object of plain values, as nearly every body is; None for what takes a closer look.

    The decoder is as strict as ``_strict``, but keeps the last of equal keys. Of two quotes for
    each key and each text, one that is missing here was around a key that came twice.
    """
    try:
        value = _PLAIN.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    texts = [*map(type, value.values())].count(str)
    return value if body.count(b'"') == 2 * (len(value) + texts) else None


def _strict(body: bytes) -> dict[str, Any]:
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as e:
        raise MalformedBody(f"the body is not UTF-8: {e.reason} at byte {e.start}") from None
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as e:
        raise MalformedBody(
            f"the body is not JSON: {e.msg} at line {e.lineno}, column {e.colno}",
            hint="Send one JSON object; see /docs for an example.",
        ) from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:  # the interpreter's own limit on digits
        raise MalformedBody("the body has a number with thousands of digits") from None
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _depth_exceeds(value, MAX_DEPTH):
        raise _too_deep()
    if not isinstance(value, dict):
        raise InputError(
            "the body is not a JSON object",
            violations=(Violation("", f"expected an object, got {_json_type(value)}", "type"),),
        )
    return value


def _too_deep() -> MalformedBody:
    return MalformedBody(f"the body nests deeper than {MAX_DEPTH} levels")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise MalformedBody(f"the key {key[:64]!r} is there twice in one object")
            seen.add(key)
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedBody(f"{name} is not JSON", hint="Leave out a value that is missing.")


_PLAIN = msgspec.json.Decoder(dict[str, str | int | float | bool | None])
_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)


def _depth_exceeds(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            child
            for parent in level
            if isinstance(parent, (dict, list))
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return False
    return any(isinstance(v, (dict, list)) for v in level)


def _json_type(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
