"""A cluster of several hosts from nothing: `ray up`, jobs, decisions, and what a lost host costs.

The hosts are namespaces of this machine with SSH servers of their own, launched by the project's
cluster.yaml through Ray's local provider. One host is powered off during the sweep, and one during
serving. One run is one sample: it takes minutes, and nothing else does the same job beside it.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.harness import Result, check
from benchmarks.hosts.cluster import DASHBOARD_PORT, HTTP_PORT, ROOT, Cluster, environment, kept
from benchmarks.hosts.network import Host, network, require
from raypipe.clock import DAY_MS, SystemClock
from raypipe.ledger.record import LOG_KIND, TOLD_KIND, DecisionRecord, decode
from raypipe.ledger.spill import SPILL_FILE, Spill
from raypipe.log.sqlite import SqliteLog

SUITE = "launch"
PATIENCE_S = 45.0
START_S = 600
FEATURES_S = 900
"""Enough for two busy cores on which three hosts compile the window kernel."""

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is done."""

    events: int = 12_000
    trials: int = 6
    decisions: int = 500
    rate: float = 12.0


@dataclass
class Story:
    """What happened, in order; times in seconds from the call of `ray up`."""

    times: dict[str, float] = field(default_factory=dict)
    features: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)
    """What the client saw of each decision (``hosts/caller.py``)."""
    readers: set[str] = field(default_factory=set)
    """Addresses of the hosts whose replicas have read profiles."""
    stored: dict[str, list[DecisionRecord]] = field(default_factory=dict)
    """Records in the log on the head's disk, by event id."""
    beside: dict[str, list[DecisionRecord]] = field(default_factory=dict)
    """Answers that are not the logged decision: kept as such in the log, or waiting on the disk of
    a host that is off."""

    @property
    def lost(self) -> list[str]:
        """Event ids whose answer no disk holds as it was given, or that were recorded twice."""
        return [i for i, answer in self._answers if not self._logged(i, answer, self.beside)]

    @property
    def waiting(self) -> list[str]:
        """Event ids whose answer is on a disk and is not the decision of the log."""
        nothing: dict[str, list[DecisionRecord]] = {}
        return [i for i, answer in self._answers if not self._logged(i, answer, nothing)]

    @property
    def _answers(self) -> list[tuple[str, dict[str, Any]]]:
        return [(line["event_id"], line["answer"]) for line in self.answered]

    def _logged(
        self, event_id: str, answer: dict[str, Any], beside: dict[str, list[DecisionRecord]]
    ) -> bool:
        stored = self.stored.get(event_id, [])
        return len(stored) <= 1 and any(
            _same(record, answer) for record in (*stored, *beside.get(event_id, []))
        )

    @property
    def degraded(self) -> list[str]:
        """Event ids of decisions that were made without profiles, or for which something failed;
        those made while the worker answered nobody in time are not among them."""
        return [
            event_id
            for event_id, records in self.stored.items()
            if any(r.degraded and not r.worker_away for r in records)
        ]

    @property
    def answered(self) -> list[dict[str, Any]]:
        """Lines with a decision."""
        return [line for line in self.lines if line["answer"] is not None]

    @property
    def failures(self) -> Counter[str]:
        """Attempts that gave no decision, by what came instead."""
        total: Counter[str] = Counter()
        for line in self.lines:
            total.update(line["failures"])
        return total


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes; the defaults are those of committed results."""
    parser.add_argument("--decisions", type=int, default=500)
    parser.add_argument("--rate", type=float, default=12.0, help="decisions asked for a second")
    parser.add_argument("--trials", type=int, default=6)


def run(args: argparse.Namespace) -> Result:
    """Play the whole story once."""
    require()
    sizes = Sizes(decisions=args.decisions, rate=args.rate, trials=args.trials)
    with (
        tempfile.TemporaryDirectory(prefix="raypipe-hosts-") as folder,
        hosts(Path(folder)) as cluster,
    ):
        story = play(cluster, sizes, lambda text: print(text, file=sys.stderr, flush=True))
    seconds = np.array([line["seconds"] for line in story.answered])
    missed = len(story.lines) - len(story.answered)
    times = story.times
    figures = {
        "ray_up_s": times["ray up"],
        "all_workers_s": times["all workers"],
        "submit_to_first_trial_s": times["first trial"] - times["sweep submitted"],
        "deploy_to_first_decision_s": times["first decision"] - times["deployed"],
        "first_decision_s": times["first decision"],
        "decisions": len(story.answered),
        "errors": missed,
        "lost": len(story.lost),
        "not_in_the_log_yet": len(story.waiting),
        "degraded": len(story.degraded),
        "attempts_repeated": sum(story.failures.values()),
        "p50_ms": float(np.percentile(seconds, 50) * 1e3),
        "p99_ms": float(np.percentile(seconds, 99) * 1e3),
        "worst_ms": float(seconds.max() * 1e3),
    }
    check(not story.lost, f"acknowledged decisions are on no disk: {story.lost[:5]}")
    return Result(
        SUITE,
        figures,
        {name: [value] for name, value in times.items()},
        (
            "times are from the call of `ray up`; one run is one sample",
            "errors: decisions that no attempt got; a failed attempt is repeated on another host",
            f"failed attempts by kind: {dict(story.failures)}",
        ),
    )


@contextmanager
def hosts(folder: Path) -> Iterator[Cluster]:
    """Three hosts and a client, powered on, with all that `ray up` needs."""
    with network(folder / "net", kept(), environment()) as net:
        cluster = Cluster(net)
        cluster.boot()
        yield cluster


def play(
    cluster: Cluster,
    sizes: Sizes,
    note: Note,
    visit: Callable[[Cluster], None] = lambda cluster: None,
) -> Story:
    """The whole story on hosts that are powered on; ``visit`` comes when everything is up."""
    story = Story()
    began = time.monotonic()

    def mark(name: str) -> None:
        story.times[name] = time.monotonic() - began
        note(f"{story.times[name]:6.1f} s  {name}")

    cluster.up()
    mark("ray up")
    cluster.await_nodes()
    mark("all workers")
    load_history(cluster, sizes)
    mark("history loaded")
    features = cluster.submit("python -m features.pipeline --json")
    story.features = json.loads(_last_line(cluster.user(features, timeout_s=FEATURES_S)))
    mark("features")
    victim = cluster.nodes[-1]
    [before] = [n["NodeID"] for n in cluster.living() if n["NodeManagerAddress"] == victim.address]
    mark("sweep submitted")
    story.report = sweep(cluster, sizes, victim, before, mark)
    mark("sweep")
    cluster.await_return(victim, before)
    mark("host back")
    cluster.user(f"serve deploy -a http://127.0.0.1:{DASHBOARD_PORT} deploy/serve.yaml")
    mark("deployed")
    await_decisions(cluster)
    mark("first decision")
    visit(cluster)
    mark("decisions begin")
    decide(cluster, sizes, victim, story, mark)
    mark("decisions")
    cluster.call(cluster.head, cluster.on_head("raypipe down"))
    story.stored, story.beside = stored(cluster), beside(cluster)
    cluster.down()
    mark("ray down")
    return story


def load_history(cluster: Cluster, sizes: Sizes) -> None:
    """A simulated world into the log on the head, as `ray exec` does it."""
    size = f"--events {sizes.events} --days 40 --seed 7 --quiet"
    load = "raypipe load ~/world/transactions.parquet ~/world/chargebacks.parquet"
    script = f"raypipe simulate --out ~/world {size} && {load} --map ~/world/load.toml --quiet"
    cluster.user(f"ray exec cluster.local.yaml '{script}'")


def sweep(
    cluster: Cluster, sizes: Sizes, victim: Host, before: str, mark: Callable[[str], None]
) -> dict[str, Any]:
    """The sweep as a job. The host ``victim`` is powered off when the first trial has reported, and
    on again when Ray has counted out its node ``before``; the autoscaler then starts Ray there by
    itself.
    """
    command = cluster.submit(f"python -m training.fraud --trials {sizes.trials} --json")
    with tempfile.TemporaryFile() as output:
        process = cluster.network.popen(cluster.client, cluster.typed(command), output)
        reports = cluster.lake / "tune" / "fraud" / "sweep"
        while process.poll() is None and not any(reports.glob("*/result.json")):
            time.sleep(0.1)
        running = process.poll() is None
        mark("first trial")
        cluster.network.power_off(victim)
        cluster.await_loss(before)
        mark("host counted out")
        cluster.network.power_on(victim)
        code = process.wait()
        output.seek(0)
        said = output.read().decode(errors="replace")
    check(code == 0, f"the sweep failed:\n{said[-4000:]}")
    check(running, f"the sweep ended before a host could be lost:\n{said[-4000:]}")
    report: dict[str, Any] = json.loads(_last_line(said))
    return report


def await_decisions(cluster: Cluster) -> None:
    """Ask for decisions, from the client, until every serving node gives one."""
    key = cluster.head.home / ".raypipe" / "api-key"
    deadline = time.monotonic() + START_S
    while not key.exists():  # the worker makes it when it starts
        check(time.monotonic() < deadline, f"no worker after {START_S:g} s")
        time.sleep(0.1)
    for node in cluster.nodes:
        plan = _plan(cluster, [node], f"first-{node.name}", 1, 1.0, patience_s=START_S)
        [line] = _called(cluster, plan)
        check(line["answer"] is not None, f"no decision from {node.name}: {line}")


def decide(
    cluster: Cluster, sizes: Sizes, victim: Host, story: Story, mark: Callable[[str], None]
) -> None:
    """Ask for all decisions; the host ``victim`` is powered off when a third of them is there."""
    plan = _plan(cluster, cluster.nodes, "d", sizes.decisions, sizes.rate, patience_s=PATIENCE_S)
    for line in _called(cluster, plan):
        story.lines.append(line)
        if victim.up and len(story.lines) >= sizes.decisions // 3:
            # A host's connections go with it.
            story.readers = cluster.online_readers()
            cluster.network.power_off(victim)
            mark("host off")


def stored(cluster: Cluster) -> dict[str, list[DecisionRecord]]:
    """Decisions in the log on the head's disk, by event id."""
    return _by_event(_records(cluster, LOG_KIND))


