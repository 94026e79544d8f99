"""HTTP/1.1 load on kept-alive connections, open or closed loop.

Closed loop: each connection sends its next request when the last reply is in. It measures how much
a server can do, and hides waiting. Open loop: requests start at a fixed rate whether or not earlier
ones are answered, and a latency counts from the scheduled start, so a stall is paid by all that
queue behind it (no coordinated omission).

The client is one thread with its requests encoded beforehand. Its own share of each measurement is
visible: ``Load.lag`` is how late it was to send where a connection was free.
"""

from __future__ import annotations

import asyncio
import gc
import math
import selectors
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Verdict = Callable[[int, int, bytes], str]
"""(request's index, status, body) -> what is wrong with the reply, "" when nothing is."""


def success(index: int, status: int, body: bytes) -> str:
    """The default verdict: any 2xx is right."""
    return "" if 200 <= status < 300 else f"status {status}"


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go and what they have in common."""

    url: str
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 30.0

    def message(self, body: bytes) -> bytes:
        """The whole request as bytes."""
        parts = urlsplit(self.url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        head = {"Host": parts.netloc, "Content-Length": str(len(body)), **self.headers}
        lines = [f"{self.method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in head.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


@dataclass(frozen=True)
class Load:
    """What came of a load: seconds by request, NaN for those without a right answer."""

    latencies: Floats
    lag: Floats
    """Open loop: seconds between a request's start and a free connection's sending it."""
    errors: Counter[str]
    seconds: float

    @property
    def rate(self) -> float:
        """Right answers a second."""
        return float(np.isfinite(self.latencies).sum() / self.seconds)

    def percentile_ms(self, q: float) -> float:
        """A percentile (0 to 100) of the right answers' latencies; raises if there are none."""
        good = self.latencies[np.isfinite(self.latencies)]
        if not good.size:
            raise ValueError(f"no right answer: {dict(self.errors)}")
        return float(np.percentile(good, q) * 1e3)


def closed_loop(
    target: Target, bodies: Sequence[bytes], *, connections: int, verdict: Verdict = success
) -> Load:
    """Send every body once over so many connections, each one request at a time."""
    return _run(_Session(target, bodies, connections, math.inf, verdict))


def open_loop(
    target: Target,
    bodies: Sequence[bytes],
    *,
    rate: float,
    connections: int,
    verdict: Verdict = success,
) -> Load:
    """Start every body once, ``rate`` a second; late when all connections are busy."""
    return _run(_Session(target, bodies, connections, rate, verdict))


def _run(session: _Session) -> Load:
    # select() waits to the microsecond; epoll rounds up to a whole millisecond, which would be
    # the largest part of a fast server's latency. It needs few descriptors, and there are few.
    def new_loop() -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(selectors.SelectSelector())

    gc.collect()
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            return runner.run(session.run())
    finally:
        gc.enable()


class _Session:
    """One load: hands out requests in order and keeps the score."""

    def __init__(
        self,
        target: Target,
        bodies: Sequence[bytes],
        connections: int,
        rate: float,
        verdict: Verdict,
    ) -> None:
        self.target = target
        self.messages = [target.message(b) for b in bodies]
        self.connections = connections
        self.rate = rate
        self.verdict = verdict
        self.latencies = np.full(len(bodies), np.nan)
        self.lag = np.zeros(len(bodies))
        self.errors: Counter[str] = Counter()
        self.next = 0

    async def run(self) -> Load:
        loop = asyncio.get_running_loop()
        lines = [_Connection(self.target) for _ in range(self.connections)]
        for line in lines:
            await line.open()
        start = loop.time()
        await asyncio.gather(*(self._drive(line, start) for line in lines))
        seconds = loop.time() - start
        for line in lines:
            line.close()
        return Load(self.latencies, self.lag, self.errors, seconds)

    async def _drive(self, line: _Connection, start: float) -> None:
        loop = asyncio.get_running_loop()
        while self.next < len(self.messages):
            index = self.next
            self.next += 1
            began = loop.time()
            if self.rate < math.inf:
                due = start + index / self.rate
                free = began
                if due > began:
                    await asyncio.sleep(due - began)
                self.lag[index] = loop.time() - max(due, free)
                began = due
            try:
                async with asyncio.timeout(self.target.timeout_s):
                    status, body = await line.exchange(self.messages[index])
            except (OSError, TimeoutError, ValueError) as e:
                line.close()
                self.errors[f"{type(e).__name__}: {e}".rstrip(": ")] += 1
                continue
            ended = loop.time()
            if wrong := self.verdict(index, status, body):
                self.errors[wrong] += 1
            else:
                self.latencies[index] = ended - began


class _Connection(asyncio.Protocol):
    """One HTTP/1.1 connection with one request in flight; opens again after a close."""

    def __init__(self, target: Target) -> None:
        parts = urlsplit(target.url)
        self._host = parts.hostname or "127.0.0.1"
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._reply: asyncio.Future[tuple[int, bytes]] | None = None

    async def open(self) -> None:
        """Connect; raises OSError."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_connection(
            lambda: self, self._host, self._port, ssl=self._tls
        )

    async def exchange(self, message: bytes) -> tuple[int, bytes]:
        """Send one request and return the reply's status and body.

        Raises OSError when the connection breaks and ValueError for what is no HTTP reply.
        """
        if self._transport is None or self._transport.is_closing():
            await self.open()
        assert self._transport is not None
        self._buffer.clear()
        self._reply = asyncio.get_running_loop().create_future()
        self._transport.write(message)
        return await self._reply

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            parsed = parse_reply(self._buffer)
        except ValueError as e:
            self._finish(e)
            return
        if parsed is not None and self._reply is not None and not self._reply.done():
            status, body, keep = parsed
            if not keep:
                self.close()
            self._reply.set_result((status, body))

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish(ConnectionResetError("connection closed before the reply"))

    def _finish(self, error: Exception) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(error)


def parse_reply(data: bytes | bytearray) -> tuple[int, bytes, bool] | None:
    """(status, body, connection stays open) of a whole reply, None while it is incomplete.

    Raises ValueError for what is not HTTP/1.1 with a length or chunks.

    >>> parse_reply(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\nhi")
    (200, b'hi', True)
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = bytes(data[:end]).lower()
    if not head.startswith(b"http/1.1 "):
        raise ValueError(f"not an HTTP/1.1 reply: {bytes(data[:40])!r}")
    status = int(head[9:12])
    keep = b"\r\nconnection: close" not in head
    if b"\r\ntransfer-encoding: chunked" in head:
        body = _chunks(data, end + 4)
        return None if body is None else (status, body, keep)
    if status in (204, 304):
        return status, b"", keep
    at = head.find(b"\r\ncontent-length:")
    if at < 0:
        raise ValueError("reply has neither a length nor chunks")
    stop = head.find(b"\r\n", at + 2)
    length = int(head[at + 17 : stop if stop > 0 else None])
    body = bytes(data[end + 4 : end + 4 + length])
    return (status, body, keep) if len(body) == length else None


def _chunks(data: bytes | bytearray, at: int) -> bytes | None:
    out = bytearray()
    while (line := data.find(b"\r\n", at)) >= 0:
        size = int(bytes(data[at:line]).partition(b";")[0], 16)
        if size == 0:
            return bytes(out) if data.find(b"\r\n", line + 2) == line + 2 else None
        if len(data) < line + 2 + size + 2:
            return None
        out += data[line + 2 : line + 2 + size]
        at = line + size + 4
    return None


def free_port() -> int:
    """A port that nothing listens on now."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
