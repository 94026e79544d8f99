"""Processes that can be killed and be there again within milliseconds: forks of one that has
imported all and done what the module's ``prepare`` does, if it has one. A start from nothing costs
seconds of imports, which no recovery test is about.

Run as ``python -m tests.recovery.nursery`` with a socket as its standard input. Each message is a
JSON object with descriptors for output and errors; it is answered with the process's id, or with
the status that one has ended with. A fork has one thread only, so ``prepare`` must not start any.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0
_MESSAGE = 2**16


class Child:
    """One process of a nursery."""

    def __init__(self, nursery: Nursery, pid: int, out: IO[str] | None) -> None:
        self.pid = pid
        self.out = out
        """What it says on its standard output, if somebody wanted to hear it."""
        self._nursery = nursery
        self._fd = os.pidfd_open(pid)

    @property
    def ended(self) -> bool:
        """Whether it is dead."""
        return self._fd < 0 or self._wait(0)

    def kill(self) -> bool:
        """Kill it without warning and wait for its end; False if it was dead."""
        lived = not self.ended
        if lived:
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)
            self._wait(None)
        self._close()
        return lived

    def wait(self) -> int:
        """Its exit status when it has ended by itself, or the negative of the signal it died of."""
        assert self._wait(int(PATIENCE_S * 1_000)), f"process {self.pid} does not end"
        self._close()
        return self._nursery.status_of(self.pid)

    def _wait(self, timeout_ms: int | None) -> bool:
        """Whether it has ended by then. By poll: select() knows no descriptor over 1,023."""
        ends = select.poll()
        ends.register(self._fd, select.POLLIN)
        return bool(ends.poll(timeout_ms))

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@dataclass(frozen=True)
class Finished:
    """What came of a process that was waited for."""

    status: int
    out: str
    err: str


class Nursery:
    """Starts processes; usable as a context manager.

    Args:
        env: more environment of all of them, such as a library that is loaded first.
    """

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        self._lock = threading.Lock()
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.recovery.nursery"],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
                cwd=ROOT,
            )

    def start(
        self,
        function: Callable[..., object],
        *words: object,
        env: Mapping[str, str] | None = None,
        errors: Path | None = None,
        heard: bool = False,
    ) -> Child:
        """A new process, which calls a function of a module with words.

        Args:
            env: its further environment.
            errors: a file that its standard error is appended to.
            heard: whether its standard output can be read.
        """
        with ExitStack() as until_sent:
            fds: dict[str, int] = {}
            out = None
            if errors is not None:
                fds["2"] = until_sent.enter_context(errors.open("ab")).fileno()
            if heard:
                read, fds["1"] = os.pipe()
                until_sent.callback(os.close, fds["1"])
                out = os.fdopen(read)
            return self._start(function, words, env, fds, out)

    def finish(
        self, function: Callable[..., object], *words: object, env: Mapping[str, str] | None = None
    ) -> Finished:
        """Have a process come to its end, and say what it said."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            fds = {"1": out.fileno(), "2": err.fileno()}
            status = self._start(function, words, env, fds, None).wait()
            for file in (out, err):
                file.seek(0)
            return Finished(status, out.read(), err.read())

    def status_of(self, pid: int) -> int:
        """What a process that has ended ended with."""
        with self._lock:
            return self._told({"ended": pid}, [])

    def _start(
        self,
        function: Callable[..., object],
        words: tuple[object, ...],
        env: Mapping[str, str] | None,
        fds: Mapping[str, int],
        out: IO[str] | None,
    ) -> Child:
        order = {
            "module": function.__module__,
            "function": function.__name__,
            "words": [*map(str, words)],
            "env": dict(env or {}),
            "fds": [*fds],
        }
        with self._lock:  # its id is its own until the next order
            return Child(self, self._told(order, [*fds.values()]), out)

    def _told(self, order: dict[str, Any], fds: list[int]) -> int:
        socket.send_fds(self._orders, [json.dumps(order).encode()], fds)
        said = self._orders.recv(_MESSAGE)
        assert said, "the nursery ended"
        return int(said)

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self._orders.close()
        self._process.wait()


def _born(order: dict[str, Any], fds: list[int]) -> None:
    from raypipe import aborts

    os.environ.update(order["env"])
    importlib.reload(aborts)  # it reads the environment when it is imported
    quiet = os.open(os.devnull, os.O_RDWR)
    for target in (0, 1):
        os.dup2(quiet, target)
    for target, fd in zip(map(int, order["fds"]), fds, strict=True):
        os.dup2(fd, target)
        os.close(fd)
    if "disk.so" in os.environ.get("LD_PRELOAD", ""):
        ctypes.CDLL(None).disk_begin()
    getattr(sys.modules[order["module"]], order["function"])(*order["words"])


def _live(order: dict[str, Any], fds: list[int]) -> int:
    """All that a new process does; its exit status."""
    status = 0
    try:
        _born(order, fds)
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    sys.stdout.flush()
    return status


@cache
def _prepare(name: str) -> None:
    getattr(importlib.import_module(name), "prepare", int)()
    assert threading.active_count() == 1, f"{name} starts threads, which no fork has"


def main() -> None:
    """Fork until nobody orders any more."""
    importlib.import_module("pandas")  # as pyarrow does when it is first given rows
    with socket.socket(fileno=os.dup(0)) as orders:
        ended: dict[int, int] = {}
        while True:
            message, fds, *_ = socket.recv_fds(orders, _MESSAGE, 2)
            if not message:
                return
            order = json.loads(message)
            if "ended" in order:
                pid = order["ended"]
                answer = ended.pop(pid) if pid in ended else _status(os.waitpid(pid, 0))[1]
            else:
                _prepare(order["module"])
                _bury(ended)
                answer = os.fork()
                if not answer:
                    orders.close()
                    os._exit(_live(order, fds))
                for fd in fds:
                    os.close(fd)
            orders.send(b"%d" % answer)


def _bury(ended: dict[int, int]) -> None:
    """Wait for all that are dead."""
    while True:
        try:
            pid, status = _status(os.waitpid(-1, os.WNOHANG))
        except ChildProcessError:
            return
        if not pid:
            return
        ended[pid] = status


def _status(waited: tuple[int, int]) -> tuple[int, int]:
    return waited[0], os.waitstatus_to_exitcode(waited[1])


if __name__ == "__main__":
    main()
