"""What the worker makes of decisions that clients were told before it knew of them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from raypipe.errors import EventLost
from raypipe.ledger.record import TOLD_KIND, DecisionRecord, decision_id, decode
from raypipe.log.sqlite import SqliteLog
from raypipe.runtime.worker.core import WorkerCore
from tests.domains.greenhouse import project

TIME = 1_790_000_000_000
EVENT = {
    "tenant": "default",
    "event_id": "o-1",
    "event_time": TIME,
    "received_at": TIME,
    "valve": "v-1",
    "gardener": None,
    "litres": 5,
    "mode": None,
}
TOLD = DecisionRecord(
    decision_id=decision_id("default", "o-1"),
    tenant="default",
    event_id="o-1",
    event_offset=-1,
    event_time=TIME,
    received_at=TIME + 7,
    decided_at=TIME + 9,
    model="m@1",
    model_sha256="",
    policy="p",
    policy_sha256="",
    definition_hash=project.definition_hash,
    features=b"",
    score=None,
    action="review",
    degraded=True,
    degraded_by=("worker_away",),
)


def told_rows(log: SqliteLog) -> list[dict[str, object]]:
    return [
        row
        for chunk in log.read(0, 0, 1_000)
        if chunk.kind == TOLD_KIND
        for row in chunk.batch.to_pylist()
    ]


def test_an_answer_beside_a_decision_is_kept_once(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path)
    core = WorkerCore(project, log)
    other = msgspec.structs.replace(TOLD, action="block")
    core.tell(TOLD, '{"litres":5}', "why")
    core.tell(TOLD, '{"litres":5}', "why")
    assert core.dirty
    core.commit()
    assert not core.dirty
    later = WorkerCore(project, log)
    later.tell(TOLD, '{"litres":5}', "another reason")
    assert not later.dirty
    later.tell(other, '{"litres":5}', "why")
    later.commit()
    assert later.stats()["told"] == 1
    kept = told_rows(log)
    assert [decode(row["record"]) for row in kept] == [TOLD, other]
    assert {(row["tenant"], row["event"], row["reason"]) for row in kept} == {
        ("default", '{"litres":5}', "why")
    }
    assert WorkerCore(project, log).decision("default", TOLD.decision_id) is None


def test_a_spilled_decision_keeps_the_time_that_its_client_was_told(tmp_path: Path) -> None:
    core = WorkerCore(project, SqliteLog(tmp_path))
    entry, _ = core.observe(EVENT, b"1" * 32)
    placed = msgspec.structs.replace(TOLD, event_offset=entry.offset)
    with pytest.raises(EventLost):
        core.record(placed, entry.windows)
    placed = msgspec.structs.replace(placed, spilled=True)
    with pytest.raises(EventLost):
        core.record(placed, b"others")
    assert core.record(placed, entry.windows) == placed
    assert placed.told == TOLD
