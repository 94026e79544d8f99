"""The node's spill as a replica writes it: whoever waits at the same moment shares a commit."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from typing import NamedTuple

from raypipe.errors import RaypipeError, Unavailable
from raypipe.ledger.record import DecisionRecord
from raypipe.ledger.spill import Spill, Spilled

GROUP = 256
"""Rows of one commit at most."""

_log = logging.getLogger("raypipe.serving")

_Outcome = DecisionRecord | RaypipeError


class _Waiting(NamedTuple):
    one: Spilled
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[DecisionRecord]


class SpillWriter:
    """Writes in a thread of its own.

    Args:
        opening: makes the Spill; raises RaypipeError or OSError, and is asked again then.
    """

    def __init__(self, opening: Callable[[], Spill]) -> None:
        self._opening = opening
        self.opened: Spill | None = None
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="spill", daemon=True)
        self._thread.start()
        self.kept = 0
        self.failed = 0

    def open(self) -> Spill:
        """The spill of this node; raises Unavailable when it can't be opened. It may wait for the
        disk."""
        with self._lock:
            if self.opened is None:
                try:
                    self.opened = self._opening()
                except (OSError, RaypipeError) as e:
                    raise Unavailable(
                        f"this node's spill can't be opened: {e}",
                        hint="Retry; `raypipe doctor` looks at the folder spill_dir.",
                    ) from e
            return self.opened

    async def keep(self, one: Spilled) -> DecisionRecord:
        """Store a decision durably; the first one about its event.

        Raises Conflict for an event that came with another body, Unavailable.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(one, loop, loop.create_future())
        self._queue.put(waiting)
        return await waiting.answer

    def find(self, tenant: str, event_id: str) -> Spilled | None:
        """The decision about an event, while it waits for the log."""
        spill = self.opened
        return spill.find(tenant, event_id) if spill is not None and spill.some else None

    def close(self) -> None:
        """Finish what waits."""
        self._queue.put(None)
        self._thread.join()
        if self.opened is not None:
            self.opened.close()

    def _write(self) -> None:
        while True:
            group, ended = self._group()
            if group:
                outcomes = self._keep([w.one for w in group])
                for waiting, outcome in zip(group, outcomes, strict=True):
                    waiting.loop.call_soon_threadsafe(_tell, waiting.answer, outcome)
            if ended:
                return

    def _group(self) -> tuple[list[_Waiting], bool]:
        """Those who wait by now, at least one; whether that was all."""
        group: list[_Waiting] = []
        while len(group) < GROUP:
            try:
                waiting = self._queue.get(block=not group)
            except queue.Empty:
                return group, False
            if waiting is None:
                return group, True
            group.append(waiting)
        return group, False

    def _keep(self, rows: list[Spilled]) -> list[_Outcome]:
        try:
            outcomes = self.open().keep(rows)
        except Exception as e:  # noqa: BLE001 - whoever waits must hear of it, whatever it was
            _log.error("nothing can be kept in this node's spill: %s", e)
            self.failed += len(rows)
            error = Unavailable(
                f"the worker is away, and this node can't keep the decision: {e}",
                hint="Retry; the same event_id counts once.",
            )
            return [error] * len(rows)
        self.kept += sum(isinstance(o, DecisionRecord) for o in outcomes)
        return outcomes


def _tell(answer: asyncio.Future[DecisionRecord], outcome: _Outcome) -> None:
    if answer.done():
        return  # whoever waited has gone
    if isinstance(outcome, RaypipeError):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)
