"""The worker process on a disk that refuses, lies and loses its power: nothing acknowledged goes.

Log, sealed files, snapshots and quarantine of a real worker with upkeep beside it, under bulk
events over HTTP. What the rows and windows must be comes from what the clients sent.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raypipe.errors import IntegrityError
from raypipe.events.quarantine import QUARANTINE_FILE, Quarantine
from raypipe.lake import Place
from raypipe.runtime.worker.core import WorkerCore
from raypipe.runtime.worker.receipts import RECEIPT
from raypipe.runtime.worker.snapshots import Snapshots
from raypipe.tenancy.keys import STORE_FILE, KeyStore, Presented
from tests.domains.greenhouse import project
from tests.recovery import ingest_kit
from tests.recovery.disk import Disk, Platter, needed, records
from tests.recovery.ingest_kit import Processes, Told
from tests.recovery.nursery import Nursery

pytestmark = [pytest.mark.slow, needed]


def found_in(home: Path, told: Told) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of a log, each once and as it was sent; a worker starts on it, from its snapshots,
    and has the windows of these rows."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    with ingest_kit.closed_log(home) as log:
        for chunk in ingest_kit.chunks(log):
            for row in chunk.batch.to_pylist():
                key = chunk.kind, row["event_id"]
                assert key not in found
                found[key] = row
                assert told.rows[key].items() <= row.items()
        snapshots = Snapshots(Place.at(home / "snapshots"), project.definition_hash, 60)
        core = WorkerCore(project, log, snapshots=snapshots)
        ingest_kit.check_windows(core, replace(told, rows={k: told.rows[k] for k in found}))
    return found


def check_image(home: Path, told: Told, acknowledged: set[str]) -> None:
    """All of these requests are there: rows, receipts, refused rows."""
    found = found_in(home, told)
    numbers = {key.rpartition("-")[2] for key in acknowledged}
    there = Counter(event_id.partition("-")[0] for _, event_id in found)
    assert {n for n in numbers if there[n] != ingest_kit.ROWS} == set()
    with ingest_kit.closed_log(home) as log:
        assert all(log.find(0, RECEIPT, "default", key) for key in acknowledged)
    with closing(Quarantine(home / QUARANTINE_FILE)) as quarantine:
        kept = Counter(
            row.body.split('"event_id":')[1].split('"')[1].partition("-")[0]
            for row in quarantine.rows(10**6)
        )
    assert {n for n in numbers if kept[n] < ingest_kit.BAD} == set()


def send(
    processes: Processes, batches: int, disk: Disk, *, kills: int = 0, after: Told | None = None
) -> Told:
    return ingest_kit.run(
        processes,
        batches=batches,
        keyed=True,
        kills=kills,
        seed=3,
        acknowledged=disk.mark,
        after=after,
    )


def await_sealed(home: Path) -> None:
    """Until upkeep has sealed a range, and the log counts on it."""
    deadline = time.monotonic() + ingest_kit.PATIENCE_S
    while True:
        assert time.monotonic() < deadline
        time.sleep(0.02)
        try:
            db = sqlite3.connect(f"file:{home / 'log' / 'log.db'}?mode=ro", uri=True)
        except sqlite3.OperationalError:
            continue  # not made yet
        with closing(db):
            if db.execute("select count(*) from sealed_range").fetchone()[0]:
                return


def test_the_power_goes_at_any_moment(nursery: Nursery, tmp_path: Path) -> None:
    disk = Disk(tmp_path / "home", tmp_path / "disk")
    env = disk.env(journal=True)
    with Processes(
        nursery, disk.root, env={"worker": env, "upkeep": env}, still=disk.still
    ) as processes:
        told = send(processes, 10, disk)
        await_sealed(disk.root)
        send(processes, 15, disk, kills=3, after=told)
        send(processes, 5, disk, after=told)
    check_moments(disk, told, 12)
    assert list((disk.root / "log" / "sealed").glob("*.parquet"))


def check_moments(disk: Disk, told: Told, moments: int) -> None:
    """The power goes at so many moments: all that was acknowledged before is there."""
    journal = list(records(disk.journal))
    platter = Platter()
    for record in journal:
        platter.take(record)
    # The journal misses nothing: what it tells is what is there.
    for path, data in platter.seen().items():
        assert (disk.root / path).read_bytes() == data, path

    rng = random.Random(20261126)
    marks = [i for i, r in enumerate(journal) if r.op == "A"]
    chosen = {marks[-1], *rng.sample(marks, moments // 3)}
    chosen |= {*rng.sample(range(marks[0], len(journal)), moments - len(chosen))}
    acknowledged: set[str] = set()
    platter = Platter()
    for i, record in enumerate(journal):
        if record.op == "A":
            acknowledged.add(record.data.decode())
        else:
            platter.take(record)
        if i in chosen:
            for left in (None, rng):
                platter.crash(disk.root, left)
                check_image(disk.root, told, acknowledged)
    assert acknowledged == told.batches.keys()


@pytest.mark.parametrize("file", ["log/log.db-wal", "quarantine.db-wal"])
def test_the_power_goes_after_a_sync_failed(nursery: Nursery, tmp_path: Path, file: str) -> None:
    """The next process reads what never came to the disk, and must not build upon it."""
    disk = Disk(tmp_path / "home", tmp_path / "disk")
    env = {"worker": disk.env(journal=True, rules=[f"fsync {file} 8 eio stays"])}
    with Processes(nursery, disk.root, env=env, upkeep=False, still=disk.still) as processes:
        told = send(processes, 12, disk)
    assert not disk.waiting
    assert processes.starts["worker"] == 2
    check_moments(disk, told, 8)


OF_WORKER = (
    # the log: every commit is a write and a sync of the -wal file
    "write log/log.db-wal 6 short once",
    "write log/log.db-wal 9 torn stays",
    "write log/log.db-wal 4 enospc stays",
    "write log/log.db-wal 7 eio stays",
    "fsync log/log.db-wal 4 eio stays",
    "read log/log.db* 1 eio stays",
    # what was refused
    "write quarantine.db-wal 5 enospc stays",
    "fsync quarantine.db-wal 2 eio stays",
    # snapshots are given up, and made again
    "write snapshots/*/.part-* 1 enospc once",
    "fsync snapshots/*/.part-* 1 eio once",
    "write snapshots/*/.snapshot.json* 1 torn once",
    "fsync snapshots/* 1 eio once",
)
DEADLY = sum(rule.endswith("stays") for rule in OF_WORKER)
OF_UPKEEP = (
    "open log/sealed/*.parquet.tmp 1 enospc once",
    "write log/sealed/*.parquet.tmp 2 torn once",
    "fsync log/sealed/*.parquet.tmp 1 eio once",
    "fsync log/sealed 1 eio once",
    "write log/log.db-wal 2 enospc once",
    "fsync log/log.db-wal 2 eio once",
)


def test_a_disk_that_refuses(nursery: Nursery, tmp_path: Path) -> None:
    disk = Disk(tmp_path / "home", tmp_path / "disk")
    env = {"worker": disk.env(rules=OF_WORKER), "upkeep": disk.env(rules=OF_UPKEEP)}
    with Processes(nursery, disk.root, env=env, still=disk.still) as processes:
        told, deadline = Told(), time.monotonic() + ingest_kit.PATIENCE_S
        while disk.waiting:
            assert time.monotonic() < deadline, f"never: {disk.waiting}"
            send(processes, 3, disk, after=told)
        send(processes, 3, disk, after=told)
        ingest_kit.check_receipts(processes, told)
    assert processes.starts["worker"] == 1 + DEADLY
    ingest_kit.check(disk.root, told, keyed=True)


@pytest.mark.parametrize(
    ("told_to", "lie", "loses", "refuses"),
    [
        ("worker", "fsync log/log.db-wal 8 lie stays", True, False),
        ("worker", "fsync snapshots/* 1 lie stays", False, False),
        ("upkeep", "fsync log/sealed* 1 lie stays", False, True),
    ],
)
def test_a_disk_that_says_it_has_synced(
    nursery: Nursery, tmp_path: Path, told_to: str, lie: str, loses: bool, refuses: bool
) -> None:
    """What such a disk loses is the newest rows, or it is noticed; nothing is wrong silently."""
    disk = Disk(tmp_path / "home", tmp_path / "disk")
    # One process: whoever syncs such a file first uses the lie up.
    env = {"worker": disk.env(journal=True), "upkeep": disk.env(journal=True)}
    env[told_to] = disk.env(journal=True, rules=[lie])
    # No lie about the -wal file loses what upkeep has sealed or written back into the database.
    with Processes(
        nursery,
        disk.root,
        env=env,
        upkeep=not loses,
        still=disk.still,
    ) as processes:
        told = send(processes, 10, disk)
        if not loses:
            await_sealed(disk.root)
        send(processes, 10, disk, after=told)
    platter = Platter()
    for record in records(disk.journal):
        platter.take(record)
    whole = list(found_in(disk.root, told))
    assert len(whole) == len(told.rows)
    rng = random.Random(20261126)
    lost = refused = 0
    for left in (None, rng, rng, rng):
        platter.crash(disk.root, left)
        try:
            found = list(found_in(disk.root, told))
        except IntegrityError:
            refused += 1
        else:
            assert found == whole[: len(found)]
            lost += len(whole) - len(found)
    assert (lost > 0) <= loses
    assert (refused > 0) >= refuses
    # A snapshot that is ahead of what is left of the log is a reason to refuse, too.
    assert (lost + refused > 0) == (loses or refuses)


def keep_keys(store: str, *revoked: str) -> None:
    """Make two keys, say them, and revoke others."""
    keys = KeyStore(Path(store))
    print(keys.create("default", ["admin"]), keys.create("default", ["admin"]))
    for key_id in revoked:
        keys.revoke(key_id)


def test_a_revoked_key_stays_revoked_when_the_power_goes(nursery: Nursery, tmp_path: Path) -> None:
    disk = Disk(tmp_path / "home", tmp_path / "disk")
    env, store = disk.env(journal=True), disk.root / STORE_FILE
    made = nursery.finish(keep_keys, store, env=env)
    revoked, good = map(Presented.parse, made.out.split())
    assert revoked
    assert nursery.finish(keep_keys, store, revoked.key_id, env=env).status == 0
    platter = Platter()
    for record in records(disk.journal):
        platter.take(record)
    rng = random.Random(20261126)
    for left in (None, *[rng] * 20):
        platter.crash(disk.root, left)
        keys = KeyStore(store)
        assert keys.verify(good) is not None
        assert keys.verify(revoked) is None
