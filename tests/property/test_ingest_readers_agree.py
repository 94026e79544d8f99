"""Bulk bodies: the columnar way, the sifted way and one row at a time come to one verdict."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.errors import InputError
from raypipe.events.body import parse_object
from raypipe.events.row import RowValidator
from raypipe.ingest.bulk import Bulk, BulkReader
from raypipe.ingest.media import Media
from tests.unit.serving_kit import FAULT, NOW, PROJECT, READING, body

READER = BulkReader(PROJECT.events, "EUR")
VALIDATORS = {e.name: RowValidator(e, "EUR") for e in (READING, FAULT)}

fault = {"event_id": "f-1", "event_time": NOW, "reading_id": "r-1", "sensor_id": "s-1"}
texts = [..., None, "", "x" * 200, "\x00", "é", "EUR", "left", True, [], {"a": 1}]
numbers = [0, 5, -1, 2**40, 2**63, 2**70, 1.5, 1e300, 4.0, NOW, NOW + 10**9]
odd = st.sampled_from([*texts, *numbers])
names = st.sampled_from([f.name for f in (*READING.client_fields, *FAULT.client_fields)])


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["reading", "fault", "reading", "reading"]))
    row = {"type": kind} | (body() if kind == "reading" else fault)
    row["event_id"] = f"{draw(st.integers(0, 10**9))}"
    for name in draw(st.lists(names, max_size=draw(st.sampled_from([0, 0, 0, 1, 3])))):
        row[name] = draw(odd)
    if draw(st.integers(0, 20)) == 0:
        row["type"] = draw(st.sampled_from([..., None, 3, "nothing", ""]))
    if draw(st.integers(0, 20)) == 0:
        row["unknown"] = 1
    return {name: value for name, value in row.items() if value is not ...}


def expected(row: dict[str, Any]) -> tuple[str, dict[str, Any] | list[str]]:
    """By the rules of single events."""
    rest = dict(row)
    kind = rest.pop("type", None)
    if kind not in VALIDATORS:
        return "", ["/type"]
    try:
        return kind, VALIDATORS[kind].check(rest, "t", NOW)
    except InputError as e:
        return kind, sorted({v.pointer for v in e.violations})


def found(bulk: Bulk) -> dict[int, tuple[str, dict[str, Any] | list[str]]]:
    out: dict[int, tuple[str, dict[str, Any] | list[str]]] = {}
    for part in bulk.parts:
        for row, event in zip(part.positions.tolist(), part.batch.to_pylist(), strict=True):
            assert row not in out
            out[row] = part.kind, event
    for r in bulk.refused:
        assert r.row not in out
        out[r.row] = r.kind, sorted({reason.split(":")[0] for reason in r.reasons})
    assert sorted(out) == list(range(bulk.rows))
    return out


@given(st.lists(rows(), min_size=1, max_size=12))
def test_lines_and_arrays_are_judged_like_single_events(came: list[dict[str, Any]]) -> None:
    wanted = dict(enumerate(map(expected, came)))
    lines = "\n".join(json.dumps(row) for row in came).encode()
    assert found(READER.read(lines, Media.LINES, None, "t", NOW)) == wanted
    array = json.dumps(came, indent=1).encode()
    assert found(READER.read(array, Media.ARRAY, None, "t", NOW)) == wanted


@given(st.lists(rows(), min_size=1, max_size=12))
def test_rows_keep_their_order_in_the_group(came: list[dict[str, Any]]) -> None:
    lines = "\n".join(json.dumps(row) for row in came).encode()
    bulk = READER.read(lines, Media.LINES, None, "t", NOW)
    group = bulk.group
    order = {
        int(position): event["event_id"]
        for part in group.parts
        for position, event in zip(part.positions, part.batch.to_pylist(), strict=True)
    }
    good = [row["event_id"] for row in came if isinstance(expected(row)[1], dict)]
    assert [order[i] for i in range(len(order))] == good


@given(
    st.lists(st.sampled_from([b"{}", b"[", b"", b"  ", b"nul", b"\xff", b'{"a":1}{}']), max_size=6)
)
def test_lines_that_are_no_rows_have_their_numbers(came: list[bytes]) -> None:
    good = json.dumps({"type": "fault"} | fault).encode()
    lines = [*came, good]
    bulk = READER.read(b"\n".join(lines) + b"\n", Media.LINES, None, "t", NOW)
    wanted = [line for line in lines if line.strip()]
    assert bulk.rows == len(wanted)
    assert bulk.accepted.tolist() == [i for i, line in enumerate(wanted) if line == good]


@pytest.mark.parametrize("key", ["event_id", "sensor_id"])
def test_a_key_that_comes_twice_is_refused(key: str) -> None:
    twice = json.dumps({"type": "fault"} | fault)[:-1] + f', "{key}": "other"}}'
    good = json.dumps({"type": "fault"} | fault | {"event_id": "f-2"})
    bulk = READER.read(f"{twice}\n{good}".encode(), Media.LINES, None, "t", NOW)
    assert bulk.accepted.tolist() == [1]
    assert "twice" in bulk.refused[0].reasons[0]


@given(st.lists(rows(), min_size=1, max_size=12))
def test_arrow_columns_are_judged_like_lines(came: list[dict[str, Any]]) -> None:
    flat = [
        {k: v for k, v in row.items() if k != "unknown" and not isinstance(v, list | dict)}
        for row in came
    ]
    lines = "\n".join(json.dumps(row) for row in flat).encode()
    by_lines = READER.read(lines, Media.LINES, None, "t", NOW)
    if by_lines.refused:
        return
    fields = {f.name: f.arrow_type for e in PROJECT.events for f in e.client_fields}
    table = pa.Table.from_pylist(
        [parse_object(line) for line in lines.splitlines()],
        schema=pa.schema([("type", pa.string()), *fields.items()]),
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    by_arrow = READER.read(sink.getvalue().to_pybytes(), Media.ARROW, None, "t", NOW)
    assert found(by_arrow) == found(by_lines)
