"""Workers and replicas die at any moment: no acknowledged decision is lost or counted twice."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import xgboost

from raypipe.clock import SystemClock
from raypipe.config import Settings
from raypipe.lake import Place
from raypipe.ledger.record import DecisionRecord, decode
from raypipe.ledger.spill import backlog
from raypipe.log.sqlite import SqliteLog
from raypipe.runtime.worker.core import GROUP
from raypipe.vector.assemble import Assembler
from raypipe.windows import snapshot
from raypipe.windows.engine import WindowEngine
from serving.release import Challenger
from serving.split import Split
from tests.contract.log_kit import runs
from tests.domains.greenhouse import project
from tests.domains.greenhouse_line import Served, raypipe
from training import artefact, registry

pytest_plugins = ["tests.domains.greenhouse_line"]
pytestmark = [pytest.mark.ray, pytest.mark.slow]

CLIENTS = 4
EVENTS = 60
ASKED = 1_000
"""Of a crowd's decisions, so many are asked for again at most."""
REPLICA = "ray::ServeReplica:raypipe:decisions"

Answer = dict[str, Any]


def opening(prefix: str, i: int) -> dict[str, Any]:
    """Few valves and gardeners, so that events in flight share windows; some are late."""
    return {
        "event_id": f"{prefix}-{i}",
        "event_time": SystemClock().now_ms() - (90_000 if i % 7 == 0 else 0),
        "valve": f"v-{i % 3}",
        "gardener": None if i % 5 == 0 else f"g-{i % 2}",
        "litres": i * 37 % 900 if i % 9 else 40_000,
        "mode": "spray" if i % 2 else None,
    }


@dataclass
class Crowd:
    """Clients in a closed loop, each with its next event when the last one is answered."""

    served: Served
    prefix: str
    answers: dict[str, Answer] = field(default_factory=dict)
    replayed: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    ended: threading.Event = field(default_factory=threading.Event)
    """Set, no more events come."""

    def run(self, events: int, answered: Callable[[int], None]) -> None:
        """Decide about all events; ``answered`` hears how many are, after each."""
        asyncio.run(self._run(events, answered))

    async def _run(self, events: int, answered: Callable[[int], None]) -> None:
        numbers = takewhile(lambda _: not self.ended.is_set(), range(events))
        bodies = (opening(self.prefix, i) for i in numbers)
        async with httpx.AsyncClient(
            base_url=self.served.url,
            headers=self.served.headers,
            timeout=60.0,
            trust_env=False,
        ) as client:

            async def loop() -> None:
                for body in bodies:
                    answer = await self._decide(client, body)
                    event_id = answer["event_id"]
                    assert event_id == body["event_id"]
                    if answer.pop("replayed"):
                        self.replayed.append(event_id)
                    self.answers[event_id] = answer
                    answered(len(self.answers))
                    if len(self.answers) % 5 == 0:
                        again = await self._decide(client, body)
                        assert again.pop("replayed") is True
                        assert _placeless(again) == _placeless(answer)

            await asyncio.gather(*(loop() for _ in range(CLIENTS)))

    async def _decide(self, client: httpx.AsyncClient, body: dict[str, Any]) -> Answer:
        while True:
            try:
                answer = await client.post("/v1/decisions", json=body)
            except httpx.TransportError as e:
                self.errors[type(e).__name__] += 1
            else:
                if answer.status_code == 200:
                    found: Answer = answer.json()
                    return found
                assert answer.status_code == 503, (answer.status_code, answer.text)
                self.errors["503"] += 1
            await asyncio.sleep(0.05)


def worker_pid() -> int:
    import ray

    from raypipe.runtime.worker.actor import NAMESPACE, worker_name

    actor: Any = ray.get_actor(worker_name(0), namespace=NAMESPACE)
    pid: int = ray.get(actor.pid.remote())
    return pid


def worker_epoch(served: Served) -> int:
    """Which start of the worker this one is; asked again while none runs."""
    deadline = time.monotonic() + 60
    with served.client() as client:
        while time.monotonic() < deadline:
            text = client.get("/metrics").text
            for epoch in re.findall(r"^raypipe_worker_epoch\S* (\S+)$", text, re.MULTILINE):
                return int(float(epoch))
            time.sleep(0.1)
    raise TimeoutError("no worker came back within 60 s")


