"""Places for requests: a bounded number runs, a bounded number waits, and tenants share both.

A free place is anybody's. When all are taken, requests wait in one queue a tenant, and a place that
becomes free goes to the waiting tenant that holds the least for its weight (max-min fairness). When
the queues are full too, the newcomer or the newest waiting request of the tenant that has the most
for its weight is refused, so a tenant that stays below its share is refused only while the whole
queue is its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping

from raypipe.errors import Overloaded, Unavailable


class Gate:
    """Admission to one process. Not thread-safe: one event loop uses it.

    Args:
        places: requests that run at once.
        queue: requests that wait.
        weights: shares by tenant; 1 where none is named.
    """

    def __init__(self, places: int, queue: int, weights: Mapping[str, float] | None = None) -> None:
        self.places = places
        self._queue = queue
        self._weights = weights or {}
        self._held: dict[str, int] = {}
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self.running = 0
        self.queued = 0
        self.refused_busy = 0
        self.refused_share = 0

    def enter(self, tenant: str) -> asyncio.Future[None] | None:
        """Take a place, or a place in the queue: None, or a future to ``wait`` for.

        Raises Overloaded for a tenant that has its share, Unavailable where no place is left.
        """
        if self.running < self.places and not self.queued:
            self._take(tenant)
            return None
        if self.queued >= self._queue:
            self._make_room(tenant)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        self.queued += 1
        return turn

    async def wait(self, tenant: str, turn: asyncio.Future[None], seconds: float) -> None:
        """Until it is the request's turn.

        Raises Overloaded when it must make room for another tenant, Unavailable when its time is
        over. No place is held then.
        """
        try:
            async with asyncio.timeout(seconds):
                await turn
        except BaseException as e:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave(tenant)  # it was given a place in the same moment
            else:
                self._give_up(tenant, turn)
            if isinstance(e, TimeoutError):
                self.refused_busy += 1
                raise _busy() from None
            raise

    def leave(self, tenant: str) -> None:
        """Give the place back; the next in turn gets it."""
        self._held[tenant] -= 1
        if not self._held[tenant]:
            del self._held[tenant]
        self.running -= 1
        while self.queued and self.running < self.places:
            # The first of equals, which goes to the end when it was served: turns go round.
            chosen = min(self._waiting, key=self._share)
            turns = self._waiting.pop(chosen)
            turn = turns.popleft()
            self.queued -= 1
            if turns:
                self._waiting[chosen] = turns
            if not turn.done():
                self._take(chosen)
                turn.set_result(None)

    def _take(self, tenant: str) -> None:
        self._held[tenant] = self._held.get(tenant, 0) + 1
        self.running += 1

    def _share(self, tenant: str) -> float:
        """What a tenant holds, for its weight."""
        return self._held.get(tenant, 0) / self._weights.get(tenant, 1.0)

    def _total(self, tenant: str, more: int = 0) -> float:
        """What it holds and waits for, for its weight."""
        held = self._held.get(tenant, 0) + len(self._waiting.get(tenant, ())) + more
        return held / self._weights.get(tenant, 1.0)

    def _make_room(self, tenant: str) -> None:
        """Have the tenant with the most give a waiting request up; raises if that is this one."""
        greatest = max(self._waiting, key=self._total, default=tenant)
        if self._total(greatest) > self._total(tenant, 1):
            turns = self._waiting[greatest]
            turn = turns.pop()
            self.queued -= 1
            if not turns:
                del self._waiting[greatest]
            if not turn.done():
                self.refused_share += 1
                turn.set_exception(_over(greatest))
            return
        if len(self._held.keys() | self._waiting.keys() | {tenant}) == 1 or self._below(tenant):
            self.refused_busy += 1
            raise _busy()
        self.refused_share += 1
        raise _over(tenant)

    def _below(self, tenant: str) -> bool:
        """Whether it has less than its share of all places, so that others are to blame."""
        there = self._held.keys() | self._waiting.keys() | {tenant}
        whole = sum(self._weights.get(t, 1.0) for t in there)
        return self._total(tenant, 1) <= (self.places + self._queue) / whole

    def _give_up(self, tenant: str, turn: asyncio.Future[None]) -> None:
        turns = self._waiting.get(tenant)
        if turns is not None and turn in turns:
            turns.remove(turn)
            self.queued -= 1
            if not turns:
                del self._waiting[tenant]


def _busy() -> Unavailable:
    return Unavailable(
        "all places for requests are taken",
        hint="Retry after the time in Retry-After; an event counts once however often it is sent.",
    )


def _over(tenant: str) -> Overloaded:
    return Overloaded(
        f"all places are taken, and {tenant!r} has its share of them",
        hint="Send fewer at once, or retry after the time in Retry-After.",
    )
