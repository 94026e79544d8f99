"""A worker that dies at any point loses nothing that was answered and counts nothing twice."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raypipe.clock import DAY_MS
from raypipe.errors import Conflict, EventLost
from raypipe.lake import Place
from raypipe.ledger.record import DecisionRecord, decision_id, decode
from raypipe.log.port import DECLARATION, Chunk, EventLog, Group
from raypipe.log.sqlite import SqliteLog
from raypipe.runtime.worker import reach
from raypipe.runtime.worker import state as worker_state
from raypipe.runtime.worker.client import WorkerClient
from raypipe.runtime.worker.core import WorkerCore
from raypipe.runtime.worker.intake import Bulk
from raypipe.runtime.worker.link import Link
from raypipe.runtime.worker.snapshots import Snapshots
from raypipe.windows.engine import WindowEngine
from tests.domains.greenhouse import project
from tests.recovery import worker_process
from tests.recovery.nursery import Child, Nursery

START = 1_790_000_000_000
EVENTS = 120
DECLARED = len(project.events)
"""Rows of a new log before its first event: what was declared."""


def opening(i: int) -> dict:
    return {
        "tenant": "default",
        "event_id": f"o-{i}",
        "event_time": START + i * 7_000 - (90_000 if i % 11 == 0 else 0),
        "received_at": START + i * 7_000,
        "valve": f"v-{i % 5}",
        "gardener": None if i % 7 == 0 else f"g-{i % 3}",
        "litres": i * 37 % 101,
        "mode": "drip" if i % 2 else None,
    }


def decision(event: dict, offset: int, windows: bytes) -> DecisionRecord:
    return DecisionRecord(
        decision_id=decision_id(event["tenant"], event["event_id"]),
        tenant=event["tenant"],
        event_id=event["event_id"],
        event_offset=offset,
        event_time=event["event_time"],
        received_at=event["received_at"],
        decided_at=event["received_at"] + 1,
        model="m@1",
        model_sha256="0" * 64,
        policy="p",
        policy_sha256="0" * 64,
        definition_hash=project.definition_hash,
        features=windows[:16],
        score=0.5,
        action="review",
    )


class Supervised:
    """A worker process that is started again whenever it died."""

    def __init__(self, nursery: Nursery, home: Path, abort_at: str = "", log_url: str = "") -> None:
        self.home = home
        self._nursery = nursery
        self._log_url = log_url or f"sqlite:///{home}/log"
        self.starts = 0
        self._env = {"RAYPIPE_ABORT_AT": abort_at, "RAYPIPE_ABORT_ONCE": str(home / "aborted")}
        self._process: Child | None = None

    async def connect(self) -> Link:
        if self._process is None or self._process.ended:
            self.starts += 1
            self._process = self._nursery.start(
                worker_process.start, self.home, self._log_url, env=self._env, heard=True
            )
            assert self._process.out is not None
            line = await asyncio.to_thread(self._process.out.readline)
            if line.strip() != "ready":
                raise ConnectionError("died while starting")
        return await reach.unix(str(self.home / "worker.sock"))

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()


async def decide(client: WorkerClient, i: int) -> DecisionRecord:
    event = opening(i)
    while True:
        seen = await client.observe(event, str(i).zfill(32).encode())
        if seen.decision is not None:
            return decode(seen.decision)
        try:
            return await client.record(
                decision(seen.event, seen.offset, seen.windows), seen.windows
            )
        except EventLost:
            continue


async def run_all(worker: Supervised, *, kills: int = 0) -> dict[str, DecisionRecord]:
    client = WorkerClient(worker.connect)
    answered: dict[str, DecisionRecord] = {}
    todo = list(range(EVENTS))
    rng = random.Random(5)

    async def caller() -> None:
        while todo:
            i = todo.pop(0)
            answered[f"o-{i}"] = await decide(client, i)
            if i % 10 == 0:
                again = await decide(client, i)
                assert again == answered[f"o-{i}"]
            if kills and rng.random() < kills / EVENTS:
                worker.kill()

    await asyncio.gather(*(caller() for _ in range(8)))
    await client.close()
    return answered


def check_log(log: EventLog, answered: dict[str, DecisionRecord]) -> None:
    engine = WindowEngine(project.views, project.decision)
    seen: Counter[str] = Counter()
    stored: dict[str, DecisionRecord] = {}
    for chunk in log.read(0, 0, 10_000):
        for offset, row in zip(chunk.offsets.tolist(), chunk.batch.to_pylist(), strict=True):
            if chunk.kind == "decision":
                record = decode(row["record"])
                assert record.event_id not in stored
                stored[record.event_id] = record
            elif chunk.kind != DECLARATION:
                seen[row["event_id"]] += 1
                windows = row.pop("windows")
                row.pop("body_hash")
                # The live values are those of a log read from its start.
                assert engine.observe("opening", row, offset) == windows
    assert set(seen.values()) == {1}
    assert stored == answered
    assert len(answered) == EVENTS
    fresh = WorkerCore(project, log)
    for mine, theirs in zip(fresh._state.windows.snapshot(), engine.snapshot(), strict=True):
        assert mine.equals(theirs)
    log.close()


@pytest.mark.parametrize(
    "point",
    [
        "worker.before_commit:3",
        "worker.after_commit:3",
        "worker.after_commit:7",
        "worker.after_reply:4",
        "log.append.before_commit:5",
        "log.append.after_commit:5",
    ],
)
def test_death_at_each_step_of_a_commit(nursery: Nursery, tmp_path: Path, point: str) -> None:
    worker = Supervised(nursery, tmp_path, point)
    answered = asyncio.run(run_all(worker))
    worker.kill()
    assert worker.starts == 2
    check_log(SqliteLog(tmp_path / "log"), answered)


def test_kills_at_random_times(nursery: Nursery, tmp_path: Path) -> None:
    worker = Supervised(nursery, tmp_path)
    answered = asyncio.run(run_all(worker, kills=6))
    worker.kill()
    assert worker.starts > 2
    check_log(SqliteLog(tmp_path / "log"), answered)


def test_a_second_worker_fences_off_the_first(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log")
    old = WorkerCore(project, log)
    old.observe(opening(1), b"1" * 32)
    new = WorkerCore(project, log)
    with pytest.raises(Exception, match="epoch") as caught:
        old.commit()
    assert caught.value.code == "fenced"
    new.observe(opening(1), b"1" * 32)
    new.commit()
    assert log.counts(0) == {"opening": 1, DECLARATION: DECLARED}


def test_retries_get_the_first_values_and_other_bodies_a_conflict(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log")
    core = WorkerCore(project, log)
    first, _ = core.observe(opening(1), b"1" * 32)
    core.observe(opening(6), b"6" * 32)
    core.commit()
    later = WorkerCore(project, log)
    again, decided = later.observe(opening(1) | {"received_at": 99}, b"1" * 32)
    assert (again.offset, again.windows, again.event) == (DECLARED, first.windows, opening(1))
    assert decided is None
    assert not later.dirty
    with pytest.raises(Conflict):
        later.observe(opening(1), b"2" * 32)


def snapshots(folder: Path, clock: ManualTime | None = None) -> Snapshots:
    return Snapshots(Place.at(folder), project.definition_hash, 60, clock or ManualTime())


class ManualTime:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def damage(folder: Path) -> None:
    part = max(folder.rglob("*.arrow"), key=lambda p: p.stat().st_size)
    damaged = bytearray(part.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    part.write_bytes(damaged)


class Watched(SqliteLog):
    """Remembers where reading began."""

    first_read: int | None = None

    def read(self, partition: int, offset: int, *args: int) -> Iterator[Chunk]:
        if self.first_read is None:
            self.first_read = offset
        return super().read(partition, offset, *args)


def restarted(tmp_path: Path) -> tuple[int | None, list[pa.Table]]:
    """Where a new worker begins to replay, and its windows then."""
    log = Watched(tmp_path / "log")
    core = WorkerCore(project, log, snapshots=snapshots(tmp_path / "snapshot"))
    return log.first_read, core._state.windows.snapshot()


def observe(core: WorkerCore, numbers: Iterable[int]) -> None:
    for i in numbers:
        core.observe(opening(i), str(i).zfill(32).encode())
    core.commit()


def test_a_damaged_snapshot_is_replaced_by_the_one_before_and_by_the_log(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log")
    core = WorkerCore(project, log, snapshots=snapshots(tmp_path / "snapshot"))
    for end in (20, 40):
        observe(core, range(end - 20, end))
        core.save()
    observe(core, range(40, 50))
    expected = core._state.windows.snapshot()
    older, newer = sorted((tmp_path / "snapshot").iterdir())
    for begin, spoil in ((DECLARED + 40, None), (DECLARED + 20, newer), (0, older)):
        if spoil is not None:
            damage(spoil)
        first, found = restarted(tmp_path)
        assert first == begin
        assert all(a.equals(b) for a, b in zip(found, expected, strict=True))


def test_two_snapshots_are_kept(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log")
    core = WorkerCore(project, log, snapshots=snapshots(tmp_path / "snapshot"))
    for i in range(4):
        observe(core, [i])
        end = DECLARED + i + 1
        assert core.save() == end
        folders = sorted((tmp_path / "snapshot").iterdir())
        assert log.committed("windows", 0) == (end, str(folders[-1]))
        assert [int(f.name[:12]) for f in folders] == [end - 1, end][-(i + 1) :]


def test_snapshots_are_made_between_rounds_when_they_are_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_state, "PIECE_KEYS", 2)
    time, log = ManualTime(), SqliteLog(tmp_path / "log")
    core = WorkerCore(project, log, snapshots=snapshots(tmp_path / "snapshot", time))
    assert core.idle_s is not None
    observe(core, range(10))
    core.tick()
    assert (core.idle_s, log.committed("windows", 0)) == (60, None)
    time.now = 61
    rounds = 10
    while log.committed("windows", 0) is None:
        assert core.idle_s is not None
        core.tick()
        observe(core, [rounds])
        rounds += 1
    assert rounds > 15
    offset, reference = log.committed("windows", 0)
    assert offset == DECLARED + 10
    assert Path(reference).is_dir()
    assert core.idle_s == 60
    first, found = restarted(tmp_path)
    assert first == DECLARED + 10
    assert all(a.equals(b) for a, b in zip(found, core._state.windows.snapshot(), strict=True))


def test_a_snapshot_takes_its_share_of_the_time(tmp_path: Path) -> None:
    time = ManualTime()
    made = snapshots(tmp_path / "snapshot", time)
    taken: list[int] = []

    def piece(offset: int) -> list[pa.Table]:
        taken.append(offset)
        time.now += 1
        return [pa.table({"n": [offset]})]

    time.now = 61
    assert made.tick(1, 1, lambda: [piece] * 3) is None
    assert taken == [1]
    assert made.idle_s(2) == pytest.approx(9)
    time.now += 8.9
    made.tick(2, 1, list)
    assert taken == [1]
    time.now += 0.2
    made.tick(3, 1, list)
    assert taken == [1, 3]
    # One that is wanted now takes all the time.
    offset, _ = made.finish(4, 1, lambda: [piece] * 3)
    assert (offset, taken) == (4, [1, 3, 4, 4, 4])


def test_without_new_events_no_snapshot_is_due(tmp_path: Path) -> None:
    time = ManualTime()
    core = WorkerCore(
        project, SqliteLog(tmp_path / "log"), snapshots=snapshots(tmp_path / "snapshot", time)
    )
    observe(core, range(3))
    core.save()
    time.now = 1_000
    assert core.idle_s is None
    core.tick()
    assert len(list((tmp_path / "snapshot").iterdir())) == 1


def test_a_snapshot_that_cannot_be_written_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    time, log = ManualTime(), SqliteLog(tmp_path / "log")
    core = WorkerCore(project, log, snapshots=snapshots(tmp_path / "snapshot", time))
    observe(core, range(10))
    written = Place.write

    def full(place: Place, data: bytes) -> str:
        if place.name.startswith("part-"):
            raise OSError(28, "No space left on device")
        return written(place, data)

    monkeypatch.setattr(Place, "write", full)
    time.now = 61
    with pytest.raises(OSError, match="space"):
        core.save()
    core.tick()
    while core.idle_s == 0 or core.idle_s == 0.005:
        core.tick()
    assert log.committed("windows", 0) is None
    monkeypatch.undo()
    observe(core, [10])
    assert core.save() == DECLARED + 11


@pytest.mark.parametrize("spoilt", [0, 1, 2])
def test_a_worker_starts_where_retention_left_the_log(tmp_path: Path, spoilt: int) -> None:
    log = SqliteLog(tmp_path / "log")
    core = WorkerCore(project, log, snapshots=snapshots(tmp_path / "snapshot"))
    for i in range(200):
        aged = (5 if i < 100 else 0) * DAY_MS
        row = opening(i)
        row |= {name: row[name] - aged for name in ("event_time", "received_at")}
        core.observe(row, str(i).zfill(32).encode())
        core.commit()
        if i in (50, 150):
            core.save()
    for snapshot in sorted((tmp_path / "snapshot").iterdir(), reverse=True)[:spoilt]:
        damage(snapshot)
    while log.compact(0, log.live_start(0) + 100, least_rows=1).ranges:
        pass
    log.retain(0, ("opening", "flood"), START - 3 * DAY_MS, START)
    assert 50 < log.first(0) <= 150
    later = WorkerCore(project, log, snapshots=snapshots(tmp_path / "snapshot"))
    now = START + 200 * 7_000
    for entity, key in (("valve", "v-1"), ("valve", "v-4"), ("gardener", "g-2")):
        found, expected = (c.read("default", entity, key, now) for c in (later, core))
        np.testing.assert_equal(found, expected)


def test_ids_are_known_from_a_snapshot(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log")
    core = WorkerCore(project, log, snapshots=snapshots(tmp_path / "snapshot"))
    rows = [opening(i) for i in range(20)]
    batch = pa.RecordBatch.from_pylist(rows, project.event("opening").arrow_schema)
    core.ingest(Bulk("default", Group.of("opening", batch), rows[-1]["received_at"], "x", b""))
    core.save()
    later = WorkerCore(project, log, snapshots=snapshots(tmp_path / "snapshot"))
    with pytest.raises(Conflict, match="bulk"):
        later.observe(opening(3), b"3" * 32)


def test_a_lake_that_is_away_is_replaced_by_the_log(tmp_path: Path, s3_query: str) -> None:
    log = SqliteLog(tmp_path / "log")
    core = WorkerCore(project, log)
    for i in range(20):
        core.observe(opening(i), str(i).zfill(32).encode())
    core.commit()
    port = s3_query.rpartition(":")[2]
    for state in (f"s3://lake/gone?{s3_query}", f"s3://lake/x?{s3_query.replace(port, '1')}"):
        log.commit("windows", 0, 20, state)
        restored = WorkerCore(project, log)._state.windows.snapshot()
        for a, b in zip(restored, core._state.windows.snapshot(), strict=True):
            assert a.equals(b)


def test_bulk_events_of_another_schema_version_replay(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log")
    rows = [opening(i) for i in range(20)]
    batch = pa.RecordBatch.from_pylist(rows, project.event("opening").arrow_schema)
    log.append(0, [("opening", batch)], producer="bulk", seq=0)
    core = WorkerCore(project, log)
    assert core.stats()["keys"] > 0
    with pytest.raises(Conflict, match="bulk"):
        core.observe(opening(3), b"3" * 32)
