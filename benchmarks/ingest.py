"""100,000 events a second over HTTP: validated, durable, in windows, nothing lost.

An open loop sends JSON lines to the ingest server: 70 % page views, 25 % orders and payments, 5 %
other events, with fresh ids and with mistakes planted in 2 % of the rows. The worker starts with
30 days of a million customers, counts every event in the windows of features.commerce, runs its
patterns and tables, and its changed states go to the online store. Latency is from when an event
happened to the answer to its post, when it is durable and readable. Generator, server and worker
share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.harness import Result, check
from benchmarks.load import free_port
from benchmarks.shop import checks, history
from benchmarks.shop.planted import Planted, planted
from benchmarks.shop.sending import Post, Sent, send
from benchmarks.shop.traffic import Shop

SUITE = "ingest"
SEED = 11
CONNECTIONS = 8
COURSE_S = 10.0

WARM_S = 5.0
CLIMB = (1.1, 1.25, 1.4, 1.6, 1.8, 2.0, 2.3)
LIMIT_MS = 500.0
KEPT_UP = 0.98
"""Share of the asked rate that must be reached for the load to count as carried."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes; the defaults are those of committed results."""
    parser.add_argument("--minutes", type=float, help="how long the load lasts (10; quick 0.5)")
    parser.add_argument("--rate", type=int, default=100_000, help="events a second")
    parser.add_argument("--rows", type=int, default=4_000, help="events a post")
    parser.add_argument("--customers", type=int, help="with 30 days of history (1,000,000)")
    parser.add_argument("--keys", type=int, default=10_000, help="keys whose windows are checked")
    parser.add_argument(
        "--climb", action=argparse.BooleanOptionalAction, default=True, help="find the highest rate"
    )


def run(args: argparse.Namespace) -> Result:
    """Preload, start, load, climb, then check the log and the windows."""
    minutes = args.minutes or (0.5 if args.quick else 10)
    customers = args.customers or (100_000 if args.quick else 1_000_000)
    home = Path(tempfile.mkdtemp(prefix="raypipe-bench-"))
    try:
        return _measure(args, home, minutes * 60, customers)
    finally:
        shutil.rmtree(home, ignore_errors=True)


@dataclass
class _Load:
    """Bodies in turn, at any rate; remembers which ids must be in the log."""

    bodies: list[Planted]
    next_id: int = 0
    right: int = 0
    rows: int = 0
    acknowledged: list[np.ndarray[Any, np.dtype[np.int64]]] = field(default_factory=list)

    def posts(self, rate: float, seconds: float) -> Iterator[Post]:
        """Posts whose events happen evenly in time."""
        start, n, count = time.time() + 0.1, 0, 0
        while n / rate < seconds:
            body = self.bodies[count % len(self.bodies)]
            size = body.template.rows
            first, last = start + n / rate, start + (n + size) / rate
            times = (np.linspace(first, last, size) * 1_000).astype(np.int64)
            yield Post(body.fill(self.next_id, times), first, last, size, tag=(body, self.next_id))
            self.next_id += size
            n += size
            count += 1

    def answered(self, post: Post, status: int, answer: dict[str, Any]) -> None:
        """Count right outcomes; an id of a refused post may or may not be in the log."""
        body, first_id = post.tag
        self.rows += post.rows
        if status in (200, 207):
            self.right += body.right(answer)
            self.acknowledged.append(body.accepted_ids(first_id))


