"""Upkeep of a worker's log, in a process of its own beside it.

A thread of the worker starts the process and starts it again if it dies; the process ends by itself
when its standard input does, so it outlives no worker, however that one ends. It takes what the
worker leaves of the cores, except while it has the log's write lock, for which the worker waits.
"""

from __future__ import annotations

import logging
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import msgspec
import pyarrow as pa

from raypipe.clock import SystemClock
from raypipe.errors import ConfigError, RaypipeError
from raypipe.log.partitions import folder
from raypipe.log.sqlite import SqliteLog
from raypipe.log.upkeep import Policy, policy, upkeep
from raypipe.ownership.routes import projected
from raypipe.project import Project

if TYPE_CHECKING:
    from raypipe.config import Settings

EAGER = 5
"""Added to the worker's niceness: a third of its share of a core that both want."""

PATIENT = 19
"""Next to nothing of a core that somebody else wants."""

RESTART_S = 60.0

_log = logging.getLogger("raypipe.upkeep")


class Order(msgspec.Struct, frozen=True):
    """What the process is told on its standard input."""

    log_url: str
    partition: int
    every_s: float
    rules: Policy


class Upkeep:
    """The process, watched until ``stop``."""

    def __init__(self, order: Order, *, restart_s: float = RESTART_S) -> None:
        self._order = order
        self._restart_s = restart_s
        self._stopping = threading.Event()
        self._starting = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._watch, name="upkeep", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while (process := self._start()) is not None:
            status = process.wait()
            if self._stopping.is_set():
                return
            _log.warning("upkeep of the log ended with %d, again in %g s", status, self._restart_s)
            if self._stopping.wait(self._restart_s):
                return

    def _start(self) -> subprocess.Popen[bytes] | None:
        with self._starting:
            if self._stopping.is_set():
                return None
            # The same code as here: Ray may have put folders on the path.
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            process = subprocess.Popen(
                [sys.executable, "-m", "raypipe.runtime.upkeep"],
                stdin=subprocess.PIPE,
                env=environment,
            )
            self._process = process
        assert process.stdin is not None  # noqa: S101 - for the type checker
        try:
            process.stdin.write(msgspec.json.encode(self._order) + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            _log.warning("upkeep of the log ended before it began")
        return process

    @property
    def pid(self) -> int | None:
        """Of the process, for tests."""
        return None if self._process is None else self._process.pid

    def stop(self) -> None:
        """End the process; what it was at is finished by the next one."""
        self._stopping.set()
        with self._starting:
            if self._process is not None:
                self._process.kill()
        self._thread.join()


def start(settings: Settings, project: Project, partition: int) -> Upkeep | None:
    """Begin upkeep as the settings say; None if they say never, or for a log that isn't embedded.

    Raises ConfigError for a retention that is shorter than what the project's windows need, or
    that no one would carry out.
    """
    if not settings.log_url.startswith("sqlite:"):
        if settings.log_retention_days is not None:
            raise ConfigError(
                f"log_retention_days is {settings.log_retention_days}, and the log isn't embedded",
                hint="A log on Kafka keeps its rows: leave the setting out.",
            )
        return None
    rules = rules_of(settings, project)
    if not settings.log_compact_minutes:
        return None
    every_s = settings.log_compact_minutes * 60
    return Upkeep(Order(settings.log_url, partition, every_s, rules))


def rules_of(settings: Settings, project: Project) -> Policy:
    """What stays live, and how long events are kept, for a project's log."""
    needed = [v.horizon * 1_000 for v in project.views] + [t.keep_ms for t in project.tables]
    names = [e.name for e in project.events]
    if settings.workers > 1:
        names += [projected(name) for name in names]
    return policy(
        names,
        max(needed, default=0),
        retention_days=settings.log_retention_days,
    )


def yield_to_worker() -> Callable[[], AbstractContextManager[None]]:
    """Leave this machine's cores to others: one thread, and what is left of a core.

    Returns what this thread enters while somebody waits for it. Linux has a niceness for each
    thread, and lowering it again takes a privilege; without it the share is that of EAGER, always.
    """
    pa.set_cpu_count(1)
    niceness = os.nice(EAGER)
    if not _may_hurry(niceness):
        return nullcontext

    @contextmanager
    def eager() -> Iterator[None]:
        _be(niceness)
        try:
            yield
        finally:
            _be(PATIENT)

    _be(PATIENT)
    return eager


def _be(niceness: int) -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)


def _may_hurry(niceness: int) -> bool:
    """Whether a thread that was more patient may be as it was before; tried in one that ends."""
    may: list[bool] = []

    def try_it() -> None:
        try:
            _be(min(niceness + 1, PATIENT))
            _be(niceness)
        except OSError:
            may.append(False)
        else:
            may.append(True)

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    return may == [True]


def main() -> None:
    """Do a round every ``every_s`` until standard input ends."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    eager = yield_to_worker()
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    log = SqliteLog(folder(SqliteLog.directory_of(order.log_url), order.partition), eager=eager)
    while not select.select([sys.stdin], [], [], order.every_s)[0]:
        try:
            done = upkeep(log, order.partition, order.rules, SystemClock())
        except RaypipeError as e:
            _log.warning("the next round tries again: %s", e)
            continue
        if done.compacted_rows or done.expired:
            _log.info("partition %d: %s", order.partition, done)


if __name__ == "__main__":
    main()
