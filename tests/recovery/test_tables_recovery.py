"""The worker's tables after any end: of a snapshot, of the log alone, of a batch's state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raypipe.lake import Place
from raypipe.log.port import Group, Part
from raypipe.log.sqlite import SqliteLog
from raypipe.runtime.worker import state as worker_state
from raypipe.runtime.worker.core import GROUP, WorkerCore
from raypipe.runtime.worker.intake import Bulk
from raypipe.runtime.worker.snapshots import Snapshots
from raypipe.tables.spec import Table, count, distinct, total
from tests import snapshot_kit
from tests.domains.greenhouse import project as greenhouse

START = 1_790_000_000_000
EVENTS = 600
WATER = Table(
    "water",
    ("opening", "flood"),
    (
        count("openings", of="opening"),
        count("sprayed", of="opening", where="mode == 'spray'"),
        total("litres", "litres", of="opening"),
        distinct("valves", "valve"),
        count("floods", of="flood"),
    ),
    allowed_lateness="1m",
)
project = replace(greenhouse, tables=(WATER, replace(WATER, name="by_valve", group_by=("valve",))))


def opening(i: int) -> dict[str, Any]:
    arrived = START + i * 2_000
    return {
        "tenant": "default",
        "event_id": f"o-{i}",
        "event_time": arrived - (200_000 if i % 50 == 0 else i % 7 * 1_000),
        "received_at": arrived,
        "valve": f"v-{i % 9}",
        "gardener": None,
        "litres": i,
        "mode": "spray" if i % 3 else None,
    }


def flood(i: int) -> dict[str, Any]:
    envelope = {n: v for n, v in opening(i).items() if n in project.event("flood")}
    return envelope | {"event_id": f"f-{i}", "opening_id": f"o-{i}"}


def bulk(first: int) -> Bulk:
    """Ten openings with a flood after each."""
    kinds = {"opening": [opening(first + i) for i in range(10)]}
    kinds["flood"] = [flood(first + i) for i in range(10)]
    parts = tuple(
        Part(
            kind,
            pa.RecordBatch.from_pylist(rows, project.event(kind).arrow_schema),
            np.arange(10, dtype=np.int32) * 2 + (kind == "flood"),
        )
        for kind, rows in kinds.items()
    )
    body_hash = first.to_bytes(32, "big")
    return Bulk("default", Group(parts), opening(first + 9)["received_at"], "test", body_hash)


def snapshots(home: Path) -> Snapshots:
    return Snapshots(Place.at(home / "snapshots"), project.definition_hash, 60)


def feed(core: WorkerCore, first: int, end: int) -> None:
    """Single events and bulk requests in turns, with a commit now and then."""
    for i in range(first, end, 20):
        for one in range(i, i + 10):
            core.observe(opening(one), one.to_bytes(32, "big"))
        core.ingest(bulk(i + 10))
        if i % 60 == 0:
            core.commit()
    core.commit()


def rows(core: WorkerCore, name: str = "water") -> list[dict[str, Any]]:
    now = START + EVENTS * 2_000
    found, watermark = core.table("default", name, 0, now, now)
    assert watermark == START + (EVENTS - 1) * 2_000
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> WorkerCore:
    """A worker that never ended."""
    core = WorkerCore(project, SqliteLog(tmp_path_factory.mktemp("whole")))
    feed(core, 0, EVENTS)
    return core


def test_tables_count_single_events_and_bulk_ones(whole: WorkerCore) -> None:
    found = rows(whole)
    late = sum(r["late"] for r in found)
    # Every fiftieth opening was 200 seconds on its way; in bulk a flood came with it.
    assert late == sum(1 + (i % 20 >= 10) for i in range(0, EVENTS, 50))
    opened, floods = (sum(r[n] for r in found) for n in ("openings", "floods"))
    assert opened + floods + late == EVENTS + EVENTS // 2
    assert max(r["valves"] for r in found) == 9
    assert [r["final"] for r in found] == sorted((r["final"] for r in found), reverse=True)


@pytest.mark.parametrize("saved", ["never", "once", "twice"])
def test_a_worker_that_starts_again_has_the_same_rows(
    whole: WorkerCore, tmp_path: Path, saved: str
) -> None:
    log = SqliteLog(tmp_path / "log")
    for start in range(0, EVENTS, 200):
        core = WorkerCore(project, log, snapshots=snapshots(tmp_path))
        feed(core, start, start + 100)
        if saved == "twice" or (saved == "once" and start == 0):
            core.save()
        feed(core, start + 100, start + 200)
    again = WorkerCore(project, log, snapshots=snapshots(tmp_path))
    for name in ("water", "by_valve"):
        assert rows(core, name) == rows(again, name) == rows(whole, name)


def test_what_is_not_committed_is_not_counted(tmp_path: Path) -> None:
    core = WorkerCore(project, SqliteLog(tmp_path / "log"))
    now = opening(1)["received_at"]
    core.observe(opening(1), b"1" * 32)
    assert core.table("default", "water", now - 60_000, now, now)[0][-1]["openings"] == 0
    core.commit()
    assert sum(r["openings"] for r in core.table("default", "water", 0, now, now)[0]) == 1


def test_tables_that_a_snapshot_lacks_are_filled_from_the_log(
    whole: WorkerCore, tmp_path: Path
) -> None:
    """A batch leaves windows alone, and a table may be declared after its events came."""
    log = SqliteLog(tmp_path / "log")
    first = WorkerCore(greenhouse, log)
    feed(first, 0, 400)
    state, end = first._state.windows.snapshot(), log.end(0)
    feed(first, 400, EVENTS)
    made = Place.at(tmp_path / "batch")
    snapshot_kit.save(made, state, end, project.definition_hash)
    log.commit(GROUP, 0, end, str(made))
    core = WorkerCore(project, log, snapshots=snapshots(tmp_path))
    for name in ("water", "by_valve"):
        assert rows(core, name) == rows(whole, name)
    core.save()
    changed = replace(project, tables=(replace(WATER, keep="8d"), project.tables[1]))
    later = WorkerCore(changed, log)
    for name in ("water", "by_valve"):
        assert rows(later, name)[-40:] == rows(whole, name)[-40:]


def test_a_snapshot_that_is_made_while_events_come_counts_none_twice(
    whole: WorkerCore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parts are of different offsets: replay begins at the first and passes all of them."""
    monkeypatch.setattr(worker_state, "PIECE_KEYS", 2)
    log, now = SqliteLog(tmp_path / "log"), 0.0
    kept = Snapshots(Place.at(tmp_path / "snapshots"), project.definition_hash, 60, lambda: now)
    core = WorkerCore(project, log, snapshots=kept)
    feed(core, 0, 20)
    now, fed = 61.0, 20
    while log.committed(GROUP, 0) is None:
        core.tick()
        if fed < EVENTS:
            feed(core, fed, fed + 20)
            fed += 20
    feed(core, fed, EVENTS)
    again = WorkerCore(project, log, snapshots=snapshots(tmp_path))
    for name in ("water", "by_valve"):
        assert rows(again, name) == rows(core, name) == rows(whole, name)
