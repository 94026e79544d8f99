"""Bulk events through the ingest server, beside Ray Serve's proxy and beside a plain actor call.

All three read the same bodies of a shop's events, hand the rows to one worker and answer when they
are durable; what differs is who owns the socket. The Serve application is the ingest server's own,
in one replica behind the default proxy; the actor call hands the bytes over in Ray's messages,
without HTTP. Closed loop, four at once, client on the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import psutil

from benchmarks.harness import Result, check, summarise
from benchmarks.load import Target, closed_loop
from benchmarks.shop.traffic import Shop, Template
from raypipe.clock import SystemClock
from raypipe.config import Settings
from raypipe.tenancy.keys import LOCAL_KEY_FILE

SUITE = "bulk_ways"
ROWS = (100, 1_000, 4_000)
CONNECTIONS = 4
CUSTOMERS = 50_000
TENANT = "default"

Send = Callable[[list[bytes], int], float]
"""Sends bodies of so many rows each; seconds until the last one was answered."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes; the defaults are those of committed results."""
    parser.add_argument("--events", type=int, help="events a point and repeat")
    parser.add_argument("--repeats", type=int, default=5)


def run(args: argparse.Namespace) -> Result:
    """Send the same kinds of bodies each way in turns; every event must be in the log once."""
    events = args.events or (16_000 if args.quick else 120_000)
    with tempfile.TemporaryDirectory(prefix="raypipe-bench-") as folder:
        ports = _free_ports(2)
        settings = Settings(
            home=Path(folder),
            project="features.commerce:project",
            http_port=ports[0],
            ingest_port=ports[1],
        )
        with _ways(settings) as ways:
            taken, sent = _measure(ways, events, args.repeats)
            _check_logged(settings, sent)
    return _result(taken, events)


@dataclass
class _Taken:
    """One run of a way: events a second, and microseconds of processor an event, of all
    processes with the client's."""

    rate: float
    cpu_us: float


def _measure(
    ways: dict[str, Send], events: int, repeats: int
) -> tuple[dict[tuple[str, int], list[_Taken]], int]:
    bodies = _Bodies()
    taken: dict[tuple[str, int], list[_Taken]] = {}
    points = [(name, send, rows) for rows in ROWS for name, send in ways.items()]
    for turn in range(repeats + 1):
        for name, send, rows in points if turn % 2 else reversed(points):
            posts = bodies.make(rows, (events if turn else 4 * rows) // rows)
            before = _cpu_s()
            seconds = send(posts, rows)
            count = rows * len(posts)
            if turn:
                run = _Taken(count / seconds, (_cpu_s() - before) / count * 1e6)
                taken.setdefault((name, rows), []).append(run)
    return taken, bodies.made


class _Bodies:
    """Bodies of JSON lines, each event with an id of its own and of now."""

    def __init__(self) -> None:
        shop = Shop(CUSTOMERS, seed=7)
        self._templates = {
            rows: itertools.cycle([Template(shop.rows(rows)) for _ in range(8)]) for rows in ROWS
        }
        self.made = 0

    def make(self, rows: int, posts: int) -> list[bytes]:
        found = []
        for template in itertools.islice(self._templates[rows], posts):
            now = SystemClock().now_ms()
            found.append(template.fill(self.made, np.full(rows, now, np.int64)))
            self.made += rows
        return found


def _cpu_s() -> float:
    """Seconds of processor of this process and all below it: Ray's own are children."""
    total = 0.0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def _result(taken: dict[tuple[str, int], list[_Taken]], events: int) -> Result:
    figures: dict[str, float] = {}
    for (name, rows), runs in taken.items():
        figures[f"{name}_events_per_s_{rows}"] = summarise([r.rate for r in runs]).median
        figures[f"{name}_cpu_us_{rows}"] = summarise([r.cpu_us for r in runs]).median
    for rows in ROWS:
        for peer in ("serve", "actor"):
            pairs = zip(taken["ingest", rows], taken[peer, rows], strict=True)
            ratios = [(mine.rate / its.rate, its.cpu_us / mine.cpu_us) for mine, its in pairs]
            figures[f"rate_ratio_{peer}_{rows}"] = summarise([r for r, _ in ratios]).median
            figures[f"cpu_ratio_{peer}_{rows}"] = summarise([c for _, c in ratios]).median
    return Result(
        SUITE,
        figures,
        {
            f"{name} {rows} rows, events/s": [r.rate for r in runs]
            for (name, rows), runs in taken.items()
        },
        (
            f"{events} events a point and repeat, {CONNECTIONS} requests at once, JSON lines",
            "ratios over 1 are for the ingest server; processor time is of all processes, the "
            "client's too",
            "every event was found in the log once",
        ),
        seconds_per_sample=False,
    )


@contextmanager
def _ways(settings: Settings) -> Iterator[dict[str, Send]]:
    """The three ways to one worker, all up."""
    import ray
    from ray import serve

    from raypipe.runtime import session
    from raypipe.runtime.worker import actor
    from serving import ingest

    session.start(settings)
    try:
        actor.ensure(settings)
        ingest.ensure(settings)
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": settings.http_host, "port": settings.http_port},
        )
        deployment: Any = serve.deployment(
            serve.ingress()(_Replica),
            name="bulk",
            num_replicas=1,
            max_ongoing_requests=100,
            ray_actor_options={"num_cpus": 0},
        )
        serve.run(deployment.bind(settings), name="bulk", route_prefix="/")
        remote: Any = ray.remote(_Actor)
        plain = remote.options(num_cpus=0).remote(settings)
        key = (settings.home / LOCAL_KEY_FILE).read_text().strip()
        yield {
            "ingest": _over_http(settings.ingest_url, key),
            "serve": _over_http(settings.http_url, key),
            "actor": _by_calls(plain),
        }
        ingest.stop()
        actor.stop()
    finally:
        session.stop()


