"""The time of day jumps while events come in: nothing acknowledged goes, nothing counts twice, no
timer hangs. Clients keep the right time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from raypipe.clock import DAY_MS, HOUR_MS, SystemClock
from raypipe.events.quarantine import QUARANTINE_FILE, Quarantine
from raypipe.ingest.media import Media
from raypipe.log.sqlite import SqliteLog
from raypipe.runtime.worker import watch
from raypipe.runtime.worker.core import WorkerCore
from raypipe.sources.batch import Batch, Taken
from tests.domains.greenhouse import project
from tests.recovery import ingest_kit
from tests.recovery import test_tables_recovery as tables
from tests.recovery import test_watch_recovery as patterns
from tests.recovery.disk import Disk, needed
from tests.recovery.ingest_kit import Client, Processes, Told
from tests.recovery.nursery import Nursery

ROWS = 20
JUMPS_S = (0.0, -3_600.0, 0.0, 86_400.0, 0.0)
ANSWER_S = 20.0
"""Long for one request, short beside any of the jumps."""


def rows(number: int, told: Told) -> Batch:
    """Openings of the last two days: the first of this moment, the others two hours old or more."""
    now = SystemClock().now_ms()
    lines: list[dict[str, Any]] = []
    for i in range(ROWS):
        age = 2 * HOUR_MS + i * number * 60_000 if i else 0
        row = {
            "event_id": f"{number}-{i}",
            "event_time": now - age,
            "valve": f"v-{i % ingest_kit.VALVES}",
            "litres": i,
        }
        told.rows["opening", row["event_id"]] = row
        lines.append({"type": "opening", **row})
    body = b"\n".join(json.dumps(line).encode() for line in lines)
    return Batch(f"request-{number}", body, Media.LINES, None, ROWS)


class Clock:
    """Jumps, and has each request answered soon all the same."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.error_s = 0.0

    def jump(self, error_s: float) -> None:
        self.error_s = error_s
        self.disk.shift_clock(error_s)

    def send(self, client: Client, batch: Batch) -> Taken | None:
        began = time.monotonic()
        taken = client.send(batch)
        assert time.monotonic() - began < ANSWER_S
        return taken


@needed
@pytest.mark.slow
def test_the_time_of_day_jumps(nursery: Nursery, tmp_path: Path) -> None:
    disk = Disk(tmp_path / "home", tmp_path / "disk")
    env = disk.env(clock=True)
    clock, told, refused = Clock(disk), Told(), set()
    shared = dict.fromkeys(("worker", "ingest", "upkeep"), env)
    with Processes(nursery, disk.root, env=shared) as processes:
        processes.await_ready()
        keyed, plain = Client(processes, keyed=True), Client(processes, keyed=False)
        for number, error_s in enumerate(JUMPS_S * 2):
            clock.jump(error_s)
            batch = rows(number, told)
            taken = clock.send(keyed, batch)
            assert taken is not None
            early = error_s < 0
            assert (taken.accepted, len(taken.refused)) == (ROWS - early, early)
            if early:
                # Of this moment, which is an hour ahead for a server that is an hour behind.
                refused.add(f"{number}-0")
                del told.rows["opening", f"{number}-0"]
                assert "60 s after received_at" in taken.refused[0][0]
            told.batches[batch.key], told.answers[batch.key] = batch, taken
            if number % 2:
                processes.kill("worker")
            # The same under the next time of day: by its ids, and by its key.
            clock.jump(JUMPS_S[(number + 1) % len(JUMPS_S)])
            if not early:
                clock.send(plain, batch)
                if clock.error_s < 0:
                    refused.add(f"{number}-0")
            assert clock.send(keyed, batch) == taken
        await_snapshot(disk.root, lambda: clock.send(keyed, rows(2 * len(JUMPS_S), told)))
        ingest_kit.check_receipts(processes, told)
        keyed.sender.close()
    found: dict[tuple[str, str], dict[str, Any]] = {}
    with ingest_kit.closed_log(disk.root) as log:
        for chunk in ingest_kit.chunks(log):
            for row in chunk.batch.to_pylist():
                key = chunk.kind, row["event_id"]
                assert key not in found
                assert told.rows[key].items() <= row.items()
                found[key] = row
        assert found.keys() == told.rows.keys()
        ingest_kit.check_windows(WorkerCore(project, log), told)
    with closing(Quarantine(disk.root / QUARANTINE_FILE)) as quarantine:
        assert {json.loads(row.body)["event_id"] for row in quarantine.rows(10**6)} == refused


def await_snapshot(home: Path, send: Callable[[], object]) -> None:
    """Until the worker makes one more after an event: its timers run by another clock."""
    before = snapshots(home)
    send()
    deadline = time.monotonic() + ANSWER_S
    while snapshots(home) <= before:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def snapshots(home: Path) -> set[str]:
    """Those that are there, or begun; the first one makes the folder."""
    return {p.name for p in (home / "snapshots").glob("*")}


def test_tables_count_every_event_over_jumps(tmp_path: Path) -> None:
    """In its minute, or beside it as late; the same after a restart."""
    log = SqliteLog(tmp_path / "log")
    core = WorkerCore(tables.project, log)
    for i, error_s in enumerate(JUMPS_S * 4):
        row = tables.opening(i)
        row["received_at"] += int(error_s * 1_000)
        core.observe(row, i.to_bytes(32, "big"))
        core.commit()
    until = tables.START + 3 * DAY_MS
    found, watermark = core.table("default", "water", tables.START - DAY_MS, until, until)
    late = sum(r["late"] for r in found)
    assert sum(r["openings"] for r in found) + late == len(JUMPS_S) * 4
    assert late > 0
    assert watermark > tables.START + DAY_MS
    again = WorkerCore(tables.project, log)
    assert again.table("default", "water", tables.START - DAY_MS, until, until)[0] == found


@pytest.mark.usefixtures("at_once")
def test_patterns_give_each_alert_once_over_jumps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "CLOCK_S", 0.0)
    worker = patterns.Worker(tmp_path, patterns.BURST, patterns.QUIET)
    for i, error_s in enumerate(JUMPS_S * 2):
        worker.clock.set(patterns.NOW + i * 1_000 + int(error_s * 1_000))
        worker.take(patterns.opening(i, 95, i * 1_000) | {"valve": f"v-{i}"})
        worker.tick()
        worker.tick()
    # What awaits a time waits for the newest that was seen.
    worker.clock.set(patterns.NOW + 2 * DAY_MS)
    worker.tick()
    logged = [a["event_id"] for a in worker.logged()]
    assert len(logged) == len(set(logged))
    # Of every big opening it is known once that no flood came after it.
    assert [a["pattern"] for a in worker.logged()].count("no_flood") == len(JUMPS_S) * 2
    worker.start()
    worker.tick()
    assert [a["event_id"] for a in worker.logged()] == logged
