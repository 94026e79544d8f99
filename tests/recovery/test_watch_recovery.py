"""Patterns in the worker: every alert is logged once, whatever dies, and as a dry run finds it."""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raypipe.clock import ManualClock
from raypipe.errors import DeclarationError
from raypipe.lake import Place
from raypipe.log.port import Chunk, Group
from raypipe.log.sqlite import SqliteLog
from raypipe.patterns.engine import PatternEngine
from raypipe.patterns.reading import parse_patterns
from raypipe.patterns.spec import Pattern
from raypipe.runtime.worker import watch
from raypipe.runtime.worker.core import WorkerCore
from raypipe.runtime.worker.intake import Bulk
from raypipe.runtime.worker.snapshots import Snapshots
from tests.domains.greenhouse import project

NOW = 1_790_000_000_000

BURST = """
name: burst
group_by: valve
pattern: [{name: much, event: opening, where: litres >= 50, times: {min: 3}}]
within: 1m
reason: "{much.count} openings"
"""
QUIET = """
name: no_flood
group_by: valve
pattern:
  - {name: big, event: opening, where: litres >= 90}
  - {name: flood, event: flood, not: true}
within: 30s
reason: "no flood after {big.litres} litres"
"""


parsed = cache(parse_patterns)


def patterns(*texts: str) -> list[Pattern]:
    return [p for text in texts for p in parsed(text)]


def opening(i: int, litres: int, at_ms: int) -> dict:
    return {
        "tenant": "default",
        "event_id": f"o-{i}",
        "event_time": NOW + at_ms,
        "received_at": NOW + at_ms,
        "valve": f"v-{i % 2}",
        "gardener": None,
        "litres": litres,
        "mode": None,
    }


class Aborted(Exception):
    """A death in this process: nothing after it happens."""


class Worker:
    """A core that can die and start again over the same folder; its clocks are cranked by hand."""

    def __init__(self, home: Path, *texts: str, snapshot_s: float = 60) -> None:
        self.home = home
        self.texts = texts
        self.snapshot_s = snapshot_s
        self.clock = ManualClock(NOW)
        self.log: SqliteLog | None = None
        self.start()

    def tick(self) -> None:
        """A round without a request."""
        self.core.tick()
        self.core.commit()

    def start(self) -> None:
        self.close()
        self.log = SqliteLog(self.home / "log")
        self.core = WorkerCore(
            project,
            self.log,
            snapshots=Snapshots(
                Place.at(self.home / "snapshots"),
                project.definition_hash,
                self.snapshot_s,
                lambda: 0.0,
            ),
            patterns=patterns(*self.texts),
            clock=self.clock,
        )

    def close(self) -> None:
        if self.log is not None:
            self.log.close()

    def take(self, *rows: dict) -> None:
        batch = pa.RecordBatch.from_pylist(list(rows), project.event("opening").arrow_schema)
        self.core.ingest(Bulk("default", Group.of("opening", batch), NOW, "x", b""))
        self.core.commit()

    def logged(self, kind: str = "alert") -> list[dict]:
        chunks = self.log.read(0, 0, 10**6)
        return [row for c in chunks if c.kind == kind for row in c.batch.to_pylist()]

    def dry_run(self) -> list[str]:
        """Ids of the alerts that the whole log gives in one go."""
        engine = PatternEngine(patterns(*self.texts), project.events)
        chunks = [c for c in self.log.read(0, 0, 10**6) if c.kind in ("opening", "flood")]
        return [a.event_id for a in engine.apply(chunks)]


@pytest.mark.usefixtures("at_once")
def test_alerts_are_log_records(tmp_path: Path) -> None:
    worker = Worker(tmp_path, BURST)
    worker.take(*(opening(2 * i, 60, i * 1_000) for i in range(3)))
    assert worker.logged() == []
    worker.tick()
    (alert,) = worker.logged()
    assert (alert["pattern"], alert["key"], alert["reason"]) == ("burst", "v-0", "3 openings")
    assert alert["event_id"] == worker.dry_run()[0]
    assert worker.core.stats()["pattern_burst_matches"] == 1
    worker.tick()
    assert len(worker.logged()) == 1


def test_events_wait_for_others(tmp_path: Path) -> None:
    worker = Worker(tmp_path, BURST)
    worker.take(*(opening(2 * i, 60, i * 1_000) for i in range(3)))
    assert 0 < worker.core.idle_s <= watch.DELAY_S
    worker.tick()
    assert worker.core.stats()["pattern_rows_waiting"] == 3


