"""Entity keys as bytes: ``rp:PROJECT:VIEW:JOIN_KEYS:`` and the values.

A key of one value is its tag and its bytes, so that a text key can be read in a Redis shell; of
several, each value has its length before it, in the order of the sorted names.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from raypipe.errors import UsageError

KeyValue = str | bytes | int

_PLACE = struct.Struct(">q")
_LENGTH = struct.Struct(">I")


def view_prefix(project: str, view: str) -> bytes:
    """What all keys of a view begin with."""
    return f"rp:{project}:{view}:".encode()


def key_prefix(project: str, view: str, join_keys: Iterable[str]) -> bytes:
    """What the keys of one set of join keys begin with."""
    return view_prefix(project, view) + f"{','.join(sorted(join_keys))}:".encode()


def one(prefix: bytes, value: KeyValue) -> bytes:
    """The key of one value."""
    return prefix + part(value)


def several(prefix: bytes, values: Sequence[KeyValue]) -> bytes:
    """The key of values in the order of their sorted names."""
    if len(values) == 1:
        return prefix + part(values[0])
    return prefix + b"".join(_LENGTH.pack(len(p)) + p for p in map(part, values))


def part(value: KeyValue) -> bytes:
    """One value, tagged with its type: the text 1 and the number 1 are different keys.

    Raises:
        UsageError: it can't be a key.
    """
    try:
        if isinstance(value, str):
            return b"s" + value.encode()
        if isinstance(value, bytes):
            return b"b" + value
        return b"i" + _PLACE.pack(value)
    except UnicodeEncodeError as e:
        raise UsageError(f"key {value!r} is no Unicode text: {e.reason}") from e
    except struct.error as e:
        raise UsageError(f"key {value!r} doesn't fit into 64 bits") from e


def parts(key: bytes, prefix: bytes, count: int) -> list[bytes]:
    """The tagged values in a key of that prefix; the reverse of :func:`several`."""
    body = key[len(prefix) :]
    if count == 1:
        return [body]
    found = []
    while body:
        (length,) = _LENGTH.unpack_from(body)
        found.append(body[4 : 4 + length])
        body = body[4 + length :]
    return found
