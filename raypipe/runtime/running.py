"""Which process owns a home folder: ``up`` and ``serve`` write it, ``status`` and ``down`` read it.

``home/run.json`` tells what runs; a lock on ``home/run.lock``, held for the owner's life, makes it
the only one. Both survive any death: the kernel drops the lock, and a run.json whose process is
gone, or whose pid now belongs to another process, counts as absent.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from raypipe import __version__
from raypipe.clock import Clock, SystemClock
from raypipe.errors import Conflict

RUN_FILE = "run.json"
LOCK_FILE = "run.lock"

_SAME_PROCESS_S = 0.5
_RESEND_S = 10.0


@dataclass(frozen=True, slots=True)
class Running:
    """A process that owns a home folder.

    ``born_s`` is when it was created in seconds since boot: unlike the time of day, a step of the
    clock doesn't change it. ``started_at`` is ms UTC. The urls are empty until they are known.
    """

    pid: int
    born_s: float
    started_at: int
    verb: str
    state: str = "starting"
    http_url: str = ""
    ray_address: str = ""
    version: str = __version__

    @property
    def alive(self) -> bool:
        """Whether exactly this process still runs."""
        born = _born_s(self.pid)
        return born is not None and abs(born - self.born_s) < _SAME_PROCESS_S


class Claim:
    """The right to write run.json, and what it says now."""

    def __init__(self, file: Path, running: Running) -> None:
        self._file = file
        self.running = running
        self._write()

    def announce(self, http_url: str, ray_address: str = "") -> None:
        """Tell others that decisions are served now, and where."""
        self.running = replace(
            self.running, state="serving", http_url=http_url, ray_address=ray_address
        )
        self._write()

    def _write(self) -> None:
        temporary = self._file.with_suffix(f".{self.running.pid}")
        temporary.write_text(json.dumps(asdict(self.running), indent=2) + "\n")
        temporary.replace(self._file)


@contextmanager
def claim(home: Path, verb: str, clock: Clock | None = None) -> Iterator[Claim]:
    """Own a home folder while the block runs. Raises Conflict when another process does."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(home / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(descriptor, home)
        pid = os.getpid()
        now_ms = (clock or SystemClock()).now_ms()
        try:
            yield Claim(home / RUN_FILE, Running(pid, _born_s(pid) or 0.0, now_ms, verb))
        finally:
            (home / RUN_FILE).unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, home: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        other = find(home)
        raise Conflict(
            f"`raypipe {other.verb}` (pid {other.pid}) runs on {home}"
            if other
            else f"another process is starting or stopping on {home}",
            hint="`raypipe status` shows it, `raypipe down` stops it; or use another --home.",
        ) from None


def read(home: Path) -> Running | None:
    """What run.json says, alive or not; None when there is none or it can't be read."""
    try:
        values = json.loads((home / RUN_FILE).read_text())
        return Running(**values)
    except (OSError, ValueError, TypeError):
        return None


def find(home: Path) -> Running | None:
    """The process that owns a home folder now, if any."""
    found = read(home)
    return found if found is not None and found.alive else None


READY = ("/readyz", "/v1/recommendations/readyz")
"""Where it is asked; a server that only recommends has no first one."""


def ready(http_url: str, timeout_s: float = 2.0) -> tuple[bool, str]:
    """Whether the server says that it can answer, and its words."""
    import httpx

    try:
        # trust_env=False: a proxy of the environment has no business on this machine's loopback.
        for path in READY:
            answer = httpx.get(f"{http_url}{path}", timeout=timeout_s, trust_env=False)
            if answer.status_code != 404:
                break
    except httpx.HTTPError as e:
        return False, f"{type(e).__name__}: {e}"
    return answer.status_code == 200, f"{answer.status_code} {answer.text[:200].strip()}"


def refusal(host: str, port: int) -> str:
    """Why no server could listen there now; "" if one could."""
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            # As servers do: a port in TIME_WAIT is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as e:
        return e.strerror or str(e)
    return ""


def stop(
    running: Running,
    timeout_s: float,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> bool:
    """Ask exactly this process to stop (SIGTERM) and wait; False if it still runs after that.

    The request is repeated now and then: one that arrives while a library holds the handler is
    lost, and one that arrives while the process is already stopping is ignored there.
    """
    began = clock()
    asked: float | None = None
    while running.alive:
        now = clock()
        if asked is None or now - asked >= _RESEND_S:
            try:
                os.kill(running.pid, signal.SIGTERM)
            except ProcessLookupError:
                return True
            asked = now
        if now - began >= timeout_s:
            return False
        pause(0.1)
    return True


def _born_s(pid: int) -> float | None:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return process.create_time() - psutil.boot_time()
    except psutil.NoSuchProcess:
        return None
