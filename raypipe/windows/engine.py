"""Window state of several views fed with events: in columns (batch, replay) or one by one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa

from raypipe.log.port import Chunk, merged
from raypipe.windows import kernel
from raypipe.windows.hashing import BUCKETS, Ints, bucket, bucket_of
from raypipe.windows.inputs import Facts, Inputs, key_hash, key_hashes
from raypipe.windows.spec import WindowView
from raypipe.windows.state import Rows, ViewState

_SCRATCH_KEYS = 4_096


class WindowEngine:
    """All views of a project over one log partition. Not thread-safe.

    Args:
        views: the views to keep, in output order.
        decision: event type whose events read every view.
        owned: buckets whose keys are kept; None: all.
    """

    def __init__(
        self, views: Sequence[WindowView], decision: str, owned: range | None = None
    ) -> None:
        self._owned = owned
        self.states = {v.name: ViewState(v) for v in views}
        self._inputs = {v.name: {kind: Inputs(v, kind) for kind in v.events} for v in views}
        self._blank = {v.name: np.full(len(v.columns), np.nan).tobytes() for v in views}
        self._decision = decision
        self._since: dict[str, Ints] = {}
        self._row = {
            v.name: Rows(
                np.zeros(1, np.int64),
                np.zeros(1, np.int64),
                np.zeros(1, np.int64),
                np.zeros(1, np.uint8),
                np.zeros((1, len(v.value_columns)), np.int64),
                np.zeros((1, len(v.sketches)), np.int64),
                np.zeros(1, np.int64),
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
        no decision. Those of a view whose key is not owned are NaN.
        """
        if self._owned is not None:
            return self._observe_owned(kind, event, offset, self._owned)
        reads = self._decision == kind
        mine: list[tuple[ViewState, Rows]] = []
        keys: dict[tuple[str, str], int] = {}
        # All inputs are read before any state changes: an odd event can't be half counted.
        for name, state in self.states.items():
            inputs = self._inputs[name].get(kind)
            if inputs is None and not reads:
                continue
            rows, view = self._row[name], state.view
            key = keys.get((view.key, view.entity))
            if key is None:
                key = keys[view.key, view.entity] = key_hash(view, event)
            rows.keys[0], rows.times[0], rows.offsets[0] = key, event["event_time"], offset
            rows.modes[0] = _mode(reads=reads, counts=inputs is not None)
            if inputs is not None:
                inputs.of_row(event, Facts(rows.amounts, rows.hashes, rows.flags))
            mine.append((state, rows))
        parts = [state.one(rows).tobytes() for state, rows in mine]
        return b"".join(parts) if reads else b""

    def _observe_owned(
        self, kind: str, event: Mapping[str, Any], offset: int, owned: range
    ) -> bytes:
        """The same for the views of owned keys; what the others read may lack in the event."""
        reads = self._decision == kind
        mine: set[str] = set()
        keys: dict[str, int] = {}
        for name, inputs in self._inputs.items():
            if not reads and kind not in inputs:
                continue
            rows, view = self._row[name], self.states[name].view
            key = keys.get(view.entity)
            if key is None:
                key = keys[view.entity] = key_hash(view, event)
            if key and bucket(key) not in owned:
                continue
            mine.add(name)
            counts = bool(key) and kind in inputs
            rows.keys[0], rows.times[0], rows.offsets[0] = key, event["event_time"], offset
            rows.modes[0] = _mode(reads=reads, counts=counts)
            if counts:
                inputs[kind].of_row(event, Facts(rows.amounts, rows.hashes, rows.flags))
        parts = [
            state.one(self._row[name]).tobytes() if name in mine else self._blank[name]
            for name, state in self.states.items()
        ]
        return b"".join(parts) if reads else b""

    def read(self, tenant: str, entity: str, key: str, now: int) -> dict[str, float]:
        """Window values of one key of an entity as of ``now`` (ms), by column; changes nothing.

        A key that no event had reads as one without events. No column for an unknown entity.
        """
        found: dict[str, float] = {}
        for name, state in self.states.items():
            view, rows = state.view, self._row[name]
            if view.entity == entity:
                rows.keys[0] = key_hash(view, {"tenant": tenant, view.key: key})
                rows.times[0], rows.modes[0] = now, kernel.READ
                values = state.one(rows).tolist()
                found |= zip(view.column_names, values, strict=True)
        return found

    def latest(self, name: str, tenant: str, keys: pa.Array) -> pa.Table:
        """The state of known keys after their newest events, as an online store keeps it.

        Columns: `key`, `time` (of that event, microseconds UTC), `offset` (its place in the log),
        then the view's own, float64. Unknown keys have no row.
        """
        state = self.states[name]
        view, tenants = state.view, pa.repeat(pa.scalar(tenant), len(keys))
        hashes = key_hashes(view, pa.table({"tenant": tenants, view.key: keys}))
        clocks = state.clocks(hashes)
        known = clocks != kernel.NEVER
        hashes, clocks = hashes[known], clocks[known]
        n = len(hashes)
        found = state.process(
            Rows(
                hashes,
                clocks,
                np.zeros(n, np.int64),
                np.full(n, kernel.READ, np.uint8),
                np.zeros((n, len(view.value_columns)), np.int64),
                np.zeros((n, len(view.sketches)), np.int64),
                np.zeros(n, np.int64),
            )
        )
        columns = dict(zip(view.column_names, found.before.T, strict=True))
        return pa.table(
            {
                "key": keys.filter(pa.array(known)),
                "time": clocks * 1_000,
                "offset": found.newest,
                **columns,
            }
        )

    def apply(self, chunks: Sequence[Chunk]) -> None:
        """Take events in, in offset order over all chunks, without reading."""
        events = [_Events(chunk) for chunk in merged(chunks)]
        for name, state in self.states.items():
            found = [
                _rows(state.view, inputs, mine, self._since.get(name))
                for some in events
                if (inputs := self._inputs[name].get(some.chunk.kind)) is not None
                and (mine := self._mine(state.view, some)) is not None
            ]
            if found:
                state.process(_merged(found))

    def _mine(self, view: WindowView, events: _Events) -> _Events | None:
        """Those whose keys are owned, None if there are none."""
        if self._owned is None:
            return events
        keys = events.keys(view)
        buckets = bucket_of(keys)
        mine = (keys != 0) & (buckets >= self._owned.start) & (buckets < self._owned.stop)
        if mine.all():
            return events
        if not mine.any():
            return None
        chunk = events.chunk
        kept = chunk.batch.filter(pa.array(mine))
        return _Events(Chunk(chunk.kind, chunk.offsets[mine], kept))

    def snapshot(self) -> list[pa.Table]:
        """The state of every view in canonical form."""
        return [s.snapshot() for s in self.states.values()]

    def pieces(self, keys: int) -> list[tuple[str, range]]:
        """Views and ranges of buckets with about so many keys each: the whole state once."""
        found = []
        for name, state in self.states.items():
            step = BUCKETS // min(BUCKETS, 1 << (state.keys // keys).bit_length())
            found += [(name, range(b, b + step)) for b in range(0, BUCKETS, step)]
        return found

    def piece(self, name: str, buckets: range, offset: int) -> pa.Table:
        """A part of a view's state that has counted every event before ``offset``."""
        table = self.states[name].snapshot(buckets)
        marks = {"offset": str(offset), "buckets": f"{buckets.start}-{buckets.stop}"}
        return table.replace_schema_metadata({**table.schema.metadata, **marks})

    def restore(self, tables: Iterable[pa.Table]) -> None:
        """Add snapshots of any of the views; each names its view in its metadata.

        Of pieces that were taken at different offsets, ``apply`` then leaves out what each has
        counted already, until ``settle``.
        """
        for table in tables:
            meta = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
            name = meta.get("view", "")
            if name not in self.states:
                continue
            self.states[name].restore(table)
            if "offset" in meta:
                first, _, stop = meta["buckets"].partition("-")
                since = self._since.setdefault(name, np.zeros(BUCKETS, np.int64))
                since[int(first) : int(stop)] = int(meta["offset"])

    def settle(self) -> None:
        """All that the restored pieces had counted has been passed."""
        self._since.clear()


