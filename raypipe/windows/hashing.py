"""Stable 64-bit hashes of keys and values: XXH64 (Collet, xxHash specification 0.1.1).

A key's hash is seeded by its tenant and entity, so equal strings of different tenants or entities
are unrelated. Hash 0 is reserved for "no key". Two keys of one entity collide with probability
about n^2 / 2^65, which is 3e-6 for ten million keys (docs/adr/0007).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash
from numba import njit

BUCKETS = 1_024
_BUCKET_SHIFT = 54

_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)
_M64 = (1 << 64) - 1

Ints = npt.NDArray[np.int64]


@njit(cache=True, inline="always")
def _rotate(x, r):  # type: ignore[no-untyped-def]
    return (x << np.uint64(r)) | (x >> np.uint64(64 - r))


@njit(cache=True, inline="always")
def _word(data, i, size):  # type: ignore[no-untyped-def]
    x = np.uint64(0)
    for k in range(size):
        x |= np.uint64(data[i + k]) << np.uint64(8 * k)
    return x


@njit(cache=True, inline="always")
def _round(acc, lane):  # type: ignore[no-untyped-def]
    return _rotate(acc + lane * _P2, 31) * _P1


@njit(cache=True, nogil=True)
def _xxh64(data, start, end, seed):  # type: ignore[no-untyped-def]
    n = end - start
    i = start
    if n >= 32:
        v1 = seed + _P1 + _P2
        v2 = seed + _P2
        v3 = seed
        v4 = seed - _P1
        while i + 32 <= end:
            v1 = _round(v1, _word(data, i, 8))
            v2 = _round(v2, _word(data, i + 8, 8))
            v3 = _round(v3, _word(data, i + 16, 8))
            v4 = _round(v4, _word(data, i + 24, 8))
            i += 32
        h = _rotate(v1, 1) + _rotate(v2, 7) + _rotate(v3, 12) + _rotate(v4, 18)
        for v in (v1, v2, v3, v4):
            h = (h ^ _round(np.uint64(0), v)) * _P1 + _P4
    else:
        h = seed + _P5
    h += np.uint64(n)
    while i + 8 <= end:
        h = _rotate(h ^ _round(np.uint64(0), _word(data, i, 8)), 27) * _P1 + _P4
        i += 8
    if i + 4 <= end:
        h = _rotate(h ^ (_word(data, i, 4) * _P1), 23) * _P2 + _P3
        i += 4
    while i < end:
        h = _rotate(h ^ (np.uint64(data[i]) * _P5), 11) * _P1
        i += 1
    h = (h ^ (h >> np.uint64(33))) * _P2
    h = (h ^ (h >> np.uint64(29))) * _P3
    return h ^ (h >> np.uint64(32))


@njit(cache=True, nogil=True)
def _hash_strings(offsets, data, valid, first, seed, out):  # type: ignore[no-untyped-def]
    """``valid`` holds a bit a row from bit ``first`` on; empty: no row is null."""
    for i in range(out.shape[0]):
        bit = first + i
        if len(valid) and not (valid[bit >> 3] >> (bit & 7)) & 1:
            out[i] = 0
            continue
        h = _xxh64(data, offsets[i], offsets[i + 1], seed)
        out[i] = np.int64(h) if h != 0 else 1


@njit(cache=True, nogil=True)
def _equal_strings(offsets, data):  # type: ignore[no-untyped-def]
    first = offsets[0]
    size = offsets[1] - first
    for i in range(1, len(offsets) - 1):
        start = offsets[i]
        if offsets[i + 1] - start != size:
            return False
        for k in range(size):
            if data[start + k] != data[first + k]:
                return False
    return True


def xxh64(data: bytes, seed: int = 0) -> int:
    """XXH64 of some bytes as an unsigned number.

    >>> hex(xxh64(b"abc"))
    '0x44bc2cf5ad770999'
    """
    return xxhash.xxh64_intdigest(data, seed)


def key_seed(tenant: str, entity: str) -> int:
    """The seed under which all keys of an entity of a tenant are hashed."""
    return xxh64(f"{len(tenant)}:{tenant}{entity}".encode())


def hash_text(text: str | None, seed: int) -> int:
    """Signed 64-bit hash of one string, never 0; 0 for None."""
    if text is None:
        return 0
    h = xxh64(text.encode(), seed) or 1
    return h - (1 << 64) if h >> 63 else h


def hash_column(column: pa.ChunkedArray | pa.Array, seed: int) -> Ints:
    """Signed 64-bit hashes of a string column [n]; null gives 0."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    out = np.empty(len(column), np.int64)
    at = 0
    for chunk in chunks:
        size = len(chunk)
        if size:
            text, offsets, data = _buffers(chunk)
            known = text.buffers()[0] if text.null_count else None
            valid = _read_only(known) if known is not None else _NOTHING
            _hash_strings(
                offsets, data, valid, text.offset, np.uint64(seed & _M64), out[at : at + size]
            )
        at += size
    return out


def single_text(column: pa.ChunkedArray | pa.Array) -> str | None:
    """The text that all rows of a string column have, as a tenant's mostly is; None if they
    differ, if one is null, or if there is none."""
    if isinstance(column, pa.ChunkedArray):
        if column.num_chunks != 1:
            return None
        column = column.chunk(0)
    if not len(column) or column.null_count:
        return None
    text, offsets, data = _buffers(column)
    found: str | None = text[0].as_py() if _equal_strings(offsets, data) else None
    return found


_NOTHING = np.frombuffer(b"", np.uint8)
_NO_DATA = np.frombuffer(b"\0", np.uint8)


def _read_only(buffer: pa.Buffer, type_: npt.DTypeLike = np.uint8) -> npt.NDArray[Any]:
    """Never to be written, whoever made it: the kernels would be compiled again for what may be."""
    found = np.frombuffer(buffer, type_)
    found.flags.writeable = False
    return found


def _buffers(column: pa.Array) -> tuple[pa.Array, npt.NDArray[Any], npt.NDArray[np.uint8]]:
    """A string column that has rows as such, where its texts lie [n + 1], and their bytes."""
    large = pa.types.is_large_string(column.type)
    if not large and not pa.types.is_string(column.type):
        column, large = column.cast(pa.large_string()), True
    _, places, data = column.buffers()
    offsets = _read_only(places, np.int64 if large else np.int32)
    has_data = data is not None and data.size
    return (
        column,
        offsets[column.offset : column.offset + len(column) + 1],
        _read_only(data) if has_data else _NO_DATA,
    )


def bucket(hash: int) -> int:
    """The fixed bucket of one key hash: its top ten bits.

    >>> bucket(hash_text("v-1", key_seed("default", "valve")))
    636
    """
    return (hash & _M64) >> _BUCKET_SHIFT


def bucket_of(hashes: Ints) -> npt.NDArray[np.int32]:
    """The fixed bucket, 0 to 1,023, of each key hash: its top ten bits."""
    return (hashes.view(np.uint64) >> np.uint64(_BUCKET_SHIFT)).astype(np.int32)
