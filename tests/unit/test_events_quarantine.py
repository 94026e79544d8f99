"""Refused rows are kept, counted and shown."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from raypipe.clock import ManualClock
from raypipe.events.quarantine import (
    Quarantine,
    Refusal,
    RefusedRow,
    Selection,
    Sending,
    State,
    Tally,
)


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


FIRST_VERSION = """
CREATE TABLE refused (
    id INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    tenant TEXT NOT NULL,
    source TEXT NOT NULL,
    event_type TEXT NOT NULL,
    body TEXT NOT NULL,
    reasons TEXT NOT NULL
) STRICT;
CREATE INDEX refused_by_tenant ON refused (tenant, source);
INSERT INTO refused VALUES (4, 9, 'default', 'post', 'ping', '{"a":1}', '["/a: bad"]');
"""


EVERY = Selection()


def bodies(quarantine: Quarantine, where: Selection = EVERY) -> list[str]:
    return [row.body for row in quarantine.oldest(where, 0, 1_000)]


def test_a_file_of_the_first_version_is_read_and_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "q.db"
    with sqlite3.connect(file) as db:
        db.executescript(FIRST_VERSION)
    db.close()
    for _ in range(2):
        quarantine = Quarantine(file)
        assert quarantine.rows() == [
            RefusedRow(4, 9, "default", "post", "ping", '{"a":1}', ("/a: bad",))
        ]
        assert quarantine.tally("default") == Tally(kept=1)
        quarantine.close()
    quarantine = Quarantine(file, limit_rows=2)
    assert quarantine.add("post", "ping", [("{}", ["x"])] * 2) == 1
    assert quarantine.tally("default") == Tally(kept=2, unkept=1)


@pytest.mark.parametrize(
    ("where", "found"),
    [
        (Selection(), "abcd"),
        (Selection("other"), "d"),
        (Selection("default", event_type="ping"), "ab"),
        (Selection(source="load 1"), "c"),
        (Selection(reason="/q: must"), "bc"),
        (Selection(ids=(1, 3, 99)), "ac"),
        (Selection("default", ids=(), source="post"), ""),
        (Selection(reason="%"), ""),
    ],
)
def test_rows_are_selected(tmp_path: Path, where: Selection, found: str) -> None:
    quarantine = Quarantine(tmp_path / "q.db")
    quarantine.add("post", "ping", [("a", ["/p: is required"]), ("b", ["/p: x", "/q: must be"])])
    quarantine.add("load 12 t", "pong", [("c", ["/q: must not"])])
    quarantine.add("post", "ping", [("d", ["/p: x"])], tenant="other")
    assert "".join(bodies(quarantine, where)) == found
    counts = quarantine.counts(where)
    assert sum(n for by in counts.values() for n in by.values()) == len(found) + ("b" in found)


def test_dropped_rows_stay_and_are_no_longer_listed(tmp_path: Path) -> None:
    clock = ManualClock(7)
    quarantine = Quarantine(tmp_path / "q.db", clock)
    quarantine.add("post", "ping", [("a", ["x"]), ("b", ["y"])])
    clock.set(50)
    assert quarantine.drop(Selection(reason="x"), "a test") == 1
    assert quarantine.drop(Selection(reason="x", settled=True), "again") == 0
    assert bodies(quarantine) == ["b"]
    assert quarantine.counts() == {"ping": {"y": 1}}
    _, dropped = quarantine.rows(where=Selection(settled=True))
    assert (dropped.state, dropped.resolved_at, dropped.note) == (State.DROPPED, 50, "a test")


def test_what_is_being_sent_is_claimed_by_one_and_kept_as_it_was(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q.db", ManualClock(7))
    quarantine.add("post", "ping", [(name, ["x"]) for name in "abc"])
    sending = Sending("k-1", "ping", b"a\nc", (1, 3))
    assert quarantine.begin(sending, "default")
    assert not quarantine.begin(sending, "default")
    assert not quarantine.begin(Sending("k-2", "ping", b"b\nc", (2, 3)), "default")
    assert bodies(quarantine) == ["b"]
    assert quarantine.drop(Selection(ids=(3,)), "no") == 0
    quarantine.close()
    quarantine = Quarantine(tmp_path / "q.db", ManualClock(8))
    assert quarantine.unfinished("default") == [sending]
    assert quarantine.unfinished("other") == []
    quarantine.end("k-1", {3: (State.RESOLVED, "accepted")})
    assert quarantine.unfinished("default") == []
    assert bodies(quarantine) == ["a", "b"]
    (settled,) = quarantine.rows(where=Selection(ids=(3,), settled=True))
    assert (settled.state, settled.resolved_at) == (State.RESOLVED, 8)
    assert quarantine.begin(Sending("k-2", "ping", b"a", (1,)), "default")


def test_another_try_of_a_request_replaces_its_rows(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q.db")
    quarantine.keep([Refusal("t", "post", "ping", b, ["x"], "key") for b in "ab"])
    quarantine.keep([Refusal("t", "post", "ping", "c", ["x"], "other")])
    quarantine.keep([Refusal("u", "post", "ping", "d", ["x"], "key")])
    quarantine.keep([Refusal("t", "post", "ping", "e", ["x"]), Refusal("t", "p", "", "f", ["x"])])
    quarantine.keep([Refusal("t", "post", "ping", b, ["x"], "key") for b in "gh"])
    assert bodies(quarantine) == list("cdefgh")
    assert (quarantine.tally("t").kept, quarantine.tally("u").kept) == (5, 1)


def test_a_full_quarantine_counts_what_it_cannot_keep(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q.db", limit_rows=3)
    assert quarantine.add("post", "ping", [(name, ["x"]) for name in "ab"]) == 2
    assert quarantine.add("post", "ping", [(name, ["x"]) for name in "cde"]) == 1
    assert quarantine.add("post", "ping", [("f", ["x"])], tenant="other") == 1
    assert bodies(quarantine, Selection("default")) == list("abc")
    assert quarantine.tally("default") == Tally(kept=3, unkept=2)
    quarantine.drop(Selection(ids=(1, 2)), "gone")
    assert quarantine.add("post", "ping", [("g", ["x"])]) == 1
    assert bodies(quarantine, Selection("default", settled=True)) == list("bcg")
    assert quarantine.tally("default") == Tally(kept=3, unkept=2, forgotten=1)
    assert quarantine.add("post", "ping", [(name, ["x"]) for name in "hijk"]) == 1
    assert quarantine.tally("default") == Tally(kept=3, unkept=5, forgotten=2)
    assert quarantine.discard("post") == 3
    assert quarantine.tally("default").kept == 0
