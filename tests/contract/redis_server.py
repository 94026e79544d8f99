"""A real Redis for a test run: a process of its own on a free loopback port."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import redis

from tests.installed import program

PROGRAM = program("redis-server", "redis-server")

needs_redis = pytest.mark.skipif(
    PROGRAM is None, reason="no redis-server: apt-get install --no-install-recommends redis-server"
)


class RedisServer:
    """One redis-server, without persistence; ``options`` are lines of its configuration."""

    def __init__(self, directory: Path, *options: str) -> None:
        self._directory = directory
        self._options = options
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.start()

    def url(self, db: int = 0) -> str:
        return f"redis://127.0.0.1:{self.port}/{db}"

    def client(self, **options: object) -> redis.Redis:
        return redis.Redis(port=self.port, **options)  # type: ignore[arg-type]

    def start(self) -> None:
        assert PROGRAM is not None
        lines = ["bind 127.0.0.1", 'save ""', f"dir {self._directory}", f"port {self.port}"]
        self.process = subprocess.Popen(
            [PROGRAM, "-"],
            stdin=subprocess.PIPE,
            stdout=(self._directory / "redis.log").open("ab"),
            stderr=subprocess.STDOUT,
        )
        assert self.process.stdin is not None
        self.process.stdin.write("\n".join([*lines, *self._options, ""]).encode())
        self.process.stdin.close()
        deadline = time.monotonic() + 30
        while True:
            try:
                self.client().ping()
            except redis.exceptions.AuthenticationError:
                return
            except redis.exceptions.ConnectionError:
                assert self.process.poll() is None, "redis-server ended"
                assert time.monotonic() < deadline, "redis-server doesn't answer"
                time.sleep(0.02)
            else:
                return

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
