"""A worker and two replicas of the greenhouse as processes, each started again when it died, and
clients that ask another replica when one is gone, as a load balancer does."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from raypipe.ledger.record import DecisionRecord, decode
from raypipe.ledger.spill import backlog
from raypipe.log.sqlite import SqliteLog
from raypipe.tenancy.keys import STORE_FILE, KeyStore
from raypipe.vector.assemble import Assembler
from tests.contract.log_kit import runs
from tests.domains.greenhouse import project
from tests.recovery import replica_process, worker_process
from tests.recovery.nursery import Child, Nursery
from tests.recovery.replica_process import MODEL

START = 1_790_000_000_000
PATIENCE_S = 300.0
SPILL_BYTES = 2**24
REPLICAS = ("replica-1", "replica-2")
PLACE = ("event_offset", "replayed")

Answer = dict[str, Any]


def opening(i: int) -> dict[str, Any]:
    return {
        "event_id": f"o-{i}",
        "event_time": START + i * 1_000,
        "valve": f"v-{i % 3}",
        "litres": i * 37 % 1_000,
    }


class House:
    """Supervises the processes; those that are ``held`` stay down.

    Args:
        env: more environment by process, read at each of its starts.
    """

    def __init__(
        self,
        nursery: Nursery,
        home: Path,
        *,
        deadline_ms: int,
        spill_bytes: int = SPILL_BYTES,
        env: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.home = home
        self.env = {name: dict(more) for name, more in (env or {}).items()}
        self.held: set[str] = set()
        self.starts: Counter[str] = Counter()
        self.ports = {name: _free_port() for name in REPLICAS}
        words = (deadline_ms, spill_bytes)
        self._nursery = nursery
        self._births: dict[str, tuple[Callable[..., None], tuple[object, ...]]] = {
            "worker": (worker_process.start, (home, f"sqlite:///{home}/log")),
            **{
                name: (replica_process.start, (home, self.ports[name], *words)) for name in REPLICAS
            },
        }
        self._running: dict[str, Child] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._supervise, daemon=True)

    def __enter__(self) -> House:
        self.key = KeyStore(self.home / STORE_FILE).create("default", ["decisions:write"])
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        for name in self._births:
            self.kill(name)

    def _supervise(self) -> None:
        while not self._ended.is_set():
            with self._lock:
                for name, (start, words) in self._births.items():
                    there = self._running.get(name)
                    if name not in self.held and (there is None or there.ended):
                        self.starts[name] += 1
                        self._running[name] = self._nursery.start(
                            start,
                            *words,
                            env=self.env.get(name),
                            errors=self.home / f"{name}.err",
                        )
            self._ended.wait(0.02)

    def kill(self, name: str, *, hold: bool = False) -> None:
        """Kill one of them without warning."""
        with self._lock:
            if hold:
                self.held.add(name)
            if name in self._running:
                self._running[name].kill()

    def release(self, name: str) -> None:
        """Let it start again."""
        self.held.discard(name)

    def await_empty_spill(self) -> None:
        """Until the log has all that was kept beside it."""
        deadline = time.monotonic() + PATIENCE_S
        while backlog(self.home / "spill").rows:
            assert time.monotonic() < deadline, "the spill is never taken in"
            time.sleep(0.02)


@dataclass
class Crowd:
    """Clients, each with its next event when the last is answered; what they were told."""

    house: House
    answers: dict[str, Answer] = field(default_factory=dict)
    problems: list[Answer] = field(default_factory=list)
    lost: int = 0

    def ask(
        self,
        numbers: Sequence[int],
        *,
        clients: int = 6,
        at: Mapping[int, Callable[[], object]] | None = None,
        told: Callable[[str], object] = str,
    ) -> None:
        """Have these events decided. ``at`` is called when so many of them were answered."""
        todo = iter(numbers)
        lock, done = threading.Lock(), itertools.count(1)
        failures: list[BaseException] = []

        def work(client: int) -> None:
            replicas = itertools.cycle(self.house.ports.values())
            for _ in range(client % 2):
                next(replicas)
            headers = {"Authorization": f"Bearer {self.house.key}"}
            try:
                with httpx.Client(headers=headers, timeout=60, trust_env=False) as http:
                    while not failures:
                        with lock:
                            number = next(todo, None)
                        if number is None:
                            return
                        answer = self._decided(http, replicas, opening(number))
                        told(answer["event_id"])
                        if number % 4 == 0:
                            again = self._decided(http, replicas, opening(number))
                            assert said(again) == said(answer), (again, answer)
                            assert again["replayed"]
                        with lock:
                            self.answers[answer["event_id"]] = answer
                            (at or {}).get(next(done), int)()
            except BaseException as e:
                failures.append(e)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    def _decided(self, http: httpx.Client, replicas: itertools.cycle[int], body: Answer) -> Answer:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            assert time.monotonic() < deadline, "never answered"
            try:
                answer = http.post(f"http://127.0.0.1:{next(replicas)}/v1/decisions", json=body)
            except httpx.TransportError:
                self.lost += 1
                time.sleep(0.02)
                continue
            found: Answer = answer.json()
            if answer.status_code == 200:
                return found
            assert answer.status_code == 503, answer.text
            assert answer.headers["retry-after"] == "1"
            self.problems.append(found)
            time.sleep(0.02)


def said(answer: Answer) -> Answer:
    """What a client was told, but for its place in the log, which may become known."""
    return {k: v for k, v in answer.items() if k not in PLACE}


def check(home: Path, crowd: Crowd) -> list[DecisionRecord]:
    """The log alone: every event once, one decision each, and it is what the client was told.

    Returns answers that were kept beside decisions.
    """
    events: dict[str, Answer] = {}
    decisions: dict[str, DecisionRecord] = {}
    beside: list[DecisionRecord] = []
    assembler = Assembler(project, MODEL)
    with closing(SqliteLog(home / "log")) as log:
        for chunk in runs(log.read(0, 0, 1_000_000)):
            for offset, row in zip(chunk.offsets.tolist(), chunk.batch.to_pylist(), strict=True):
                if chunk.kind == "decision":
                    record = decode(row["record"])
                    assert record.event_id not in decisions
                    decisions[record.event_id] = record
                elif chunk.kind == "told":
                    beside.append(decode(row["record"]))
                elif chunk.kind == project.decision:
                    assert row["event_id"] not in events
                    events[row["event_id"]] = row | {"offset": offset}
    assert events.keys() == decisions.keys() == crowd.answers.keys()
    for event_id, answer in crowd.answers.items():
        record, event = decisions[event_id], events[event_id]
        assert record.event_offset == event["offset"]
        assert answer["event_offset"] in (None, event["offset"])
        names = said(answer).keys() - {"reasons"}
        assert {n: getattr(record, n) for n in names} == {
            n: tuple(answer[n]) if n == "degraded_by" else answer[n] for n in names
        }
        if record.degraded:
            # No online store here: on_error answers, and says so.
            assert record.degraded_by == ("worker_away", "no_windows")
            assert (record.spilled, record.action, record.score) == (True, "review", None)
        elif not record.spilled:
            assert record.received_at == event["received_at"]
            seen = assembler.row(event, event["windows"], ())
            assert record.features == seen.tobytes()
    return beside


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
