"""Decisions at a steady rate while replicas and workers are killed, releases and code exchanged.

An open loop asks at fixed times, once each, and never asks again: whatever a client would have to
repeat is an error, and so is an answer after its deadline. The log is read independently
afterwards: each event once, one decision each. There is no peer: what is counted should be 0.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.decisions import home as homes
from benchmarks.decisions.faults import (
    REPLICA,
    WORKER,
    Done,
    Fault,
    Faults,
    kill,
    release,
    rolling_update,
)
from benchmarks.decisions.processes import System, command, raypipe
from benchmarks.decisions.stored import read_log
from benchmarks.harness import Result, check
from benchmarks.load import closed_loop, free_port, open_loop
from raypipe.config import Settings

SUITE = "availability"
REQUESTS, QUICK_REQUESTS = 30_000, 1_500
RATE, QUICK_RATE = 150.0, 25.0
DEADLINE_MS = 5_000
CONNECTIONS = 256
REPLICAS = 2
EVENTS, QUICK_EVENTS = 100_000, 60_000

STEP_CONNECTIONS, STEP_BODIES = 24, 2_000
STEP_S = 60.0
"""How long a second replica is waited for."""

Answers = npt.NDArray[np.float64]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes; the defaults are those of committed results."""
    parser.add_argument("--requests", type=int, help=f"decisions asked for [{REQUESTS}]")
    parser.add_argument("--rate", type=float, help=f"of them a second [{RATE:g}]")
    parser.add_argument("--deadline-ms", type=int, default=DEADLINE_MS)
    parser.add_argument("--kills", type=int, help="of replicas, and of the worker [4]")


def run(args: argparse.Namespace) -> Result:
    """Bring a system up, ask while things happen to it, then see a second replica come."""
    requests = args.requests or (QUICK_REQUESTS if args.quick else REQUESTS)
    rate = args.rate or (QUICK_RATE if args.quick else RATE)
    kills = args.kills or (1 if args.quick else 4)
    with tempfile.TemporaryDirectory(prefix="raypipe-bench-") as folder:
        settings = Settings(home=Path(folder) / "home", http_port=free_port())
        events = QUICK_EVENTS if args.quick else EVENTS
        config = homes.load_history(settings, events, requests + STEP_BODIES)
        policy = prepare(settings)
        bodies = homes.bodies(config, requests + STEP_BODIES)
        given = _given(settings, REPLICAS, REPLICAS)
        with raypipe("serve", settings.home, *_words(given)) as system:
            planned = plan(system, given, policy, kills)
            outcome = endure(system, planned, bodies[:requests], rate, args.deadline_ms)
        given = _given(settings, 1, REPLICAS)
        with raypipe("serve", settings.home, *_words(given)) as system:
            second_s = second_replica(system, bodies[requests:])
        stored = read_log(settings.log_url, _decision())
    answered = np.flatnonzero(np.isfinite(outcome.latencies)).tolist()
    lost = len(stored.missing(json.loads(bodies[i])["event_id"] for i in answered))
    return result(outcome, requests, rate, args.deadline_ms, second_s, stored.double_counts(), lost)


def prepare(settings: Settings) -> str:
    """Features, two model versions, and a published policy; its ``name@version``."""
    at = ("--home", str(settings.home), "--quiet")
    command("features", *at)
    for seed in ("7", "8"):
        command("train", "--set", "trials=1", "--seed", seed, *at)
    file = str(homes.policy_file())
    told = command("policy", "publish", file, "--home", str(settings.home), "--json")
    found: dict[str, Any] = json.loads(told)
    return str(found["policy"])


def plan(system: System, given: dict[str, Any], policy: str, kills: int) -> list[Fault]:
    """Each fault, the kills between the others."""
    champion = str(system.summary["model"])
    name, _, version = champion.partition("@")
    folders = (system.home / "models" / name).iterdir()
    other = next(f.name for f in sorted(folders) if f.is_dir() and f.name != version)
    changes = [
        Fault("promote a model", lambda: release(system, "release", "promote", f"{name}@{other}")),
        Fault("use a policy", lambda: release(system, "policy", "use", policy)),
        Fault("rolling update", lambda: rolling_update(system, given)),
        Fault("roll a release back", lambda: release(system, "release", "rollback")),
    ]
    deaths = [
        fault
        for _ in range(kills)
        for fault in (
            Fault("kill a replica", lambda: kill(system, REPLICA), Answering(system.url)),
            Fault("kill the worker", lambda: kill(system, WORKER, every=True)),
        )
    ]
    turns = itertools.zip_longest(deaths, changes)
    return [fault for turn in turns for fault in turn if fault is not None]