steps = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.lists(st.integers(40, 70), min_size=1, max_size=5)),
        st.tuples(st.just("tick"), st.none()),
        st.tuples(st.just("die"), st.none()),
        st.tuples(st.just("save"), st.none()),
    ),
    max_size=14,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_every_alert_is_logged_once(
    tmp_path_factory: pytest.TempPathFactory, todo: list[tuple[str, list[int] | None]]
) -> None:
    worker = Worker(tmp_path_factory.mktemp("home"), BURST)
    count = 0
    for what, litres in todo:
        if what == "take":
            rows = [opening(count + i, much, (count + i) * 900) for i, much in enumerate(litres)]
            worker.take(*rows)
            count += len(rows)
        elif what == "tick":
            worker.core._commit_all()
        elif what == "save":
            worker.core.save()
        else:
            worker.start()
    worker.core._commit_all()
    assert [a["event_id"] for a in worker.logged()] == worker.dry_run()
    worker.close()


@given(steps)
def test_every_alert_is_logged_once_by_patterns_that_run_beside(
    tmp_path_factory: pytest.TempPathFactory, todo: list[tuple[str, list[int] | None]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "ROWS", 2)
        worker = Worker(tmp_path_factory.mktemp("home"), BURST, snapshot_s=0)
        count = 0
        for what, litres in todo:
            if what == "take":
                rows = [
                    opening(count + i, much, (count + i) * 900) for i, much in enumerate(litres)
                ]
                worker.take(*rows)
                count += len(rows)
            elif what == "die":
                worker.start()
            else:
                for _ in range(12 if what == "save" else 1):
                    worker.tick()
        worker.core._commit_all()
        assert [a["event_id"] for a in worker.logged()] == worker.dry_run()
        worker.close()


def test_events_wait_while_the_patterns_are_copied(tmp_path: Path) -> None:
    seen = watch.Watch(project.events)
    seen.use(patterns(BURST), NOW)
    held = threading.Event()
    seen._thread.submit(held.wait)
    tables = seen.pieces(7)
    rows = [opening(2 * i, 60, i * 1_000) for i in range(3)]
    batch = pa.RecordBatch.from_pylist(rows, project.event("opening").arrow_schema)
    seen.add([Chunk("opening", np.arange(3), batch)])
    assert seen.idle_s
    assert seen.take(NOW) == []
    held.set()
    assert len(tables()) > 1
    (found,) = seen.take(NOW, all_=True)
    assert found[1].num_rows == 1


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("point", ["worker.before_commit", "worker.after_commit"])
def test_death_while_an_alert_is_logged(
    tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(tmp_path, BURST)
    worker.take(*(opening(2 * i, 60, i * 1_000) for i in range(3)))
    dead = point

    def reach(name: str) -> None:
        if name == dead:
            raise Aborted(name)

    monkeypatch.setattr("raypipe.runtime.worker.flight.reach", reach)
    with pytest.raises(Aborted):
        worker.tick()
    dead = ""
    worker.start()
    assert [a["event_id"] for a in worker.logged()] == worker.dry_run()
    assert len(worker.logged()) == 1


@pytest.mark.usefixtures("at_once")
def test_time_that_passes_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "CLOCK_S", 0.0)
    worker = Worker(tmp_path, QUIET)
    worker.take(opening(0, 95, 0))
    worker.tick()
    assert worker.logged() == []
    worker.clock.advance(31_000)
    worker.tick()
    (alert,) = worker.logged()
    assert alert["reason"] == "no flood after 95 litres"
    assert worker.logged("clock")[-1]["received_at"] == NOW + 31_000
    worker.tick()
    worker.start()
    worker.tick()
    assert len(worker.logged()) == 1


@pytest.mark.usefixtures("at_once")
def test_patterns_are_exchanged_without_a_restart(tmp_path: Path) -> None:
    worker = Worker(tmp_path, BURST)
    worker.take(*(opening(2 * i, 60, i * 1_000) for i in range(2)))
    other = BURST.replace("min: 3", "min: 2").replace("name: burst", "name: pair")
    worker.core.use_patterns(patterns(BURST, other))
    worker.take(*(opening(2 * i, 60, i * 1_000) for i in range(2, 4)))
    worker.tick()
    assert [a["pattern"] for a in worker.logged()] == ["burst", "pair"]
    assert len(worker.logged("patterns")) == 2
    worker.texts = (BURST, other)
    worker.start()
    worker.tick()
    assert len(worker.logged()) == 2
    assert len(worker.logged("patterns")) == 2
    wrong = BURST.replace("litres >= 50", "gallons >= 50")
    with pytest.raises(DeclarationError, match="gallons"):
        worker.core.use_patterns(patterns(wrong))
    assert worker.core.stats()["patterns"] == 2


@pytest.mark.usefixtures("at_once")
def test_a_replay_knows_which_patterns_ran_when(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    worker.take(*(opening(2 * i, 60, i * 1_000) for i in range(3)))
    worker.core.use_patterns(patterns(BURST))
    worker.take(*(opening(2 * i, 60, i * 1_000) for i in range(3, 6)))
    worker.tick()
    before = worker.logged()
    assert len(before) == 1
    worker.texts = (BURST,)
    worker.start()
    assert worker.logged() == before
