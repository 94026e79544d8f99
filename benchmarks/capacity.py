"""What the batch carries: MB/s per core from log to features, on one core and on two.

No peer: `windows` has one. Writes docs/capacity.md. A MB is of the events as Arrow columns in
memory, before any compression. The whole batch path is measured: export from the log, shuffle
through Ray Data, kernel, values before and after each event, states, indexes, manifest; starting
Ray is not in it. Each number of cores is a process of its own that is pinned to them, Ray's
processes too.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks import history, planning
from benchmarks.harness import HERE, Result, check, document, summarise

SUITE = "capacity"
CORES = (1, 2)
TERABYTES, HOURS = 10, 4
SPOT_USD_PER_CORE_HOUR = 0.02
"""An assumption, not a quotation: a vCPU of a general-purpose machine at some 60 % below its
on-demand price. `--spot-usd-per-core-hour` takes yours."""

PAGE = HERE.parent / "docs" / "capacity.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes; the defaults are those of committed results."""
    parser.add_argument("--events", type=int, help="payments of the history")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--page", type=Path, help="where the page goes; full runs: docs/")
    parser.add_argument(
        "--spot-usd-per-core-hour", type=float, default=SPOT_USD_PER_CORE_HOUR, metavar="USD"
    )


def run(args: argparse.Namespace) -> Result:
    """Measure, then write the page."""
    events = args.events or (60_000 if args.quick else 1_000_000)
    repeats = 1 if args.quick else args.repeats
    days = 5
    samples: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="raypipe-bench-") as folder:
        _fill(Path(folder), days, events // days)
        found: dict[int, dict[str, Any]] = {}
        for cores in CORES:
            found[cores] = _measured(Path(folder), cores, repeats)
            samples[f"{cores} core{'s' * (cores > 1)}"] = found[cores]["seconds"]
    check(found[1]["files"] == found[2]["files"], "one core and two gave different files")
    mb = history.arrow_bytes(days, events // days) / 1e6
    one, two = (mb / summarise(found[c]["seconds"]).median for c in CORES)
    figures: dict[str, Any] = {
        "mb_per_s_per_core": two / 2,
        "mb_per_s_1_core": one,
        "mb_per_s_2_cores": two,
        "speedup_2_cores": two / one,
        "events": events,
        "bytes_per_event": mb * 1e6 / events,
        "events_per_s_per_core": events * two / mb / 2,
    }
    planned, _, notes = planning.measure(quick=args.quick, repeats=2 if args.quick else 5)
    figures |= {f"planning_{name}": value for name, value in planned.items()}
    estimate = _estimate(figures, args.spot_usd_per_core_hour)
    result = Result(SUITE, figures, samples, (*notes, *estimate))
    page = args.page or (None if args.quick else PAGE)
    if page is not None:
        page.write_text(_page(document(result, quick=args.quick, arguments=[])))
    return result


def _fill(home: Path, days: int, a_day: int) -> None:
    from raypipe.log.sqlite import SqliteLog

    with closing(SqliteLog(home / "log")) as log:
        history.seal(log, days, a_day)


def _measured(home: Path, cores: int, repeats: int) -> dict[str, Any]:
    words = [sys.executable, "-m", "benchmarks.capacity", str(home), str(cores), str(repeats)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    check(done.returncode == 0, f"{cores} cores: {done.stderr[-2_000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _estimate(figures: dict[str, Any], price: float) -> tuple[str, ...]:
    need = TERABYTES * 1e6 / (HOURS * 3_600)
    cores = need / figures["mb_per_s_per_core"]
    cost = cores * HOURS * price / TERABYTES
    # If every doubling gains what the first one did.
    gain = math.log2(figures["speedup_2_cores"])
    worst = (need / figures["mb_per_s_1_core"]) ** (1 / gain) if gain > 0 else math.inf
    return (
        f"ESTIMATE, not measured: {TERABYTES} TB in {HOURS} h is {need:,.0f} MB/s: {cores:,.0f} "
        "cores at the rate of a core when both are busy",
        f"ESTIMATE, not measured: if each doubling of cores gained no more than the first did, "
        f"{worst:,.0f} cores; what shares the machine with the benchmark is in that gain",
        f"ESTIMATE, not measured: at an assumed {price} USD a core and hour on spot, "
        f"{cost:,.2f} USD a TB with {cores:,.0f} cores",
    )


def _page(doc: Mapping[str, Any]) -> str:
    on, f = doc["machine"], doc["figures"]
    notes = [n for n in doc["notes"] if n.startswith("ESTIMATE")]
    rows = [
        ("MB/s per core, both cores busy", f"{f['mb_per_s_per_core']:.2f}"),
        ("MB/s on one core", f"{f['mb_per_s_1_core']:.2f}"),
        ("MB/s on two cores", f"{f['mb_per_s_2_cores']:.2f}"),
        ("speed-up from one core to two", f"{f['speedup_2_cores']:.2f}"),
        ("events/s per core, six views each", f"{f['events_per_s_per_core']:,.0f}"),
        ("bytes of an event as Arrow", f"{f['bytes_per_event']:.0f}"),
        (
            f"planning {f['planning_days']} days x {f['planning_buckets']} buckets, "
            f"{f['planning_files']:,} files",
            f"{f['planning_plan_s']:.2f} s",
        ),
        ("manifest, bytes a day", f"{f['planning_manifest_bytes_per_day']:,.0f}"),
        ("indexes, bytes a file", f"{f['planning_index_bytes_per_file']:.0f}"),
    ]
    return "\n".join(
        [
            "# Capacity",
            "",
            "What the batch path carries, from the event log to features, states and manifest.",
            "Made by `python -m benchmarks capacity`"
            f"{' --quick' if doc['quick'] else ''} on {doc['date'][:10]}: {on['cpu']}, "
            f"{on['cores_usable']} cores, {on['memory_gib']} GiB, load {on['load_1m']} at the end.",
            "",
            "## Measured",
            "",
            "| what | figure |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in rows),
            "",
            "A MB is of events as Arrow columns, uncompressed. The input was "
            f"{f['events']:,} payments of five days with their chargebacks; two cores and one gave "
            "the same files, byte for byte.",
            "",
            "## Estimated from that, not measured",
            "",
            *(f"- {n.removeprefix('ESTIMATE, not measured: ')}." for n in notes),
            "",
            "These assume that a core of the cluster is one of these and that network and object "
            "store keep up. Nobody ran them. The price is an assumption, not a quotation. The key "
            "buckets are 1,024, so at most 1,024 tasks work on one entity at a "
            "time.",
            "",
        ]
    )


def _child(home: Path, cores: int, repeats: int) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    from features import passes
    from features.payments import project
    from features.pipeline import compute
    from raypipe.config import Settings
    from raypipe.log.sqlite import SqliteLog
    from raypipe.runtime import session
    from raypipe.runtime.progress import Quiet

    passes.TASK_ROWS = 0  # what a large history takes: the shuffle
    seconds, files = [], {}
    session.start(Settings(home=home / f"ray-{cores}", ray_num_cpus=cores))
    try:
        for turn in range(repeats + 1):
            lake = home / f"lake-{cores}-{turn}"
            settings = Settings(home=home, lake_url=str(lake), features_blocks=4)
            with closing(SqliteLog(home / "log")) as log:
                started = time.perf_counter()
                made = compute(project, log, settings, Quiet())
                if turn:
                    seconds.append(time.perf_counter() - started)
            files = made.files
    finally:
        session.stop()
    print(json.dumps({"seconds": seconds, "files": files}))


if __name__ == "__main__":
    _child(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
