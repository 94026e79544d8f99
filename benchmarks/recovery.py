"""A worker that is killed: how soon the next decision, by the age of its last snapshot.

The worker holds 30 days of a shop's customers. It saves a snapshot, takes in what comes in so many
seconds at 20,000 events a second, and gets SIGKILL. Measured is the time until Ray has started it
again and it has answered an event that asks for a decision: process start, snapshot, replay.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Result, check
from benchmarks.load import free_port
from benchmarks.shop import history
from benchmarks.shop.traffic import Shop, Template

SUITE = "recovery"
SEED = 13
RATE = 20_000
AGES_S = (0, 10, 30, 60)
STATED_AGE_S = 10
ROWS = 4_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes; the defaults are those of committed results."""
    parser.add_argument("--customers", type=int, help="with 30 days of history (250,000)")
    parser.add_argument("--repeats", type=int, help="kills at each age (5; quick 2)")


def run(args: argparse.Namespace) -> Result:
    """Preload, then kill at each age in turns."""
    customers = args.customers or (25_000 if args.quick else 250_000)
    repeats = args.repeats or (2 if args.quick else 5)
    home = Path(tempfile.mkdtemp(prefix="raypipe-bench-"))
    try:
        return _measure(home, customers, repeats)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _measure(home: Path, customers: int, repeats: int) -> Result:
    from features.commerce import project
    from raypipe.config import Settings
    from raypipe.log.sqlite import SqliteLog
    from raypipe.runtime import session
    from raypipe.runtime.worker import actor

    settings = Settings(
        home=home,
        project="features.commerce:project",
        http_port=free_port(),
        snapshot_seconds=86_400,
    )
    with closing(SqliteLog.open(settings.log_url)) as log:
        history.preload(log, customers, round(time.time() * 1_000), SEED)
    shop = Shop(customers, SEED)
    traffic = _Traffic(project, [Template(shop.rows(ROWS), customers) for _ in range(20)])
    seconds: dict[int, list[float]] = {age: [] for age in AGES_S}
    starts: dict[int, list[float]] = {age: [] for age in AGES_S}
    lost, state = 0, dict[str, float]()
    session.start(settings)
    try:
        actor.ensure(settings)
        for turn in range(repeats):
            for age in AGES_S if turn % 2 == 0 else reversed(AGES_S):
                actor.stop()  # with a snapshot
                worker = actor.ensure(settings)
                took, state, missing = asyncio.run(
                    traffic.kill(settings, worker, age * RATE // ROWS)
                )
                seconds[age].append(took)
                starts[age].append(state["start_seconds"])
                lost += missing
    finally:
        actor.stop()
        session.stop()
    check(lost == 0, f"{lost} acknowledged events are not in the log")
    middle = {age: float(np.median(found)) for age, found in seconds.items()}
    own = {age: float(np.median(found)) for age, found in starts.items()}
    oldest = max(AGES_S)
    return Result(
        SUITE,
        {
            "restart_s": middle[STATED_AGE_S],
            "replay_events_per_s": oldest * RATE / (own[oldest] - own[0]),
            "lost": lost,
            **{f"restart_s_age_{age}": middle[age] for age in AGES_S},
            **{f"worker_start_s_age_{age}": own[age] for age in AGES_S},
            "keys": state["keys"],
            "state_bytes": state["state_bytes"],
        },
        {f"age {age} s": found for age, found in seconds.items()},
        (
            f"{RATE} events a second; SIGKILL to the first answer to an event that asks for a "
            "decision, Ray's restart of the process included",
            "worker_start_s is the worker's own part: snapshot and replay",
        ),
    )


class _Traffic:
    """The shop's rows, handed to the worker as the ingest server hands them."""

    def __init__(self, project: Any, templates: list[Template]) -> None:
        from raypipe.ingest.bulk import BulkReader

        self._project = project
        self._templates = templates
        self._reader = BulkReader(project.events, "EUR")
        self._next = 0

    async def kill(
        self, settings: Any, worker: Any, posts: int
    ) -> tuple[float, dict[str, float], int]:
        """Take rows in and kill; returns seconds to the next answer, the new worker's figures, and
        how many acknowledged rows it does not have."""
        import ray

        from raypipe.runtime.worker import reach
        from raypipe.runtime.worker.actor import socket_path
        from raypipe.runtime.worker.client import WorkerClient

        path = str(socket_path(settings.home, 0))
        client = WorkerClient(lambda: reach.unix(path))
        before = (await client.stats())["log_end"]
        acknowledged = sum([await self._post(client) for _ in range(posts)])
        os.kill(ray.get(worker.pid.remote()), signal.SIGKILL)
        begin = time.perf_counter()
        await client.observe(self._payment(), os.urandom(32))
        took = time.perf_counter() - begin
        stats = await client.stats()
        await client.close()
        return took, stats, max(0, round(before + acknowledged - (stats["log_end"] - 1)))

    async def _post(self, client: Any) -> int:
        from raypipe.ingest.media import Media
        from raypipe.runtime.worker.intake import Bulk

        template = self._templates[self._next // ROWS % len(self._templates)]
        now = round(time.time() * 1_000)
        body = template.fill(self._next, np.full(ROWS, now))
        self._next += ROWS
        bulk = self._reader.read(body, Media.LINES, None, "default", now)
        answer = await client.ingest(
            self._project, Bulk("default", bulk.group, now, "bench", b"0" * 32)
        )
        accepted: int = answer.accepted
        return accepted

    def _payment(self) -> dict[str, Any]:
        now = round(time.time() * 1_000)
        event = {f.name: None for f in self._project.event("payment").all_fields}
        return event | {
            "tenant": "default",
            "event_id": f"decision-{time.time_ns()}",
            "event_time": now,
            "received_at": now,
            "order_id": "o1",
            "customer_id": "c0000001",
            "card_id": "k0000001",
            "merchant_id": "m0001",
            "device_id": "d0000001",
            "amount": 1_000,
            "currency": "EUR",
        }
