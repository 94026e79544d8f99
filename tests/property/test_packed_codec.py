"""Packed values against what went in; the model is Python values in a list."""

from __future__ import annotations

import math
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.store.packed.codec import Column, encode, reader
from features.store.packed.layout import ITEMS, Layout, layout, read_layout, schema_of
from raypipe.errors import IntegrityError

INT64 = st.integers(-(2**63), 2**63 - 1)
DOUBLES = st.floats(allow_nan=True)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "d": DOUBLES,
    "f": st.floats(width=32),
    "q": INT64,
    "i": st.integers(-(2**31), 2**31 - 1),
    "?": st.booleans(),
    "t": INT64,
    "s": st.text().map(str.encode),
    "b": st.binary(max_size=300),
    "P": st.binary(max_size=50),
    **{
        kind: st.lists(items, max_size=5).map(lambda v, c=code: struct.pack(f"<{len(v)}{c}", *v))
        for kind, code, items in [
            ("D", "d", DOUBLES),
            ("F", "f", st.floats(width=32)),
            ("Q", "q", INT64),
            ("I", "i", st.integers(-(2**31), 2**31 - 1)),
            ("B", "?", st.booleans()),
        ]
    },
}
NUMPY = {"d": "f8", "f": "f4", "q": "i8", "i": "i4", "?": "?", "t": "i8"}

columns = st.lists(
    st.tuples(st.text(max_size=5), st.sampled_from(sorted(VALUES))),
    max_size=70,
    unique_by=lambda c: c[0],
).map(tuple)


@st.composite
def tables(draw: st.DrawFn) -> tuple[Layout, list[tuple[int, int, int]], list[list[Any]]]:
    """A layout, order and time of each row, and the rows; None is null."""
    found = layout(draw(columns))
    size = draw(st.integers(0, 4))
    places = [draw(st.tuples(INT64, INT64, INT64)) for _ in range(size)]
    rows = [[draw(st.none() | VALUES[kind]) for _, kind in found.columns] for _ in range(size)]
    return found, places, rows


def pack(known: Layout, places: list[tuple[int, int, int]], rows: list[list[Any]]) -> list[bytes]:
    made = []
    for i, (_, kind) in enumerate(known.columns):
        values = [row[i] for row in rows]
        nulls = np.array([v is None for v in values], bool)
        if kind in NUMPY:
            made.append(
                Column(nulls, np.array([0 if v is None else v for v in values], NUMPY[kind]))
            )
        else:
            made.append(Column(nulls, [v or b"" for v in values]))
    arrays = [np.array([p[k] for p in places], np.int64) for k in range(3)]
    return encode(known, *arrays, made)


