"""The closed loop's client: each connection sends its next request out of the callback that brought
the last reply. There is no task, future or timer for a request, so that a client on the server's
own cores takes little of them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import cast

import numpy as np

from benchmarks.wire import Target, parse_reply

Verdict = Callable[[int, int, bytes], str]

_CHECKS = 4
"""How often within a timeout the watchdog looks for what is over it."""
_LOOK_S = 0.25


class ClosedLoop:
    """Sends every body once over so many connections. Times are of ``time.perf_counter``: the
    clock of an event loop may tick in milliseconds."""

    def __init__(
        self, target: Target, bodies: Sequence[bytes], connections: int, verdict: Verdict
    ) -> None:
        self.messages = [target.message(b) for b in bodies]
        self.latencies = np.full(len(bodies), np.nan)
        self.errors: Counter[str] = Counter()
        self.verdict = verdict
        self._endpoint = target.endpoint()
        self._timeout_s = target.timeout_s
        self._lanes = [_Lane(self) for _ in range(min(connections, len(bodies)))]
        self._next = 0
        self._left = len(bodies)
        self._opening: set[asyncio.Task[None]] = set()

    async def run(self) -> float:
        """Send all; returns the seconds that it took. Raises OSError if nobody listens."""
        if not self._lanes:
            return 0.0
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        for lane in self._lanes:
            await self._connect(lane)
        self._watch()
        start = perf_counter()
        for lane in self._lanes:
            lane.send()
        try:
            await self._over
            return perf_counter() - start
        finally:
            self._watching.cancel()
            for task in self._opening:
                task.cancel()
            for lane in self._lanes:
                lane.leave()

    def take(self) -> int:
        """The number of the next request, -1 when there is none left."""
        if self._next == len(self.messages):
            return -1
        self._next += 1
        return self._next - 1

    def settle(self) -> None:
        """One more request has its answer, or will have none."""
        self._left -= 1
        if not self._left and not self._over.done():
            self._over.set_result(None)

    def fail(self, error: Exception) -> None:
        """One more request will have no answer."""
        self.errors[f"{type(error).__name__}: {error}".rstrip(": ")] += 1
        self.settle()

    def open_again(self, lane: _Lane) -> None:
        """After a connection was lost: go on over another one while there are requests."""
        if self._next < len(self.messages) and not self._over.done():
            task = self._loop.create_task(self._reopen(lane))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _reopen(self, lane: _Lane) -> None:
        while self._next < len(self.messages):
            try:
                await self._connect(lane)
            except OSError as e:
                if self.take() >= 0:
                    self.fail(e)
            else:
                lane.send()
                return

    async def _connect(self, lane: _Lane) -> None:
        await self._loop.create_connection(lambda: lane, **self._endpoint)

    def _watch(self) -> None:
        now = perf_counter()
        for lane in self._lanes:
            if lane.index >= 0 and now - lane.began > self._timeout_s:
                lane.end(TimeoutError())
        every = min(self._timeout_s / _CHECKS, _LOOK_S)
        self._watching = self._loop.call_later(every, self._watch)


class _Lane(asyncio.Protocol):
    """One connection with one request in flight."""

    __slots__ = ("_buffer", "_loop", "_transport", "began", "index")

    def __init__(self, loop: ClosedLoop) -> None:
        self.index = -1
        """Of the request in flight, -1 for none."""
        self.began = 0.0
        self._loop = loop
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._buffer = b""

    def send(self) -> None:
        """Send the next request, if there is one."""
        if self._transport is None:
            return
        index = self._loop.take()
        if index < 0:
            return
        self.index = index
        self.began = perf_counter()
        self._transport.write(self._loop.messages[index])

    def data_received(self, data: bytes) -> None:
        came = perf_counter()
        index = self.index
        if index < 0:
            return  # it closes: its request is settled
        if self._buffer:
            data = self._buffer + data
        try:
            parsed = parse_reply(data)
        except ValueError as e:
            self.end(e)
            return
        if parsed is None:
            self._buffer = data
            return
        status, body, keep = parsed
        self._buffer = b""
        self.index = -1
        # The next request leaves before this one is judged: the server need not wait for that.
        took = came - self.began
        if keep:
            self.send()
        wrong = self._loop.verdict(index, status, body)
        if wrong:
            self._loop.errors[wrong] += 1
        else:
            self._loop.latencies[index] = took
        self._loop.settle()
        if not keep:
            self.leave()

    def end(self, error: Exception) -> None:
        """Give the request in flight up, and the connection with it."""
        self.index = -1
        self._loop.fail(error)
        self.leave()

    def leave(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self.index >= 0:
            self.index = -1
            self._loop.fail(ConnectionResetError("connection closed before the reply"))
        self._loop.open_again(self)
