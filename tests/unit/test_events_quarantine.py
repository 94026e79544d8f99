"""Refused rows are kept, counted and shown."""

from __future__ import annotations

from pathlib import Path

from raypipe.clock import ManualClock
from raypipe.events.quarantine import Quarantine


def test_rows_are_kept_newest_first_over_a_restart(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "deep" / "q.db", ManualClock(7))
    assert quarantine.add("post", "ping", [('{"a":1}', ["/a: bad", "/b: missing"])]) == 1
    quarantine.add("post", "ping", [('{"a":2}', ["/a: bad"]), ("{}", ["/a: bad"])])
    quarantine.close()
    newest, *_ = Quarantine(tmp_path / "deep" / "q.db").rows(2)
    assert (newest.body, newest.reasons, newest.at_ms) == ("{}", ("/a: bad",), 7)
    assert (newest.source, newest.event_type, newest.tenant) == ("post", "ping", "default")


def test_counts_are_by_event_type_and_reason(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q.db")
    quarantine.add("post", "ping", [("{}", ["x", "y"]), ("{}", ["x"])])
    quarantine.add("load", "pong", [("{}", ["x"])])
    assert quarantine.counts() == {"ping": {"x": 2, "y": 1}, "pong": {"x": 1}}
    assert len(quarantine) == 3


def test_a_tenant_sees_its_own_rows(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q.db")
    quarantine.add("post", "ping", [("{}", ["x"])], tenant="a")
    quarantine.add("post", "ping", [("{}", ["y"])], tenant="b")
    assert quarantine.counts(tenant="a") == {"ping": {"x": 1}}
    assert [r.tenant for r in quarantine.rows(tenant="b")] == ["b"]
    assert len(quarantine.rows()) == 2


def test_a_source_can_be_forgotten(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q.db")
    quarantine.add("load 1", "ping", [("{}", ["x"])] * 3)
    quarantine.add("load 2", "ping", [("{}", ["x"])])
    assert quarantine.discard("load 1") == 3
    assert [r.source for r in quarantine.rows()] == ["load 2"]


def test_two_processes_worth_of_connections_write_one_file(tmp_path: Path) -> None:
    first, second = Quarantine(tmp_path / "q.db"), Quarantine(tmp_path / "q.db")
    for _ in range(5):
        first.add("a", "ping", [("{}", ["x"])])
        second.add("b", "ping", [("{}", ["x"])])
    assert len(first) == len(second) == 10
