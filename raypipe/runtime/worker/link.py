"""One connection to a worker: frames go out, and each reply to whoever waits for it.

A protocol of asyncio and no stream: a stream wakes a task for what came, which wakes the one that
asked; here the bytes themselves do. Requests of one turn of the event loop leave together, some at
a time: the worker is not woken for each, and works on the first ones while the next are made.
"""

from __future__ import annotations

import asyncio
import logging
from typing import cast

import msgspec

from raypipe.runtime.worker import protocol

BUNCH = 4
"""Requests that leave together."""

_log = logging.getLogger("raypipe.client")


class Link(asyncio.Protocol):
    """Of one event loop. ``waiting`` are the requests that have no answer yet, by their ids."""

    def __init__(self) -> None:
        self.waiting: dict[int, asyncio.Future[protocol.Reply]] = {}
        self._frames = protocol.FrameBuffer()
        self._out: list[bytes] = []
        self._transport: asyncio.Transport | None = None

    @property
    def open(self) -> bool:
        """Whether it stands, as far as is known."""
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, request: protocol.Request) -> asyncio.Future[protocol.Reply]:
        """Send a request; its reply, or ConnectionError when the connection is lost before.

        Take it out of ``waiting`` when nobody waits any more. Raises ConnectionError at once where
        the connection is lost already.
        """
        if self._transport is None:
            raise ConnectionResetError("the connection to the worker is closed")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[protocol.Reply] = loop.create_future()
        self.waiting[request.id] = answer
        if not self._out:
            loop.call_soon(self._send)
        self._out.append(protocol.frame(request))
        if len(self._out) == BUNCH:
            self._send()
        return answer

    def _send(self) -> None:
        out, self._out = self._out, []
        if out and self._transport is not None:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def close(self) -> None:
        """Let go of the connection."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        try:
            for body in self._frames.feed(data):
                reply = protocol.decode_reply(body)
                answer = self.waiting.pop(reply.id, None)
                # A caller past its deadline has cancelled its future.
                if answer is not None and not answer.done():
                    answer.set_result(reply)
        except (ValueError, msgspec.MsgspecError) as e:
            _log.error("closing the connection to the worker: %s", e)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._transport = None
        # Whatever it was, a new connection may be better.
        reason = ConnectionResetError(f"the worker closed the connection: {exc or 'it ended'}")
        for answer in self.waiting.values():
            if not answer.done():
                answer.set_exception(reason)
        self.waiting.clear()