class _Events:
    """Events of one type; views of one entity share the hashes of their keys."""

    def __init__(self, chunk: Chunk) -> None:
        self.chunk = chunk
        self._keys: dict[tuple[str, str], Ints] = {}

    def keys(self, view: WindowView) -> Ints:
        """Hash of each event's key [n]."""
        if (view.key, view.entity) not in self._keys:
            self._keys[view.key, view.entity] = key_hashes(view, self.chunk.batch)
        return self._keys[view.key, view.entity]


def _mode(*, reads: bool, counts: bool) -> int:
    return (kernel.READ if reads else 0) | (kernel.UPDATE if counts else 0)


def _rows(view: WindowView, inputs: Inputs, events: _Events, since: Ints | None) -> Rows:
    """The kernel's rows; those before ``since`` [buckets] are counted already: they get no key."""
    chunk, keys = events.chunk, events.keys(view)
    if since is not None:
        keys = np.where(chunk.offsets < since[bucket_of(keys)], 0, keys)
    return Rows(
        keys,
        chunk.batch.column("event_time").to_numpy(),
        np.ascontiguousarray(chunk.offsets),
        np.full(len(chunk), kernel.UPDATE, np.uint8),
        *inputs.of_columns(chunk.batch),
    )


def _merged(found: Sequence[Rows]) -> Rows:
    """The rows of several event types in offset order."""
    whole = found[0]
    if len(found) > 1:
        columns = [np.concatenate([getattr(rows, f.name) for rows in found]) for f in fields(Rows)]
        whole = Rows(*columns)
    if bool((np.diff(whole.offsets) > 0).all()):
        return whole
    order = np.argsort(whole.offsets, kind="stable")  # it merges what is in order already
    return Rows(*(getattr(whole, f.name)[order] for f in fields(Rows)))


def compile_windows(views: Sequence[WindowView], decision: str) -> None:
    """Have the kernel ready before the first event: compiling it takes up to half a minute, once
    an installation; loading what was compiled takes milliseconds.

    Runs made-up events through an engine that is thrown away, enough for it to grow.
    """
    engine = WindowEngine(views, decision)
    for name, row in engine._row.items():
        keys = np.arange(1, _SCRATCH_KEYS + 1)
        wide = [np.repeat(part, len(keys), axis=0) for part in (row.amounts, row.hashes, row.flags)]
        modes = np.full(len(keys), kernel.READ | kernel.UPDATE, np.uint8)
        engine.states[name].process(row)
        engine.states[name].process(Rows(keys, 0 * keys, keys, modes, *wide))
    WindowEngine(views, decision).restore(engine.snapshot())
