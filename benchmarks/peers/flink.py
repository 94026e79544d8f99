"""Flink beside the worker: one long job, started once, that is handed file after file."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks.harness import check

HINT = "make flink"
"""What installs it."""

PYTHON = Path(__file__).parents[2] / ".flink" / "bin" / "python"
"""An environment of its own: Flink pins versions of packages that are older than ours."""


def obstacle() -> str:
    """Why Flink can't run here; "" if it can."""
    if not PYTHON.exists():
        return f"Flink is not installed ({HINT})"
    return (
        "" if shutil.which("java") else "there is no Java (apt-get install openjdk-17-jre-headless)"
    )


def version() -> str:
    """Which one is installed."""
    found = PYTHON.parents[1].glob("lib/python*/site-packages/apache_flink-*.dist-info")
    return next(found).name.removesuffix(".dist-info").partition("-")[2]


@dataclass(frozen=True)
class Job:
    """Windows of so many seconds over the files in a folder.

    ``tail`` rows at most wait for the next file's watermark; ``port`` is where the job tells of
    itself.
    """

    events: str
    out: str
    checkpoints: str
    checkpoint_s: int
    spans: list[int]
    tail: int
    port: int


class Flink:
    """A running job."""

    def __init__(self, process: subprocess.Popen[str], job: Job, log: Path) -> None:
        self._process = process
        self._job = job
        self._log = log
        self._taken = 0
        self._java = psutil.Process()

    def ready(self) -> None:
        """Return when the job runs."""
        self._told("ready")
        children = psutil.Process(self._process.pid).children(recursive=True)
        self._java = next(c for c in children if c.name() == "java")

    def take(self, file: Path, rows: int) -> None:
        """Hand over a file, and return when all its rows but the tail are in the windows."""
        name = f"{self._taken:012d}.json"
        hidden = Path(self._job.events) / f".{name}"
        os.link(file, hidden)
        hidden.rename(hidden.with_name(name))
        self._taken += rows
        self._ask(f"{self._taken}\n")
        self._told("done")

    def drain(self) -> None:
        """End the job; all its results are written then."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._told("drained")

    def cpu_s(self) -> float:
        """Seconds of processor that its JVM has used."""
        return sum(self._java.cpu_times()[:2])

    def _ask(self, line: str) -> None:
        if self._process.stdin is None:
            raise RuntimeError("no pipe to Flink")
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def _told(self, word: str) -> None:
        if self._process.stdout is None:
            raise RuntimeError("no pipe from Flink")
        line = self._process.stdout.readline()
        if line != f"{word}\n":
            last = self._log.read_text(errors="replace")[-2_000:]
            check(False, f"Flink ended with an error instead of {word!r}:\n{last}")


@contextmanager
def flink(job: Job, log: Path) -> Iterator[Flink]:
    """The job, running; what it says goes to ``log``."""
    for folder in (job.events, job.out, job.checkpoints):
        Path(folder).mkdir(parents=True)
    with log.open("w") as errors:
        process = subprocess.Popen(
            [
                str(PYTHON),
                str(Path(__file__).with_name("flink_process.py")),
                json.dumps(asdict(job)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "PYTHONWARNINGS": "ignore", "FLINK_LOG_DIR": str(log.parent)},
            start_new_session=True,
        )
    try:
        running = Flink(process, job, log)
        running.ready()
        yield running
    finally:
        # Its JVM too, which outlives the Python that started it.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
