"""Recommendations over HTTP beside FastAPI + implicit, and how soon a click is in the answers.

raypipe checks the key, follows the log, makes the visitor's history, retrieves 200 candidates,
makes their features, ranks them, applies rules and diversity, explains, records the list durably
and answers, over Ray Serve behind HAProxy. The peer looks 10 neighbours up and answers. Both know
the same interactions of the same simulated shop; client and servers share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.decisions.processes import System, Tree, command, peer, raypipe
from benchmarks.harness import Result, check
from benchmarks.load import Load, Target, closed_loop, free_port
from benchmarks.recommendations.clicks import Click, Clicked, probe
from benchmarks.recommendations.home import World, config, load_history, read_world
from benchmarks.recommendations.visitors import Judge, Visits, bodies, peer_bodies
from raypipe.clock import SystemClock
from raypipe.config import Settings

SUITE = "recommend"
PROJECT = "features.commerce:project"
CONNECTIONS = 8
ITEMS, QUICK_ITEMS = 40_000, 3_000
USERS, QUICK_USERS = 100_000, 6_000
DAYS = 40
REQUESTS, QUICK_REQUESTS = 2_000, 300
PEER_TIMES = 2
"""The peer is faster: it gets so many times the requests, for turns that are long enough."""
REPEATS, QUICK_REPEATS = 5, 2
WARMUP = 200
CLICKS, QUICK_CLICKS = 200, 40
CLICK_RATE = 5.0
TWICE, TRIES = 50, 3

OURS, PEER = "raypipe", "implicit service"

MEASURES: Mapping[str, Callable[[Load], float]] = {
    "lists/s": lambda load: load.rate,
    "p50 ms": lambda load: load.percentile_ms(50),
    "p99 ms": lambda load: load.percentile_ms(99),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes; the defaults are those of committed results."""
    parser.add_argument("--items", type=int, help="items of the shop")
    parser.add_argument("--users", type=int, help="customers of the shop")
    parser.add_argument("--home", type=Path, help="where the shop is, or is to be, kept")
    parser.add_argument("--requests", type=int, help="requests of a turn")
    parser.add_argument("--repeats", type=int, help="measured turns")
    parser.add_argument("--clicks", type=int, help="clicks whose way into the answers is timed")
    parser.add_argument("--replicas", type=int, default=2, help="of raypipe")
    parser.add_argument("--seed", type=int, default=7, help="of the shop and its visitors")


@dataclass(frozen=True)
class Turn:
    """One turn of a candidate."""

    load: Load
    cpu_s: float
    explored: int
    known: int


@dataclass
class Candidate:
    """A server under load; ``turns`` are the measured ones."""

    name: str
    target: Target
    tree: Tree
    strict: bool
    turns: list[Turn] = field(default_factory=list)

    def median(self, what: str) -> float:
        """Of one of MEASURES over the turns."""
        return float(np.median([MEASURES[what](t.load) for t in self.turns]))


def run(args: argparse.Namespace) -> Result:
    """Simulate, fit, serve both, load in turns, ask twice, click."""
    small = args.quick
    requests = args.requests or (QUICK_REQUESTS if small else REQUESTS)
    repeats = args.repeats or (QUICK_REPEATS if small else REPEATS)
    clicks = args.clicks or (QUICK_CLICKS if small else CLICKS)
    with tempfile.TemporaryDirectory(prefix="raypipe-bench-") as folder, ExitStack() as stack:
        settings = Settings(home=args.home or Path(folder) / "home", project=PROJECT)
        fitted = _prepared(settings, args)
        world = read_world(settings)
        ours = stack.enter_context(
            raypipe("serve", settings.home, "--port", str(free_port()), *_set(args.replicas))
        )
        theirs = stack.enter_context(_peer(world, Path(folder)))
        candidates = [
            Candidate(OURS, ours.target("/v1/recommendations"), ours.tree, strict=True),
            theirs,
        ]
        visits = Visits(world, args.seed)
        _load(candidates, visits, requests, repeats)
        same = _twice(ours, world, args.seed)
        clicked = asyncio.run(
            probe(
                ours.url,
                ours.summary["events"],
                ours.key,
                _clicks(world, clicks, args.seed),
                CLICK_RATE,
            )
        )
        check(not clicked.errors, f"clicks went wrong: {dict(clicked.errors)}")
    return _result(candidates, clicked, world, fitted, same)


