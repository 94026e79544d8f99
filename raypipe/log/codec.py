"""One record batch as bytes and back: an Arrow IPC message without its schema.

The schema is stored once and named by its digest: for a row or two it would be most of the bytes.
"""

from __future__ import annotations

import hashlib
import zlib

import pyarrow as pa

from raypipe.errors import IntegrityError, UsageError


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


def checksum(place: int, n: int, kind: str, schema: int, payload: bytes | pa.Buffer) -> int:
    """crc32 of a stored batch together with what says where it belongs and how to read it."""
    header = f"{place}|{n}|{kind}|{schema}|".encode()
    return zlib.crc32(payload, zlib.crc32(header))