def beside(cluster: Cluster) -> dict[str, list[DecisionRecord]]:
    """Answers that the log has beside its decisions, and those in the spills of all hosts."""
    found = _records(cluster, TOLD_KIND)
    for host in cluster.nodes:
        folder = host.home / ".raypipe" / "spill"
        if (folder / SPILL_FILE).exists():
            with closing(Spill(folder, sys.maxsize)) as spill:
                found += [row.record for row in spill.rows(0, sys.maxsize)[0]]
    return _by_event(found)


def _records(cluster: Cluster, kind: str) -> list[DecisionRecord]:
    with closing(SqliteLog(cluster.head.home / ".raypipe" / "log")) as log:
        return [
            decode(record)
            for chunk in log.read(0, 0, 1_000_000)
            if chunk.kind == kind
            for record in chunk.batch.column("record").to_pylist()
        ]


def _by_event(records: list[DecisionRecord]) -> dict[str, list[DecisionRecord]]:
    found: dict[str, list[DecisionRecord]] = {}
    for record in records:
        found.setdefault(record.event_id, []).append(record)
    return found


def _same(record: DecisionRecord, answer: dict[str, Any]) -> bool:
    """Whether a record is what a client was told; of a spill no place in the log was told."""
    told = ["decision_id", "score", "action", "decided_at", "model"]
    if answer["event_offset"] is not None:
        told.append("event_offset")
    return [getattr(record, name) for name in told] == [answer[name] for name in told]


