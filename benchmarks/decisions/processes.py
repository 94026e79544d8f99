"""Servers under load as processes of their own, and the CPU that their trees use."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness import check
from benchmarks.wire import Target

START_S = 600.0
ANSWER_S = 60.0


@dataclass
class Tree:
    """Processes and all that they started, also what has ended meanwhile."""

    pids: Sequence[int]
    _last: dict[int, float] = field(default_factory=dict)

    def cpu_s(self) -> float:
        """CPU seconds of all processes so far. What a process used after it was seen last and
        before it ended is not in it; servers under load don't end."""
        for process in self.processes():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            self._last[process.pid] = times.user + times.system
        return sum(self._last.values())

    def processes(self) -> list[psutil.Process]:
        """Those that run now, the first ones included."""
        found = []
        for pid in self.pids:
            try:
                root = psutil.Process(pid)
                found += [root, *root.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
        return found


@dataclass(frozen=True)
class System:
    """A running raypipe."""

    url: str
    key: str
    home: Path
    tree: Tree
    summary: dict[str, Any]

    def target(self, path: str = "/v1/decisions", timeout_s: float = 30.0, **more: str) -> Target:
        """Where decisions are asked for."""
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        named = {k.replace("_", "-"): v for k, v in more.items()}
        return Target(self.url + path, headers=headers | named, timeout_s=timeout_s)


def command(*words: str, code: int = 0) -> str:
    """Run a verb of the command line to its end; its stdout."""
    done = subprocess.run(
        [sys.executable, "-m", "raypipe", *words], stdout=subprocess.PIPE, text=True, check=False
    )
    check(done.returncode == code, f"raypipe {words[0]} ended with {done.returncode}")
    return done.stdout


@contextmanager
def raypipe(verb: str, home: Path, *words: str) -> Iterator[System]:
    """`raypipe up` or `raypipe serve` on a home, until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "raypipe", verb, "--home", os.fspath(home), "--json", *words],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        check(bool(line), f"raypipe {verb} ended before it served")
        summary: dict[str, Any] = json.loads(line)
        serving = summary.get("serving", summary)
        check("api_key" in serving, f"raypipe {verb} did not serve: {summary}")
        key = Path(serving["api_key"]).read_text().strip()
        yield System(serving["url"], key, home, Tree([process.pid]), serving)
    finally:
        _end(process)


@contextmanager
def peer(*words: str, port: int, beside: Sequence[int] = ()) -> Iterator[Tree]:
    """A peer's server by its module and arguments, the port last; up when it answers there.

    ``beside`` are processes that belong to it.
    """
    process = subprocess.Popen([sys.executable, "-m", *words, str(port)])
    try:
        _await(f"http://127.0.0.1:{port}/docs", process)
        yield Tree([process.pid, *beside])
    finally:
        _end(process)


def _end(process: subprocess.Popen[Any], within_s: float = 120.0) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _await(url: str, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + ANSWER_S
    while True:
        check(process.poll() is None, "the peer ended before it answered")
        try:
            urllib.request.urlopen(url, timeout=1).close()  # noqa: S310 - loopback
        except (urllib.error.URLError, OSError):
            check(time.monotonic() < deadline, "the peer doesn't answer")
            time.sleep(0.1)
        else:
            return
