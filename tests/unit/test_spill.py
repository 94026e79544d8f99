"""The node's spill: first wins, durable, bounded, seen by all processes of the node."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from raypipe.cli._app import app
from raypipe.clock import ManualClock
from raypipe.errors import Conflict, IntegrityError, Unavailable
from raypipe.ledger.record import DecisionRecord, decision_id
from raypipe.ledger.spill import SPILL_FILE, Backlog, Spill, Spilled, backlog

LIMIT = 2**20
NOW = 1_790_000_000_000


def spilled(event_id: str, *, tenant: str = "t", body: bytes = b"1", score: float = 0.5) -> Spilled:
    record = DecisionRecord(
        decision_id=decision_id(tenant, event_id),
        tenant=tenant,
        event_id=event_id,
        event_offset=-1,
        event_time=NOW,
        received_at=NOW,
        decided_at=NOW,
        model="m@1",
        model_sha256="",
        policy="p",
        policy_sha256="",
        definition_hash="",
        features=b"\0\0\0\0",
        score=score,
        action="review",
        degraded=True,
        degraded_by=("worker_away",),
    )
    return Spilled({"tenant": tenant, "event_id": event_id, "litres": 5}, body * 32, record)


@pytest.fixture
def spill(tmp_path: Path) -> Iterator[Spill]:
    with closing(Spill(tmp_path / "spill", LIMIT, ManualClock(NOW))) as made:
        yield made


def test_the_first_decision_about_an_event_is_what_everybody_gets(spill: Spill) -> None:
    one, again, other = (spilled("e", score=s) for s in (0.1, 0.2, 0.3))
    assert spill.keep([one, again]) == [one.record, one.record]
    assert spill.keep([other, spilled("e", tenant="u", score=0.4)])[1].score == 0.4
    assert spill.find("t", "e").record == one.record
    assert spill.find("t", "f") is None
    assert spill.backlog() == Backlog(2, NOW)


def test_another_body_under_the_same_id_is_a_conflict(spill: Spill) -> None:
    kept = spill.keep([spilled("e"), spilled("e", body=b"2"), spilled("f")])
    assert [type(k) for k in kept] == [DecisionRecord, Conflict, DecisionRecord]


def test_rows_come_in_their_order_and_leave_when_the_log_has_them(spill: Spill) -> None:
    given = [spilled(f"e-{i}") for i in range(5)]
    spill.keep(given)
    rows, last = spill.rows(0, 3)
    assert [r._replace(number=0) for r in rows] == given[:3]
    spill.remove([r.number for r in rows])
    rest, end = spill.rows(last, 10)
    assert [r.record.event_id for r in rest] == ["e-3", "e-4"]
    assert spill.rows(end, 10) == ([], end)
    spill.remove([r.number for r in rest])
    assert spill.backlog() == Backlog(0, None)


def test_every_process_of_the_node_sees_what_the_others_keep(spill: Spill, tmp_path: Path) -> None:
    with closing(Spill(tmp_path / "spill", LIMIT)) as other:
        assert (spill.some, other.some) == (False, False)
        spill.keep([spilled("e")])
        assert (spill.some, other.some) == (True, True)
        assert other.keep([spilled("e", score=0.9)])[0].score == 0.5
        other.remove([other.rows(0, 1)[0][0].number])
        assert (spill.some, other.some) == (False, False)


def test_one_process_at_a_time_hands_rows_over(spill: Spill, tmp_path: Path) -> None:
    with closing(Spill(tmp_path / "spill", LIMIT)) as other:
        with spill.on_duty() as mine, other.on_duty() as theirs:
            assert (mine, theirs) == (True, False)
        with other.on_duty() as theirs:
            assert theirs


def test_what_one_process_left_the_next_one_finds(tmp_path: Path) -> None:
    with closing(Spill(tmp_path, LIMIT, ManualClock(NOW))) as first:
        first.keep([spilled("e")])
    assert backlog(tmp_path) == Backlog(1, NOW)
    with closing(Spill(tmp_path, LIMIT)) as second:
        assert second.some
        assert second.find("t", "e") is not None


def test_looking_makes_nothing(tmp_path: Path) -> None:
    assert backlog(tmp_path / "none") == Backlog(0, None)
    assert not list(tmp_path.iterdir())


def test_a_full_spill_takes_no_more_and_has_room_again(spill: Spill) -> None:
    large = [spilled(f"e-{i}") for i in range(60)]
    large = [one._replace(event=one.event | {"text": "x" * 40_000}) for one in large]
    kept = [spill.keep([one])[0] for one in large]
    refused = [k for k in kept if isinstance(k, Unavailable)]
    assert 30 < len(refused) < 40
    assert spill.backlog().rows == 60 - len(refused)
    rows, _ = spill.rows(0, 100)
    spill.remove([r.number for r in rows])
    assert isinstance(spill.keep([spilled("late")])[0], DecisionRecord)


def test_a_damaged_row_is_never_an_answer(spill: Spill, tmp_path: Path) -> None:
    spill.keep([spilled("e-1"), spilled("e-2")])
    with closing(sqlite3.connect(tmp_path / "spill" / SPILL_FILE)) as db, db:
        changed = msgspec.msgpack.encode({"litres": 6})
        db.execute("update spilled set event = ? where event_id = 'e-1'", (changed,))
    with pytest.raises(IntegrityError):
        spill.find("t", "e-1")
    rows, last = spill.rows(0, 10)
    assert [r.record.event_id for r in rows] == ["e-2"]
    assert last == 2


def call(*arguments: str) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    found: dict[str, Any] = json.loads(result.stdout)
    return result.exit_code, found


def test_status_and_doctor_tell_of_what_waits(tmp_path: Path) -> None:
    home = ("--home", str(tmp_path / "home"))
    code, found = call("status", *home)
    assert (code, found["spilled"]) == (1, 0)
    with closing(Spill(tmp_path / "home" / "spill", LIMIT)) as spill:
        spill.keep([spilled("e-1"), spilled("e-2")])
    assert call("status", *home)[1]["spilled"] == 2
    _, report = call("doctor", *home)
    [check] = [c for c in report["checks"] if c["name"] == "spill"]
    assert check["state"] == "warn"
    assert "2 decisions wait" in check["found"]
    assert "start" in check["cure"]
