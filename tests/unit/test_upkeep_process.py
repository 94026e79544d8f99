"""The process that keeps a log up beside its worker, and the verbs that do the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil
import pyarrow as pa
import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from raypipe.cli._app import app
from raypipe.clock import DAY_MS, SystemClock
from raypipe.config import Settings
from raypipe.errors import ConfigError
from raypipe.log.port import DECISION
from raypipe.log.sqlite import SqliteLog
from raypipe.log.upkeep import Policy
from raypipe.runtime import upkeep
from raypipe.runtime.upkeep import EAGER, PATIENT, Order, Upkeep
from tests.contract.upkeep_kit import VERDICT, batch, check, expected, fill
from tests.domains.greenhouse import project

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0


def eventually(true: Callable[[], bool]) -> None:
    """Other processes take their time."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ended(pid: int) -> bool:
    """Whether a process is gone, or waits for someone to notice."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def order(tmp_path: Path) -> Order:
    log = SqliteLog(tmp_path / "log")
    fill(log, 4)
    log.close()
    rules = Policy(keep_rows=5, keep_ms=0, least_rows=1)
    return Order(f"sqlite:///{tmp_path}/log", 0, 0.05, rules)


def compacted(order: Order) -> bool:
    log = SqliteLog.open(order.log_url)
    done = log.live_start(0) > 0
    log.close()
    return done


def test_it_compacts_gives_way_to_the_worker_and_is_started_again(order: Order) -> None:
    running = Upkeep(order, restart_s=0.01)
    try:
        eventually(lambda: compacted(order))
        first = psutil.Process(running.pid)
        eventually(lambda: first.nice() in (PATIENT, psutil.Process().nice() + EAGER))
        log = SqliteLog.open(order.log_url)
        fill(log, 1, start=4)
        first.kill()
        end = log.end(0) - 11
        eventually(lambda: log.live_start(0) > end)
        assert running.pid != first.pid
        check(log, expected(5))
        log.close()
    finally:
        running.stop()
    assert running.pid is not None
    assert ended(running.pid)


WORKER = """
import sys, time, msgspec
from raypipe.runtime.upkeep import Order, Upkeep
running = Upkeep(msgspec.json.decode(sys.argv[1], type=Order))
while running.pid is None:
    time.sleep(0.01)
print(running.pid, flush=True)
time.sleep(600)
"""


def test_it_ends_with_its_worker_however_that_ends(order: Order) -> None:
    text = msgspec.json.encode(replace(order, every_s=600.0)).decode()
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, text], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert worker.stdout is not None
    pid = int(worker.stdout.readline())
    assert psutil.pid_exists(pid)
    worker.kill()
    worker.wait(PATIENCE_S)
    worker.stdout.close()
    eventually(lambda: ended(pid))


def test_the_settings_say_whether_and_how_long(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, log_compact_minutes=0)
    assert upkeep.start(settings, project, 0) is None
    with pytest.raises(ConfigError, match=r"is 1, .* spans 2 days"):
        upkeep.start(Settings(home=tmp_path, log_retention_days=1), project, 0)
    kafka = {"home": tmp_path, "log_url": "kafka://broker:9092/topic"}
    assert upkeep.start(Settings(**kafka), project, 0) is None
    with pytest.raises(ConfigError, match="embedded"):
        upkeep.start(Settings(**kafka, log_retention_days=2), project, 0)
    rules = upkeep.rules_of(Settings(home=tmp_path, log_retention_days=2), project)
    assert (rules.retention_ms, rules.events) == (2 * DAY_MS, ("flood", "opening"))


# the verbs


def call(*arguments: str, code: int = 0) -> dict:
    result = CliRunner().invoke(app, ["log", *arguments, "--json"])
    assert result.exit_code == code, result.stdout
    found: dict = json.loads(result.stdout)
    return found


def water(log: SqliteLog, at: int) -> None:
    """44 openings and a decision."""
    schema = project.event("opening").arrow_schema
    for seq in range(44):
        row = {
            "tenant": "default", "event_id": f"o{seq}", "event_time": at + seq, "received_at": at,
            "valve": "v", "gardener": None, "litres": 1, "mode": "spray",
        }  # fmt: skip
        log.append(
            0, [("opening", pa.RecordBatch.from_pylist([row], schema))], producer="p", seq=seq
        )
    log.append(0, [batch(DECISION, VERDICT, "d")], producer="p", seq=44)
    log.commit("windows", 0, 45, "")


def test_the_verbs_compact_delete_and_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    home = ("--home", str(tmp_path), "--set", "project=tests.domains.greenhouse:project")
    assert call("status", *home, code=1)["error"]["code"] == "not_found"
    log = SqliteLog(tmp_path / "log")
    old = SystemClock().now_ms() - 50 * DAY_MS
    water(log, old)
    (before,) = call("status", *home)["partitions"]
    assert (before["live_rows"], before["sealed_rows"]) == (45, 0)
    bounds = ("--keep-rows", "0", "--keep-minutes", "0", "--shrink")
    (done,) = call("compact", *bounds, *home)["partitions"]
    assert (done["compacted_rows"], done["first"], done["end"]) == (45, 0, 45)
    found = call("status", *home)
    (after,) = found["partitions"]
    assert (after["live_rows"], after["sealed_rows"]) == (0, 45)
    assert (after["first"], after["end"], after["oldest_event_ms"]) == (0, 45, old)
    assert found["free_bytes"] == 0
    text = CliRunner().invoke(app, ["log", "status", *home]).stdout
    assert "sealed_rows" in text
    assert "MB" in text
    assert call("retain", *home, code=2)["error"]["code"] == "usage"
    assert call("retain", "--days", "1", *home, code=2)["error"]["code"] == "config"
    (gone,) = call("retain", "--days", "30", *home)["partitions"]
    assert (gone["first"], gone["compacted_rows"], gone["expired"]) == (45, 0, {"opening": 44})
    assert log.counts(0) == {DECISION: 1}
    log.close()


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def in_a_process(question: str) -> str:
    """Niceness can't be taken back everywhere: asked in a process that ends."""
    program = f"from tests.unit.test_upkeep_process import *\n{question}"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def test_it_hurries_while_somebody_waits_for_it() -> None:
    told = in_a_process(
        "eager = upkeep.yield_to_worker()\nprint(niceness())\nwith eager(): print(niceness())\n"
        "print(niceness())"
    ).split()
    before, hurried, after = map(int, told)
    assert before == after
    if os.geteuid() == 0 and before == PATIENT:
        assert hurried == psutil.Process().nice() + EAGER
    else:
        assert hurried == before == psutil.Process().nice() + EAGER


def test_without_the_privilege_its_share_is_always_the_same() -> None:
    told = in_a_process(
        "def refused(which, who, niceness): raise PermissionError\n"
        "os.setpriority = refused\n"
        "eager = upkeep.yield_to_worker()\nprint(niceness())\nwith eager(): print(niceness())"
    ).split()
    assert [int(t) for t in told] == [psutil.Process().nice() + EAGER] * 2
