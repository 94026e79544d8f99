"""Columns to packed values and back.

A wire value is what a packed value holds of a column: a number, a bool, or the bytes of a variable
column. What it means to Feast is in protos.py.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from features.store.packed.layout import CHECK_BYTES, FIXED, MAX_VALUE_BYTES, Layout
from raypipe.errors import IntegrityError, UsageError

Wire = float | int | bool | bytes

_CHECKED = 0x2144DF1C
"""CRC-32 of any bytes that end in their own CRC-32: the check needs no copy of the value."""

_FIRST = 4
"""Where the slots begin in what the struct unpacks: after order, schema, time, nulls."""

_SIGN = np.uint64(1 << 63)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of n rows to be packed."""

    nulls: npt.NDArray[np.bool_]
    values: npt.NDArray[Any] | Sequence[bytes]
    """An array for a fixed kind; bytes, empty where null, for a variable one."""


def order_of(
    major: npt.NDArray[np.int64], minor: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Two signed numbers a row as unsigned ones of the same order, for big-endian bytes."""
    return major.view(np.uint64) ^ _SIGN, minor.view(np.uint64) ^ _SIGN


def encode(
    layout: Layout,
    major: npt.NDArray[np.int64],
    minor: npt.NDArray[np.int64],
    times: npt.NDArray[np.int64],
    columns: Sequence[Column],
) -> list[bytes]:
    """Packed values of n rows.

    Args:
        major, minor: what makes one of two values of a key the newer, in this order.
        times: event times, microseconds.
        columns: one for each column of the layout, in its order.

    Raises:
        UsageError: a value is larger than MAX_VALUE_BYTES.
    """
    n = len(times)
    rows = np.zeros(n, layout.dtype)
    rows["newer"], rows["newest"] = order_of(major, minor)
    rows["schema"] = np.frombuffer(layout.schema, f"V{len(layout.schema)}")
    rows["time"] = times
    if columns:
        nulls = np.stack([c.nulls for c in columns], axis=1)
        rows["nulls"] = np.packbits(nulls, axis=1, bitorder="little")
    tails: list[Sequence[bytes]] = []
    for i, ((_, kind), column) in enumerate(zip(layout.columns, columns, strict=True)):
        if kind in FIXED:
            values = np.asarray(column.values)
            rows[f"c{i}"] = np.where(column.nulls, values.dtype.type(), values)
        else:
            rows[f"c{i}"] = np.fromiter(map(len, column.values), np.int64, n)
            tails.append(column.values)  # type: ignore[arg-type]
    width = layout.dtype.itemsize
    packed = rows.tobytes()
    heads = [packed[at : at + width] for at in range(0, n * width, width)]
    if tails:
        heads = [b"".join(parts) for parts in zip(heads, *tails, strict=True)]
        if n and max(map(len, heads)) > MAX_VALUE_BYTES:
            raise UsageError(
                f"a row of {max(map(len, heads)):,} bytes, at most {MAX_VALUE_BYTES:,} are taken",
                hint="Keep large texts and lists elsewhere and their address as the feature.",
            )
    check, crc = struct.Struct("<I").pack, zlib.crc32
    return [head + check(crc(head)) for head in heads]


Reading = tuple[int, Sequence[Wire | None]]
"""Event time in microseconds, and the wanted columns."""


def reader(layout: Layout, wanted: Sequence[tuple[str, str]]) -> Callable[[bytes], Reading]:
    """A function that reads the wanted columns (name, kind) out of values of a layout.

    A column that the layout doesn't have, or has as another kind, reads as None: its values never
    meant what is asked for. The function raises IntegrityError for bytes that nobody packed.
    """
    place = {column: i for i, column in enumerate(layout.columns)}
    at = [place.get(column, len(layout.columns)) for column in wanted]
    ranks = {i: rank for rank, i in enumerate(layout.variable)}
    unpack, size = layout.struct.unpack_from, layout.struct.size
    get = _getter([i + _FIRST for i in at])
    nowhere = (None,) if len(layout.columns) in at else ()
    full = bytes(layout.null_bytes)
    tails = [(k, ranks[i]) for k, i in enumerate(at) if i in ranks]

    def lengths(slots: tuple[Any, ...]) -> list[int]:
        return [slots[_FIRST + i] for i in layout.variable]

    def read(value: bytes) -> Reading:
        if zlib.crc32(value) != _CHECKED or len(value) < size + CHECK_BYTES:
            raise damaged(value)
        slots = unpack(value)
        found = get(slots + nowhere)
        if ranks:
            ends = list(accumulate(lengths(slots), initial=size))
            if ends[-1] + CHECK_BYTES != len(value):
                raise damaged(value)
            if tails:
                mutable = list(found)
                for k, rank in tails:
                    mutable[k] = value[ends[rank] : ends[rank + 1]]
                found = tuple(mutable)
        elif len(value) != size + CHECK_BYTES:
            raise damaged(value)
        if slots[3] != full:
            nulls = int.from_bytes(slots[3], "little")
            found = tuple(None if nulls >> i & 1 else v for i, v in zip(at, found, strict=True))
        return slots[2], found

    return read


def damaged(value: bytes) -> IntegrityError:
    """What is raised for bytes that don't match their checksum or length."""
    return IntegrityError(
        f"an online value of {len(value)} bytes doesn't match its checksum",
        hint="Erase the entity online, then materialise again.",
    )


def _getter(positions: Sequence[int]) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    if len(positions) > 1:
        return itemgetter(*positions)
    return lambda slots: tuple(slots[p] for p in positions)