def _measure(args: argparse.Namespace, home: Path, seconds: float, customers: int) -> Result:
    from features.store.packed.backend import open_backend
    from raypipe.config import Settings
    from raypipe.log.sqlite import SqliteLog
    from raypipe.runtime import session
    from raypipe.runtime.worker import actor
    from serving import ingest

    settings = Settings(home=home, project="features.commerce:project", http_port=free_port())
    with closing(SqliteLog.open(settings.log_url)) as log:
        preloaded = history.preload(log, customers, round(time.time() * 1_000), SEED)
    (home / "feast").mkdir()
    with closing(open_backend(settings.online_url)) as store:
        store.put([], [], b"", b"")
    bodies = planted(Shop(customers, SEED), 60, args.rows, 0.02, SEED)
    session.start(settings)
    try:
        worker, server = actor.ensure(settings), ingest.ensure(settings)
        processes = _processes(worker, server)
        load = _Load(bodies)
        _send(settings, load, args.rate / 5, WARM_S)
        used = _cpu(processes)
        sent = _send(settings, load, args.rate, seconds)
        used = {name: (cpu - used[name]) / sent.rows for name, cpu in _cpu(processes).items()}
        best = _climb(settings, load, args) if args.climb else None
        now_ms = round(time.time() * 1_000)
        state = asyncio.run(_stats(settings))
        with closing(SqliteLog.open(settings.log_url)) as log:
            times, live = checks.ids_in(log, load.next_id)
            wrong = asyncio.run(_mismatches(settings, log, now_ms, args.keys))
    finally:
        actor.stop()
        session.stop()
    wanted = np.concatenate(load.acknowledged)
    check(not sent.errors, f"the load was not answered as it should be: {dict(sent.errors)}")
    figures = {
        "events_per_s": sent.rows / sent.seconds,
        "p95_ms": sent.percentile_ms(95),
        "seconds": sent.seconds,
        "lost": int((times[wanted] == 0).sum()),
        "duplicated": int((times > 1).sum()),
        "mismatches": wrong,
        "accuracy": load.right / load.rows,
        "max_events_per_s": best,
        "p50_ms": sent.percentile_ms(50),
        "p99_ms": sent.percentile_ms(99),
        "posts_that_waited": sent.late,
        "preloaded_events": preloaded,
        "keys": state["keys"],
        "state_bytes": state["state_bytes"],
        "log_events": live,
        **{f"{name}_cpu_us_per_event": cpu * 1e6 for name, cpu in used.items()},
    }
    return Result(
        SUITE,
        figures,
        {f"p95 ms of each {COURSE_S:g} s": sent.course_ms(95, COURSE_S)},
        (
            f"{args.rows} rows a post of JSON lines, {CONNECTIONS} connections, open loop",
            f"{customers} customers with 30 days of history; every id and every answer checked",
            "embedded log: SQLite, synchronous=FULL, one commit a round",
        ),
        seconds_per_sample=False,
    )


def _processes(worker: Any, server: Any) -> dict[str, psutil.Process]:
    import ray

    return {
        "worker": psutil.Process(ray.get(worker.pid.remote())),
        "server": psutil.Process(ray.get(server.pid.remote())),
        "generator": psutil.Process(os.getpid()),
    }


def _cpu(processes: dict[str, psutil.Process]) -> dict[str, float]:
    return {name: sum(p.cpu_times()[:2]) for name, p in processes.items()}


def _send(settings: Any, load: _Load, rate: float, seconds: float) -> Sent:
    key = (settings.home / "api-key").read_text().strip()
    return asyncio.run(
        send(
            f"{settings.ingest_url}/v1/events",
            key,
            load.posts(rate, seconds),
            CONNECTIONS,
            load.answered,
        )
    )


def _climb(settings: Any, load: _Load, args: argparse.Namespace) -> float:
    """The highest rate that is kept up with a p95 under the limit, in steps of 15 s."""
    best = 0.0
    for factor in (1.0, *CLIMB):
        sent = _send(settings, load, args.rate * factor, 5 if args.quick else 15)
        rate = sent.rows / sent.seconds
        if sent.errors or sent.percentile_ms(95) > LIMIT_MS or rate < KEPT_UP * args.rate * factor:
            break
        best = rate
    return best


async def _stats(settings: Any) -> dict[str, float]:
    client = _client(settings)
    try:
        found: dict[str, float] = await client.stats()
        return found
    finally:
        await client.close()


async def _mismatches(settings: Any, log: Any, now_ms: int, keys: int) -> int:
    client = _client(settings)

    async def read(entity: str, key: str) -> dict[str, float]:
        found: dict[str, float] = await client.read("default", entity, key, now_ms)
        return found

    try:
        return await checks.mismatches(log, read, now_ms, keys, SEED)
    finally:
        await client.close()


def _client(settings: Any) -> Any:
    from raypipe.runtime.worker import reach
    from raypipe.runtime.worker.actor import socket_path
    from raypipe.runtime.worker.client import WorkerClient

    path = str(socket_path(settings.home, 0))
    return WorkerClient(lambda: reach.unix(path))
