"""What is done to a running system while it answers: kills, releases, updates; each at its time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

from benchmarks.decisions.processes import System, command
from benchmarks.harness import check

REPLICA = "ServeReplica:raypipe:decisions"
WORKER = "WorkerActor"
"""In the titles of Ray's processes, which also tell the method that runs."""
QUIET_START, QUIET_END = 0.1, 0.12
"""Parts of the load before the first fault and after the last one."""
POLL_S = 0.1


@dataclass(frozen=True)
class Fault:
    """Something to do, by name, at its time and not before ``ready``."""

    name: str
    do: Callable[[], None]
    ready: Callable[[], bool] = lambda: True


@dataclass
class Done:
    """A fault that was done: seconds after the load's begin."""

    name: str
    began_s: float
    ended_s: float = 0.0


def times(count: int, seconds: float) -> list[float]:
    """When each of ``count`` faults begins, evenly spread over a load of so many seconds.

    >>> times(3, 100.0)
    [10.0, 49.0, 88.0]
    """
    first, last = QUIET_START * seconds, (1 - QUIET_END) * seconds
    step = (last - first) / max(count - 1, 1)
    return [round(first + i * step, 3) for i in range(count)]


@dataclass
class Faults:
    """Does faults one after the other in a thread, each at its time, or later: when the one before
    has ended and it is ready."""

    planned: Sequence[Fault]
    seconds: float
    done: list[Done] = field(default_factory=list)
    failure: Exception | None = None

    def start(self) -> threading.Thread:
        """Begin with the load."""
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        began = time.monotonic()
        for fault, at in zip(self.planned, times(len(self.planned), self.seconds), strict=True):
            time.sleep(max(0.0, began + at - time.monotonic()))
            while not fault.ready():
                time.sleep(POLL_S)
            this = Done(fault.name, time.monotonic() - began)
            self.done.append(this)
            try:
                fault.do()
            except Exception as e:  # noqa: BLE001 - the load goes on; whoever waits is told
                self.failure = self.failure or e
            this.ended_s = time.monotonic() - began
            print(
                f"availability: {this.began_s:6.1f} s  {fault.name}, "
                f"took {this.ended_s - this.began_s:.1f} s",
                file=sys.stderr,
                flush=True,
            )


def kill(system: System, what: str, *, every: bool = False) -> None:
    """SIGKILL a process of the system by a part of its title: the first, or all."""
    victims = _called(system, what)
    check(bool(victims), f"no process called {what} runs")
    for process in victims if every else victims[:1]:
        os.kill(process.pid, signal.SIGKILL)


def release(system: System, *words: str) -> None:
    """A command that changes what is served, as a user types it."""
    command(*words, "--home", str(system.home), "--quiet")


def rolling_update(system: System, settings: dict[str, Any]) -> None:
    """Deploy the application again: Serve replaces its replicas one by one.

    Args:
        settings: those that it was started with.
    """
    # Serve reads its mode where an application is deployed, too.
    mode = {k: v for k, v in _environment(system).items() if k.startswith("RAY_SERVE_")}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.decisions.rolling", json.dumps(settings)],
        env=os.environ | mode,
        check=False,
    )
    check(done.returncode == 0, f"the rolling update ended with {done.returncode}")


def _environment(system: System) -> dict[str, str]:
    """What the session exported to Ray's processes."""
    found = _called(system, REPLICA)
    check(bool(found), "no replica runs")
    return found[0].environ()


def _called(system: System, what: str) -> list[psutil.Process]:
    marks = ("ray::", what)
    return [p for p in system.tree.processes() if all(m in _title(p) for m in marks)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
