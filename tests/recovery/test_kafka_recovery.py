"""The log on Kafka when brokers and writers die: what was acknowledged, against what is there.

The writers that die are kafka_process.py: each acknowledged append is a line on its standard
output. The broker is these tests' own.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raypipe.errors import Unavailable
from raypipe.log.kafka.log import KafkaLog
from raypipe.log.port import DECLARATION, EventLog, Fenced
from raypipe.log.sqlite import SqliteLog
from raypipe.runtime.worker.core import WorkerCore
from tests.contract.kafka_server import MISSING, KafkaServer
from tests.contract.log_kit import rows_in
from tests.domains.greenhouse import project
from tests.recovery.nursery import Nursery
from tests.recovery.test_log_recovery import (
    SEALED_ROWS,
    batches_of,
    check_prefix,
    rows_of,
)
from tests.recovery.test_worker_recovery import (
    DECLARED,
    Supervised,
    check_log,
    observe,
    opening,
    run_all,
    snapshots,
)

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@pytest.fixture(scope="module")
def breakable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A broker that may be killed: what runs beside these tests has another."""
    server = KafkaServer(tmp_path_factory.mktemp("breakable"))
    yield server
    server.kill()


@pytest.fixture
def url(breakable: KafkaServer, tmp_path: Path) -> str:
    """A log of the test's own on a broker that answers."""
    if breakable.process.poll() is not None:
        breakable.start()
    return breakable.url(f"r{time.monotonic_ns():x}")


# the dying processes


