"""The client against the applications that replicas and the ingest server run."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from raypipe.client import AsyncClient, Client, Decision
from raypipe.errors import Conflict, InputError, NotFound, Unauthenticated
from raypipe.ingest.lines import compile_lines
from tests.unit import ingest_kit
from tests.unit.serving_kit import FEATURES, HOT, NOW, Service, body, train


@contextmanager
def listening(app: ASGIApp) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as port:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="critical"))
        thread = threading.Thread(target=server.run, args=([port],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port.getsockname()[1]}"
        server.should_exit = True
        thread.join()


class LosesAnswers:
    """Does what is asked and says 503 instead of the answer, so often as it is told."""

    def __init__(self, app: ASGIApp) -> None:
        self.app, self.losses = app, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.losses == 0:
            await self.app(scope, receive, send)
            return
        self.losses -= 1

        async def lost(message: Any) -> None:
            pass

        await self.app(scope, receive, lost)
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body", "body": b""})


@dataclass
class World:
    service: Service
    front: LosesAnswers
    url: str
    ingest_url: str
    ingest: ingest_kit.Service

    def client(self, key: str | None = None, **options: Any) -> Client:
        return Client(self.url, key or self.service.key, timeout_s=300, trust_env=False, **options)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    train(folder)
    return folder


@pytest.fixture
def world(home: Path, tmp_path: Path) -> Iterator[World]:
    compile_lines()  # as the server does before its first request
    service, ingest = Service(home, tmp_path / "tenants.db"), ingest_kit.Service(tmp_path)
    front = LosesAnswers(service.app)
    with listening(front) as url, listening(LosesAnswers(ingest.app)) as ingest_url:
        yield World(service, front, url, ingest_url, ingest)


def test_decisions_one_by_one_in_a_batch_explained_and_read_back(world: World) -> None:
    with world.client() as client:
        one = client.decide(body(event_id="b-0", **HOT))
        assert (one.action, one.replayed, one.decided_at) == ("review", False, NOW)
        assert {"heat", "cost"} <= {r.feature for r in one.reasons}
        events = [*(body(event_id=f"b-{n}", **HOT) for n in range(30)), body(cost="much")]
        found = client.decide_batch(events, rows=20)
        assert [o.get().event_id for o in found[:-1]] == [f"b-{n}" for n in range(30)]
        assert [o.get().replayed for o in found[:-1]] == [n == 0 for n in range(30)]
        with pytest.raises(InputError) as raised:
            found[-1].get()
        assert [v.pointer for v in raised.value.violations] == ["/cost"]
        quiet = client.decide(body(event_id="q", heat=400, sensor_id="s-2"))
        assert quiet.reasons == ()
        whole = client.decision(quiet.decision_id, explain=True)
        assert whole.reasons
        assert whole.features is not None
        row = np.frombuffer(whole.feature_bytes, np.float32)
        assert whole.features["heat"] == row[FEATURES.index("heat")] == 400


def test_an_answer_that_was_lost_is_asked_for_again_and_counts_once(world: World) -> None:
    with world.client() as client:
        world.front.losses = 2
        decision = client.decide({k: v for k, v in body().items() if k != "event_id"})
        assert decision.replayed
        world.front.losses = 1
        rows = [{k: v for k, v in body().items() if k != "event_id"} for _ in range(5)]
        assert [o.get().replayed for o in client.decide_batch(rows)] == [True] * 5
    assert len(world.service.worker.records) == len(world.service.worker.seen) == 6


def test_events_features_and_tables(world: World) -> None:
    with world.client() as client:
        client.decide(body())
        assert client.features("sensor", "s-1").values["sensor_count_1h"] == 1.0
        assert sum(r["readings"] for r in client.table("heat").rows) == 1
    with world.client(world.ingest.key, ingest_url=world.ingest_url) as client:
        events = (ingest_kit.reading(f"r-{n}") for n in range(50))
        sent = client.send_events(events, rows=20, key="load")
        assert (sent.accepted, sent.duplicates, sent.refused) == (50, 0, 0)
        again = client.send_events([ingest_kit.reading("r-3"), {"type": "reading"}])
        assert (again.accepted, again.duplicates, again.refused) == (0, 1, 1)
        assert [e.outcome for e in again.exceptions] == ["duplicate", "refused"]
    assert sum(kind == "reading" for kind, _ in world.ingest.logged()) == 50


def test_errors_are_the_engines_own(world: World) -> None:
    with world.client() as client:
        client.decide(body())
        with pytest.raises(Conflict):
            client.decide(body(cost=5))
        with pytest.raises(NotFound):
            client.decision("dec_none")
        with pytest.raises(InputError) as raised:
            client.decide(body(event_id="x", colour="red"))
        assert [v.pointer for v in raised.value.violations] == ["/colour"]
    with world.client("rp_live_x") as client, pytest.raises(Unauthenticated):
        client.decide(body())


def test_many_at_once_from_one_loop(world: World) -> None:
    async def at_once() -> list[Decision]:
        async with AsyncClient(world.url, world.service.key, trust_env=False) as client:
            return await asyncio.gather(
                *(client.decide(body(event_id=f"a-{n}")) for n in range(50))
            )

    assert [d.event_id for d in asyncio.run(at_once())] == [f"a-{n}" for n in range(50)]