def replica_pids() -> list[int]:
    """Replicas among the processes of this run's Ray session."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith(REPLICA):
                found.append(process.pid)
        except psutil.NoSuchProcess:
            continue
    return found


def check(served: Served, crowd: Crowd) -> None:
    """The log against the answers, and the live windows against a replay from its start."""
    from raypipe.runtime.worker import actor

    deadline = time.monotonic() + 60
    while backlog(served.settings.spill_dir).rows:
        assert time.monotonic() < deadline, "spilled decisions are not taken in"
        time.sleep(0.1)
    end = actor.stop()  # with a snapshot of the windows as they are
    log = SqliteLog.open(served.settings.log_url)
    engine = WindowEngine(project.views, project.decision)
    assembler = Assembler(project, project.model("flooding"))
    events: dict[str, dict[str, Any]] = {}
    decisions: dict[str, DecisionRecord] = {}
    for chunk in runs(log.read(0, 0, 1_000_000)):
        rows = chunk.batch
        if chunk.kind == "decision":
            for record in map(decode, rows.column("record").to_pylist()):
                assert record.event_id not in decisions
                decisions[record.event_id] = record
        elif chunk.kind not in {e.name for e in project.events}:
            continue
        elif "body_hash" not in rows.schema.names:  # history
            engine.apply([chunk])
        else:
            for offset, row in zip(chunk.offsets.tolist(), rows.to_pylist(), strict=True):
                assert row["event_id"] not in events
                events[row["event_id"]] = row | {"offset": offset}
                # What the live worker saw is what a worker that never died would have seen.
                assert engine.observe("opening", row, offset) == row["windows"]
    committed = log.committed(GROUP, 0)
    assert committed is not None
    stored = Place.at(committed[1])
    assert stored.below(Place.at(served.settings.home)) is not None
    stored_end, tables = snapshot.load(stored, project.definition_hash)
    assert committed[0] == stored_end == end == log.end(0)
    log.close()
    live = WindowEngine(project.views, project.decision)
    live.restore(tables)
    assert all(a.equals(b) for a, b in zip(live.snapshot(), engine.snapshot(), strict=True))

    mine = {i: r for i, r in decisions.items() if i.startswith(f"{crowd.prefix}-")}
    assert crowd.answers.keys() == mine.keys()
    for event_id, answer in crowd.answers.items():
        record = mine[event_id]
        event = events[event_id]
        # One that was answered while the worker was away didn't have its place yet.
        assert _told(record) | {"event_offset": answer["event_offset"]} == answer
        assert answer["event_offset"] in (record.event_offset, None)
        assert record.event_offset == event["offset"]
        if record.degraded:
            assert (record.spilled, record.degraded_by) == (True, ("worker_away",))
        elif not record.spilled:
            assert record.received_at == event["received_at"]
            assert record.features == assembler.row(event, event["windows"], ()).tobytes()
    assert {i for i in events if i.startswith(f"{crowd.prefix}-")} == mine.keys()


def _placeless(answer: Answer) -> Answer:
    """A place in the log may become known between two answers; nothing else may change."""
    return answer | {"event_offset": None}


def _told(record: DecisionRecord) -> Answer:
    names = ("decision_id", "event_id", "action", "score", "model", "policy", "definition_hash")
    names += ("degraded", "event_offset", "event_time", "received_at", "decided_at")
    reasons = [
        {"code": r.code, "feature": r.feature, "contribution": r.contribution, "words": r.words}
        for r in record.reasons
    ]
    found = {n: getattr(record, n) for n in names} | {"reasons": reasons}
    return found | {"degraded_by": list(record.degraded_by)}


def start_worker(settings: Settings, env: dict[str, str]) -> None:
    """The worker as the product starts it, in a process with more environment."""
    import ray

    from raypipe.runtime.worker.actor import NAMESPACE, WorkerActor, worker_name

    actor: Any = ray.remote(WorkerActor)
    started = actor.options(
        name=worker_name(0),
        namespace=NAMESPACE,
        lifetime="detached",
        max_restarts=-1,
        max_task_retries=-1,
        num_cpus=0,
        runtime_env={"env_vars": env},
    ).remote(settings, 0)
    ray.get(started.address.remote())


@pytest.fixture(autouse=True)
def _as_before(greenhouse: Served) -> Iterator[None]:
    """Whatever a test did to it, the next one finds the worker that the product starts."""
    from raypipe.runtime.worker import actor

    yield
    actor.stop()
    actor.ensure(greenhouse.settings)


def test_kills_at_random_moments(greenhouse: Served) -> None:
    rng = random.Random(17)
    events, kills = 160, 3
    moments = dict.fromkeys(rng.sample(range(5, events - 10), 2 * kills), "replica")
    moments |= dict.fromkeys(rng.sample(list(moments), kills), "worker")
    killed: Counter[str] = Counter()

    def answered(count: int) -> None:
        # Asked here, the worker must be up to tell its pid: the moment is random all the same,
        # for the other clients' requests are anywhere on their way.
        match moments.get(count):
            case "worker":
                os.kill(worker_pid(), signal.SIGKILL)
                killed["worker"] += 1
            case "replica":
                for pid in replica_pids():
                    os.kill(pid, signal.SIGKILL)
                    killed["replica"] += 1

    crowd = Crowd(greenhouse, "kill")
    crowd.run(events, answered)
    assert killed["worker"] == kills
    assert killed["replica"] >= kills - 1
    check(greenhouse, crowd)


@pytest.mark.parametrize(
    ("in_replica", "in_worker"),
    [
        ("serving.before_observe:4", "worker.before_commit:15"),
        ("serving.after_observe:4", "worker.after_commit:15"),
        ("serving.after_record:2", "worker.after_reply:11"),
    ],
)
def test_death_between_any_two_steps(
    greenhouse: Served,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_replica: str,
    in_worker: str,
) -> None:
    """A replica dies once; every worker dies at its n-th commit, and so does the next one."""
    from raypipe.runtime.worker import actor
    from serving import app, options

    died = tmp_path / "died"
    as_ever = options.deployment_options

    def with_script(*given: Any) -> dict[str, Any]:
        asked = as_ever(*given)
        script = {"RAYPIPE_ABORT_AT": in_replica, "RAYPIPE_ABORT_ONCE": str(died)}
        asked["ray_actor_options"]["runtime_env"] = {"env_vars": script}
        return asked

    actor.stop()
    start_worker(greenhouse.settings, {"RAYPIPE_ABORT_AT": in_worker})
    with monkeypatch.context() as patch:
        patch.setattr(options, "deployment_options", with_script)
        app.start(greenhouse.settings)
    replicas, epoch = set(replica_pids()), worker_epoch(greenhouse)
    crowd = Crowd(greenhouse, in_worker.partition(":")[0])

    # Without a worker replicas answer all the same, and reach none of these steps.
    def answered(count: int) -> None:
        if count >= EVENTS and died.exists():
            crowd.ended.set()

    crowd.run(20 * EVENTS, answered)
    assert died.exists()
    assert not replicas <= set(replica_pids())
    assert worker_epoch(greenhouse) > epoch
    # A decision that was stored before its replica died is found by the retry.
    if in_replica.startswith("serving.after_record"):
        assert crowd.replayed
    check(greenhouse, crowd)


def shorter(served: Served, rounds: int) -> str:
    """Another version of the model: the same with fewer trees."""
    models, (name, version) = served.settings.lake / "models", served.model.split("@")
    loaded = artefact.load(registry.locate(models, name, version), project)
    manifest = loaded.manifest
    booster: xgboost.Booster = loaded.booster[: loaded.booster.num_boosted_rounds() - rounds]
    place = artefact.write(
        models,
        bytes(booster.save_raw("ubj")),
        project=project,
        name=name,
        created_ms=manifest.created_ms + rounds * 1_000,
        training=manifest.training,
        data_fingerprint=manifest.data_fingerprint,
        parameters=manifest.parameters,
        metrics=manifest.metrics,
        thresholds=manifest.thresholds,
    )
    return f"{name}@{place.name}"


def release_of(served: Served) -> tuple[str, int]:
    """Champion and release that a replica says that it serves, asked again while it is busy."""
    deadline = time.monotonic() + 60
    with served.client() as client:
        while (answer := client.get("/readyz")).status_code != 200:
            assert time.monotonic() < deadline, answer.text
            time.sleep(0.1)
    told = answer.json()
    return told["model"], told["release"]


def test_releases_change_under_requests_without_a_restart_or_an_error(greenhouse: Served) -> None:
    first, second, third = greenhouse.model, shorter(greenhouse, 1), shorter(greenhouse, 2)
    broken = shorter(greenhouse, 3)
    file = greenhouse.settings.home / "models" / broken.replace("@", "/") / "model.ubj"
    file.write_bytes(b"no model")
    pids = set(replica_pids())
    # The three valves are not all drawn by the same model.
    salt = next(
        salt
        for salt in map(str, range(100))
        if len({Split(salt, [Challenger(third, 0.5)]).arm("default", f"v-{i}") for i in range(3)})
        == 2
    )

    def verb(*arguments: str, code: int = 0) -> dict[str, Any]:
        quiet = arguments[0] not in ("show", "history", "compare")
        return raypipe(greenhouse.settings, "release", *arguments, code=code, quiet=quiet)

    crowd = Crowd(greenhouse, "release")
    thread = threading.Thread(target=crowd.run, args=(100_000, lambda _: None))
    thread.start()
    try:
        verb("promote", second, "--reason", "fewer trees")
        assert release_of(greenhouse) == (second, 2)
        refused = verb("promote", broken, code=1)
        assert "sha256" in refused["error"]["detail"]
        assert release_of(greenhouse) == (second, 2)
        verb("rollback")
        assert release_of(greenhouse) == (first, 3)
        verb("challenge", third, "--share", "0.5", "--salt", salt)
        verb("shadow", second)
        assert verb("show")["agree"] is True
        assert release_of(greenhouse) == (first, 5)
        time.sleep(6)  # until the shadow's first file is there
    finally:
        crowd.ended.set()
        thread.join()
    assert crowd.errors == {}
    assert pids <= set(replica_pids())  # the load may have brought another one
    assert {a["model"] for a in crowd.answers.values()} == {first, second, third}
    arms: dict[str, set[str]] = {}
    with greenhouse.client() as client:
        for event_id in sorted(crowd.answers)[:: max(1, len(crowd.answers) // ASKED)]:
            answer = crowd.answers[event_id]
            detail = client.get(f"/v1/decisions/{answer['decision_id']}").json()
            assert detail["model"] == answer["model"]
            if detail["experiment"] is not None:
                arm = "champion" if detail["model"] == first else third
                assert (detail["experiment"], detail["arm"]) == (salt, arm)
                valve = opening(crowd.prefix, int(event_id.rpartition("-")[2]))["valve"]
                arms.setdefault(valve, set()).add(arm)
    assert arms
    assert all(len(found) == 1 for found in arms.values())
    history = verb("history")["releases"]
    assert [r["number"] for r in history] == [1, 2, 3, 4, 5]
    assert history[1]["reason"] == "fewer trees"
    compared = verb("compare")["compared"]
    assert {c["shadow"] for c in compared} == {second}
    # A replica that comes later serves what the others serve.
    pids = set(replica_pids())
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    Crowd(greenhouse, "late").run(10, lambda _: None)
    assert release_of(greenhouse) == (first, 5)
    assert not pids & set(replica_pids())
    verb("rollback", "--to", "1")
    check(greenhouse, crowd)


POLICY = """
name: dry
version: 1
lists: {leaky: deny}
thresholds: {default: {block: 1}}
rules:
  - {name: leaky, when: 'in_list("leaky", valve)', action: step_up, reason: The valve leaks.}
