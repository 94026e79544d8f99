"""Bodies sent on time over a few connections, whatever the server does: an open loop."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np


@dataclass(frozen=True)
class Post:
    """A body and when its first and last event happened, seconds of ``time.time``."""

    body: bytes
    first: float
    last: float
    rows: int
    headers: tuple[tuple[str, str], ...] = ()
    tag: Any = None


@dataclass
class Sent:
    """What was answered. ``latencies`` are seconds, one for each row's event."""

    seconds: float = 0.0
    rows: int = 0
    latencies: list[np.ndarray[Any, np.dtype[np.float64]]] = field(default_factory=list)
    happened: list[float] = field(default_factory=list)
    """Of each of ``latencies``, when its last event happened: seconds from the beginning."""
    counts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    late: int = 0
    """Posts that waited for a free connection."""

    def percentile_ms(self, q: float) -> float:
        """Over events: from when each happened to the answer to its post."""
        return float(np.percentile(np.concatenate(self.latencies), q) * 1_000)

    def course_ms(self, q: float, step_s: float) -> list[float]:
        """The same for the events of each step of so many seconds."""
        steps: dict[int, list[np.ndarray[Any, np.dtype[np.float64]]]] = {}
        for at, took in zip(self.happened, self.latencies, strict=True):
            steps.setdefault(int(at / step_s), []).append(took)
        return [float(np.percentile(np.concatenate(steps[n]), q) * 1_000) for n in sorted(steps)]


Answered = Callable[[Post, int, dict[str, Any]], None]


async def send(
    url: str, key: str, posts: Iterator[Post], connections: int, answered: Answered | None = None
) -> Sent:
    """Send each post when its last event has happened; returns when all are answered.

    The iterator is asked for the next post when the one before has left.
    """
    sent = Sent()
    parts = urlsplit(url)
    free: asyncio.Queue[_Connection] = asyncio.Queue()
    for _ in range(connections):
        free.put_nowait(_Connection(parts.hostname or "", parts.port or 80))
    started = time.time()
    running: set[asyncio.Task[None]] = set()

    async def one(connection: _Connection, post: Post) -> None:
        try:
            status, answer = await connection.post(parts.path, key, post)
        except OSError as e:
            sent.errors[type(e).__name__] += 1
        else:
            took = time.time() - np.linspace(post.first, post.last, post.rows)
            sent.latencies.append(took)
            sent.happened.append(post.last - started)
            if status in (200, 207):
                for name in ("accepted", "duplicates", "refused"):
                    sent.counts[name] += answer[name]
            else:
                sent.errors[f"{status} {answer.get('code', '')}"] += 1
            if answered is not None:
                answered(post, status, answer)
        finally:
            free.put_nowait(connection)

    for post in posts:
        wait = post.last - time.time()
        if wait > 0:
            await asyncio.sleep(wait)
        if free.empty():
            sent.late += 1
        task = asyncio.create_task(one(await free.get(), post))
        running.add(task)
        task.add_done_callback(running.discard)
        sent.rows += post.rows
    while running:
        await asyncio.wait(set(running))
    sent.seconds = time.time() - started
    return sent


class _Connection:
    """HTTP/1.1 with keep-alive, as little of it as a load needs."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, key: str, post: Post) -> tuple[int, dict[str, Any]]:
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(self._host, self._port)
            reader, writer = self._streams
            headers = {
                "Host": f"{self._host}:{self._port}",
                "Authorization": f"Bearer {key}",
                "Content-Type": "application/x-ndjson",
                "Content-Length": str(len(post.body)),
                **dict(post.headers),
            }
            head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            writer.write(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode())
            writer.write(post.body)
            await writer.drain()
            head_bytes = await reader.readuntil(b"\r\n\r\n")
            status = int(head_bytes.split(b" ", 2)[1])
            length = next(
                int(line.split(b":")[1])
                for line in head_bytes.split(b"\r\n")
                if line.lower().startswith(b"content-length:")
            )
            return status, json.loads(await reader.readexactly(length))
        except (OSError, EOFError, StopIteration) as e:
            if self._streams is not None:
                self._streams[1].close()
                self._streams = None
            raise ConnectionError(str(e)) from e
