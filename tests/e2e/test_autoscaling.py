"""Replicas come when answers are slow and go when that is over; no client notices either."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

import serving
from raypipe.config import Settings
from raypipe.log.sqlite import SqliteLog
from raypipe.runtime.progress import Quiet
from tests.domains.greenhouse_line import free_port
from tests.unit.serving_kit import body, train

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PROJECT = "tests.unit.serving_kit:PROJECT"
PATIENCE_S = 240.0
TARGET_MS = 0.1
"""A p95 that no decision reaches, however fast the machine is: a commit alone takes as long."""
MANY = 1_000
"""Requests in flight that one replica may have: their number never asks for another one."""


@dataclass
class Clients:
    """Clients in a closed loop, from ``start`` to ``stop``; what became of every request."""

    url: str
    key: str
    seen: Counter[str] = field(default_factory=Counter)
    decided: list[str] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def start(self, names: str, threads: int, *, batch: bool = False) -> None:
        for number in range(threads):
            asked = (f"{names}-{number}", batch)
            thread = threading.Thread(target=self._ask, args=asked, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    def _ask(self, name: str, batch: bool) -> None:
        ids = (f"{name}-{i}" for i in itertools.count())
        headers = {"Authorization": f"Bearer {self.key}"}
        with httpx.Client(
            base_url=self.url, headers=headers, timeout=60.0, trust_env=False
        ) as client:
            while not self._over.is_set():
                event_id = next(ids)
                event: dict[str, Any] = body(event_id=event_id, event_time=time.time_ns() // 10**6)
                path, sent = ("/v1/decisions:batch", [event]) if batch else ("/v1/decisions", event)
                try:
                    answer = client.post(path, json=sent)
                    self.seen[f"{answer.status_code}"] += 1
                    if answer.status_code == 200:
                        self.decided.append(event_id)
                except httpx.HTTPError as e:
                    self.seen[repr(e)] += 1


@pytest.fixture
def served(ray_session: None, tmp_path: Path) -> Iterator[tuple[Settings, str, str]]:
    """One replica that may become two, by latency alone: its settings, URL and key."""
    from ray import serve

    from raypipe.runtime.worker import actor
    from serving import ingest
    from serving.run import serve as start

    options = yaml.safe_load((Path(serving.__file__).parent / "config.yaml").read_text())
    options["autoscaling"] = {
        "upscale_delay_s": 0.2,
        "downscale_delay_s": 1.0,
        "metrics_interval_s": 0.2,
        "look_back_period_s": 1.0,
        "p95_ms": TARGET_MS,
    }
    file = tmp_path / "serving.yaml"
    file.write_text(yaml.safe_dump(options))
    settings = Settings(
        home=tmp_path / "home",
        project=PROJECT,
        serving_options=file,
        min_replicas=1,
        max_replicas=2,
        target_ongoing_requests=MANY,
        http_port=free_port(),
        ingest_port=free_port(),
        replica_cpus=0.1,
    )
    train(settings.home)
    try:
        about = start(settings, Quiet(), lambda *_: None)
        yield settings, about["url"], Path(about["api_key"]).read_text().strip()
    finally:
        ingest.stop()
        serve.shutdown()
        actor.stop()


def replicas() -> dict[str, int]:
    """How many there are in each state."""
    from ray import serve

    from serving.app import APPLICATION, DEPLOYMENT

    states = serve.status().applications[APPLICATION].deployments[DEPLOYMENT].replica_states
    return {str(getattr(state, "value", state)): n for state, n in states.items() if n}


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"{what}; replicas: {replicas()}"
        time.sleep(0.1)


def test_a_second_replica_comes_by_latency_and_goes_and_no_request_fails(
    served: tuple[Settings, str, str],
) -> None:
    settings, url, key = served
    # Rows of a batch are no part of the p95, so these go on while replicas come and go.
    steady = Clients(url, key)
    steady.start("steady", 1, batch=True)
    until(lambda: len(steady.decided) > 20, "nothing is decided")
    assert replicas() == {"RUNNING": 1}

    load = Clients(url, key)
    load.start("load", 6)
    until(lambda: replicas() == {"RUNNING": 2}, "no second replica came")
    names: set[str] = set()

    def both_answer() -> bool:
        answer = httpx.get(f"{url}/readyz", timeout=60.0, trust_env=False)
        names.add(answer.json()["replica"])
        return len(names) == 2

    until(both_answer, "the second replica answers nobody")
    load.stop()

    before = len(steady.decided)
    until(lambda: replicas() == {"RUNNING": 1}, "the second replica stays")
    until(lambda: len(steady.decided) > before + 20, "nothing is decided any more")
    steady.stop()
    for clients in (load, steady):
        assert set(clients.seen) == {"200"}, clients.seen
        assert len(clients.decided) == clients.seen["200"]
    log = SqliteLog.open(settings.log_url)
    counts = log.counts(0)
    log.close()
    assert counts["reading"] == counts["decision"] == len(load.decided) + len(steady.decided)
