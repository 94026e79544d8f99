"""Processes that can be killed and be there again within milliseconds: forks of one that has
imported all and done what the module's ``prepare`` does, if it has one. A start from nothing costs
seconds of imports, which no recovery test is about.

Run as ``python -m tests.recovery.nursery MODULE``; each line on its standard input, a JSON object
of ``words`` and ``env``, has it fork a process that runs the module's ``start(*words)`` under that
environment. It answers with the process's id.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class Child:
    """One process of a nursery."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._fd = os.pidfd_open(pid)
        except ProcessLookupError:  # it is dead already, and nobody waits for it
            self._fd = -1

    @property
    def ended(self) -> bool:
        """Whether it is dead."""
        return self._fd < 0 or self._wait(0)

    def kill(self) -> bool:
        """Kill it without warning and wait for its end; False if it was dead."""
        if self.ended:
            self._close()
            return False
        signal.pidfd_send_signal(self._fd, signal.SIGKILL)
        self._wait(None)
        self._close()
        return True

    def _wait(self, timeout_ms: int | None) -> bool:
        """Whether it has ended by then. By poll: select() knows no descriptor over 1,023."""
        ends = select.poll()
        ends.register(self._fd, select.POLLIN)
        return bool(ends.poll(timeout_ms))

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Nursery:
    """Starts processes of one module; usable as a context manager."""

    def __init__(self, module: str, env: Mapping[str, str] | None = None) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.recovery.nursery", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
            cwd=ROOT,
        )

    def start(
        self,
        words: Sequence[object],
        env: Mapping[str, str] | None = None,
        errors: Path | None = None,
    ) -> Child:
        """A new process, which has more environment and appends its errors to a file."""
        order = {"words": [*map(str, words)], "env": dict(env or {}), "errors": str(errors or "")}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            said = self._process.stdout.readline()
        assert said, "the nursery ended"
        return Child(int(said))

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def _born(module: Any, order: dict[str, Any]) -> None:
    from raypipe import aborts

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.update(order["env"])
    importlib.reload(aborts)  # it reads the environment when it is imported
    quiet = os.open(os.devnull, os.O_RDWR)
    os.dup2(quiet, 0)
    os.dup2(quiet, 1)
    if order["errors"]:
        os.dup2(os.open(order["errors"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), 2)
    if "disk.so" in os.environ.get("LD_PRELOAD", ""):
        ctypes.CDLL(None).disk_begin()
    module.start(*order["words"])


def main(name: str) -> None:
    """Fork until standard input ends."""
    module = importlib.import_module(name)
    getattr(module, "prepare", int)()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin.buffer:
        pid = os.fork()
        if not pid:
            try:
                _born(module, json.loads(line))
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
