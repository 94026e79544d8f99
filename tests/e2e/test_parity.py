"""Batch and worker agree on every bit, and with plain SQL.

The worker is fed event by event and starts again from its snapshots, once from the batch's state.
``PARITY_EVENTS=1000000`` makes it a million events; CI takes fewer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.passes import run_entity
from features.payments import project
from raypipe.events.declarations import declare
from raypipe.lake import Place
from raypipe.log.sqlite import SqliteLog
from raypipe.runtime.worker.core import GROUP, WorkerCore
from raypipe.runtime.worker.snapshots import Snapshots
from raypipe.simulate.config import WorldConfig
from raypipe.simulate.world import World
from raypipe.vector.assemble import Assembler, raw_columns
from raypipe.windows import snapshot
from tests.property.oracle import compare, truth

EVENTS = int(os.environ.get("PARITY_EVENTS", "150000"))
START = 1_780_000_000_000
RESTARTS = 3
PROBES = 300
DECLARED = len(project.events)
"""Rows of a new log before its first event."""

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def arrivals() -> list[tuple[str, dict]]:
    """Transactions and chargebacks in order of arrival, 5 % of them late."""
    config = WorldConfig(
        seed=3, start_ms=START, days=100, customers=EVENTS * 9 // 1_000, late_share=0.05
    )
    world = World(config)
    rows: list[tuple[int, str, dict]] = []
    for batch in world.batches():
        for kind, table in (("transaction", batch.transactions), ("chargeback", batch.chargebacks)):
            rows += [(r["received_at"], kind, r | {"tenant": "default"}) for r in table.to_pylist()]
    rows.sort(key=lambda r: r[0])
    taken = [(kind, row) for _, kind, row in rows[:EVENTS]]
    assert len(taken) == EVENTS
    times = [row["event_time"] for _, row in taken]
    late = np.mean(np.array(times) < np.maximum.accumulate(times) - 60_000)
    assert late > 0.04
    return taken


def feed(core: WorkerCore, arrivals: list[tuple[str, dict]]) -> np.ndarray:
    """Window values [transactions, values] of events that go through a worker one by one."""
    seen = []
    for i, (kind, row) in enumerate(arrivals):
        entry, _ = core.observe(row, i.to_bytes(32, "big"), kind)
        if kind == project.decision:
            seen.append(entry.windows)
        if i % 1_000 == 999:
            core.commit()
    core.commit()
    return np.frombuffer(b"".join(seen)).reshape(len(seen), -1)


def live_through(log: SqliteLog, arrivals: list[tuple[str, dict]], snapshots: Path) -> np.ndarray:
    """What ``feed`` gives when the worker ends several times and starts from its last snapshot."""
    seen = []
    cuts = np.linspace(0, len(arrivals), RESTARTS + 2).astype(int)
    for start, end in pairwise(cuts.tolist()):
        kept = Snapshots(Place.at(snapshots), project.definition_hash, 60)
        core = WorkerCore(project, log, snapshots=kept)
        stats = core.stats()
        assert (stats["log_end"], stats["keys"] > 0) == (DECLARED + start, start > 0)
        # The snapshot is older than the log's end: a part is restored, a part is replayed.
        middle = (start + end) // 2
        seen.append(feed(core, arrivals[start:middle]))
        core.save()
        seen.append(feed(core, arrivals[middle:end]))
    return np.concatenate(seen)


def check_probes(arrivals: list[tuple[str, dict]], offsets: np.ndarray, live: np.ndarray) -> None:
    """Sampled decisions of every view against plain SQL."""
    probes = np.sort(np.random.default_rng(5).choice(len(offsets), PROBES, replace=False))
    tables = []
    for event in project.events:
        placed = enumerate(arrivals, DECLARED)
        rows = [{"offset": i} | r for i, (kind, r) in placed if kind == event.name]
        schema = pa.schema([pa.field("offset", pa.int64()), *event.arrow_schema])
        kind = pa.array([event.name] * len(rows))
        tables.append(pa.Table.from_pylist(rows, schema).append_column("kind", kind))
    table = pa.concat_tables(tables, promote_options="default")
    first = 0
    for view in project.views:
        mine = live[:, first : first + len(view.column_names)]
        first += len(view.column_names)
        true = truth(view, table, project.decision, at=offsets[probes].tolist())
        worst = compare(true, view.column_names, {int(offsets[p]): mine[p] for p in probes})
        assert worst.values == PROBES * len(view.column_names)


def compute(log: SqliteLog, out: Path, end: int) -> None:
    kinds = [e.name for e in project.events]
    place = Place.at(out)
    events = {k: log.export(0, k, place / "export", 0, end) for k in kinds}
    written: dict[str, str] = {}
    for entity in project.entities:
        written |= run_entity(project, entity.name, events, place, partitions=4)[1]
    parts = {n.removeprefix("snapshot/"): h for n, h in written.items() if n[:9] == "snapshot/"}
    snapshot.seal(place / "snapshot", end, project.definition_hash, parts)


def at_event(out: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Offsets and window columns of the batch, in offset order."""
    columns: dict[str, np.ndarray] = {}
    offsets: np.ndarray | None = None
    for view in project.views:
        table = pq.read_table(out / "at_event" / view.name)
        order = np.argsort(table["offset"].to_numpy())
        mine = table["offset"].to_numpy()[order]
        assert offsets is None or np.array_equal(offsets, mine)
        offsets = mine
        columns |= {
            n: table[n].to_numpy()[order] for n in table.column_names if n in project.window_names
        }
    assert offsets is not None
    return offsets, columns