"""


def test_a_policy_and_its_lists_change_under_requests(greenhouse: Served, tmp_path: Path) -> None:
    file = tmp_path / "dry.yaml"
    file.write_text(POLICY)
    numbers = iter(range(10_000))

    def verb(*arguments: str) -> dict[str, Any]:
        return raypipe(greenhouse.settings, "policy", *arguments, quiet=False)

    def decided(client: httpx.Client) -> dict[str, Any]:
        event = opening("leak", next(numbers)) | {"valve": "v-leak"}
        answer = client.post("/v1/decisions", json=event)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def until(client: httpx.Client, action: str) -> dict[str, Any]:
        end = time.monotonic() + 60
        while (found := decided(client))["action"] != action:
            assert time.monotonic() < end, found
            time.sleep(0.1)
        return found

    crowd = Crowd(greenhouse, "policy")
    thread = threading.Thread(target=crowd.run, args=(100_000, lambda _: None))
    thread.start()
    try:
        verb("publish", str(file))
        verb("use", "dry", "--reason", "a leak")
        with greenhouse.client() as client:
            assert (decided(client)["policy"], decided(client)["action"]) == ("dry@1", "approve")
            added = verb("lists", "add", "leaky", "v-leak", "--kind", "deny", "--why", "drips")
            said = until(client, "step_up")
            assert [(r["code"], r["words"]) for r in said["reasons"]][:1] == [
                ("LEAKY", "The valve leaks.")
            ]
            detail = client.get(f"/v1/decisions/{said['decision_id']}").json()
            assert (detail["lists"], detail["list_hits"]) == (added["version"], ["leaky:valve"])
            verb("lists", "remove", "leaky", "v-leak", "--why", "mended")
            until(client, "approve")
            verb("use", "none")
            assert decided(client)["policy"].endswith("/thresholds")
    finally:
        crowd.ended.set()
        thread.join()
    assert crowd.errors == {}
    assert {a["policy"] for a in crowd.answers.values()} >= {"dry@1"}
