"""Replicas decide while the worker is dead, and die themselves: each client has one answer, and
the log has it, once."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from raypipe.ledger.spill import Spill, backlog
from tests.recovery.disk import Disk, Platter, needed, records
from tests.recovery.nursery import Nursery
from tests.recovery.spill_kit import REPLICAS, SPILL_BYTES, Crowd, House, check

DEADLINE_MS = 1_000


def once(home: Path, point: str) -> dict[str, str]:
    return {"RAYPIPE_ABORT_AT": point, "RAYPIPE_ABORT_ONCE": str(home / "aborted")}


def ask_until_refused(
    crowd: Crowd, made: Disk, first: int, step: int, told: Callable[[str], object] = str
) -> None:
    """Some requests at a time: how many writes they take depends on how many share a commit."""
    for at in range(first, first + 10 * step, step):
        crowd.ask(range(at, at + step), told=told)
        if not made.waiting:
            return


@pytest.mark.parametrize(
    "point",
    [
        "spill.before_commit:3",
        "spill.after_commit:3",
        "serving.after_spill:5",
        "spill.taken_in:1",
        "spill.removed:1",
    ],
)
def test_a_replica_dies_at_each_step(nursery: Nursery, tmp_path: Path, point: str) -> None:
    env = {name: once(tmp_path, point) for name in REPLICAS}
    with House(nursery, tmp_path, deadline_ms=DEADLINE_MS, env=env) as house:
        crowd = Crowd(house)
        crowd.ask(range(12))
        house.kill("worker", hold=True)
        crowd.ask(range(12, 50))
        assert backlog(tmp_path / "spill").rows >= 38
        house.release("worker")
        crowd.ask(range(50, 62))
        house.await_empty_spill()
        assert (tmp_path / "aborted").exists()
        crowd.ask(range(0, 62, 4))
    assert sum(house.starts[name] for name in REPLICAS) == 3
    assert check(tmp_path, crowd) == []


@pytest.mark.parametrize("point", ["worker.before_commit:2", "worker.after_commit:2"])
def test_the_worker_dies_while_it_takes_them_in(
    nursery: Nursery, tmp_path: Path, point: str
) -> None:
    with House(nursery, tmp_path, deadline_ms=DEADLINE_MS) as house:
        crowd = Crowd(house)
        crowd.ask(range(6))
        house.kill("worker", hold=True)
        crowd.ask(range(6, 50))
        house.env["worker"] = once(tmp_path, point)
        house.release("worker")
        house.await_empty_spill()
        assert (tmp_path / "aborted").exists()
        crowd.ask(range(0, 50, 4))
    assert house.starts["worker"] == 3
    assert check(tmp_path, crowd) == []


def test_kills_under_load(nursery: Nursery, tmp_path: Path) -> None:
    """Worker and replicas, at random moments and at once: no client hears of it."""
    rng = random.Random(23)
    with House(nursery, tmp_path, deadline_ms=3_000) as house:
        crowd = Crowd(house)
        crowd.ask(range(20))

        def outage() -> None:
            house.kill("worker", hold=True)
            threading.Timer(4.0, house.release, ["worker"]).start()

        moments = {n: lambda: house.kill("worker") for n in rng.sample(range(20, 120), 3)}
        moments |= {130: outage}
        for n, name in zip(rng.sample(range(20, 240), 4), 2 * REPLICAS, strict=True):
            moments[n] = lambda name=name: house.kill(name)  # type: ignore[misc]
        crowd.ask(range(20, 320), at=moments)
        time.sleep(0.1)
        house.await_empty_spill()
        crowd.ask(range(0, 320, 4))
    assert crowd.problems == []
    assert crowd.lost > 0
    assert any(answer["degraded"] for answer in crowd.answers.values())
    assert check(tmp_path, crowd) == []


@needed
def test_the_clock_jumps_while_the_worker_is_away(nursery: Nursery, tmp_path: Path) -> None:
    made = Disk(tmp_path / "home", tmp_path / "disk")
    env = {name: made.env(clock=True) for name in REPLICAS}
    with House(nursery, made.root, deadline_ms=3_000, env=env) as house:
        crowd = Crowd(house)
        crowd.ask(range(6))
        house.kill("worker", hold=True)
        jumps = {4: 3_600, 10: -3_600, 16: 86_400}
        crowd.ask(
            range(6, 36),
            at={n: lambda s=s: made.shift_clock(s) for n, s in jumps.items()},  # type: ignore[misc]
        )
        house.release("worker")
        house.await_empty_spill()
        crowd.ask(range(0, 36, 4))
    assert crowd.problems == []
    assert check(made.root, crowd) == []


@needed
@pytest.mark.parametrize(
    "rule",
    [
        "write spill/spill.db-wal 20 enospc once",
        "write spill/spill.db-wal 20 torn once",
        "fsync spill/spill.db-wal 4 eio once",
    ],
)
def test_a_disk_that_refuses(nursery: Nursery, tmp_path: Path, rule: str) -> None:
    """What can't be kept is not answered, and later the same request is."""
    made = Disk(tmp_path / "home", tmp_path / "disk")
    env = {name: made.env(rules=[rule]) for name in REPLICAS}
    with House(nursery, made.root, deadline_ms=DEADLINE_MS, env=env) as house:
        crowd = Crowd(house)
        crowd.ask(range(6))
        house.kill("worker", hold=True)
        ask_until_refused(crowd, made, 6, 34)
        house.release("worker")
        house.await_empty_spill()
    assert crowd.problems
    assert {p["code"] for p in crowd.problems} == {"unavailable"}
    assert not made.waiting
    assert check(made.root, crowd) == []


@needed
@pytest.mark.parametrize("rules", [(), ("fsync spill.db-wal 6 eio once",)])
def test_the_power_goes_at_any_moment(
    nursery: Nursery, tmp_path: Path, rules: tuple[str, ...]
) -> None:
    """All that clients were told is in the spill that is left, whole."""
    home = tmp_path / "home"
    home.mkdir()
    made = Disk(home / "spill", tmp_path / "disk")
    env = {name: made.env(journal=True, rules=rules) for name in REPLICAS}
    with House(nursery, home, deadline_ms=DEADLINE_MS, env=env) as house:
        crowd = Crowd(house)
        crowd.ask(range(4))
        house.kill("worker", hold=True)
        ask_until_refused(crowd, made, 4, 20, told=made.mark)
        with made.still():
            for name in REPLICAS:
                house.kill(name, hold=True)
    assert not made.waiting
    journal = list(records(made.journal))
    marks = [i for i, r in enumerate(journal) if r.op == "A"]
    rng = random.Random(20261126)
    chosen = {marks[-1], *rng.sample(range(marks[0], len(journal)), 8)}
    told: set[str] = set()
    platter = Platter()
    for i, record in enumerate(journal):
        if record.op == "A":
            told.add(record.data.decode())
        else:
            platter.take(record)
        if i in chosen:
            for left in (None, rng):
                platter.crash(made.root, left)
                with closing(Spill(made.root, SPILL_BYTES)) as spill:
                    for event_id in told:
                        found = spill.find("default", event_id)
                        assert found is not None
                        assert found.record.event_id == event_id
    assert len(told) == 20
