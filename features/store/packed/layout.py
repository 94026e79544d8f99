"""How the values of a view lie in bytes: a header, a null bitmap, slots, a tail, a checksum.

========  =====  ==================================================================================
bytes     form   what
========  =====  ==================================================================================
16        big    order: of two values of one key, the one with the greater bytes is the newer
8         raw    schema: the first bytes of the SHA-256 of the names and kinds of the columns
8         i64    event time, microseconds since 1970 UTC
n/8       bits   bit i is set where column i is null
...       slots  each column in its own width; of a variable one, the length in the tail (u32)
...       bytes  tail: the variable columns one after the other
4         u32    CRC-32 of all before it
========  =====  ==================================================================================

Little-endian where nothing else is said.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from raypipe.errors import IntegrityError

FORMAT = "raypipe packed 1"
"""Part of what is hashed into a schema: values of another format are never read as this one."""

ORDER_BYTES = 16
SCHEMA_BYTES = 8
HEADER = "<16s8sq"
CHECK_BYTES = 4
MAX_VALUE_BYTES = 64 * 2**20
"""Largest packed value; Redis itself ends at 512 MiB."""

FIXED = {"d": "<f8", "f": "<f4", "q": "<i8", "i": "<i4", "?": "?", "t": "<i8"}
"""Kinds with a slot of their own: double, float, int64, int32, bool, time in seconds."""

ITEMS = {"D": "<f8", "F": "<f4", "Q": "<i8", "I": "<i4", "B": "?"}
"""Kinds of lists of numbers, whose items lie in the tail as they are in memory."""

_SLOTS = {**{k: k for k in "dfqi?"}, "t": "q"}
_LENGTH = "I"


@dataclass(frozen=True)
class Layout:
    """The columns of a view as they are packed: (name, kind), in the order of the view.

    Other kinds than FIXED and ITEMS: `s` UTF-8, `b` bytes, `P` Feast's Value as Protobuf.
    """

    columns: tuple[tuple[str, str], ...]

    @cached_property
    def described(self) -> bytes:
        """What the schema is the hash of; stored once, so that any reader can read old values."""
        return json.dumps([FORMAT, *self.columns], separators=(",", ":")).encode()

    @cached_property
    def schema(self) -> bytes:
        """The name of this layout in every value."""
        return schema_of(self.described)

    @cached_property
    def variable(self) -> tuple[int, ...]:
        """Positions of the columns that lie in the tail."""
        return tuple(i for i, (_, kind) in enumerate(self.columns) if kind not in FIXED)

    @cached_property
    def null_bytes(self) -> int:
        """Bytes of the null bitmap."""
        return (len(self.columns) + 7) // 8

    @cached_property
    def struct(self) -> struct.Struct:
        """Everything before the tail, for one value."""
        slots = "".join(_SLOTS.get(kind, _LENGTH) for _, kind in self.columns)
        return struct.Struct(f"{HEADER}{self.null_bytes}s{slots}")

    @cached_property
    def dtype(self) -> np.dtype[np.void]:
        """The same for an array of values; column i is field ``c<i>``."""
        return np.dtype(
            [
                ("newer", ">u8"),
                ("newest", ">u8"),
                ("schema", f"V{SCHEMA_BYTES}"),
                ("time", "<i8"),
                ("nulls", "u1", (self.null_bytes,)),
                *((f"c{i}", FIXED.get(kind, "<u4")) for i, (_, kind) in enumerate(self.columns)),
            ]
        )


@lru_cache(maxsize=4096)
def layout(columns: tuple[tuple[str, str], ...]) -> Layout:
    """The one Layout object of these columns, so that its compiled parts are made once."""
    return Layout(columns)


def schema_of(described: bytes) -> bytes:
    """The schema bytes of a stored description."""
    return hashlib.sha256(described).digest()[:SCHEMA_BYTES]


def read_layout(schema: bytes, described: bytes | None) -> Layout:
    """The layout that a value of another schema was written with.

    Raises:
        IntegrityError: its description is missing, damaged or of another format.
    """
    if described is None or schema_of(described) != schema:
        raise IntegrityError(
            f"the schema {schema.hex()} of an online value is not stored as it was written",
            hint="Write the view's rows again: drop them with `erase`, then materialise.",
        )
    form, *columns = json.loads(described)
    if form != FORMAT:
        raise IntegrityError(
            f"an online value has the format {form!r}, this version reads {FORMAT!r}",
            hint="Read it with the version of raypipe that wrote it, or materialise again.",
        )
    return layout(_pairs(columns))


def _pairs(columns: Sequence[Sequence[str]]) -> tuple[tuple[str, str], ...]:
    return tuple((name, kind) for name, kind in columns)
