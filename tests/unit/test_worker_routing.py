"""Several workers asked as one: bulk requests over HTTP down to their logs, and questions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from raypipe.clock import ManualClock
from raypipe.errors import NotFound, Unavailable
from raypipe.events.quarantine import Quarantine
from raypipe.ledger.record import DecisionRecord
from raypipe.log.partitions import PartitionedLog
from raypipe.ownership.routes import Ownership
from raypipe.runtime.worker.client import WorkerClient
from raypipe.runtime.worker.core import WorkerCore
from raypipe.runtime.worker.reviews import Wanted
from raypipe.runtime.worker.routing import RoutingClient
from raypipe.tenancy.keys import KeyStore
from serving.credentials import Credentials
from serving.events import Events
from serving.ingest import IngestApp
from serving.metrics import Metrics
from tests.unit.core_worker import CoreWorker as Deciding
from tests.unit.ingest_kit import LIMIT, LINES, CoreWorker, lines, reading
from tests.unit.serving_kit import NOW, PROJECT, body

WORKERS = 2


class OneOf(CoreWorker):
    """One of several workers in this process."""

    def __init__(
        self, log: PartitionedLog, partition: int, quarantine: Quarantine, keys: KeyStore
    ) -> None:
        self.keys = keys
        self.failure: Exception | None = None
        self.gate = None
        self.core = WorkerCore(
            PROJECT, log, partition, quarantine=quarantine, ownership=Ownership(PROJECT, WORKERS)
        )

    async def read(self, tenant: str, entity: str, key: str, now: int) -> dict[str, float]:
        return self.core.read(tenant, entity, key, now)

    async def table(self, *asked: Any) -> tuple[list[dict[str, Any]], int | None]:
        return self.core.table(*asked)


class Several:
    """The ingest server in front of two workers."""

    def __init__(self, home: Path) -> None:
        self.clock = ManualClock(NOW)
        keys = KeyStore(home / "tenants.db", self.clock)
        self.key = keys.create("default", ["events:write"])
        self.quarantine = Quarantine(home / "quarantine.db", self.clock)
        self.log = PartitionedLog(home / "log")
        self.workers = [OneOf(self.log, p, self.quarantine, keys) for p in range(WORKERS)]
        self.ownership = Ownership(PROJECT, WORKERS)
        each = cast("Sequence[WorkerClient]", self.workers)
        self.client = RoutingClient(each, self.ownership)
        events = Events(
            PROJECT, self.client, "EUR", self.clock, body_limit=LIMIT, waiting_limit=2 * LIMIT
        )
        self.app = IngestApp(Credentials(self.client), self.client, events, Metrics("ingest"), 1.0)

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **options)

        return asyncio.run(call())

    def post(self, content: bytes, **headers: str) -> httpx.Response:
        sent = {"Content-Type": LINES, "Authorization": f"Bearer {self.key}"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ask("POST", "/v1/events", content=content, headers=sent)

    def logged(self) -> list[list[str]]:
        """Ids of the readings in each log."""
        return [
            [
                name
                for chunk in self.log.read(p, self.log.first(p), 10**6)
                if chunk.kind == "reading"
                for name in chunk.batch.column("event_id").to_pylist()
            ]
            for p in range(WORKERS)
        ]


@pytest.fixture
def several(tmp_path: Path) -> Several:
    return Several(tmp_path)


def rows(n: int) -> list[dict[str, Any]]:
    return [reading(f"r-{i}", sensor_id=f"k-{i % 7}") for i in range(n)]


def test_rows_go_to_the_owners_of_their_keys_and_answers_are_about_the_request(
    several: Several,
) -> None:
    several.post(lines(*rows(3)))
    sent = [*rows(20), reading("bad", cost="free"), *rows(1)]
    answer = several.post(lines(*sent))
    assert answer.status_code == 207
    said = answer.json()
    assert (said["accepted"], said["duplicates"], said["refused"]) == (17, 4, 1)
    assert said["first_offset"] is None
    assert [(e["row"], e["outcome"]) for e in said["exceptions"]] == [
        *((i, "duplicate") for i in range(3)),
        (20, "refused"),
        (21, "duplicate"),
    ]
    logs = several.logged()
    assert all(logs)
    for worker, names in enumerate(logs):
        for name in names:
            sensor = f"k-{int(name[2:]) % 7}"
            assert several.ownership.of_key("default", "sensor", sensor) == worker
    assert len(several.quarantine.rows()) == 1


def test_a_request_that_one_worker_missed_is_finished_by_its_retry(several: Several) -> None:
    soon = reading("soon", sensor_id="k-0", event_time=NOW + 70_000)
    body = lines(*rows(20), reading("bad", cost="free"), soon)
    several.workers[1].failure = Unavailable("away")
    assert several.post(body, Idempotency_Key="k").status_code == 503
    several.workers[1].failure = None
    first = several.logged()
    assert first[0]
    assert not first[1]
    # By then the row from the future could be taken; what the first try said of it stands.
    several.clock.advance(30_000)
    answer = several.post(body, Idempotency_Key="k")
    said = answer.json()
    assert (said["accepted"], said["duplicates"], said["refused"]) == (20, 0, 2)
    assert [e["row"] for e in said["exceptions"]] == [20, 21]
    logs = several.logged()
    assert logs[0] == first[0]
    assert sorted(logs[0] + logs[1]) == sorted(r["event_id"] for r in rows(20))
    several.clock.advance(30_000)
    assert several.post(body, Idempotency_Key="k").json() == said
    other = several.post(lines(*rows(2)), Idempotency_Key="k")
    assert other.status_code == 409


def test_whoever_owns_a_key_answers_for_it(several: Several) -> None:
    several.post(lines(*rows(21)))

    async def counts() -> list[float]:
        return [
            (await several.client.read("default", "sensor", f"k-{i}", NOW))["sensor_count_1h"]
            for i in range(7)
        ]

    assert asyncio.run(counts()) == [3] * 7


def test_metrics_tell_the_workers_apart_and_who_is_away(several: Several) -> None:
    several.post(lines(*rows(20)))
    several.workers[1].failure = Unavailable("away")
    text = several.ask("GET", "/metrics").text
    assert 'raypipe_worker_up{replica="ingest",worker="0"} 1.0' in text
    assert 'raypipe_worker_up{replica="ingest",worker="1"} 0.0' in text
    accepted = len(several.logged()[0])
    assert f'raypipe_worker_events{{replica="ingest",worker="0"}} {float(accepted)}' in text
    assert 'raypipe_worker_events{replica="ingest",worker="1"}' not in text


def test_a_key_is_verified_by_whoever_is_there(several: Several) -> None:
    async def away(_: object) -> None:
        raise Unavailable("away")

    several.workers[0].verify = away  # type: ignore[assignment,method-assign]
    assert several.post(lines(*rows(1))).status_code == 200


class DecidingOneOf(Deciding):
    """One of several workers in this process, for decisions."""

    def __init__(self, log: PartitionedLog, partition: int) -> None:
        self.core = WorkerCore(PROJECT, log, partition, ownership=Ownership(PROJECT, WORKERS))


def test_reviews_of_several_workers_are_one_queue(tmp_path: Path) -> None:
    log, ownership = PartitionedLog(tmp_path / "log"), Ownership(PROJECT, WORKERS)
    workers = [DecidingOneOf(log, p) for p in range(WORKERS)]
    client = RoutingClient(cast("Sequence[WorkerClient]", workers), ownership)
    partitions = []
    for i in range(20):
        event = body(event_id=f"r-{i}", sensor_id=f"s-{i}")
        event |= {"tenant": "default", "received_at": NOW}
        event = dict.fromkeys(f.name for f in PROJECT.decision_event.all_fields) | event
        partition = ownership.way("reading", event).primary
        partitions.append(partition)
        core = workers[partition].core
        entry, _ = core.observe(event, bytes(32))
        record = DecisionRecord(
            decision_id=f"dec_{i:02d}",
            tenant="default",
            event_id=event["event_id"],
            event_offset=entry.offset,
            event_time=NOW,
            received_at=NOW,
            decided_at=NOW + i,
            model="m@1",
            model_sha256="",
            policy="p",
            policy_sha256="",
            definition_hash="",
            features=b"",
            score=0.5,
            action="review",
            owner_offsets=((partition, entry.offset),),
        )
        core.record(record, entry.windows)
        core.commit()
    assert set(partitions) == set(range(WORKERS))

    async def work() -> None:
        page, number = await client.reviews("default", Wanted(8))
        assert ([r.decision_id for r in page], number) == ([f"dec_{i:02d}" for i in range(8)], 20)
        rest, _ = await client.reviews("default", Wanted(200, after=page[-1].place))
        assert [r.decision_id for r in rest] == [f"dec_{i:02d}" for i in range(8, 20)]
        for i in range(20):
            claimed = await client.claim_review("default", f"dec_{i:02d}", "ann", 60_000)
            assert claimed.holder == "ann"
            event = await client.event_of("default", f"dec_{i:02d}")
            assert event is not None
            assert event["event_id"] == f"r-{i}"
        assert (await client.reviews("default", Wanted(200, free=True)))[0] == []
        with pytest.raises(NotFound):
            await client.claim_review("default", "dec_99", "ann", 60_000)

    asyncio.run(work())