def _over_http(url: str, key: str) -> Send:
    target = Target(
        f"{url}/v1/events",
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/x-ndjson"},
    )

    def send(bodies: list[bytes], rows: int) -> float:
        def verdict(_: int, status: int, body: bytes) -> str:
            right = status == 200 and json.loads(body)["accepted"] == rows
            return "" if right else f"{status} {body[:200]!r}"

        load = closed_loop(target, bodies, connections=CONNECTIONS, verdict=verdict)
        check(not load.errors, f"wrong answers: {dict(load.errors)}")
        return load.seconds

    return send


def _by_calls(actor: Any) -> Send:
    async def send(bodies: list[bytes], rows: int) -> None:
        waiting = iter(bodies)

        async def caller() -> None:
            for body in waiting:
                answer = json.loads(await actor.take.remote(body))
                check(answer["accepted"] == rows, f"wrong answer: {answer}")

        await asyncio.gather(*(caller() for _ in range(CONNECTIONS)))

    def timed(bodies: list[bytes], rows: int) -> float:
        start = perf_counter()
        asyncio.run(send(bodies, rows))
        return perf_counter() - start

    return timed


class _Replica:
    """The ingest server's application as a Serve replica."""

    def __init__(self, settings: Settings) -> None:
        from raypipe.project import load_project
        from raypipe.runtime.worker.actor import connector
        from raypipe.runtime.worker.client import WorkerClient
        from serving.credentials import Credentials
        from serving.events import Events
        from serving.ingest import IngestApp
        from serving.metrics import Metrics

        worker = WorkerClient(connector(settings.tls_dir))
        events = Events.of(settings, load_project(settings.project), worker)
        self._app = IngestApp(Credentials(worker), worker, events, Metrics("bulk"), 5.0)

    def __serve_build_asgi_app__(self) -> Any:
        return self._app


class _Actor:
    """The same work behind a method."""

    def __init__(self, settings: Settings) -> None:
        from raypipe.ingest.bulk import BulkReader
        from raypipe.project import load_project
        from raypipe.runtime.worker.actor import connector
        from raypipe.runtime.worker.client import WorkerClient

        self._project = load_project(settings.project)
        self._reader = BulkReader(self._project.events, settings.currency)
        self._worker = WorkerClient(connector(settings.tls_dir))

    async def take(self, body: bytes) -> bytes:
        import hashlib

        from raypipe.ingest.media import Media
        from raypipe.runtime.worker import intake

        now = SystemClock().now_ms()
        bulk = await asyncio.to_thread(self._reader.read, body, Media.LINES, None, TENANT, now)
        digest = hashlib.sha256(body).digest()
        refused = [(r.kind, r.body, r.reasons) for r in bulk.refused]
        ingested = await self._worker.ingest(
            self._project, intake.Bulk(TENANT, bulk.group, now, "actor", digest, None, refused)
        )
        return json.dumps({"accepted": ingested.accepted}).encode()


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _check_logged(settings: Settings, sent: int) -> None:
    from raypipe.log.sqlite import SqliteLog
    from raypipe.project import load_project

    events = {event.name for event in load_project(settings.project).events}
    with closing(SqliteLog.open(settings.log_url)) as log:
        counts = {kind: rows for kind, rows in log.counts(0).items() if kind in events}
    check(sum(counts.values()) == sent, f"{counts} in the log, {sent} were sent")
