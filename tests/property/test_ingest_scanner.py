"""The scanner of JSON lines: what it takes, the strict reader of single events reads the same."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from raypipe.errors import InputError
from raypipe.events.body import parse_object
from raypipe.events.schema import EventType, Field, Kind
from raypipe.ingest.lines import Columns, LineReader, lines_of

NOTE = EventType(
    "note",
    (
        Field("text", Kind.STRING, required=False),
        Field("size", Kind.INTEGER, required=False),
        Field("score", Kind.NUMBER, required=False),
        Field("done", Kind.BOOLEAN, required=False),
    ),
)
MARK = EventType("mark", (Field("text", Kind.STRING, required=False),))
EVENTS = (NOTE, MARK)
TYPED = LineReader(EVENTS, typed=True)
ALONE = LineReader([NOTE], typed=False)
PYTHON = {Kind.INTEGER: int, Kind.TIME: int, Kind.NUMBER: float, Kind.BOOLEAN: bool}

spaces = st.sampled_from(["", "", "", " ", "\t", "  \r"])
ESCAPES = r"\n \" \\ \/ \b \f \r \t \u00e9 \u6F22 \u0000 \ud83d\ude00 \uD83D \ude00 \ud83d\u0041"
letters = st.sampled_from(
    [
        *("a", "B", " ", ":", ",", "}", "é", "漢", "😀", "\x7f", "\x85", "\x01", "\t", "\\"),
        *(ESCAPES + r" \u12 \x41").split(" "),
    ]
)
strings = st.lists(letters, max_size=6).map(lambda parts: '"' + "".join(parts) + '"')
NUMBERS = """0 -0 7 -12 00 01 - 1. .5 1.5 -0.25 1e5 1E+2 2e-3 1e +1 0x1 123456789012345678
9223372036854775807 -9223372036854775808 9223372036854775808 0.1234567890123456789 1e308 1e309
5e-324"""
numbers = st.sampled_from([*NUMBERS.split(), "9" * 50, "0." + "3" * 500])
words = st.sampled_from(["true", "false", "null", "True", "nul", "NaN", "Infinity", "{}", "[1]"])
keys = st.sampled_from(
    [f.name for f in NOTE.client_fields] + ["type", "type", "other", r"si\u007ae", "sizé", "TEXT"]
)
types = st.sampled_from(['"note"', '"note"', '"mark"', '"not"', r'"n\u006fte"', "null", "3"])


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    def space() -> str:
        return draw(spaces)

    members = [("type", draw(types))] if draw(st.integers(0, 9)) else []
    for name in draw(st.lists(keys, max_size=4, unique=draw(st.booleans()))):
        members.append((name, draw(st.one_of(strings, numbers, words))))
    members = draw(st.permutations(members))
    inner = ",".join(
        f'{space()}"{name}"{space()}:{space()}{value}{space()}' for name, value in members
    )
    text = f"{space()}{{{inner}}}{space()}".encode()
    text += draw(st.sampled_from([b"", b"", b"", b"", b"}", b"{}", b",", b"\xff", b"x"]))
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.sampled_from([b"\xff", b"\xc3", b'"', b",", b"\\"])) + text[at:]
    return text


def taken(found: list[Columns]) -> dict[int, tuple[str, dict[str, Any]]]:
    out = {}
    for event, table, places in found:
        for place, row in zip(places.tolist(), table.to_pylist(), strict=True):
            assert place not in out
            out[place] = event.name, row
    return out


def same(event: EventType, row: dict[str, Any], parsed: dict[str, Any]) -> bool:
    for field in event.client_fields:
        found, wanted = row[field.name], parsed.pop(field.name, None)
        if wanted is not None:
            kind = PYTHON.get(field.kind, str)
            assert type(wanted) is kind or (kind is float and type(wanted) is int)
            wanted = kind(wanted)
        if repr(found) != repr(wanted):
            return False
    return not parsed


@given(st.lists(lines(), min_size=1, max_size=6))
@example([rb'{"type":"note","text":"\ud83d\ude00"}', b'{"type":"note","text":"a","text":"b"}'])
@example([b'{"type":"note","size":-0,"score":1e309}', b'{"type":"note","score":7}'])
def test_what_is_taken_is_what_the_strict_reader_reads(came: list[bytes]) -> None:
    body = lines_of(b"\n".join(came))
    kept = [line for line in came for line in line.split(b"\n") if line.strip()]
    assert [body.line(i) for i in range(len(body))] == kept
    for reader, named in ((TYPED, True), (ALONE, False)):
        found, rest = reader.read(body)
        rows = taken(found)
        assert sorted([*rows, *rest]) == list(range(len(kept)))
        for place, (kind, row) in rows.items():
            parsed = parse_object(kept[place])
            if named:
                assert parsed.pop("type") == kind
            assert same(next(e for e in EVENTS if e.name == kind), row, parsed)


plain = st.fixed_dictionaries(
    {"type": st.sampled_from(["note", "mark"])},
    optional={
        "text": st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        "event_id": st.text(max_size=5).filter(str.isascii),
        "event_time": st.integers(-(10**18) + 1, 10**18 - 1),
    },
)


@given(st.lists(plain, min_size=1, max_size=8), st.booleans(), st.sampled_from([None, (",", ":")]))
def test_plain_rows_are_all_taken(
    rows: list[dict[str, Any]], ascii_only: bool, separators: tuple[str, str] | None
) -> None:
    text = [json.dumps(r, ensure_ascii=ascii_only, separators=separators) for r in rows]
    found, rest = TYPED.read(lines_of("\n".join(text).encode() + b"\n"))
    assert rest == []
    read = taken(found)
    for place, row in enumerate(rows):
        kind, columns = read[place]
        assert kind == row["type"]
        assert {n: v for n, v in columns.items() if v is not None} == {
            n: v for n, v in row.items() if n != "type"
        }


@given(st.binary(max_size=200))
def test_any_bytes_are_read_to_their_end(body: bytes) -> None:
    found, rest = TYPED.read(lines_of(body))
    for place in taken(found):
        try:
            parse_object(lines_of(body).line(place))
        except InputError as e:
            raise AssertionError(body) from e
    assert len(rest) + sum(len(c.places) for c in found) == len(lines_of(body))