def bits(value: Any) -> Any:
    """NaN is NaN, and -0.0 is not 0.0."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else struct.pack("<d", value)
    return value


def alike(ours: Any, theirs: Any) -> bool:
    return [bits(v) for v in ours] == [bits(v) for v in theirs]


@given(tables())
def test_every_value_comes_back(table: tuple[Layout, Any, list[list[Any]]]) -> None:
    known, places, rows = table
    values = pack(known, places, rows)
    assert len(values) == len(rows)
    read = reader(known, known.columns)
    for value, place, row in zip(values, places, rows, strict=True):
        time, found = read(value)
        assert time == place[2]
        assert alike(found, row)


@given(tables(), st.data())
def test_any_choice_of_columns_reads_alike(
    table: tuple[Layout, Any, list[list[Any]]], data: st.DataObject
) -> None:
    known, places, rows = table
    at = data.draw(st.permutations(range(len(known.columns))))
    at = at[: data.draw(st.integers(0, len(at)))]
    read = reader(known, [known.columns[i] for i in at])
    for value, row in zip(pack(known, places, rows), rows, strict=True):
        assert alike(read(value)[1], [row[i] for i in at])


@given(tables(), columns)
def test_another_schema_reads_what_is_the_same_and_null_for_the_rest(
    table: tuple[Layout, Any, list[list[Any]]], wanted: tuple[tuple[str, str], ...]
) -> None:
    known, places, rows = table
    wanted = (*wanted, *known.columns[::2])
    read = reader(read_layout(known.schema, known.described), wanted)
    for value, row in zip(pack(known, places, rows), rows, strict=True):
        held = dict(zip(known.columns, row, strict=True))
        assert alike(read(value)[1], [held.get(c) for c in wanted])


@given(st.lists(st.tuples(INT64, INT64, INT64), min_size=2, max_size=6))
def test_the_bytes_are_in_the_order_of_the_numbers(places: list[tuple[int, int, int]]) -> None:
    values = pack(layout((("a", "d"),)), places, [[1.0]] * len(places))
    by_bytes = sorted(range(len(places)), key=lambda i: values[i][:16])
    assert by_bytes == sorted(range(len(places)), key=lambda i: places[i][:2])


@given(tables(), st.data())
def test_no_changed_byte_goes_unseen(
    table: tuple[Layout, Any, list[list[Any]]], data: st.DataObject
) -> None:
    known, places, rows = table
    read = reader(known, known.columns)
    for value in pack(known, places, rows):
        at = data.draw(st.integers(0, len(value) - 1))
        flip = data.draw(st.integers(1, 255))
        grown = data.draw(st.binary(min_size=1, max_size=9))
        for broken in (
            value[:at] + bytes([value[at] ^ flip]) + value[at + 1 :],
            value[:at],
            value + grown,
        ):
            with pytest.raises(IntegrityError):
                read(broken)


@given(tables(), st.binary(min_size=1, max_size=9))
def test_a_length_that_does_not_fit_is_seen_even_under_a_right_checksum(
    table: tuple[Layout, Any, list[list[Any]]], more: bytes
) -> None:
    known, places, rows = table
    read = reader(known, known.columns)
    for value in pack(known, places, rows):
        for body in (value[:-4] + more, value[:-5]):
            with pytest.raises(IntegrityError):
                read(body + struct.pack("<I", zlib.crc32(body)))


@given(tables(), st.data())
def test_a_value_is_not_read_with_another_layout(
    table: tuple[Layout, Any, list[list[Any]]], data: st.DataObject
) -> None:
    """Whoever takes the wrong layout for a value gets an error or other lengths never fit."""
    known, places, rows = table
    other = layout((*known.columns, ("one more, of eight bytes", "d")))
    assert other.schema != known.schema
    for value in pack(known, places, rows):
        assert value[16:24] == known.schema
        with pytest.raises(IntegrityError):
            reader(other, other.columns)(value)


@given(columns)
def test_a_description_is_read_back_and_nothing_else_is(
    columns: tuple[tuple[str, str], ...],
) -> None:
    known = layout(columns)
    assert read_layout(known.schema, known.described).columns == columns
    for wrong in (None, b"", known.described[:-1], known.described + b" "):
        with pytest.raises(IntegrityError, match="not stored as it was written"):
            read_layout(known.schema, wrong)
    future = known.described.replace(b"packed 1", b"packed 2", 1)
    with pytest.raises(IntegrityError, match="has the format"):
        read_layout(schema_of(future), future)


def test_slots_are_as_wide_as_documented() -> None:
    assert {k: np.dtype(t).itemsize for k, t in ITEMS.items()} == {
        "D": 8,
        "F": 4,
        "Q": 8,
        "I": 4,
        "B": 1,
    }
    known = layout(tuple((f"c{i}", k) for i, k in enumerate("dqtfi?sbDP")))
    assert known.struct.size == known.dtype.itemsize == 32 + 2 + 3 * 8 + 2 * 4 + 1 + 4 * 4
    (packed,) = pack(known, [(0, 0, 0)], [[None] * 10])
    assert len(packed) == known.struct.size + 4