def start(job: str, *args: object, **env: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.recovery.kafka_process", job, *map(str, args)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)


def finish(job: str, *args: object, **env: str) -> tuple[int, list[Any]]:
    """Exit status and the JSON lines that got out."""
    process = start(job, *args, **env)
    out, _ = process.communicate(timeout=120)
    return process.returncode, [json.loads(line) for line in out.splitlines()]


def check_acknowledged(log: EventLog, acknowledged: dict[int, list[list[int]]]) -> int:
    """Every acknowledged append is where it was said to be; returns how many are in the log."""
    found = rows_in(log)
    for seq, offsets in acknowledged.items():
        assert [found[o] for of in offsets for o in of] == rows_of(seq)
    return check_prefix(log)


# writers


def test_random_kills_lose_nothing_acknowledged_and_write_nothing_twice(
    url: str, tmp_path: Path
) -> None:
    rng = random.Random(20261126)
    acknowledged: dict[int, list[list[int]]] = {}
    next_seq = 0
    for n in range(3):
        # Begins before what is acknowledged already: a client that retries. Every other time on
        # a machine that knows nothing.
        process = start("append", url, tmp_path / f"c{n // 2}", max(0, next_seq - 3), 10**6)
        assert process.stdout is not None
        wanted = rng.randrange(5, 40)
        lines = []
        while len(lines) < wanted:
            lines.append(process.stdout.readline())
        process.kill()
        lines += process.stdout.readlines()
        process.wait(60)
        process.stdout.close()
        for line in lines:
            if line.endswith("\n"):
                seq, offsets = json.loads(line)
                assert acknowledged.setdefault(seq, offsets) == offsets
        next_seq = max(acknowledged) + 1
    log = KafkaLog.open(url, tmp_path / "fresh")
    log.append(0, batches_of(next_seq), producer="p", seq=next_seq)
    assert check_acknowledged(log, acknowledged) > next_seq
    log.close()


@pytest.mark.parametrize(
    ("point", "whole", "same_cache"),
    [("log.append.before_commit", 4, False), ("log.append.after_commit", 5, True)],
)
def test_a_kill_around_the_commit_leaves_all_of_the_append_or_nothing(
    url: str, tmp_path: Path, point: str, whole: int, same_cache: bool
) -> None:
    status, acknowledged = finish(
        "append", url, tmp_path / "one", 0, 20, RAYPIPE_ABORT_AT=f"{point}:5"
    )
    assert status == -signal.SIGKILL
    assert [seq for seq, _ in acknowledged] == [0, 1, 2, 3]
    cache = tmp_path / ("one" if same_cache else "two")
    log = KafkaLog.open(url, cache)
    # Whoever takes the partition settles what was in doubt.
    log.begin_epoch(0)
    assert check_prefix(log) == whole
    log.close()
    status, acknowledged = finish("append", url, cache, 0, 20)
    assert status == 0
    log = KafkaLog.open(url, cache)
    assert check_acknowledged(log, dict(acknowledged)) == 20
    log.close()


@pytest.mark.parametrize(
    ("point", "visible"),
    [
        ("log.seal.after_temp_write", False),
        ("log.seal.before_commit", False),
        ("log.seal.after_commit", True),
    ],
)
def test_a_kill_during_a_seal_leaves_all_of_the_range_or_nothing(
    url: str, tmp_path: Path, point: str, visible: bool
) -> None:
    cache = tmp_path / "cache"
    assert finish("append", url, cache, 0, 3)[0] == 0
    before = sum(len(rows_of(seq)) for seq in range(3))
    once = {"RAYPIPE_ABORT_AT": point, "RAYPIPE_ABORT_ONCE": str(tmp_path / "once")}
    assert finish("seal", url, cache, **once) == (-signal.SIGKILL, [])

    log = KafkaLog.open(url, cache)
    log.begin_epoch(0)
    assert log.end(0) == before + (SEALED_ROWS if visible else 0)
    expected = (before, before + SEALED_ROWS) if visible else None
    assert log.sealed_range(0, "load", 0) == expected
    assert (log.find(0, "sale", "t", "h0") is not None) == visible
    log.close()

    assert finish("seal", url, cache, **once) == (0, [[before, before + SEALED_ROWS]])
    log = KafkaLog.open(url, cache)
    sealed = rows_in(log)[before:]
    assert [r["event_id"] for _, r in sealed] == [f"h{p}" for p in range(SEALED_ROWS)]
    assert {kind for kind, _ in sealed} == {"sale", "refund"}
    log.append(0, batches_of(3), producer="p", seq=3)
    assert not list(cache.rglob("*.parquet*"))
    log.close()


# brokers


def test_a_broker_that_is_killed_while_a_writer_appends(
    breakable: KafkaServer, url: str, tmp_path: Path
) -> None:
    rng = random.Random(4)
    # Short, so that the writer sees the brokers away and asks again.
    process = start("append", f"{url}&timeout_ms=1000", tmp_path / "cache", 0, 10**6)
    assert process.stdout is not None
    lines: list[str] = []

    def read(count: int) -> None:
        for _ in range(count):
            lines.append(process.stdout.readline())

    for _ in range(3):
        read(rng.randrange(10, 40))
        breakable.kill()
        time.sleep(rng.random())
        breakable.start()
    read(60)
    process.kill()
    lines += process.stdout.readlines()
    process.wait(60)
    process.stdout.close()
    said = [json.loads(line) for line in lines if line.endswith("\n")]
    acknowledged = dict(s for s in said if s != "away")
    assert "away" in said
    assert sorted(acknowledged) == list(range(len(acknowledged)))
    log = KafkaLog.open(url, tmp_path / "fresh")
    log.begin_epoch(0)
    assert check_acknowledged(log, acknowledged) >= len(acknowledged) > 60
    log.close()


def test_without_a_broker_nothing_is_acknowledged_and_a_retry_writes_once(
    breakable: KafkaServer, url: str, tmp_path: Path
) -> None:
    log = KafkaLog.open(f"{url}&timeout_ms=3000", tmp_path / "cache")
    log.append(0, batches_of(0), producer="p", seq=0)
    breakable.kill()
    for call in (
        lambda: log.append(0, batches_of(1), producer="p", seq=1),
        lambda: log.append(0, batches_of(1), producer="p", seq=1),
        lambda: log.end(0),
        lambda: list(log.read(0, 0, 10)),
        lambda: log.begin_epoch(0),
        lambda: log.committed("g", 0),
    ):
        started = time.monotonic()
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1"):
            call()
        assert time.monotonic() - started < 20
    breakable.start()
    patient = KafkaLog.open(url, tmp_path / "cache")
    patient.append(0, batches_of(1), producer="p", seq=1)
    log.append(0, batches_of(1), producer="p", seq=1)
    log.append(0, batches_of(2), producer="p", seq=2)
    assert check_prefix(patient) == 3
    log.close()
    patient.close()


# workers


@pytest.mark.parametrize(
    "point",
    ["worker.before_commit:3", "log.append.before_commit:5", "log.append.after_commit:5"],
)
def test_death_of_a_worker_at_each_step_of_a_commit(
    nursery: Nursery, url: str, tmp_path: Path, point: str
) -> None:
    worker = Supervised(nursery, tmp_path, point, url)
    answered = asyncio.run(run_all(worker))
    worker.kill()
    assert worker.starts == 2
    check_log(KafkaLog.open(url, tmp_path / "elsewhere"), answered)


def test_a_worker_goes_on_elsewhere_with_the_same_windows(url: str, tmp_path: Path) -> None:
    kept = snapshots(tmp_path / "snapshot")
    old = WorkerCore(project, KafkaLog.open(url, tmp_path / "one"), snapshots=kept)
    observe(old, range(30))
    assert old.save() == DECLARED + 30
    observe(old, range(30, 60))
    old.observe(opening(60), b"6" * 32)
    new = WorkerCore(project, KafkaLog.open(url, tmp_path / "two"))
    with pytest.raises(Fenced):
        old.commit()
    log = KafkaLog.open(url, tmp_path / "three")
    whole = WorkerCore(project, log)
    (saved,) = (tmp_path / "snapshot").iterdir()
    assert log.committed("windows", 0) == (DECLARED + 30, str(saved))
    assert log.counts(0) == {"opening": 60, DECLARATION: DECLARED}
    direct = WorkerCore(project, SqliteLog(tmp_path / "direct"))
    observe(direct, range(60))
    expected = direct._state.windows.snapshot()
    for core in (new, whole):
        found = core._state.windows.snapshot()
        assert all(a.equals(b) for a, b in zip(found, expected, strict=True))
    again, _ = whole.observe(opening(7), str(7).zfill(32).encode())
    assert again.offset == DECLARED + 7
