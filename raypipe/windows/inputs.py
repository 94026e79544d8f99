"""What the kernel needs of an event, read from columns or from one: hashes, numbers, flags."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.windows.conditions import Condition
from raypipe.windows.hashing import hash_column, hash_text, key_seed, single_text, xxh64
from raypipe.windows.spec import Op, WindowView

VALUE_SEED = xxh64(b"raypipe.value")
"""Seed of the hashes that distinct sketches count; keys have seeds of their own."""

Ints = npt.NDArray[np.int64]

_seed = lru_cache(maxsize=65_536)(key_seed)


def key_hashes(view: WindowView, table: pa.Table | pa.RecordBatch) -> Ints:
    """Hash of each row's key under its tenant [n]; 0 where the key is null."""
    return hash_keys(table, view.key, view.entity)


def hash_keys(table: pa.Table | pa.RecordBatch, key: str, entity: str) -> Ints:
    """Hash of each row's value in column ``key`` under its tenant and an entity [n]; 0 for null."""
    tenant = single_text(table.column("tenant"))
    if tenant is not None:
        return hash_column(table.column(key), _seed(tenant, entity))
    out = np.zeros(table.num_rows, np.int64)
    for tenant in pc.unique(table.column("tenant")).to_pylist():
        mask = pc.equal(table.column("tenant"), tenant)
        at = mask.to_numpy(zero_copy_only=False).nonzero()[0]
        out[at] = hash_column(table.column(key).filter(mask), _seed(tenant, entity))
    return out


def key_hash(view: WindowView, event: Mapping[str, Any]) -> int:
    """Hash of one event's key under its tenant; 0 where it has none."""
    return hash_text(event[view.key], _seed(event["tenant"], view.entity))


class Facts(NamedTuple):
    """Of n events of one type: int64 [n, value columns], [n, sketches] and [n].

    0 where an event type has no such column. ``hashes`` are 0 where the value is null. Bit i of
    ``flags`` says that filter i of the view holds.
    """

    amounts: Ints
    hashes: Ints
    flags: Ints


class Inputs:
    """Reads the events of one type for one view."""

    def __init__(self, view: WindowView, kind: str) -> None:
        self._width = len(view.value_columns), len(view.sketches)
        mine = [a for a in view.aggregates if a.of in {"", kind}]
        values = {a.column for a in mine if a.op is not Op.DISTINCT}
        counted = {a.column for a in mine if a.op is Op.DISTINCT}
        self._values = [(i, c) for i, c in enumerate(view.value_columns) if c in values]
        self._sketches = [(i, s.column) for i, s in enumerate(view.sketches) if s.column in counted]
        self._filters = [
            (1 << i, Condition(f.where) if f.where else None)
            for i, f in enumerate(view.filters)
            if f.of in {"", kind}
        ]

    @property
    def columns(self) -> tuple[str, ...]:
        """Event columns that are read."""
        names = [c for _, c in (*self._values, *self._sketches)]
        for _, condition in self._filters:
            names += condition.columns if condition else ()
        return tuple(dict.fromkeys(names))

    def of_columns(self, table: pa.Table | pa.RecordBatch) -> Facts:
        """Of validated events in columns."""
        n = table.num_rows
        amounts, hashes = (np.zeros((n, width), np.int64) for width in self._width)
        flags = np.zeros(n, np.int64)
        for i, name in self._values:
            amounts[:, i] = table.column(name).to_numpy(zero_copy_only=False)
        for i, name in self._sketches:
            hashes[:, i] = hash_column(table.column(name), VALUE_SEED)
        for bit, condition in self._filters:
            flags |= bit if condition is None else np.where(condition.of_columns(table), bit, 0)
        return Facts(amounts, hashes, flags)

    def of_row(self, event: Mapping[str, Any], into: Facts) -> None:
        """Of one validated event, into facts of one row."""
        into.amounts[0] = 0
        into.hashes[0] = 0
        flags = 0
        for i, name in self._values:
            into.amounts[0, i] = event[name]
        for i, name in self._sketches:
            into.hashes[0, i] = hash_text(event[name], VALUE_SEED)
        for bit, condition in self._filters:
            if condition is None or condition.of_row(event):
                flags |= bit
        into.flags[0] = flags
