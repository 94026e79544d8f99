"""The full decision over HTTP, beside bare FastAPI, FastAPI + Feast on Redis, and default Serve.

raypipe checks the key, validates, logs, reads and updates the windows, reads profiles, builds the
features, scores, applies the policy, explains what is not approved, records durably and answers,
over Ray Serve behind HAProxy. The bare server parses and scores a ready row; the Feast stack looks
values up, scores and explains; both store nothing and count nothing. Default Serve is raypipe
behind Ray Serve's own proxy; it takes its turns with raypipe after the others, for its session
slows whatever runs beside it, also while it idles. Client and servers share the machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.decisions import figures as named
from benchmarks.decisions import home as homes
from benchmarks.decisions import stages
from benchmarks.decisions.open_rate import OF_SATURATION, OpenRate, at_open_rate
from benchmarks.decisions.processes import System, Tree, command, peer, raypipe
from benchmarks.decisions.rounds import CONCURRENCY, Candidate, Medians, Sample, measure, needs
from benchmarks.decisions.stored import read_log
from benchmarks.harness import Result, check
from benchmarks.load import Target, free_port
from raypipe.config import Settings

SUITE = "decide"
EVENTS, QUICK_EVENTS = 200_000, 60_000
REQUESTS, QUICK_REQUESTS = 1_500, 100
QUICK_REPEATS = 2
OPEN, QUICK_OPEN = 10_000, 500
OPEN_RUNS = 3
STAGES = 400
PRICE = 0.04
"""Of a core for an hour, as large clouds ask for general machines on demand, in dollars."""

FEAST_SHARE, SERVE_SHARE = 0.4, 0.15
"""Of the requests: the slower candidates take longer for each."""

BESIDE = (8,)
"""Connections of ours in its turns with default Serve."""

EXPLAINED = 50
"""The Feast stack explains every 50th answer: raypipe does not approve, and explains, some 2 %."""

JSON = {"Content-Type": "application/json"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes; the defaults are those of committed results."""
    parser.add_argument("--requests", type=int, help="requests of a turn with one connection")
    parser.add_argument("--repeats", type=int, help="measured turns [5]")
    parser.add_argument("--events", type=int, help="payments of the simulated history")
    parser.add_argument("--replicas", type=int, default=1, help="serving replicas, a fixed number")
    parser.add_argument("--price", type=float, default=PRICE, help="of a core for an hour")


@dataclass
class Judged:
    """Checks raypipe's or the Feast stack's answers, and counts what was not approved."""

    known: bool = False
    """Whether answers tell how many features were known."""
    answers: int = 0
    approved: int = 0
    features: int = 0

    def __call__(self, _: int, status: int, body: bytes) -> str:
        """A load.Verdict."""
        if status != 200:
            return f"status {status}"
        if b'"degraded":true' in body or b'"action":"' not in body:
            return "no sound decision"
        self.answers += 1
        self.approved += b'"action":"approve"' in body
        if self.known:
            self.features += int(body[body.rindex(b'"known":') + 8 : -1])
        return ""

    @property
    def not_approved(self) -> float:
        """The share."""
        return 1 - self.approved / max(self.answers, 1)


def scored(_: int, status: int, body: bytes) -> str:
    """The bare server's answer."""
    return "" if status == 200 and b'"score"' in body else f"status {status}"


@dataclass
class Field:
    """Ours and its peers, and what judges their answers; ``own`` are the bodies of ours."""

    ours: System
    own: Iterator[bytes]
    candidates: Sequence[Candidate]
    judged: dict[str, Judged]


