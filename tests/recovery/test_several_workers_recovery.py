"""Several worker processes that are killed under load: nothing is lost, nothing counts twice."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raypipe.errors import EventLost
from raypipe.ledger.record import decision_id, decode
from raypipe.log.partitions import PartitionedLog
from raypipe.log.port import Group
from raypipe.ownership.routes import Ownership, projected
from raypipe.runtime.worker import reach
from raypipe.runtime.worker.client import WorkerClient
from raypipe.runtime.worker.intake import Bulk
from raypipe.runtime.worker.routing import RoutingClient
from tests.domains.greenhouse import project
from tests.property.workers_checks import Left, check_once, check_values
from tests.property.workers_world import decision_of
from tests.recovery import workers_process
from tests.recovery.nursery import Child, Nursery
from tests.recovery.workers_process import socket_of

WORKERS = 2
START = 1_790_000_000_000
DECISIONS, REQUESTS, ROWS = 120, 40, 12
PATIENCE_S = 300.0


class Supervised:
    """Worker processes, each started again when it died."""

    def __init__(self, nursery: Nursery, home: Path, abort_at: str = "") -> None:
        self.home = home
        self._nursery = nursery
        self.starts: Counter[int] = Counter()
        self._env = {"RAYPIPE_ABORT_AT": abort_at, "RAYPIPE_ABORT_ONCE": str(home / "aborted")}
        self._running: dict[int, Child] = {}

    async def supervise(self) -> None:
        while True:
            for worker in range(WORKERS):
                process = self._running.get(worker)
                if process is None or process.ended:
                    self.starts[worker] += 1
                    self._running[worker] = self._started(worker)
            await asyncio.sleep(0.02)

    def _started(self, worker: int) -> Child:
        return self._nursery.start(
            workers_process.start,
            *(self.home, worker, WORKERS),
            env=self._env,
            errors=self.home / f"{worker}.err",
        )

    def kill(self, worker: int) -> None:
        if worker in self._running:
            self._running[worker].kill()

    def client(self) -> RoutingClient:
        each = [
            WorkerClient(partial(reach.unix, str(socket_of(self.home, worker))))
            for worker in range(WORKERS)
        ]
        return RoutingClient(each, Ownership(project, WORKERS))


def opening(name: str, rng: random.Random) -> dict[str, Any]:
    at = START + rng.randrange(5_000_000)
    return {
        "tenant": "default",
        "event_id": name,
        "event_time": at,
        "received_at": START + 5_000_000,
        "valve": f"v-{rng.randrange(6)}",
        "gardener": rng.choice([None, "g-0", "g-1", "g-2", "g-3"]),
        "litres": rng.randrange(1_000),
        "mode": None,
    }


async def decide(client: RoutingClient, event: dict[str, Any]) -> bytes:
    """The window values that the recorded decision was made from."""
    while True:
        seen = await client.observe(event, event["event_id"].zfill(32).encode())
        if seen.decision is not None:
            return decode(seen.decision).features
        assert isinstance(seen.owner_offsets, tuple)
        record = decision_of(project, seen.event, seen.windows, seen.owner_offsets)
        try:
            return (await client.record(record, seen.own)).features
        except EventLost:
            continue


async def send(client: RoutingClient, rows: list[dict[str, Any]], key: str | None) -> None:
    batch = pa.RecordBatch.from_pylist(rows, project.event("opening").arrow_schema)
    bulk = Bulk("default", Group.of("opening", batch), START + 5_000_000, "x", b"x" * 32, key)
    taken = await client.ingest(project, bulk)
    assert taken.accepted + len(taken.duplicates) // 4 == len(rows)


async def run(workers: Supervised, kills: int) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Decisions and bulk requests side by side, with kills among them; what was acknowledged."""
    rng = random.Random(3)
    supervising = asyncio.create_task(workers.supervise())
    client = workers.client()
    alone = [opening(f"o-{i}", rng) for i in range(DECISIONS)]
    requests = [[opening(f"b-{i}-{j}", rng) for j in range(ROWS)] for i in range(REQUESTS)]
    answers: dict[str, bytes] = {}
    todo: list[Callable[[], Any]] = []

    async def decided(event: dict[str, Any]) -> None:
        answers[event["event_id"]] = await decide(client, event)
        if rng.random() < 0.1:
            assert await decide(client, event) == answers[event["event_id"]]

    todo += [partial(decided, event) for event in alone]
    todo += [
        partial(send, client, rows, f"k-{i}" if i % 2 else None) for i, rows in enumerate(requests)
    ]
    rng.shuffle(todo)
    doomed = set(rng.sample(range(len(todo)), kills))

    async def caller() -> None:
        while todo:
            ask = todo.pop()
            if len(todo) in doomed:
                workers.kill(rng.randrange(WORKERS))
            await ask()

    try:
        async with asyncio.timeout(PATIENCE_S):
            await client.stats()
            await asyncio.gather(*(caller() for _ in range(8)))
            found = await client.decision("default", decision_id("default", alone[0]["event_id"]))
            assert found is not None
            assert found.features == answers[alone[0]["event_id"]]
            rows = [*alone, *(row for request in requests for row in request)]
            await heard(workers.home, rows)
            await told(client)
        await client.close()
    finally:
        supervising.cancel()
        for worker in range(WORKERS):
            workers.kill(worker)
    return rows, answers


async def told(client: RoutingClient) -> None:
    """Wait until the forwarders say themselves that nothing is left to tell."""
    while (figures := await client.stats())["untold_0"] + figures["untold_1"]:
        await asyncio.sleep(0.05)


async def heard(home: Path, rows: list[dict[str, Any]]) -> None:
    """Wait until every worker has heard of every event that concerns it."""
    ownership = Ownership(project, WORKERS)
    expected = sum(len(ownership.way("opening", row).others) for row in rows)
    with closing(PartitionedLog(home / "log")) as log:
        while expected > sum(
            log.counts(worker).get(projected("opening"), 0) for worker in range(WORKERS)
        ):
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("abort_at", "kills"),
    [("worker.after_commit:9", 0), ("", 3)],
)
def test_killed_workers_lose_nothing_and_count_nothing_twice(
    nursery: Nursery, tmp_path: Path, abort_at: str, kills: int
) -> None:
    workers = Supervised(nursery, tmp_path, abort_at)
    rows, answers = asyncio.run(run(workers, kills))
    assert sum(workers.starts.values()) > WORKERS
    with closing(PartitionedLog(tmp_path / "log")) as log:
        left = Left(log, Ownership(project, WORKERS), answers)
        check_once(left, [("opening", row) for row in rows])
        check_values(left, {row["event_id"] for row in rows if row["event_id"].startswith("o-")})
