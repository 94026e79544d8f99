"""A greenhouse served by two workers on Ray: decisions and bulk rows, and one of them dies."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from raypipe.clock import SystemClock
from raypipe.config import Settings
from raypipe.errors import ConfigError, UsageError
from raypipe.ingest.media import Media
from raypipe.ledger.record import decode
from raypipe.log.partitions import PartitionedLog
from raypipe.log.port import DECISION
from raypipe.ownership.routes import Ownership, merge_windows, projected
from raypipe.runtime.progress import Quiet
from raypipe.runtime.sender import Sender
from raypipe.sources.batch import Batch
from raypipe.vector.assemble import Assembler
from tests.domains.greenhouse import project
from tests.domains.greenhouse_line import PROJECT, Line, free_port
from tests.property.workers_checks import Left, check_once, check_values

pytest_plugins = ["tests.domains.greenhouse_line"]
pytestmark = [pytest.mark.ray, pytest.mark.slow]

WORKERS, DECISIONS, REQUESTS, ROWS = 2, 40, 10, 20
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def served(
    greenhouse_line: Line, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Settings, httpx.Client]]:
    """The line's model, a new log, two workers."""
    from ray import serve

    from raypipe.runtime.worker import actor
    from serving import ingest
    from serving.run import serve as start

    settings = Settings(
        home=tmp_path_factory.mktemp("several"),
        project=PROJECT,
        lake_url=greenhouse_line.settings.lake_url,
        workers=WORKERS,
        http_port=free_port(),
        ingest_port=free_port(),
        replica_cpus=0.1,
    )
    try:
        about = start(settings, Quiet(), lambda *_: None)
        key = Path(about["api_key"]).read_text().strip()
        headers = {"Authorization": f"Bearer {key}"}
        with httpx.Client(
            base_url=about["url"], headers=headers, timeout=60.0, trust_env=False
        ) as client:
            yield settings, client
    finally:
        ingest.stop()
        serve.shutdown()
        actor.stop()


def row(name: str, number: int) -> dict[str, Any]:
    return {
        "event_id": name,
        "event_time": SystemClock().now_ms() - (90_000 if number % 7 == 0 else 0),
        "valve": f"v-{number % 5}",
        "gardener": None if number % 6 == 0 else f"g-{number % 4}",
        "litres": number * 37 % 900,
        "mode": None,
    }


