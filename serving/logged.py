"""Decisions as the log has them, read beside its worker on a node that holds the log."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from raypipe.errors import NotFound, RaypipeError
from raypipe.ledger.record import DecisionRecord, decision_id, decode
from raypipe.ledger.spill import other_body
from raypipe.log.port import DECISION, EventLog

READERS = 2

_log = logging.getLogger("raypipe.serving")


class LoggedDecisions:
    """Looks decisions up while the worker is away, so that a retry gets what it got before.

    Args:
        opening: opens the log for reading; raises NotFound where there is none.
        kind: the event type that asks for decisions.
        partitions: how many there are.
    """

    def __init__(self, opening: Callable[[], EventLog], kind: str, partitions: int) -> None:
        self._opening = opening
        self._kind = kind
        self._partitions = partitions
        self._log: EventLog | None = None
        self._lock = threading.Lock()
        self._readers = ThreadPoolExecutor(READERS, "logged")

    async def find(self, event: Mapping[str, Any], body_hash: bytes) -> DecisionRecord | None:
        """The decision about an event; None when the log has none or can't be read.

        Raises Conflict when its id came with another body.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, self._find, event, body_hash)

    def _find(self, event: Mapping[str, Any], body_hash: bytes) -> DecisionRecord | None:
        tenant, event_id = event["tenant"], event["event_id"]
        try:
            log = self._opened()
            for partition in range(self._partitions):
                found = log.find(partition, self._kind, tenant, event_id)
                if found is None:
                    continue
                if found[1].column("body_hash")[0].as_py() != body_hash:
                    raise other_body(event_id)
                wanted = decision_id(tenant, event_id)
                decided = log.find(partition, DECISION, tenant, wanted)
                return decode(decided[1].column("record")[0].as_py()) if decided else None
        except NotFound:
            return None
        except RaypipeError as e:
            if e.status < 500:
                raise
            # Whatever ails the log may be why the worker is away: this node goes on without it.
            _log.error("the log can't be asked about %s: %s", event_id, e.detail)
        return None

    def _opened(self) -> EventLog:
        with self._lock:
            if self._log is None:
                self._log = self._opening()
            return self._log
