"""One decision over HTTP, beside bare FastAPI with the same model file.

raypipe validates, logs, reads and updates the windows, builds the features, scores, decides,
records durably and answers, over Ray Serve. The peer parses and scores a ready row and stores
nothing: the difference is the price of everything else. Closed loop, client on the same machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Result, check
from benchmarks.load import Load, Target, closed_loop, free_port
from raypipe.clock import SystemClock
from raypipe.config import Settings

SUITE = "decide"
CONCURRENCY = (1, 8)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes; the defaults are those of committed results."""
    parser.add_argument("--requests", type=int, help="requests a point and repeat")
    parser.add_argument("--repeats", type=int, default=5)


def run(args: argparse.Namespace) -> Result:
    """Bring up a small system and its peer, load them in turns, compare what was stored."""
    requests = args.requests or (150 if args.quick else 1_500)
    with tempfile.TemporaryDirectory(prefix="raypipe-bench-") as folder:
        settings = Settings(home=Path(folder), http_port=free_port(), trials=1)
        with _system(settings) as (key, model, bodies), _peer(model) as peer_port:
            return _measure(settings, key, model, peer_port, bodies, requests, args.repeats)


def _measure(
    settings: Settings,
    key: str,
    model: Path,
    peer_port: int,
    bodies: Iterator[bytes],
    requests: int,
    repeats: int,
) -> Result:
    ours = Target(
        f"http://127.0.0.1:{settings.http_port}/v1/decisions",
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    peer = Target(
        f"http://127.0.0.1:{peer_port}/score", headers={"Content-Type": "application/json"}
    )
    loads: dict[tuple[str, int], list[Load]] = {}
    sent = 0
    for turn in range(repeats + 1):
        points = [(n, t, c) for c in CONCURRENCY for n, t in (("raypipe", ours), ("bare", peer))]
        for name, target, connections in points if turn % 2 else reversed(points):
            batch = list(itertools.islice(bodies, requests * connections if turn else 50))
            right = _decided if name == "raypipe" else _scored
            load = closed_loop(target, batch, connections=connections, verdict=right)
            sent += len(batch) if name == "raypipe" else 0
            if turn:
                loads.setdefault((name, connections), []).append(load)
    _check_stored(settings, sent)
    return _result(loads, requests)


def _result(loads: dict[tuple[str, int], list[Load]], requests: int) -> Result:
    def median(name: str, connections: int, figure: Callable[[Load], float]) -> float:
        return float(np.median([figure(load) for load in loads[name, connections]]))

    figures: dict[str, float] = {}
    for c in CONCURRENCY:
        for q in (50, 95, 99):
            mine = median("raypipe", c, lambda load, q=q: load.percentile_ms(q))  # type: ignore[misc]
            bare = median("bare", c, lambda load, q=q: load.percentile_ms(q))  # type: ignore[misc]
            figures |= {
                f"p{q}_ms_c{c}": mine,
                f"bare_p{q}_ms_c{c}": bare,
                f"p{q}_ratio_bare_c{c}": mine / bare,
            }
        figures[f"qps_c{c}"] = median("raypipe", c, lambda load: load.rate)
        figures[f"bare_qps_c{c}"] = median("bare", c, lambda load: load.rate)
    errors = sum(sum(load.errors.values()) for runs in loads.values() for load in runs)
    check(
        errors == 0,
        f"{errors} wrong answers: {[load.errors for r in loads.values() for load in r]}",
    )
    return Result(
        SUITE,
        figures | {"errors": errors},
        {
            f"{name} c{c} p50 ms": [load.percentile_ms(50) for load in runs]
            for (name, c), runs in loads.items()
        },
        (
            f"{requests} requests a connection and repeat; each decision was found in the log once",
            "the peer scores a ready row, computes no feature and stores nothing",
        ),
        seconds_per_sample=False,
    )


def _decided(_: int, status: int, body: bytes) -> str:
    if status != 200:
        return f"status {status}"
    return "" if b'"action"' in body and b'"degraded":false' in body else "no sound decision"


def _scored(_: int, status: int, body: bytes) -> str:
    return "" if status == 200 and b'"score"' in body else f"status {status}"


@contextmanager
def _system(settings: Settings) -> Iterator[tuple[str, Path, Iterator[bytes]]]:
    """raypipe over a small simulated world: its key, its model file, and fresh request bodies."""
    from raypipe.runtime import session
    from raypipe.runtime.progress import reporter
    from serving.up import run as up

    try:
        summary, failed = up(
            settings,
            reporter(),
            events=20_000,
            days=40,
            requests=200,
            fresh=False,
            announce=lambda _url, _ray: None,
        )
        check(not failed, f"the system didn't come up: {summary}")
        serving = summary["serving"]
        model, _, version = serving["model"].partition("@")
        yield (
            Path(serving["api_key"]).read_text().strip(),
            settings.home / "models" / model / version / "model.ubj",
            _bodies(settings),
        )
    finally:
        session.stop()


def _bodies(settings: Settings) -> Iterator[bytes]:
    """The world's next payments, over and over, each as a new event that happens now."""
    from raypipe.simulate.config import WorldConfig
    from raypipe.simulate.world import World

    world = World(WorldConfig(**json.loads((settings.home / "up.json").read_text())["world"]))
    rows = [row.body for row in world.live(2_000)]
    clock = SystemClock()
    for number, row in enumerate(itertools.cycle(rows)):
        event = row | {"event_id": f"bench-{number}", "event_time": clock.now_ms()}
        yield json.dumps(event).encode()


@contextmanager
def _peer(model: Path) -> Iterator[int]:
    """The bare server as a process; its port."""
    port = free_port()
    features = len(json.loads((model.parent / "manifest.json").read_text())["features"])
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "benchmarks.peers.bare_fastapi"),
            *(os.fspath(model), str(features), str(port)),
        ]
    )
    try:
        _await(f"http://127.0.0.1:{port}/docs", process)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _await(url: str, process: subprocess.Popen[bytes], patience_s: float = 60.0) -> None:
    deadline = time.monotonic() + patience_s
    while True:
        check(process.poll() is None, "the peer ended before it answered")
        try:
            urllib.request.urlopen(url, timeout=1).close()  # noqa: S310 - loopback
        except (urllib.error.URLError, OSError):
            check(time.monotonic() < deadline, "the peer doesn't answer")
            time.sleep(0.1)
        else:
            return


def _check_stored(settings: Settings, sent: int) -> None:
    """Every request left exactly one decision in the log."""
    from raypipe.ledger.record import LOG_KIND
    from raypipe.log.sqlite import SqliteLog

    with closing(SqliteLog.open(settings.log_url)) as log:
        ids: list[Any] = []
        offset = 0
        while offset < log.end(0):
            for chunk in log.read(0, offset, 100_000):
                offset += len(chunk)
                if chunk.kind == LOG_KIND:
                    ids += [
                        e for e in chunk.batch.column("event_id").to_pylist() if e[:6] == "bench-"
                    ]
    check(len(ids) == len(set(ids)) == sent, f"{len(ids)} decisions stored, {sent} were asked for")
