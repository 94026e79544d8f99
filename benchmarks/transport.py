"""A worker asked over its sockets, beside the same worker behind grpc.aio with the same TLS.

What is asked is a known event: the reply carries its window values, and nothing is computed or
committed, so that the way there and back is what is measured. Closed loop, one connection each,
server and client on the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.harness import Result, WrongResult, check
from raypipe.runtime.launch import credentials as launch_credentials
from raypipe.runtime.worker import protocol, reach
from raypipe.runtime.worker.client import WorkerClient

SUITE = "transport"
CONCURRENCY = (1, 8)
TIME = 1_790_000_000_000
EVENT = {
    "tenant": "default",
    "event_id": "t-1",
    "event_time": TIME,
    "received_at": TIME,
    "card_id": "card-77",
    "customer_id": "cust-12",
    "merchant_id": "shop-3",
    "device_id": "device-9",
    "amount": 129_900,
    "currency": "EUR",
    "channel": "online",
}

Ask = Callable[[], Awaitable[tuple[int, bytes]]]
"""Asks for the event; its offset and its window values."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes; the defaults are those of committed results."""
    parser.add_argument("--requests", type=int, help="requests a point and repeat")
    parser.add_argument("--repeats", type=int, default=7)


def run(args: argparse.Namespace) -> Result:
    """Ask over each way in turns; every reply must be the same."""
    requests = args.requests or (400 if args.quick else 4_000)
    with (
        tempfile.TemporaryDirectory(prefix="raypipe-bench-") as text,
        _worker(Path(text)) as ports,
    ):
        samples = asyncio.run(_measure(Path(text), ports, requests, args.repeats))

    def median(name: str, c: int) -> float:
        return float(np.median(samples[f"{name} c{c} p50 us"]))

    figures = {
        f"{n}_p50_us_c{c}": median(n, c) for c in CONCURRENCY for n in ("unix", "tls", "grpc")
    }
    figures |= {
        f"grpc_extra_ms_c{c}": (median("grpc", c) - median("tls", c)) / 1e3 for c in CONCURRENCY
    }
    return Result(
        SUITE,
        figures,
        samples,
        (f"{requests} requests a point and repeat", "every reply was the same, bit for bit"),
        seconds_per_sample=False,
    )


async def _measure(
    folder: Path, ports: dict[str, int], requests: int, repeats: int
) -> dict[str, list[float]]:
    ways = await _ways(folder, ports)
    answers = {await ask() for ask in ways.values()}
    check(len(answers) == 1, "the ways lead to different answers")
    samples: dict[str, list[float]] = {}
    for turn in range(repeats + 1):
        points = [(n, a, c) for c in CONCURRENCY for n, a in ways.items()]
        for name, ask, connections in points if turn % 2 else reversed(points):
            taken = await _load(ask, connections, requests if turn else 100, answers)
            if turn:
                key = f"{name} c{connections} p50 us"
                samples.setdefault(key, []).append(float(np.median(taken)) / 1e3)
    return samples


async def _load(ask: Ask, callers: int, requests: int, right: set[tuple[int, bytes]]) -> list[int]:
    taken: list[int] = []

    async def loop() -> None:
        for _ in range(requests // callers):
            start = time.perf_counter_ns()
            answer = await ask()
            taken.append(time.perf_counter_ns() - start)
            check(answer in right, "an answer differs")

    await asyncio.gather(*(loop() for _ in range(callers)))
    return taken


async def _ways(folder: Path, ports: dict[str, int]) -> dict[str, Ask]:
    import grpc

    from benchmarks.peers.worker_process import METHOD, credentials

    tls_dir = folder / "credentials" / "tls"
    body_hash = bytes(32)
    request = protocol.Observe(1, EVENT, body_hash)

    def over(connect: reach.Connect) -> Ask:
        client = WorkerClient(connect)

        async def ask() -> tuple[int, bytes]:
            seen = await client.observe(EVENT, body_hash)
            return seen.offset, seen.windows

        return ask

    key, certificate, authority = credentials(tls_dir)
    channel = grpc.aio.secure_channel(
        f"127.0.0.1:{ports['grpc']}",
        grpc.ssl_channel_credentials(authority, key, certificate),
        options=[("grpc.ssl_target_name_override", "raypipe-node")],
    )
    method = channel.unary_unary(METHOD)

    async def by_grpc() -> tuple[int, bytes]:
        seen = protocol.decode_reply(await method(protocol.encode(request)))
        if not isinstance(seen, protocol.Observed):
            raise WrongResult(f"no observation: {seen}")
        return seen.offset, seen.windows

    return {
        "unix": over(lambda: reach.unix(str(folder / "worker.sock"))),
        "tls": over(lambda: reach.network("127.0.0.1", ports["tls"], tls_dir)),
        "grpc": by_grpc,
    }


@contextmanager
def _worker(folder: Path) -> Iterator[dict[str, int]]:
    """The worker's process; its ports."""
    launch_credentials.ensure(folder / "credentials")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "benchmarks.peers.worker_process"),
            *(str(folder), str(folder / "credentials" / "tls")),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        if process.stdout is None:
            raise RuntimeError("the worker has no output")
        ports: dict[str, int] = json.loads(process.stdout.readline())
        yield ports
    finally:
        process.communicate(timeout=30)