class Answering:
    """Whether all replicas have answered since it was asked first: one that is killed while another
    one's successor still loads would leave none, and the machine's pace would be measured."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._names: set[str] = set()

    def __call__(self) -> bool:
        """Ask one of them."""
        with suppress(OSError):
            self._names.add(_replica(self._url))
        return len(self._names) >= REPLICAS


class Outcome:
    """What came of the load.

    Args:
        latencies: seconds from the scheduled start, NaN without a right answer.
        refused: wrong answers, by what was wrong.
        seen: how many answers were degraded, replayed.
    """

    def __init__(
        self,
        latencies: Answers,
        refused: Counter[str],
        seen: Counter[str],
        done: Sequence[Done],
        rate: float,
        deadline_ms: float,
    ) -> None:
        self.latencies = latencies
        self.refused = refused
        self.seen = seen
        self.done = done
        self._rate = rate
        answered = latencies[np.isfinite(latencies)]
        self.late = int((answered * 1e3 > deadline_ms).sum())
        self.errors = int(sum(refused.values())) + self.late
        self.worst_ms = float(answered.max() * 1e3) if answered.size else math.inf

    def worst_after(self, number: int) -> float:
        """The worst latency, ms, of requests that were answered from a fault to the next one:
        those that were on their way when it came waited for what it did."""
        begin = self.done[number].began_s
        last = number + 1 == len(self.done)
        end = math.inf if last else self.done[number + 1].began_s
        answered = np.arange(len(self.latencies)) / self._rate + self.latencies
        mine = self.latencies[(answered >= begin) & (answered < end)]
        return float(mine.max() * 1e3) if mine.size else 0.0


def endure(
    system: System, planned: Sequence[Fault], bodies: Sequence[bytes], rate: float, deadline_ms: int
) -> Outcome:
    """Ask for all at the rate while everything planned happens."""
    seen: Counter[str] = Counter()

    def verdict(_: int, status: int, body: bytes) -> str:
        if status != 200:
            return f"status {status}"
        seen["degraded"] += b'"degraded":true' in body
        seen["replayed"] += b'"replayed":true' in body
        return "" if b'"action":"' in body else "no decision"

    target = system.target(timeout_s=deadline_ms / 1_000, X_Deadline_Ms=str(deadline_ms))
    faults = Faults(planned, len(bodies) / rate)
    thread = faults.start()
    load = open_loop(target, bodies, rate=rate, connections=CONNECTIONS, verdict=verdict)
    thread.join(STEP_S)
    if faults.failure is not None:
        raise faults.failure
    check(len(faults.done) == len(planned), "not all of the faults happened during the load")
    return Outcome(load.latencies, load.errors, seen, faults.done, rate, deadline_ms)


def second_replica(system: System, bodies: Sequence[bytes]) -> float:
    """Seconds from the first request of a load to an answer of a second replica.

    The bodies come again and again: a repeated one is a request, too, and counts once.
    """
    over = threading.Event()

    def push() -> None:
        while not over.is_set():
            closed_loop(system.target(), bodies, connections=STEP_CONNECTIONS)

    pusher = threading.Thread(target=push, daemon=True)
    began = time.monotonic()
    pusher.start()
    both = Answering(system.url)
    try:
        while not both():
            check(time.monotonic() < began + STEP_S, f"no second replica within {STEP_S:g} s")
            time.sleep(0.05)
        return time.monotonic() - began
    finally:
        over.set()
        pusher.join()


def _replica(url: str) -> str:
    # A connection of its own each time, so that it may come to any replica.
    with urllib.request.urlopen(f"{url}/readyz", timeout=STEP_S) as answer:  # noqa: S310 - loopback
        return str(json.load(answer)["replica"])


def _given(settings: Settings, least: int, most: int) -> dict[str, Any]:
    return {
        "home": str(settings.home),
        "http_port": settings.http_port,
        "min_replicas": least,
        "max_replicas": most,
        "ingress": "haproxy",
    }


def _words(given: dict[str, Any]) -> list[str]:
    return [w for k, v in given.items() if k != "home" for w in ("--set", f"{k}={v}")]


def _decision() -> str:
    from features.payments import project

    return project.decision


def result(
    outcome: Outcome,
    requests: int,
    rate: float,
    deadline_ms: float,
    second_s: float,
    double_counts: int,
    lost: int,
) -> Result:
    """The figures; errors and double counts are counted, not raised: they are what is measured.

    Args:
        lost: decisions that were answered and are not in the log.
    """
    check(not lost, f"{lost} answered decisions are not in the log")
    latencies = outcome.latencies[np.isfinite(outcome.latencies)]
    p50, p99 = np.percentile(latencies, (50, 99)) * 1e3
    return Result(
        SUITE,
        {
            "requests": requests,
            "errors": outcome.errors,
            "double_counts": double_counts,
            "worst_stall_ms": outcome.worst_ms,
            "second_replica_s": second_s,
            "late": outcome.late,
            "degraded": outcome.seen["degraded"],
            "replayed": outcome.seen["replayed"],
            "p50_ms": float(p50),
            "p99_ms": float(p99),
            "rate": rate,
            "faults": len(outcome.done),
        },
        {},
        (
            f"one request each, no retry by the client; an answer after {deadline_ms:g} ms is an "
            "error; worst_stall_ms: the longest wait for an answer from when it was due",
            f"a replica is killed when all {REPLICAS} answer, so that one is left",
            f"errors by kind: {dict(outcome.refused)}, late: {outcome.late}",
            f"0 errors in {requests:,} bound the rate of errors at {3 / requests:.3%} (95 %)",
            *(
                f"{d.began_s:6.1f} s  {d.name}: took {d.ended_s - d.began_s:.1f} s, "
                f"worst answer until the next fault {outcome.worst_after(n):.0f} ms"
                for n, d in enumerate(outcome.done)
            ),
        ),
    )