def decide(client: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    """The decision, however often it takes."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        answer = client.post("/v1/decisions", json=body)
        if answer.status_code == 200:
            found: dict[str, Any] = answer.json()
            return found
        assert answer.status_code == 503, answer.text
        time.sleep(0.05)
    raise TimeoutError(body["event_id"])


def kill(worker: int) -> None:
    import ray

    from raypipe.runtime.worker.actor import NAMESPACE, worker_name

    actor: Any = ray.get_actor(worker_name(worker), namespace=NAMESPACE)
    os.kill(ray.get(actor.pid.remote()), signal.SIGKILL)


def test_two_workers_of_which_one_dies(served: tuple[Settings, httpx.Client]) -> None:
    settings, client = served
    alone = [row(f"o-{i}", i) for i in range(DECISIONS)]
    requests = [[row(f"b-{i}-{j}", i + j) for j in range(ROWS)] for i in range(REQUESTS)]

    def send() -> None:
        key = client.headers["Authorization"].removeprefix("Bearer ")
        with closing(Sender(settings.ingest_url, key)) as sender:
            for i, rows in enumerate(requests):
                body = "\n".join(json.dumps({"type": "opening", **r}) for r in rows).encode()
                taken = sender.send(Batch(f"request-{i}", body, Media.LINES, None, ROWS))
                assert (taken.accepted, len(taken.refused)) == (ROWS, 0)

    sending = threading.Thread(target=send)
    sending.start()
    answers = {}
    for i, body in enumerate(alone):
        if i in (DECISIONS // 3, DECISIONS // 2):
            kill(i % WORKERS)
        answers[body["event_id"]] = decide(client, body)
    sending.join()
    for body in alone[:5]:
        again = decide(client, body)
        assert again.pop("replayed") is True
        told = {n: v for n, v in answers[body["event_id"]].items() if n != "replayed"}
        if told["event_offset"] is None:  # decided without the worker, and since then in the log
            again["event_offset"] = None
        assert again == told
    rows = [*alone, *(r for request in requests for r in request)]
    ownership = Ownership(project, WORKERS)
    with closing(PartitionedLog(settings.log_directory)) as log:
        await_logged(log, ownership, rows)
        windows = check_features(log, ownership, answers)
        left = Left(log, ownership, windows)
        check_once(left, [("opening", r) for r in rows])
        check_values(left, set(answers))
    check_reads(client, rows, answers)


def await_logged(log: PartitionedLog, ownership: Ownership, rows: list[dict[str, Any]]) -> None:
    """Wait until both have heard of what concerns them, and the log has what was decided without
    them."""
    expected = {
        projected("opening"): sum(
            len(ownership.way("opening", row | {"tenant": "default", "received_at": 0}).others)
            for row in rows
        ),
        DECISION: DECISIONS,
    }
    deadline = time.monotonic() + PATIENCE_S
    for kind, number in expected.items():
        while number > sum(log.counts(worker).get(kind, 0) for worker in range(WORKERS)):
            assert time.monotonic() < deadline, kind
            time.sleep(0.05)


def check_features(
    log: PartitionedLog, ownership: Ownership, answers: dict[str, dict[str, Any]]
) -> dict[str, bytes]:
    """Each decision's features are those of the windows in the logs, which are returned."""
    assembler = Assembler(project, project.model("flooding"))
    widths = [8 * len(v.columns) for v in project.views]
    found = {}
    for event_id, answer in answers.items():
        owner = [w for w in range(WORKERS) if log.find(w, "opening", "default", event_id)]
        (primary,) = owner
        _, batch = log.find(primary, "opening", "default", event_id) or (0, None)
        assert batch is not None
        (event,) = batch.to_pylist()
        stored = log.find(primary, "decision", "default", answer["decision_id"])
        assert stored is not None
        record = decode(stored[1].column("record")[0].as_py())
        assert isinstance(record.owner_offsets, tuple)
        assert record.owner_offsets[0] == (primary, record.event_offset)
        windows = {primary: event["windows"]}
        for worker, offset in record.owner_offsets[1:]:
            (chunk,) = log.read(worker, offset, 1)
            windows[worker] = chunk.batch.column("windows")[0].as_py()
        found[event_id] = merge_windows(widths, ownership.way("opening", event).views, windows)
        if not record.degraded:
            assert record.features == assembler.row(event, found[event_id], ()).tobytes()
    return found


def check_reads(
    client: httpx.Client, rows: list[dict[str, Any]], answers: dict[str, dict[str, Any]]
) -> None:
    """Whoever reads need not know who owns what."""
    for answer in list(answers.values())[:5]:
        found = client.get(f"/v1/decisions/{answer['decision_id']}")
        assert found.json()["event_id"] == answer["event_id"]
    for entity in ("valve", "gardener"):
        for key in {r[entity] for r in rows} - {None}:
            values = client.get(f"/v1/features/{entity}/{key}").json()["values"]
            assert values[f"{entity}_count_2d"] == sum(r[entity] == key for r in rows)
    assert client.get("/readyz").status_code == 200
    text = client.get("/metrics").text
    for worker in range(WORKERS):
        assert f'worker="{worker}"}} 1.0' in text


def test_another_number_of_workers_is_refused(served: tuple[Settings, httpx.Client]) -> None:
    from features import pipeline
    from raypipe.runtime.worker import actor
    from serving.run import require_readable_log

    settings, _ = served
    for other in (1, 3):
        with pytest.raises(ConfigError, match="begun with 2 workers"):
            require_readable_log(settings.model_copy(update={"workers": other}), project)
    with pytest.raises(ConfigError, match="workers that run are for 2"):
        actor.ensure(settings.model_copy(update={"workers": 1}))
    with pytest.raises(UsageError, match="2 workers"):
        pipeline.build(settings, Quiet())
