"""What a worker or a replica took with it when it died: asked again, refused, or told as a 503."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from raypipe.errors import EventLost
from raypipe.ledger.record import DecisionRecord, decision_id
from raypipe.log.sqlite import SqliteLog
from raypipe.runtime.worker.core import Entry, WorkerCore
from serving.decide import NoProfiles
from serving.proxy import Answered, middlewares
from tests.domains.greenhouse import project
from tests.unit.serving_kit import MemoryWorker, Seen, Service, body, train

TIME = 1_790_000_000_000


class Forgetful(MemoryWorker):
    """Dies once after it answered an observation, before it committed anything."""

    died = False

    async def record(self, record: DecisionRecord, windows: bytes) -> DecisionRecord:
        if not self.died:
            self.died = True
            self.seen.clear()
            self.seen["default", "other"] = Seen(0, b"", body() | {"tenant": "default"}, b"")
            raise EventLost("the event is gone")
        return await super().record(record, windows)


def test_an_event_that_died_with_its_worker_is_observed_and_judged_again(tmp_path: Path) -> None:
    train(tmp_path)
    service = Service(tmp_path, tmp_path / "keys.db")
    service.worker = Forgetful()
    service.use(service.judge)
    answer = service.post(body())
    assert answer.status_code == 200
    assert answer.json()["event_offset"] == 1
    [record] = service.worker.records.values()
    again = service.judge.judge(service.worker.seen["default", "r-1"], NoProfiles(), service.clock)
    assert record.features == again.features  # of the second observation


def opening(event_id: str, received_at: int = TIME) -> dict[str, Any]:
    return {
        "tenant": "default",
        "event_id": event_id,
        "event_time": TIME,
        "received_at": received_at,
        "valve": "v-1",
        "gardener": None,
        "litres": 5,
        "mode": None,
    }


def decided(seen: Entry) -> DecisionRecord:
    event = seen.event
    return DecisionRecord(
        decision_id=decision_id("default", event["event_id"]),
        tenant="default",
        event_id=event["event_id"],
        event_offset=seen.offset,
        event_time=event["event_time"],
        received_at=event["received_at"],
        decided_at=TIME,
        model="m@1",
        model_sha256="",
        policy="p",
        policy_sha256="",
        definition_hash=project.definition_hash,
        features=seen.windows,
        score=0.5,
        action="review",
    )


def test_a_decision_about_what_another_worker_saw_is_refused(tmp_path: Path) -> None:
    """One event, twice at offset 3: before the crash after `a` of its valve, then without."""
    log = SqliteLog(tmp_path)
    dead = WorkerCore(project, log)
    dead.observe(opening("a"), b"a" * 32)
    before, _ = dead.observe(opening("b"), b"b" * 32)
    heir = WorkerCore(project, log)
    heir.observe(opening("c") | {"valve": "v-2"}, b"c" * 32)
    after, _ = heir.observe(opening("b"), b"b" * 32)
    assert before.offset == after.offset == len(project.events) + 1
    assert before.windows != after.windows
    with pytest.raises(EventLost, match="offset 3"):
        heir.record(decided(before), before.windows)
    late = replace(after, event=after.event | {"received_at": TIME + 1})
    with pytest.raises(EventLost):
        heir.record(decided(late), late.windows)
    assert heir.record(decided(after), after.windows) == decided(after)
    heir.commit()
    # After a restart the committed event is found in the log, with what it saw.
    third = WorkerCore(project, log)
    assert third.record(decided(before), before.windows) == decided(after)
    log.close()


async def _silent(scope: Scope, receive: Receive, send: Send) -> None:
    """As Serve's proxy when the replica died: it returns without a word."""


async def _half(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"1", "more_body": True})


def _ask(app: Any, **headers: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(Answered(app)), base_url="http://test"
        ) as client:
            return await client.post("/v1/decisions", headers=headers)

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("app", "said"),
    [
        (_silent, "the replica went away"),
        (PlainTextResponse("queue full", 503), "no replica can take the request now"),
    ],
)
def test_the_proxy_answers_where_no_replica_does(app: Any, said: str) -> None:
    answer = _ask(app, **{"X-Request-Id": "r-7"})
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["x-request-id"] == "r-7"
    problem = answer.json()
    assert (problem["code"], problem["detail"]) == ("unavailable", said)
    assert problem["request_id"] == "r-7"
    nameless = _ask(app)
    assert nameless.headers["x-request-id"] == nameless.json()["request_id"] != ""


@pytest.mark.parametrize(
    "answer",
    [
        JSONResponse({"a": 1}),
        PlainTextResponse("figures"),
        PlainTextResponse("no", 404),
        Response(json.dumps({"status": 503}), 503, media_type="application/problem+json"),
    ],
)
def test_the_proxy_leaves_every_other_answer_alone(answer: Response) -> None:
    got = _ask(answer)
    assert (got.status_code, got.content) == (answer.status_code, answer.body)
    assert got.headers["content-type"] == answer.headers["content-type"]


def test_half_an_answer_is_not_followed_by_another() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Answered(_half)({"type": "http", "headers": []}, None, send))  # type: ignore[arg-type]
    assert [m["type"] for m in sent] == ["http.response.start", "http.response.body"]


def test_ray_serve_finds_it_by_its_name() -> None:
    from importlib import import_module

    from raypipe.config import Settings
    from raypipe.runtime import session

    name = session.environment(Settings())["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
    module, _, function = name.partition(":")
    assert getattr(import_module(module), function) is middlewares
    assert [m.cls for m in middlewares()] == [Answered]
