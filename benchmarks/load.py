"""HTTP/1.1 load on kept-alive connections, open or closed loop.

Closed loop: each connection sends its next request when the last reply is in. It measures how much
a server can do, and hides waiting. Open loop: requests start at a fixed rate whether or not earlier
ones are answered, and a latency counts from the scheduled start, so a stall is paid by all that
queue behind it (no coordinated omission).

The client is one thread with its requests encoded beforehand. Its own share of each measurement is
visible: ``Load.lag`` is how late it was to send where a connection was free, ``Load.client_s`` the
CPU time that it took.
"""

from __future__ import annotations

import asyncio
import gc
import selectors
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.closed import ClosedLoop, Verdict
from benchmarks.wire import Target, parse_reply

Floats = npt.NDArray[np.float64]
__all__ = ["Load", "Target", "Verdict", "closed_loop", "free_port", "open_loop", "parse_reply"]


def success(index: int, status: int, body: bytes) -> str:
    """The default verdict: any 2xx is right."""
    return "" if 200 <= status < 300 else f"status {status}"


@dataclass(frozen=True)
class Load:
    """What came of a load: seconds by request, NaN for those without a right answer."""

    latencies: Floats
    lag: Floats
    """Open loop: seconds between a request's start and a free connection's sending it."""
    errors: Counter[str]
    seconds: float
    client_s: float = 0.0
    """CPU seconds of the client's thread."""

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
    """Send every body once over so many connections, each one request at a time.

    ``verdict`` is (request's index, status, body) -> what is wrong with the reply, "" when nothing
    is.
    """
    import uvloop

    run = ClosedLoop(target, bodies, connections, verdict)
    with _undisturbed(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        began = time.thread_time()
        seconds = runner.run(run.run())
        client_s = time.thread_time() - began
    return Load(run.latencies, np.zeros(len(bodies)), run.errors, seconds, client_s)


def open_loop(
    target: Target,
    bodies: Sequence[bytes],
    *,
    rate: float,
    connections: int,
    verdict: Verdict = success,
) -> Load:
    """Start every body once, ``rate`` a second; late when all connections are busy."""

    # select() waits to the microsecond; epoll rounds up to a whole millisecond, which would be
    # the largest part of a fast server's latency. It needs few descriptors, and there are few.
    def new_loop() -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(selectors.SelectSelector())

    session = _Session(target, bodies, connections, rate, verdict)
    with _undisturbed(), asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(session.run())


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No garbage collection meanwhile."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class _Session:
    """One open loop: hands out requests in order and keeps the score."""

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
        start, began = loop.time(), time.thread_time()
        await asyncio.gather(*(self._drive(line, start) for line in lines))
        seconds = loop.time() - start
        for line in lines:
            line.close()
        client_s = time.thread_time() - began
        return Load(self.latencies, self.lag, self.errors, seconds, client_s)

    async def _drive(self, line: _Connection, start: float) -> None:
        loop = asyncio.get_running_loop()
        while self.next < len(self.messages):
            index = self.next
            self.next += 1
            began = loop.time()
            due = start + index / self.rate
            if due > began:
                await asyncio.sleep(due - began)
            self.lag[index] = loop.time() - max(due, began)
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
                self.latencies[index] = ended - due


class _Connection(asyncio.Protocol):
    """One HTTP/1.1 connection with one request in flight; opens again after a close."""

    def __init__(self, target: Target) -> None:
        self._endpoint = target.endpoint()
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._reply: asyncio.Future[tuple[int, bytes]] | None = None

    async def open(self) -> None:
        """Connect; raises OSError."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_connection(lambda: self, **self._endpoint)

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


def free_port() -> int:
    """A port that nothing listens on now."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
