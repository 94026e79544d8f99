"""Window state of several views fed with events: in columns (batch, replay) or one by one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.windows import kernel
from raypipe.windows.hashing import hash_column, hash_text, key_seed, xxh64
from raypipe.windows.spec import WindowView
from raypipe.windows.state import Ints, Rows, ViewState

VALUE_SEED = xxh64(b"raypipe.value")
"""Seed of the hashes that distinct sketches count; keys have seeds of their own."""

_seed = lru_cache(maxsize=65_536)(key_seed)


def key_hashes(view: WindowView, table: pa.Table) -> Ints:
    """Hash of each row's key under its tenant [n]; 0 where the key is null."""
    tenants = pc.unique(table.column("tenant")).to_pylist()
    if len(tenants) == 1:
        return hash_column(table.column(view.key), _seed(tenants[0], view.entity))
    out = np.zeros(table.num_rows, np.int64)
    for tenant in tenants:
        mask = pc.equal(table.column("tenant"), tenant)
        at = mask.to_numpy().nonzero()[0]
        out[at] = hash_column(table.column(view.key).filter(mask), _seed(tenant, view.entity))
    return out


def amounts(view: WindowView, table: pa.Table | pa.RecordBatch) -> Ints:
    """Value columns of a view as int64 [n, value columns]."""
    out = np.zeros((table.num_rows, len(view.value_columns)), np.int64)
    for i, name in enumerate(view.value_columns):
        out[:, i] = table.column(name).to_numpy(zero_copy_only=False)
    return out


def value_hashes(view: WindowView, table: pa.Table) -> Ints:
    """Hashed sketch columns of a view as int64 [n, sketches]; 0 where null."""
    out = np.zeros((table.num_rows, len(view.sketches)), np.int64)
    for i, (name, _) in enumerate(view.sketches):
        out[:, i] = hash_column(table.column(name), VALUE_SEED)
    return out


class WindowEngine:
    """All views of a project over one log partition. Not thread-safe.

    Args:
        views: the views to keep, in output order.
        decision: event type whose events read every view.
    """

    def __init__(self, views: Sequence[WindowView], decision: str) -> None:
        self.states = {v.name: ViewState(v) for v in views}
        self._decision = decision
        self._row = {
            v.name: Rows(
                np.zeros(1, np.int64),
                np.zeros(1, np.int64),
                np.zeros(1, np.int64),
                np.zeros(1, np.uint8),
                np.zeros((1, len(v.value_columns)), np.int64),
                np.zeros((1, len(v.sketches)), np.int64),
            )
            for v in views
        }

    @property
    def keys(self) -> int:
        """Known keys over all views."""
        return sum(s.keys for s in self.states.values())

    @property
    def too_old(self) -> int:
        """Events that came too late for every window of a view, over all views."""
        return sum(s.too_old for s in self.states.values())

    @property
    def nbytes(self) -> int:
        """Memory held by all states."""
        return sum(s.nbytes for s in self.states.values())

    def observe(self, kind: str, event: Mapping[str, Any], offset: int) -> bytes:
        """Take one event in; returns the window values before it.

        The values are float64 bytes in view and column order, empty if the event type asks for
        no decision.
        """
        reads = self._decision == kind
        modes = {
            name: (kernel.READ if reads else 0) | (kernel.UPDATE if s.view.event == kind else 0)
            for name, s in self.states.items()
        }
        # All inputs are read before any state changes: an odd event can't be half counted.
        for name, mode in modes.items():
            if mode:
                self._fill(self._row[name], self.states[name].view, event, offset, mode)
        parts = [
            self.states[name].process(self._row[name]).before.tobytes()
            for name, mode in modes.items()
            if mode
        ]
        return b"".join(parts) if reads else b""

    @staticmethod
    def _fill(
        rows: Rows, view: WindowView, event: Mapping[str, Any], offset: int, mode: int
    ) -> None:
        rows.keys[0] = hash_text(event[view.key], _seed(event["tenant"], view.entity))
        rows.times[0] = event["event_time"]
        rows.offsets[0] = offset
        rows.modes[0] = mode
        if mode & kernel.UPDATE:
            for i, column in enumerate(view.value_columns):
                rows.amounts[0, i] = event[column]
            for i, (column, _) in enumerate(view.sketches):
                rows.hashes[0, i] = hash_text(event[column], VALUE_SEED)

    def apply(self, kind: str, table: pa.Table, offsets: npt.NDArray[np.int64]) -> None:
        """Take events of one type in without reading: replay after a start."""
        for state in self.states.values():
            view = state.view
            if view.event != kind:
                continue
            state.process(
                Rows(
                    key_hashes(view, table),
                    table.column("event_time").to_numpy(),
                    np.ascontiguousarray(offsets),
                    np.full(table.num_rows, kernel.UPDATE, np.uint8),
                    amounts(view, table),
                    value_hashes(view, table),
                )
            )

    def snapshot(self) -> list[pa.Table]:
        """The state of every view in canonical form."""
        return [s.snapshot() for s in self.states.values()]

    def restore(self, tables: Iterable[pa.Table]) -> None:
        """Add snapshots of any of the views; each names its view in its metadata."""
        for table in tables:
            name = (table.schema.metadata or {}).get(b"view", b"").decode()
            if name in self.states:
                self.states[name].restore(table)
