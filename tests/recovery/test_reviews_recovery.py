"""A worker that dies around a claim or a verdict: what was answered is there, once."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from raypipe.clock import SystemClock
from raypipe.ledger.outcome import REVIEW, Outcome, outcome_id
from raypipe.log.sqlite import SqliteLog
from raypipe.runtime.worker.client import WorkerClient
from raypipe.runtime.worker.reviews import Review, Wanted
from serving.label_events import LabelEvents
from tests.domains.greenhouse import project
from tests.recovery.nursery import Nursery
from tests.recovery.test_worker_recovery import Supervised, decide

DECISIONS = 6
LEASE_MS = 3_600_000
TENANT = "default"
ALL = Wanted(200)


def said(decision_id: str, truth: str, source: str) -> Outcome:
    now = SystemClock().now_ms()
    statement = [truth, source, "ann", "called"]
    return Outcome(
        outcome_id=outcome_id(TENANT, decision_id, statement, None),
        tenant=TENANT,
        decision_id=decision_id,
        event_id="",
        outcome=truth,
        source=source,
        by="ann",
        reason="called",
        occurred_at=now,
        recorded_at=now,
        action="",
        model="",
    )


async def work(worker: Supervised) -> tuple[list[str], list[Review]]:
    """Decide, claim, judge, tell of a chargeback; the decisions, and what waits then."""
    client = WorkerClient(worker.connect)
    labels = LabelEvents(project)
    try:
        ids = [(await decide(client, i)).decision_id for i in range(DECISIONS)]
        await client.claim_review(TENANT, ids[0], "ann", LEASE_MS)
        await client.claim_review(TENANT, ids[1], "ann", LEASE_MS)
        await client.report(said(ids[1], "genuine", REVIEW))
        for decision, source in ((ids[2], REVIEW), (ids[3], "chargeback")):
            for _ in range(2):  # each is said twice
                stored = await client.report(said(decision, "fraud", source))
                event = await client.event_of(TENANT, decision)
                assert event is not None
                bulk = labels.of(event, decision, stored.occurred_at, stored.recorded_at)
                assert bulk is not None
                await client.ingest(project, bulk)
        waiting, number = await client.reviews(TENANT, ALL)
        assert number == len(waiting)
        return ids, waiting
    finally:
        await client.close()


async def waiting_now(worker: Supervised) -> list[Review]:
    client = WorkerClient(worker.connect)
    try:
        return (await client.reviews(TENANT, ALL))[0]
    finally:
        await client.close()


@pytest.mark.parametrize(
    "point",
    [
        # Six decisions are six commits or some more; the claims and verdicts come after them.
        "",
        "worker.before_commit:8",
        "worker.after_commit:8",
        "worker.after_commit:10",
        "worker.after_reply:9",
        "log.append.before_commit:11",
        "log.append.after_commit:12",
    ],
)
def test_the_queue_is_the_same_after_any_death(
    nursery: Nursery, tmp_path: Path, point: str
) -> None:
    worker = Supervised(nursery, tmp_path, point)
    ids, waiting = asyncio.run(work(worker))
    assert {r.decision_id for r in waiting} == {ids[0], ids[4], ids[5]}
    assert {r.decision_id: r.holder for r in waiting}[ids[0]] == "ann"
    assert worker.starts == (2 if point else 1)
    worker.kill()
    assert asyncio.run(waiting_now(worker)) == waiting
    worker.kill()
    log = SqliteLog(tmp_path / "log")
    rows: dict[str, list[dict]] = {}
    for chunk in log.read(0, 0, 10_000):
        rows.setdefault(chunk.kind, []).extend(chunk.batch.to_pylist())
    log.close()
    assert Counter((o["decision_id"], o["outcome"]) for o in rows["outcome"]) == {
        (ids[1], "genuine"): 1,
        (ids[2], "fraud"): 1,
        (ids[3], "fraud"): 1,
    }
    assert Counter(f["opening_id"] for f in rows["flood"]) == {"o-2": 1, "o-3": 1}
