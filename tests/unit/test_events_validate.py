"""Columnar validation: physical types, damaged buffers, what is kept of a refused row."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raypipe.errors import InputError, MalformedBody
from raypipe.events.schema import EventType, Field, Kind
from raypipe.events.validate import Validated, validate

NOW = 1_700_000_000_000
EVENT = EventType(
    "ping",
    (
        Field("key", Kind.STRING, max_length=8),
        Field("amount", Kind.AMOUNT, minimum=0),
        Field("share", Kind.NUMBER, required=False),
        Field("level", Kind.INTEGER, required=False),
    ),
)


def table(rows: int = 3, **columns: Any) -> pa.Table:
    base = {
        "event_id": pa.array([f"p{i}" for i in range(rows)]),
        "event_time": pa.array([NOW] * rows),
        "key": pa.array(["k"] * rows),
        "amount": pa.array([5] * rows),
    }
    return pa.table({**base, **columns})


def check(given: pa.Table, received_at: int | None = NOW, **options: Any) -> Validated:
    return validate(EVENT, given, tenant="acme", currency="EUR", received_at=received_at, **options)


def reasons(done: Validated) -> dict[int, list[str]]:
    return {r["row"]: r["reasons"] for r in done.rejected.to_pylist()}


def test_a_clean_table_comes_back_whole_in_the_declared_schema() -> None:
    done = check(table())
    assert done.accepted.schema.equals(EVENT.arrow_schema)
    assert done.accepted["tenant"].to_pylist() == ["acme"] * 3
    assert done.accepted["received_at"].to_pylist() == [NOW] * 3
    assert done.accepted["share"].null_count == 3
    assert done.rejected.num_rows == 0


def test_an_empty_table_is_fine() -> None:
    done = check(table(0, event_time=pa.array([], pa.int64()), amount=pa.array([], pa.int64())))
    assert done.accepted.num_rows == done.rejected.num_rows == 0
    assert done.accepted.schema.equals(EVENT.arrow_schema)


def test_a_refused_row_is_kept_with_its_place_its_json_and_all_reasons() -> None:
    done = check(
        table(
            key=pa.array(["k", "", "k"]),
            amount=pa.array([5, -1, None]),
            share=pa.array([0.5, float("nan"), 1.0]),
        )
    )
    assert done.accepted["event_id"].to_pylist() == ["p0"]
    assert reasons(done) == {
        1: [
            "/key: must not be empty",
            "/amount: must be at least 0",
            "/share: must be finite",
        ],
        2: ["/amount: is required"],
    }
    body = json.loads(done.rejected["body"][0].as_py(), parse_constant=pytest.fail)
    assert body == {"event_id": "p1", "event_time": NOW, "key": "", "amount": -1, "share": "nan"}


@pytest.mark.parametrize(
    "kind",
    [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())],
    ids=str,
)
def test_every_arrow_text_type_is_read_as_text(kind: pa.DataType) -> None:
    done = check(table(key=pa.array(["a", None, "a\n"]).cast(kind)))
    assert done.accepted["key"].to_pylist() == ["a"]
    assert reasons(done) == {
        1: ["/key: is required"],
        2: ["/key: must not hold control characters"],
    }


def spoiled(values: list[bytes | None], kind: pa.DataType) -> pa.Array:
    """A text column that Arrow took from outside with bytes that are no UTF-8."""
    if pa.types.is_dictionary(kind):
        codes = pa.array(range(len(values)), kind.index_type)
        return pa.DictionaryArray.from_arrays(codes, spoiled(values, kind.value_type))
    raw = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
    return pa.array(values, raw.get(kind, pa.binary_view())).view(kind)


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
    ids=str,
)
@pytest.mark.parametrize("bytes_", [b"\xff\xfe", b"ok\xc3", b"\xed\xa0\x80", b"\xc0\x80"])
def test_bytes_that_are_no_utf8_refuse_their_row_alone(kind: pa.DataType, bytes_: bytes) -> None:
    done = check(table(key=spoiled([b"a", bytes_, "é".encode()], kind)))
    assert done.accepted["key"].to_pylist() == ["a", "é"]
    assert reasons(done) == {1: ["/key: must be valid UTF-8"]}
    json.loads(done.rejected["body"][0].as_py())


def test_chunks_are_checked_and_joined() -> None:
    good, bad = pa.array(["a"]), spoiled([b"\xff", b"b"], pa.string())
    done = check(table(key=pa.chunked_array([good, bad])))
    assert done.accepted["key"].to_pylist() == ["a", "b"]
    assert reasons(done) == {1: ["/key: must be valid UTF-8"]}


def test_a_slice_is_read_at_its_place() -> None:
    given = table(6, key=pa.array(["", "a", "b", "c", "x" * 9, "d"])).slice(1, 4)
    done = check(given)
    assert done.accepted["key"].to_pylist() == ["a", "b", "c"]
    assert list(reasons(done)) == [3]


@pytest.mark.parametrize("offsets", [[0, 1, 900, 3], [0, 2, 1, 3]])
def test_offsets_outside_of_the_data_refuse_the_table(offsets: list[int]) -> None:
    broken = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(np.array(offsets, np.int32)), pa.py_buffer(b"abc")]
    )
    with pytest.raises(MalformedBody):
        check(table(key=broken))
    with pytest.raises(MalformedBody):
        check(table(4, key=pa.chunked_array([pa.array(["a"]), broken])))


def test_dictionary_codes_outside_of_the_dictionary_refuse_the_table() -> None:
    codes = pa.array([0, 7, 0], pa.int32())
    broken = pa.DictionaryArray.from_arrays(codes, pa.array(["a"]), safe=False)
    with pytest.raises(MalformedBody):
        check(table(key=broken))


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.int32(), pa.uint64()], ids=str)
def test_every_integer_type_is_an_integer(kind: pa.DataType) -> None:
    done = check(table(amount=pa.array([0, 5, 127], kind)))
    assert done.accepted["amount"].to_pylist() == [0, 5, 127]


def test_an_unsigned_number_beyond_int64_is_out_of_range() -> None:
    done = check(table(amount=pa.array([0, 2**64 - 1, 2**63], pa.uint64())))
    assert done.accepted["amount"].to_pylist() == [0]
    assert set(reasons(done)) == {1, 2}
    # Read as signed these would be -1 and -2**63, which an unbounded field may hold.
    free = check(table(level=pa.array([7, 2**64 - 1, 2**63], pa.uint64())))
    assert free.accepted["level"].to_pylist() == [7]
    assert set(reasons(free)) == {1, 2}


@pytest.mark.parametrize("kind", [pa.float32(), pa.float16(), pa.int16()], ids=str)
def test_every_numeric_type_is_a_number(kind: pa.DataType) -> None:
    values = pa.array(np.array([1, 2, 3], kind.to_pandas_dtype()), kind)
    assert check(table(share=values)).accepted["share"].to_pylist() == [1.0, 2.0, 3.0]


MOMENT = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([MOMENT] * 3),
        pa.array([2**60] * 3, pa.timestamp("s")),
        pa.array([Decimal("5.00")] * 3),
        pa.array([b"\xff"] * 3),
        pa.array([[b"\xff"]] * 3),
        pa.array([[1]] * 3),
        pa.array([{"a": float("nan")}] * 3),
        pa.array([[("a", MOMENT)]] * 3, pa.map_(pa.string(), pa.timestamp("us", "UTC"))),
        pa.array([5.0] * 3),
        pa.RunEndEncodedArray.from_arrays([3], [5]),
        pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"x" * 16] * 3, pa.binary(16))),
    ],
    ids=lambda a: str(a.type),
)
def test_a_column_of_another_type_refuses_its_rows_whatever_it_holds(column: pa.Array) -> None:
    done = check(table(amount=column))
    assert done.accepted.num_rows == 0
    assert [len(r) for r in reasons(done).values()] == [1, 1, 1]
    for body in done.rejected["body"].to_pylist():
        assert "amount" in json.loads(body, parse_constant=pytest.fail)


def test_nulls_of_any_type_are_missing_values() -> None:
    done = check(table(share=pa.nulls(3), amount=pa.nulls(3, pa.date32())))
    assert reasons(done) == {i: ["/amount: is required"] for i in range(3)}


def test_a_column_that_is_not_declared_refuses_the_table() -> None:
    with pytest.raises(InputError) as e:
        check(table(extra=pa.nulls(3), received_at=pa.nulls(3)))
    assert [v.pointer for v in e.value.violations] == ["/extra", "/received_at"]


def test_a_column_that_comes_twice_refuses_the_table() -> None:
    given = table().append_column("amount", pa.array([1, 2, 3]))
    with pytest.raises(InputError, match="more than once"):
        check(given)


def test_of_several_rows_with_one_id_the_first_acceptable_one_is_taken() -> None:
    given = table(4, event_id=pa.array(["a", "a", "b", "a"]), amount=pa.array([-1, 1, 2, 3]))
    done = check(given)
    assert done.accepted["amount"].to_pylist() == [1, 2]
    assert reasons(done)[0] == ["/amount: must be at least 0"]
    assert "more than once" in reasons(done)[3][0]
    assert check(given, unique=False).accepted["amount"].to_pylist() == [1, 2, 3]


def test_history_brings_its_own_arrival_times() -> None:
    arrived = pa.array([NOW, NOW - 60_000, NOW - 60_001, None, NOW // 1000, NOW + 1, 2**63 - 1])
    done = check(table(7, received_at=arrived), received_at=None, now=NOW)
    assert done.accepted["received_at"].to_pylist() == [NOW, NOW - 60_000]
    found = reasons(done)
    assert "60 s after received_at" in found[2][0]
    assert found[3] == ["/received_at: is required"]
    assert "were seconds sent?" in found[4][0]
    assert found[5] == found[6] == ["/received_at: must not lie in the future"]


def test_history_without_arrival_times_is_refused_row_by_row() -> None:
    done = check(table(), received_at=None)
    assert reasons(done) == {i: ["/received_at: is required"] for i in range(3)}
