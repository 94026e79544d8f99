"""Record batches as bytes and back: Arrow IPC messages without their schemas.

A schema is stored once and named by a number: for a row or two it would be most of the bytes. A
group is a head (JSON: kind, schema, rows and sizes of each part), then each part's positions and
message, all at multiples of eight bytes as Arrow wants them.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from raypipe.errors import IntegrityError, UsageError
from raypipe.log.port import Chunk, Group, Part

_HEAD = struct.Struct("<Q")
_ALIGN = 8


def encode_schema(schema: pa.Schema) -> tuple[bytes, bytes]:
    """The schema's IPC message and its sha256; raises UsageError for dictionary columns."""
    coded = [f.name for f in schema if pa.types.is_dictionary(f.type)]
    if coded:
        raise UsageError(
            f"columns {', '.join(coded)} are dictionary-encoded",
            hint="Cast them to their value type before they are logged.",
        )
    ipc: bytes = schema.serialize().to_pybytes()
    return ipc, hashlib.sha256(ipc).digest()


def decode_schema(ipc: bytes, digest: bytes) -> pa.Schema:
    """The schema of an IPC message; raises IntegrityError when the digest is another."""
    if hashlib.sha256(ipc).digest() != digest:
        raise IntegrityError("a stored schema doesn't match its digest")
    return pa.ipc.read_schema(pa.py_buffer(ipc))


def encode(batch: pa.RecordBatch) -> pa.Buffer:
    """The batch as one IPC message; a slice is written as its own rows alone."""
    return batch.serialize()


def decode(payload: bytes, schema: pa.Schema) -> pa.RecordBatch:
    """The batch of an IPC message; columns point into ``payload``, which must be checked first."""
    return pa.ipc.read_record_batch(pa.py_buffer(payload), schema)


def encode_group(group: Group, schemas: Sequence[int]) -> bytes:
    """The group as bytes; raises UsageError unless its positions are exactly 0 to rows - 1.

    Args:
        schemas: the number of each part's schema.
    """
    seen = np.zeros(len(group), np.bool_)
    for part in group.parts:
        ascending = bool((np.diff(part.positions) > 0).all())
        if len(part.positions) != part.batch.num_rows or not ascending:
            raise UsageError(f"the positions of {part.kind!r} don't ascend, one for each row")
        if len(part.positions) and not 0 <= part.positions[0] <= part.positions[-1] < len(seen):
            raise UsageError(f"the positions of {part.kind!r} leave 0..{len(seen) - 1}")
        seen[part.positions] = True
    if not seen.all():
        raise UsageError(f"two kinds share a position of a group of {len(seen)} rows")
    head, pieces = [], []
    for part, schema in zip(group.parts, schemas, strict=True):
        positions = b"" if len(group.parts) == 1 else part.positions.astype("<i4").tobytes()
        message = encode(part.batch)
        head.append((part.kind, schema, part.batch.num_rows, len(positions), message.size))
        pieces += [positions, message]
    text = json.dumps(head, separators=(",", ":")).encode()
    out = bytearray(_HEAD.pack(len(text)) + text)
    for piece in pieces:
        out += bytes(-len(out) % _ALIGN)
        out += piece
    return bytes(out)


def decode_group(payload: bytes, schema: Callable[[int], pa.Schema]) -> Group:
    """The group of ``encode_group``'s bytes, which must be checked first."""
    (size,) = _HEAD.unpack_from(payload)
    at = _HEAD.size + size
    buffer, parts = pa.py_buffer(payload), []
    for kind, number, rows, positions_size, message_size in json.loads(payload[_HEAD.size : at]):
        at += -at % _ALIGN
        positions = (
            np.frombuffer(payload, "<i4", rows, at)
            if positions_size
            else np.arange(rows, dtype=np.int32)
        )
        at += positions_size
        at += -at % _ALIGN
        batch = pa.ipc.read_record_batch(buffer.slice(at, message_size), schema(number))
        at += message_size
        parts.append(Part(kind, batch, positions))
    return Group(tuple(parts))


def chunks(group: Group, base: int, first: int, stop: int) -> list[Chunk]:
    """The rows with offsets in [first, stop) of a group that begins at offset ``base``."""
    found = []
    for part in group.parts:
        a, b = part.positions.searchsorted([first - base, stop - base])
        if a < b:
            offsets = part.positions[a:b].astype(np.int64) + base
            found.append(Chunk(part.kind, offsets, part.batch.slice(a, b - a)))
    return found


def checksum(place: int, n: int, kind: str, schema: int, payload: bytes | pa.Buffer) -> int:
    """crc32 of a stored batch together with what says where it belongs and how to read it."""
    header = f"{place}|{n}|{kind}|{schema}|".encode()
    return zlib.crc32(payload, zlib.crc32(header))
