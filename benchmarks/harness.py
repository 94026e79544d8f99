"""What every suite shares: alternating repeats, summaries, the machine, the result and its file.

A suite is a module of this package with a docstring and ``run(args) -> Result``; it may have
``add_arguments(parser)``. Its module name is its permanent id.
"""

from __future__ import annotations

import ast
import gc
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import benchmarks

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PACKAGES = (
    "raypipe", "ray", "feast", "xgboost", "lightgbm", "optuna", "scikit-learn", "numba", "numpy",
    "pyarrow", "polars", "duckdb", "pandas", "fastapi", "uvicorn",
)  # fmt: skip

Figure = float | int | str | None


class WrongResult(Exception):
    """A benchmarked candidate computed something else than it should: no figure counts."""


def check(condition: bool, message: str) -> None:
    """Raise WrongResult with the message unless the condition holds (not removed by ``-O``)."""
    if not condition:
        raise WrongResult(message)


@dataclass(frozen=True, slots=True)
class Summary:
    """Median and quartiles of repeated measurements, in the unit of the samples."""

    n: int
    median: float
    q1: float
    q3: float

    @property
    def iqr(self) -> float:
        """Interquartile range: the spread that is printed beside the median."""
        return self.q3 - self.q1


def summarise(samples: Sequence[float]) -> Summary:
    """Median and quartiles (inclusive method: the samples are the whole population).

    >>> summarise([3.0, 1.0, 2.0, 5.0, 4.0])
    Summary(n=5, median=3.0, q1=2.0, q3=4.0)
    """
    if not samples:
        raise ValueError("no samples to summarise")
    if len(samples) == 1:
        return Summary(1, samples[0], samples[0], samples[0])
    q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    return Summary(len(samples), median, q1, q3)


def alternate(
    candidates: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 5,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each candidate's runs, measured in turns.

    Every round runs each candidate once, and every second round in reverse order, so a machine
    that slows down or speeds up meanwhile hits all alike. Warm-up rounds are not measured.
    Garbage is collected before each run, outside the time.
    """
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warmup + repeats):
        order = list(candidates.items())
        for name, candidate in order if turn % 2 == 0 else reversed(order):
            gc.collect()
            start = clock()
            candidate()
            seconds = clock() - start
            if turn >= warmup:
                samples[name].append(seconds)
    return samples


@dataclass(frozen=True)
class Result:
    """What a suite returns: stable figure names, raw samples by candidate, remarks for people."""

    suite: str
    figures: Mapping[str, Figure]
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    seconds_per_sample: bool = True
    """Whether the samples are durations; else the suite's notes name their unit."""

    def __post_init__(self) -> None:
        plain = {name: _plain(value) for name, value in self.figures.items()}
        for name, value in plain.items():
            finite = not isinstance(value, float) or math.isfinite(value)
            check(finite, f"figure {name!r} is {value}")
        object.__setattr__(self, "figures", plain)


def _plain(value: Any) -> Figure:
    """Python's own number for a NumPy scalar; JSON knows no others."""
    plain: Figure = value.item() if hasattr(value, "item") else value
    return plain


def document(result: Result, *, quick: bool, arguments: Sequence[str]) -> dict[str, Any]:
    """The one JSON object of a run."""
    return {
        "suite": result.suite,
        "figures": dict(result.figures),
        "quick": quick,
        "arguments": list(arguments),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "notes": list(result.notes),
        "samples": {name: [float(v) for v in values] for name, values in result.samples.items()},
    }


def save(doc: Mapping[str, Any], directory: Path = RESULTS) -> Path:
    """Write ``<suite>-<date>.json``; the name carries the time, so no run replaces another."""
    directory.mkdir(parents=True, exist_ok=True)
    stamp = doc["date"].replace(":", "").replace("+0000", "Z")
    path = directory / f"{doc['suite']}-{stamp}.json"
    path.write_text(json.dumps(doc, indent=1, allow_nan=False) + "\n")
    return path


def table(result: Result) -> str:
    """The same for people: candidates with median and spread, then figures, then notes."""
    lines: list[str] = []
    if result.samples:
        width = max(len(n) for n in result.samples)
        unit = " s" if result.seconds_per_sample else ""
        lines.append(f"{'':{width}}  {'median':>11}  {'IQR':>11}  runs")
        for name, values in result.samples.items():
            s = summarise(values)
            lines.append(f"{name:{width}}  {s.median:>9.4g}{unit}  {s.iqr:>9.2g}{unit}  {s.n}")
        lines.append("")
    width = max((len(n) for n in result.figures), default=0)
    for figure, value in result.figures.items():
        lines.append(f"{figure:{width}}  {_number(value)}")
    return "\n".join([*lines, *(f"# {note}" for note in result.notes)])


def _number(value: Figure) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, cores, memory, system, Python, load, git state."""
    import psutil

    return {
        "cpu": _cpu_model(),
        "cores_logical": os.cpu_count(),
        "cores_usable": len(psutil.Process().cpu_affinity())
        if hasattr(psutil.Process, "cpu_affinity")
        else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_1m": round(os.getloadavg()[0], 2),
        "git": _git(),
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _git() -> str:
    def git(*words: str) -> str:
        run = subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=True)
        return run.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions() -> dict[str, str]:
    """Installed versions of what a suite may run."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def suites() -> dict[str, str]:
    """Name and first docstring line of each suite; read from the source, nothing is imported."""
    found = {}
    for path in sorted(p for place in benchmarks.__path__ for p in Path(place).glob("*.py")):
        tree = ast.parse(path.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


@contextmanager
def quiet_stdout() -> Iterator[None]:
    """Send everything that is written to stdout, by child processes too, to stderr meanwhile."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