def _set(replicas: int) -> list[str]:
    values = {
        "project": PROJECT,
        "ingest_port": free_port(),
        "min_replicas": replicas,
        "max_replicas": replicas,
        "ingress": "haproxy",
    }
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


def _prepared(settings: Settings, args: argparse.Namespace) -> dict[str, Any]:
    """The shop's history and a version of both stages, unless the home has them; its figures."""
    told = settings.home / "fitted.json"
    if not told.exists():
        settings.home.mkdir(parents=True, exist_ok=True)
        items = args.items or (QUICK_ITEMS if args.quick else ITEMS)
        users = args.users or (QUICK_USERS if args.quick else USERS)
        load_history(settings, config(items, users, DAYS, args.seed))
        _say("the history is in the log")
        began = time.monotonic()
        fitted = _fit(settings)
        told.write_text(json.dumps(fitted | {"fit_s": time.monotonic() - began}))
    found: dict[str, Any] = json.loads(told.read_text())
    _say(f"the version is there: {found}")
    return found


def _fit(settings: Settings) -> dict[str, Any]:
    words = ("--home", str(settings.home), "--set", f"project={PROJECT}", "--json", "--quiet")
    found: dict[str, Any] = json.loads(command("recommend", "fit", *words))
    return found


@contextmanager
def _peer(world: World, folder: Path) -> Iterator[Candidate]:
    import pyarrow.parquet as pq

    pairs, port = folder / "pairs.parquet", free_port()
    pq.write_table(world.pairs, pairs)
    with peer("benchmarks.peers.implicit_service", str(pairs), port=port) as tree:
        headers = {"Content-Type": "application/json"}
        target = Target(f"http://127.0.0.1:{port}/recommendations", headers=headers)
        yield Candidate(PEER, target, tree, strict=False)


def _load(candidates: list[Candidate], visits: Visits, requests: int, repeats: int) -> None:
    """In turns, every second one in reverse order, after one that is not measured."""
    sessions = 0
    for number in range(repeats + 1):
        for candidate in candidates if number % 2 else reversed(candidates):
            count = requests if number else WARMUP
            visitors = visits.take(count if candidate.strict else PEER_TIMES * count)
            made = bodies(visitors, sessions) if candidate.strict else peer_bodies(visitors)
            sessions += len(visitors)
            judge = Judge(visits.world, visitors, candidate.strict)
            before = candidate.tree.cpu_s()
            load = closed_loop(candidate.target, made, connections=CONNECTIONS, verdict=judge)
            check(not load.errors, f"{candidate.name} answered wrong: {dict(load.errors)}")
            turn = Turn(load, candidate.tree.cpu_s() - before, judge.explored, judge.histories)
            _say(
                f"turn {number} of {repeats}, {candidate.name}: {load.rate:.0f} lists/s, "
                f"p50 {load.percentile_ms(50):.1f} ms, p99 {load.percentile_ms(99):.1f} ms"
            )
            if number:
                candidate.turns.append(turn)


