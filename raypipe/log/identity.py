"""Which row is which: (kind, tenant, id) and its 64-bit hash.

The hash narrows a search to about one row, which is then compared exactly: a collision costs time,
never truth. It is blake2b because ids come from outside, and colliding ids for a fast hash are
easily made; it takes under a microsecond a row.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe.errors import UsageError
from raypipe.log.port import DECISION

Hashes = npt.NDArray[np.uint64]
Keys = tuple[list[str], list[str]]
"""Tenants and ids of a batch's rows."""


def id_column(kind: str) -> str:
    """The column that identifies a row of this kind within its tenant."""
    return "decision_id" if kind == DECISION else "event_id"


def keys(kind: str, batch: pa.RecordBatch) -> Keys:
    """Tenant and id of each row; raises UsageError when a column is absent or has nulls."""
    return _column(kind, batch, "tenant"), _column(kind, batch, id_column(kind))


def _column(kind: str, batch: pa.RecordBatch, name: str) -> list[str]:
    at = batch.schema.get_field_index(name)
    if at < 0 or batch.column(at).null_count:
        raise UsageError(
            f"a batch of {kind!r} {'has no' if at < 0 else 'has nulls in'} column {name!r}",
            hint="Every logged row carries its tenant and its id.",
        )
    values: list[str] = batch.column(at).to_pylist()
    return values


def hash_keys(kind: str, keys: Keys) -> Hashes:
    """First 8 bytes of blake2b(tenant 0x00 kind 0x00 id), little-endian, for each row."""
    middle = f"\0{kind}\0"
    digests = [
        blake2b((tenant + middle + id).encode(), digest_size=8).digest()
        for tenant, id in zip(*keys, strict=True)
    ]
    return np.frombuffer(b"".join(digests), dtype="<u8")
