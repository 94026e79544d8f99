"""What changed in the worker's windows is found in the online store, with the same values."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pyarrow as pa
import pytest

from features.flush import StateWriter
from features.online import StateReader
from features.store.packed.backend import open_backend
from raypipe.errors import NotFound, Unavailable
from raypipe.log.port import Group
from raypipe.log.sqlite import SqliteLog
from raypipe.runtime.worker.core import WorkerCore
from raypipe.runtime.worker.intake import Bulk
from serving.flushing import BATCH_ROWS, IDLE_S, PAUSE_S, Flusher
from tests.domains.greenhouse import project

NOW = 1_790_000_000_000


def opening(i: int, **changes: object) -> dict:
    return {
        "tenant": "default",
        "event_id": f"o-{i}",
        "event_time": NOW + i * 1_000,
        "received_at": NOW + i * 1_000,
        "valve": f"v-{i % 40}",
        "gardener": f"g-{i % 7}" if i % 3 else None,
        "litres": i % 50,
        "mode": "drip",
    } | changes


class Worker:
    """The core of a worker, asked without a socket."""

    def __init__(self, home: Path) -> None:
        self.core = WorkerCore(project, SqliteLog(home / "log"))

    def take(self, *rows: dict) -> None:
        batch = pa.RecordBatch.from_pylist(list(rows), project.event("opening").arrow_schema)
        self.core.ingest(Bulk("default", Group.of("opening", batch), NOW, "x", b""))
        self.core.commit()

    async def changes(self, limit: int, *, written: bool) -> tuple[str, pa.Table] | None:
        return self.core.changed(limit, written=written)


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    return Worker(tmp_path)


@pytest.fixture
def url(tmp_path: Path) -> str:
    (tmp_path / "feast").mkdir()
    made = f"sqlite:///{tmp_path}/feast/online.db"
    backend = open_backend(made)
    backend.put([], [], b"", b"")
    backend.close()
    return made


def flush(flusher: Flusher) -> None:
    for _ in range(50):
        if asyncio.run(flusher.step()) == IDLE_S:
            return
    raise AssertionError("it does not come to an end")


def check_online(worker: Worker, reader: StateReader, view_name: str, key: str) -> None:
    view = next(v for v in project.views if v.name == view_name)
    row = reader.read(view, key, NOW + 10**6)
    assert row.event_time is not None
    live = worker.core.read("default", view.entity, key, row.event_time)
    for name in view.column_names:
        assert row.values[name] == live[name] or math.isnan(row.values[name] + live[name])


def test_changed_keys_are_online(worker: Worker, tmp_path: Path, url: str) -> None:
    worker.take(*(opening(i) for i in range(200)))
    worker.core.observe(opening(500, valve="v-alone"), b"0" * 32)
    worker.core.commit()
    flusher = Flusher(worker, lambda: StateWriter(project, tmp_path, url), 10**6)
    flush(flusher)
    reader = StateReader(project, tmp_path, url)
    for view, keys in (("valve", ["v-0", "v-39", "v-alone"]), ("gardener", ["g-1", "g-6"])):
        for key in keys:
            check_online(worker, reader, view, key)
    assert flusher.rows == 41 + 7
    worker.take(opening(600, valve="v-3", gardener=None))
    flush(flusher)
    check_online(worker, reader, "valve", "v-3")
    assert flusher.rows == 41 + 7 + 1


def test_other_tenants_stay_away(worker: Worker, tmp_path: Path, url: str) -> None:
    worker.take(opening(1), opening(2, tenant="other"), opening(3, tenant="other", valve="v-1"))
    flush(Flusher(worker, lambda: StateWriter(project, tmp_path, url), 10**6))
    reader = StateReader(project, tmp_path, url)
    valve = project.views[0]
    assert reader.read(valve, "v-1", NOW + 5_000).values["valve_count_1h"] == 1
    assert reader.read(valve, "v-2", NOW + 5_000).event_time is None


class Failing:
    """A store that refuses rows now and then."""

    def __init__(self, writer: StateWriter) -> None:
        self.writer = writer
        self.calls = 0

    def write(self, view: str, rows: pa.Table) -> int:
        self.calls += 1
        if self.calls % 2:
            raise Unavailable("full")
        return self.writer.write(view, rows)


def test_what_the_store_refused_comes_again(worker: Worker, tmp_path: Path, url: str) -> None:
    worker.take(*(opening(i) for i in range(100)))
    flusher = Flusher(worker, lambda: Failing(StateWriter(project, tmp_path, url)), 10**6)
    assert asyncio.run(flusher.step()) == PAUSE_S
    flush(flusher)
    reader = StateReader(project, tmp_path, url)
    for i in range(40):
        check_online(worker, reader, "valve", f"v-{i}")
    assert flusher.failures >= 2


def test_without_a_store_it_waits(worker: Worker, tmp_path: Path) -> None:
    worker.take(opening(1))
    missing = f"sqlite:///{tmp_path}/none/online.db"
    with pytest.raises(NotFound):
        StateWriter(project, tmp_path, missing)
    flusher = Flusher(worker, lambda: StateWriter(project, tmp_path, missing), 10**6)
    assert asyncio.run(flusher.step()) == PAUSE_S
    assert worker.core.stats()["waiting_changes"] > 0


def test_it_keeps_to_its_budget(worker: Worker, tmp_path: Path, url: str) -> None:
    worker.take(opening(1))
    flusher = Flusher(worker, lambda: StateWriter(project, tmp_path, url), 500)
    assert asyncio.run(flusher.step()) == BATCH_ROWS / 500
