"""Worker and ingest server as processes that are killed and come again, and clients that retry."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx

from raypipe.clock import SystemClock
from raypipe.errors import Unavailable
from raypipe.events.quarantine import QUARANTINE_FILE, Quarantine
from raypipe.ingest.media import Media
from raypipe.log.sqlite import SqliteLog
from raypipe.runtime.sender import Sender
from raypipe.runtime.worker.core import WorkerCore
from raypipe.sources.batch import Batch, Taken
from raypipe.tenancy.keys import STORE_FILE, KeyStore
from tests.domains.greenhouse import project
from tests.recovery import ingest_process, upkeep_process, worker_process
from tests.recovery.nursery import Child, Nursery

ROOT = Path(__file__).parents[2]
ROWS = 40
BAD = 2
VALVES = 7
SNAPSHOT_S = "0.3"
"""Often enough that kills hit snapshots too."""

SPANS = {"10m": (600, 10), "1h": (3_600, 60), "2d": (172_800, 3_600)}
PATIENCE_S = 300.0
STARTS = {
    "worker": worker_process.start,
    "ingest": ingest_process.start,
    "upkeep": upkeep_process.start,
}
VICTIMS = ("worker", "worker", "ingest", "ingest", "upkeep")


class Served(Protocol):
    """A system that takes bulk events."""

    @property
    def url(self) -> str: ...

    @property
    def key(self) -> str: ...


class Processes:
    """Worker, upkeep beside it and ingest server, each started again when it died.

    Args:
        env: more environment of each of them, by name.
        upkeep: whether there is any.
        still: held while one of them is killed.
    """

    def __init__(
        self,
        nursery: Nursery,
        home: Path,
        abort_at: str = "",
        *,
        env: Mapping[str, Mapping[str, str]] | None = None,
        upkeep: bool = True,
        still: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._still = still
        self.home = home
        self._nursery = nursery
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        log_url = f"sqlite:///{home}/log"
        scripted = {"RAYPIPE_ABORT_AT": abort_at, "RAYPIPE_ABORT_ONCE": str(home / "aborted")}
        self._words: dict[str, tuple[object, ...]] = {
            "worker": (home, log_url, SNAPSHOT_S),
            "ingest": (home, self.port),
        }
        if upkeep:
            self._words["upkeep"] = (log_url,)
        self._env = {name: dict((env or {}).get(name, {})) for name in self._words}
        self._env["worker"] |= scripted
        self.starts: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()
        self._running: dict[str, Child] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._supervise, daemon=True)

    def __enter__(self) -> Processes:
        self.key = KeyStore(self.home / STORE_FILE).create("default", ["events:write"])
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        for name in self._words:
            self.kill(name)

    def _supervise(self) -> None:
        while not self._ended.is_set():
            with self._lock:
                for name, words in self._words.items():
                    if name not in self._running or self._running[name].ended:
                        self.starts[name] += 1
                        self._running[name] = self._nursery.start(
                            STARTS[name],
                            *words,
                            env=self._env[name],
                            errors=self.home / f"{name}.err",
                        )
            self._ended.wait(0.02)

    def kill(self, name: str) -> None:
        """Kill one of them, if it lives."""
        with self._lock, self._still():
            if name in self._running and self._running[name].kill():
                self.kills[name] += 1

    def await_ready(self) -> None:
        with closing(Sender(self.url, self.key)) as sender:
            deadline = time.monotonic() + PATIENCE_S
            while True:
                try:
                    sender.require()
                except Unavailable:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
                else:
                    return

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@dataclass
class Told:
    """What clients sent and were told."""

    rows: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    bad: set[str] = field(default_factory=set)
    answers: dict[str, Taken] = field(default_factory=dict)
    batches: dict[str, Batch] = field(default_factory=dict)


def batch_of(number: int, rng: random.Random, told: Told) -> Batch:
    """Openings and floods of the last days, two rows that break a rule, one id twice."""
    now = SystemClock().now_ms()
    lines = []
    for i in range(ROWS):
        kind = "flood" if i % 8 == 3 else "opening"
        row: dict[str, Any] = {
            "event_id": f"{number}-{i}",
            "event_time": now - int(rng.random() ** 4 * 200_000_000),
            "valve": f"v-{rng.randrange(VALVES)}",
        }
        row |= {"opening_id": "o"} if kind == "flood" else {"litres": rng.randrange(1_000)}
        told.rows[kind, row["event_id"]] = row
        lines.append({"type": kind, **row})
    for i in range(BAD):
        bad = {"type": "opening", "event_id": f"{number}-bad-{i}", "event_time": now, "valve": "v"}
        told.bad.add(bad["event_id"])
        lines.insert(rng.randrange(len(lines)), bad | {"litres": -1})
    lines.append(lines[-1])
    body = b"\n".join(json.dumps(line).encode() for line in lines)
    return Batch(f"request-{number}", body, Media.LINES, None, len(lines))


def sender_to(system: Served) -> Sender:
    """One that has patience, and looks often: what died is there again soon."""
    return Sender(
        system.url,
        system.key,
        patience_s=PATIENCE_S,
        pause=lambda wait_s: time.sleep(min(wait_s, 0.1)),
        transport=httpx.HTTPTransport(verify=False),
    )


class Client:
    """Sends batches until each is answered: with its key, or without by event ids alone."""

    def __init__(self, processes: Served, *, keyed: bool) -> None:
        self._url, self._key = processes.url, processes.key
        self._keyed = keyed
        self.sender = sender_to(processes)
        self._http = httpx.Client(base_url=self._url, timeout=60, trust_env=False, verify=False)

    def send(self, batch: Batch) -> Taken | None:
        if self._keyed:
            return self.sender.send(batch)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            try:
                answer = self._http.post(
                    "/v1/events",
                    content=batch.body,
                    headers={
                        "Authorization": f"Bearer {self._key}",
                        "Content-Type": batch.media.value,
                    },
                )
            except httpx.TransportError:
                time.sleep(0.05)
                continue
            if answer.status_code in (200, 207):
                return None
            assert answer.status_code == 503, answer.text
            time.sleep(0.05)
        raise AssertionError("never answered")


def run(
    processes: Served,
    *,
    batches: int,
    keyed: bool,
    kills: int,
    seed: int,
    clients: int = 4,
    acknowledged: Callable[[str], object] = str,
    after: Told | None = None,
) -> Told:
    """Send batches from several clients, with random kills among them; returns what was told.

    ``acknowledged`` hears the key of each batch when it was answered. What was sent ``after``
    another run is added to what was told then.
    """
    told = after or Told()
    first = len(told.batches)
    rng = random.Random(seed)
    todo = [(n, batch_of(n, rng, told)) for n in range(first, first + batches)][::-1]
    when = sorted(rng.randrange(first, first + batches) for _ in range(kills))
    lock = threading.Lock()
    failures: list[BaseException] = []

    def kill_later(name: str, delay_s: float) -> None:
        assert isinstance(processes, Processes)
        time.sleep(delay_s)
        processes.kill(name)

    def work() -> None:
        client = Client(processes, keyed=keyed)
        try:
            while True:
                with lock:
                    if not todo or failures:
                        return
                    number, batch = todo.pop()
                    doomed = [n for n in when if n == number]
                    what = [rng.choice(VICTIMS) for _ in doomed]
                    waits = [rng.random() * 0.02 for _ in doomed]
                killers = [
                    threading.Thread(target=kill_later, args=pair)
                    for pair in zip(what, waits, strict=True)
                ]
                for killer in killers:
                    killer.start()
                taken = client.send(batch)
                acknowledged(batch.key)
                for killer in killers:
                    killer.join()
                with lock:
                    told.batches[batch.key] = batch
                    if taken is not None:
                        told.answers[batch.key] = taken
        except BaseException as e:
            failures.append(e)
        finally:
            client.sender.close()

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return told


def check_receipts(processes: Served, told: Told) -> None:
    """The same requests again get the same answers."""
    with closing(sender_to(processes)) as sender:
        for key, batch in told.batches.items():
            assert sender.send(batch) == told.answers[key]


def check(home: Path, told: Told, *, keyed: bool) -> None:
    """What was acknowledged is in the log exactly once, as it was sent, and in the windows; what
    was refused is in the quarantine."""
    seen: dict[tuple[str, str], dict[str, Any]] = {}
    with closed_log(home) as log:
        for chunk in chunks(log):
            for row in chunk.batch.to_pylist():
                assert (chunk.kind, row["event_id"]) not in seen
                seen[chunk.kind, row["event_id"]] = row
        assert seen.keys() == told.rows.keys()
        for key, sent in told.rows.items():
            assert sent.items() <= seen[key].items()
        check_windows(WorkerCore(project, log), told)
    for taken in told.answers.values():
        assert (taken.accepted, len(taken.duplicates), len(taken.refused)) in (
            (ROWS, 1, BAD),
            (ROWS, 0, BAD + 1),
        )
    with closing(Quarantine(home / QUARANTINE_FILE)) as quarantine:
        kept = Counter(json.loads(row.body)["event_id"] for row in quarantine.rows(10**9))
    assert kept.keys() == told.bad
    if keyed:
        assert sum(kept.values()) == sum(len(taken.refused) for taken in told.answers.values())


def check_windows(core: WorkerCore, told: Told) -> None:
    """The worker's windows are those of the rows that were sent."""
    now = SystemClock().now_ms()
    for number in range(VALVES):
        valve = f"v-{number}"
        values = core.read("default", "valve", valve, now)
        for name, wanted in oracle(told, valve, now).items():
            assert values[name] == wanted, (valve, name)


def oracle(told: Told, valve: str, now: int) -> dict[str, float]:
    """Counts and sums by the definition of a window, from what the clients sent."""
    values: dict[str, float] = {}
    for span, (width, hop) in SPANS.items():
        least = now // 1_000 // hop - width // hop
        inside = {
            key: row
            for key, row in told.rows.items()
            if row["valve"] == valve and row["event_time"] // 1_000 // hop > least
        }
        openings = [row["litres"] for (kind, _), row in inside.items() if kind == "opening"]
        values[f"valve_count_{span}"] = len(openings)
        values[f"valve_litres_sum_{span}"] = sum(openings)
        values[f"floods_count_{span}"] = len(inside) - len(openings)
    return values


@contextmanager
def closed_log(home: Path) -> Iterator[SqliteLog]:
    with closing(SqliteLog(home / "log")) as log:
        yield log


def chunks(log: SqliteLog) -> Iterator[Any]:
    kinds = {event.name for event in project.events}
    offset = 0
    while offset < log.end(0):
        for chunk in log.read(0, offset, 10_000):
            offset += len(chunk)
            if chunk.kind in kinds:
                yield chunk