def history(arrivals: list[tuple[str, dict]]) -> dict[str, Iterator[pa.RecordBatch]]:
    out = {}
    for event in project.events:
        at = [(i, row) for i, (kind, row) in enumerate(arrivals) if kind == event.name]
        batch = pa.RecordBatch.from_pylist([row for _, row in at], event.arrow_schema)
        positions = pa.array([i for i, _ in at], pa.int64())
        named = [pa.field("_position", pa.int64(), nullable=False), *event.arrow_schema]
        out[event.name] = iter(
            [pa.RecordBatch.from_arrays([positions, *batch.columns], schema=pa.schema(named))]
        )
    return out


@pytest.mark.usefixtures("ray_session")
def test_batch_and_worker_agree_on_every_bit(
    arrivals: list[tuple[str, dict]], tmp_path: Path
) -> None:
    log = SqliteLog(tmp_path / "one")
    live = live_through(log, arrivals, tmp_path / "snapshots")
    end = DECLARED + EVENTS
    compute(log, tmp_path / "batch", end)
    offsets, columns = at_event(tmp_path / "batch")
    placed = enumerate(arrivals, DECLARED)
    assert [i for i, (k, _) in placed if k == project.decision] == offsets.tolist()

    # Every bit of every window value.
    batch = np.column_stack([columns[n] for n in project.window_names])
    assert batch.shape == live.shape
    assert np.array_equal(batch.view(np.uint64), live.view(np.uint64))
    check_probes(arrivals, offsets, live)

    # And of the feature rows, assembled in columns and one by one.
    assembler = Assembler(project, project.model("fraud"))
    rows = [row for kind, row in arrivals if kind == project.decision]
    table = pa.Table.from_pylist(rows, project.decision_event.arrow_schema)
    slow = np.random.default_rng(7).uniform(0, 99, (len(rows), len(project.profile_names)))
    profiles = {n: np.ascontiguousarray(slow[:, i]) for i, n in enumerate(project.profile_names)}
    features = assembler.columns(raw_columns(project.decision_event, table), columns, profiles)
    one_by_one = np.stack(
        [
            assembler.row(row, window.tobytes(), known)
            for row, window, known in zip(rows, live, slow.tolist(), strict=True)
        ]
    )
    assert features.dtype == one_by_one.dtype == np.float32
    assert features.tobytes() == one_by_one.tobytes()

    # Started half-way, from the state that a batch over sealed history left.
    half = EVENTS // 2
    sealed = SqliteLog(tmp_path / "two")
    declare(sealed, project, 0, sealed.begin_epoch(0))
    _, sealed_end = sealed.seal(0, history(arrivals[:half]), half, producer="history", seq=0)
    compute(sealed, tmp_path / "half", sealed_end)
    sealed.commit(GROUP, 0, sealed_end, os.fspath(tmp_path / "half" / "snapshot"))
    core = WorkerCore(project, sealed)
    assert core.stats()["log_end"] == sealed_end == DECLARED + half
    rest = feed(core, arrivals[half:])
    assert rest.tobytes() == live[len(live) - len(rest) :].tobytes()

    # Both workers end in one state, and so does the batch over everything.
    whole = WorkerCore(project, SqliteLog(tmp_path / "two"))._state.windows.snapshot()
    log.commit(GROUP, 0, end, os.fspath(tmp_path / "batch" / "snapshot"))
    from_batch = WorkerCore(project, log)._state.windows.snapshot()
    assert all(a.equals(b) for a, b in zip(whole, from_batch, strict=True))
