"""One body, read by the fast and the careful reader or by json alone: the same object or the same
refusal."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from raypipe.errors import MalformedBody
from raypipe.events.body import parse_object

NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False), st.booleans()
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
FLAT = st.dictionaries(TEXTS, st.one_of(st.none(), NUMBERS, TEXTS), max_size=6)
DEEP = st.dictionaries(
    TEXTS,
    st.recursive(st.one_of(st.none(), NUMBERS, TEXTS), lambda s: st.lists(s, max_size=3)),
    max_size=4,
)


class Twice(Exception):
    """A key that came twice."""


def oracle(body: bytes) -> dict[str, Any]:
    """The standard library's reader, which takes more than RFC 8259, and what it lets pass."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({k for k, _ in pairs}) != len(pairs):
            raise Twice
        return dict(pairs)

    found: dict[str, Any] = json.loads(body.decode(), object_pairs_hook=once)
    return found


@given(st.one_of(FLAT, DEEP), st.booleans(), st.sampled_from([None, 1]))
@example({'a"b': 'c"d', "e": "\\"}, True, None)
def test_what_json_writes_is_read_as_json_reads_it(
    value: dict[str, Any], ascii_only: bool, indent: int | None
) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    assert repr(parse_object(body)) == repr(oracle(body)) == repr(value)


@given(
    st.lists(st.tuples(st.sampled_from('abc"'), st.one_of(NUMBERS, TEXTS)), max_size=5),
    st.booleans(),
)
@example([("a", 1), ("a", 1)], True)
@example([("a", 'x"'), ("a", 1)], True)
def test_a_key_that_comes_twice_is_never_read(pairs: list[tuple[str, Any]], escaped: bool) -> None:
    def key(text: str) -> str:
        return f'"\\u{ord(text):04x}"' if escaped else json.dumps(text)

    body = ("{" + ",".join(f"{key(k)}:{json.dumps(v)}" for k, v in pairs) + "}").encode()
    try:
        expected: object = oracle(body)
    except Twice:
        expected = None
    try:
        found: object = parse_object(body)
    except MalformedBody:
        found = None
    assert repr(found) == repr(expected)


@given(FLAT, st.data())
def test_a_body_with_a_broken_byte_is_refused_or_read_as_json_does(
    value: dict[str, Any], data: st.DataObject
) -> None:
    body = bytearray(json.dumps(value).encode())
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        expected: object = oracle(bytes(body))
    except (Twice, ValueError):
        expected = None
    try:
        found: object = parse_object(bytes(body))
    except MalformedBody:
        # json.loads also takes the words NaN and Infinity, which no broken byte makes here.
        found = None
    assert repr(found) == repr(expected)