def _twice(ours: System, world: World, seed: int) -> int:
    """Ask for the same lists twice; what chance had no say in must be the same. How many were."""
    import httpx

    users = [u for u in Visits(world, seed + 1).take(TWICE) if u is not None]
    same = 0
    headers = {"Authorization": f"Bearer {ours.key}"}
    with httpx.Client(base_url=ours.url, headers=headers, timeout=10) as client:

        def asked(user: str) -> dict[str, Any]:
            found: dict[str, Any] = client.post("/v1/recommendations", json={"user": user}).json()
            return found

        for user in users:
            # A minute may end between the two, and windows change with it: asked again, they agree.
            for _ in range(TRIES):
                one, other = asked(user), asked(user)
                if one["explored"] or other["explored"]:
                    continue
                if [i["item_id"] for i in one["items"]] == [i["item_id"] for i in other["items"]]:
                    same += 1
                    break
            else:
                check(one["explored"] or other["explored"], f"two lists for {user} differ")
    check(same > 0, "no list was asked for twice")
    return same


def _clicks(world: World, count: int, seed: int) -> list[Click]:
    """Half of them of customers, half of sessions of which nothing is known."""
    rng = np.random.default_rng(seed + 2)
    run = SystemClock().now_ms()  # a kept shop has seen the clicks of earlier runs
    met: dict[str, set[str]] = {}
    for user, item in zip(*(world.pairs[c].to_pylist() for c in ("user", "item")), strict=True):
        met.setdefault(user, set()).add(item)
    popular = world.pairs.group_by("item").aggregate([("user", "count")])
    wanted = popular.sort_by([("user_count", "descending"), ("item", "ascending")])["item"]
    items = [i for i in wanted.to_pylist() if i in world.in_stock][: len(wanted) // 4]
    found = []
    for number, name in enumerate(rng.choice(sorted(met), count, replace=False).tolist()):
        strange = [i for i in rng.choice(items, 100).tolist() if i not in met[name]]
        new = number % 2 == 1
        own = f"click-{run}-{number}"
        found.append(Click(own, f"session-{own}" if new else name, strange[0], new))
    return found


def _result(
    candidates: list[Candidate],
    clicked: Clicked,
    world: World,
    fitted: dict[str, Any],
    same: int,
) -> Result:
    ours, theirs = candidates
    figures: dict[str, float] = {
        "p50_ms_c8": ours.median("p50 ms"),
        "p99_ms_c8": ours.median("p99 ms"),
        "qps_c8": ours.median("lists/s"),
        "qps_ratio_implicit_service": ours.median("lists/s") / theirs.median("lists/s"),
        "click_to_change_p95_ms": clicked.percentile_ms(95),
        "click_to_change_p50_ms": clicked.percentile_ms(50),
        "click_logged_p95_ms": float(np.percentile(clicked.ingested, 95) * 1e3),
        "implicit_service_p50_ms_c8": theirs.median("p50 ms"),
        "implicit_service_p99_ms_c8": theirs.median("p99 ms"),
        "implicit_service_qps_c8": theirs.median("lists/s"),
        "p99_ms_c8_largest": max(t.load.percentile_ms(99) for t in ours.turns),
        "cpu_ms": float(np.median([t.cpu_s / len(t.load.latencies) * 1e3 for t in ours.turns])),
        "fit_s": fitted["fit_s"],
        "ndcg_retriever": fitted["ndcg_retriever"],
        "ndcg_two_stage": fitted["ndcg_two_stage"],
    }
    answers = sum(len(t.load.latencies) for t in ours.turns)
    explored = sum(t.explored for t in ours.turns)
    samples = {
        f"{c.name}, {what}": [figure(t.load) for t in c.turns]
        for c in candidates
        for what, figure in MEASURES.items()
    }
    samples["click to change, ms"] = [s * 1e3 for s in clicked.seconds]
    return Result(
        SUITE,
        figures,
        samples,
        [
            f"{world}; {CONNECTIONS} connections, closed loop",
            f"each of {answers} lists checked, {explored} of them explored; {same} asked for twice",
            f"{len(clicked.seconds)} clicks, {CLICK_RATE:g} a second, open loop; "
            f"{clicked.questions} questions until all were in the answers",
            "the peer is one process, without stock, orders, features, order, rules or a record",
        ],
        seconds_per_sample=False,
    )


def _say(text: str) -> None:
    print(f"{SUITE}: {text}", file=sys.stderr, flush=True)