def run(args: argparse.Namespace) -> Result:
    """Prepare a home and a copy of it, bring everything up, load in turns, check what is stored."""
    each = args.requests or (QUICK_REQUESTS if args.quick else REQUESTS)
    repeats = args.repeats or (QUICK_REPEATS if args.quick else 5)
    opened = (QUICK_OPEN, 1) if args.quick else (OPEN, OPEN_RUNS)
    with tempfile.TemporaryDirectory(prefix="raypipe-bench-") as folder, ExitStack() as stack:
        base = Settings(home=Path(folder) / "home")
        # Ours twice, once with all reasons, then the open loop, default Serve's turns, the stages.
        needed = 2 * needs(each, repeats) + opened[0] * opened[1] + STAGES
        needed += needs(each, repeats, BESIDE)
        config = homes.load_history(
            base, args.events or (QUICK_EVENTS if args.quick else EVENTS), needed
        )
        at = ("--home", str(base.home), "--quiet")
        command("features", *at)
        command("train", "--set", "trials=1", *at)
        policy = _policy(base)
        copies = [base.home.with_name(n) for n in ("default", "stages")]
        for copy in copies:
            shutil.copytree(base.home, copy)
        rows = homes.bodies(config, needed)
        field = stack.enter_context(_field(base, rows, args.replicas))
        found = Medians(measure(field.candidates, each, repeats))
        check(not found.errors, f"wrong answers: {found.errors}")
        at_rate = at_open_rate(
            field.candidates[0], max(found.qps(named.OURS, c) for c in CONCURRENCY), *opened
        )
        check(not at_rate.errors, f"wrong answers at an open rate: {at_rate.loads[0].errors}")
        with _default_serve(copies[0], field, rows, args.replicas) as both:
            found = Medians({**found.samples, **measure(both, each, repeats)})
        check(not found.errors, f"wrong answers: {found.errors}")
        model = str(field.ours.summary["model"])
        stack.close()
        left = len(list(field.candidates[0].bodies))
        sent = rows[: len(rows) - left]
        read_log(base.log_url, _decision()).check_once(json.loads(r)["event_id"] for r in sent)
        spent = stages.measure(
            Settings(home=copies[1]), model, rows[: STAGES // (4 if args.quick else 1)], policy
        )
    return _result(found, at_rate, spent, field.judged, each, repeats, args.price, policy)


def _decision() -> str:
    from features.payments import project

    return project.decision


def _policy(settings: Settings) -> str:
    """Publish the project's policy with the model's thresholds, and have it decide; its
    ``name@version``."""
    import yaml

    policy = yaml.safe_load(homes.policy_file().read_text())
    policy["thresholds"] = {"default": _thresholds(settings)}
    file = settings.home / "policy.yaml"
    file.write_text(yaml.safe_dump(policy, sort_keys=False))
    reference = f"{policy['name']}@{policy['version']}"
    command("policy", "publish", str(file), "--home", str(settings.home))
    command("policy", "use", reference, "--home", str(settings.home))
    return reference


def _thresholds(settings: Settings) -> dict[str, float]:
    from training import registry
    from training.artefact import read_manifest

    place = registry.locate(settings.lake / "models", "fraud")
    return dict(read_manifest(place).thresholds)


@contextmanager
def _default_serve(
    home: Path, field: Field, rows: Sequence[bytes], replicas: int
) -> Iterator[Sequence[Candidate]]:
    """The same application behind Ray Serve's proxy, and ours once more."""
    with _raypipe(home, replicas, "proxy") as theirs:
        target, tree = theirs.target(), theirs.tree
        judged, beside = field.judged[named.SERVE], field.judged[named.OURS_BESIDE]
        yield (
            Candidate(
                named.OURS_BESIDE, field.ours.target(), field.ours.tree, field.own, beside, BESIDE
            ),
            Candidate(named.SERVE, target, tree, iter(rows), judged, (1, *BESIDE), SERVE_SHARE),
        )


def _raypipe(home: Path, replicas: int, ingress: str) -> AbstractContextManager[System]:
    values = {"min_replicas": replicas, "max_replicas": replicas, "ingress": ingress}
    words = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    return raypipe("serve", home, "--port", str(free_port()), *words)


@contextmanager
def _field(base: Settings, rows: Sequence[bytes], replicas: int) -> Iterator[Field]:
    from benchmarks.peers.feast_stack import fill
    from benchmarks.store import redis_server

    judged = {n: Judged(known="feast" in n) for n in named.JUDGED}
    with ExitStack() as stack:
        ours = stack.enter_context(_raypipe(base.home, replicas, "haproxy"))
        model = homes.model_folder(base.home, ours.summary["model"])
        features = len(json.loads((model / "manifest.json").read_text())["features"])
        ubj, port = str(model / "model.ubj"), free_port()
        bare = stack.enter_context(
            peer("benchmarks.peers.bare_fastapi", ubj, str(features), port=port)
        )
        own = iter(rows)
        candidates = [
            Candidate(named.OURS, ours.target(), ours.tree, own, judged[named.OURS]),
            Candidate(
                named.OURS_ALL,
                ours.target("/v1/decisions?explain=true"),
                ours.tree,
                own,
                judged[named.OURS_ALL],
                points=(1, 8),
            ),
            _candidate(named.BARE, port, bare, rows, scored),
        ]
        place = base.home.with_name("feast")
        place.mkdir()
        redis_port = stack.enter_context(redis_server(str(place)))
        fill(base, place, redis_port)
        for name, each in ((named.FEAST, EXPLAINED), (named.FEAST_ALL, 1)):
            options = {
                "place": str(place),
                "redis_port": redis_port,
                "model": ubj,
                "review": _thresholds(base)["review"],
                "each": each,
            }
            port = free_port()
            tree = stack.enter_context(
                peer(
                    "benchmarks.peers.feast_stack",
                    json.dumps(options),
                    port=port,
                    beside=[_redis_pid(redis_port)],
                )
            )
            candidates.append(
                _candidate(name, port, tree, rows, judged[name], (1, 8), share=FEAST_SHARE)
            )
        yield Field(ours, own, candidates, judged)


def _candidate(
    name: str,
    port: int,
    tree: Tree,
    rows: Sequence[bytes],
    verdict: Callable[[int, int, bytes], str],
    points: Sequence[int] = CONCURRENCY,
    share: float = 1.0,
) -> Candidate:
    target = Target(f"http://127.0.0.1:{port}/score", headers=JSON)
    return Candidate(name, target, tree, itertools.cycle(rows), verdict, points, share)


def _redis_pid(port: int) -> int:
    import redis

    client: Any = redis.Redis(port=port)
    return int(client.info("server")["process_id"])


def _result(
    found: Medians,
    at_rate: OpenRate,
    spent: dict[str, float],
    judged: dict[str, Judged],
    each: int,
    repeats: int,
    price: float,
    policy: str,
) -> Result:
    from benchmarks import reasons

    told = reasons.figures_of_one_row()
    ours, stack = judged[named.OURS], judged[named.FEAST]
    cpu = found.cpu_us(named.OURS, 8)
    table = stages.table(spent, ours.not_approved, found.ms(named.OURS, 1, 50) * 1e3, cpu)
    figures = {
        **named.comparisons(found),
        "open_loop_p99_ms": at_rate.ms(99),
        "open_loop_p999_ms": at_rate.ms(99.9),
        "open_loop_p50_ms": at_rate.ms(50),
        "open_loop_qps": at_rate.rate,
        "open_loop_client_lag_p99_ms": at_rate.client_lag_ms,
        **told,
        **named.absolutes(found),
        "client_us_c8": found.of(
            named.OURS, 8, lambda s: s.load.client_s / len(s.load.latencies) * 1e6
        ),
        "cost_per_million": named.cost_per_million(cpu, price),
        "not_approved_share": ours.not_approved,
        "feast_stack_not_approved_share": stack.not_approved,
        "feast_stack_features_known": stack.features / max(stack.answers, 1),
        **stages.names(spent),
        "errors": sum(found.errors.values()) + at_rate.errors,
    }
    notes = (
        "bare: FastAPI and the model, scores a ready row, stores nothing; feast stack: FastAPI, "
        "Feast's Redis store, XGBoost, pred_contribs, stores nothing, counts nothing, explains "
        f"every {EXPLAINED}th answer (by scores of values that stand still it would be more); "
        "default serve: the same application behind Ray Serve's proxy, in a session of its own; "
        "these two took turns after the others, each while the other's session idled",
        f"{each} requests a turn at c=1, {repeats} turns; closed loop, client on the same cores; "
        "the slower candidates get fewer requests a turn",
        f"policy: the rules of {policy} with the thresholds of the model",
        f"open loop: {OF_SATURATION:.0%} of the highest rate of the closed loop",
        f"cost_per_million: CPU of all processes at c=8, at {price:g} for a core and hour",
        "each request's event and decision were found in the log exactly once",
        "where each microsecond goes:",
        *table,
    )
    shown: dict[str, Callable[[Sample], float]] = {
        "p50 ms": lambda s: s.load.percentile_ms(50),
        "p99 ms": lambda s: s.load.percentile_ms(99),
        "qps": lambda s: s.load.rate,
    }
    samples = {
        f"{name} c{c} {what}": [figure(s) for s in runs]
        for (name, c), runs in found.samples.items()
        for what, figure in shown.items()
    }
    return Result(SUITE, figures, samples, notes, seconds_per_sample=False)