def _plan(
    cluster: Cluster, nodes: list[Host], prefix: str, count: int, rate: float, patience_s: float
) -> dict[str, Any]:
    rng = random.Random(prefix)  # noqa: S311 - bodies, not secrets
    now = SystemClock().now_ms()
    seen = pq.read_table(
        cluster.head.home / "world" / "transactions.parquet",
        columns=["card_id", "customer_id", "merchant_id"],
        filters=[("received_at", "<", now // DAY_MS * DAY_MS)],  # so they have profiles
    ).to_pylist()
    bodies = [
        {
            "event_id": f"{prefix}-{n}",
            "event_time": now,
            **rng.choice(seen),
            "amount": rng.randrange(100, 200_000),
            "currency": "EUR",
            "channel": "online",
        }
        for n in range(count)
    ]
    return {
        "urls": [f"http://{node.address}:{HTTP_PORT}" for node in nodes],
        "key": (cluster.head.home / ".raypipe" / "api-key").read_text().strip(),
        "bodies": bodies,
        "rate": rate,
        "patience_s": patience_s,
    }


def _called(cluster: Cluster, plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the client's process tells of each decision, as it comes."""
    file = cluster.client.home / "plan.json"
    file.write_text(json.dumps(plan))
    process = cluster.network.popen(
        cluster.client,
        f"cd {ROOT} && PYTHONPATH={ROOT} python -m benchmarks.hosts.caller ~/plan.json",
    )
    told = 0
    other = []
    for line in _lines(process):
        if line.startswith("{"):
            told += 1
            yield json.loads(line)
        else:
            other.append(line)
    check(
        process.wait() == 0 and told == len(plan["bodies"]),
        f"the client told of {told} of {len(plan['bodies'])} decisions:\n" + "\n".join(other),
    )


def _lines(process: subprocess.Popen[bytes]) -> Iterator[str]:
    for line in process.stdout or ():
        yield line.decode(errors="replace").rstrip()


def _last_line(text: str) -> str:
    """The last line that is a JSON object: jobs end with one, and the client adds its own words."""
    lines = [line for line in text.splitlines() if line.startswith("{")]
    check(bool(lines), f"no JSON object in:\n{text[-4000:]}")
    return lines[-1]
