"""What was decided while the worker was away, into the log once it is back."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any, Protocol

from raypipe.aborts import reach
from raypipe.errors import Conflict, EventLost, RaypipeError
from raypipe.events.schema import EventType
from raypipe.ledger.record import DecisionRecord, decode
from raypipe.ledger.spill import Spill, Spilled
from serving.decide import Observation, placed
from serving.presence import Presence
from serving.spill import SpillWriter

BATCH = 32
"""Rows that are with the worker at once."""

IDLE_S = 0.1
"""Pause with nothing to do."""

ANSWER_S = 10.0
"""How long the worker has for a batch."""

RECORDED, CONTRADICTED, REFUSED = "recorded", "contradicted", "refused"

_log = logging.getLogger("raypipe.serving")


class Taker(Protocol):
    """Takes decisions in; a raypipe.runtime.worker.client.WorkerClient does."""

    async def observe(self, event: dict[str, Any], body_hash: bytes) -> Observation:
        """Append the event once."""

    async def record(self, record: DecisionRecord, own: bytes) -> DecisionRecord:
        """Store a decision durably; the stored one: the first wins."""

    async def tell(self, record: DecisionRecord, event: dict[str, Any], reason: str) -> None:
        """Keep an answer that is not the recorded decision."""

    async def stats(self) -> dict[str, float]:
        """Any answer."""


class TakingIn:
    """Hands a node's spilled decisions to the worker, for as long as ``run`` runs.

    Of all processes of a node one does it at a time. Every step may be repeated: whoever dies
    within one leaves its rows to the next.

    Args:
        event: the declared event that asks for decisions.
    """

    def __init__(
        self, worker: Taker, writer: SpillWriter, presence: Presence, event: EventType
    ) -> None:
        self._worker = worker
        self._writer = writer
        self._presence = presence
        self._event = event
        self.taken: Counter[str] = Counter()

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            await asyncio.sleep(await self._tried())

    async def finish(self) -> None:
        """Go on until nothing is left, however long the worker is away."""
        while (spill := self._writer.opened) is not None and spill.some:
            await asyncio.sleep(await self._tried())

    async def _tried(self) -> float:
        try:
            return await self.step()
        except (RaypipeError, TimeoutError) as e:
            _log.warning("spilled decisions wait: %s", e or "no answer in time")
            return IDLE_S

    async def step(self) -> float:
        """Do what there is to do now; returns after how many seconds to look again."""
        if self._presence.away:
            async with asyncio.timeout(ANSWER_S):
                await self._worker.stats()
            self._presence.back()
        spill = self._writer.opened
        if spill is None:
            spill = await asyncio.to_thread(self._writer.open)
        if not spill.some:
            return IDLE_S
        with spill.on_duty() as mine:
            return await self._take_all(spill) if mine else IDLE_S

    async def _take_all(self, spill: Spill) -> float:
        after = 0
        while True:
            rows, last = await asyncio.to_thread(spill.rows, after, BATCH)
            if last == after:
                return IDLE_S
            after = last
            async with asyncio.timeout(ANSWER_S):
                outcomes = await asyncio.gather(*map(self._take, rows), return_exceptions=True)
            reach("spill.taken_in")
            done = [r for r, o in zip(rows, outcomes, strict=True) if isinstance(o, str)]
            await asyncio.to_thread(spill.remove, [row.number for row in done])
            reach("spill.removed")
            self.taken.update(o for o in outcomes if isinstance(o, str))
            failures = [o for o in outcomes if isinstance(o, BaseException)]
            for failure in failures:
                _log.error("a spilled decision stays for now: %s", failure)
            if failures and not done:
                return IDLE_S

    async def _take(self, one: Spilled) -> str:
        """Have one row in the log: as the decision about its event, or as an answer beside it."""
        event = {name: one.event.get(name) for name in self._event.arrow_schema.names}
        lacks = [f.name for f in self._event.fields if f.required and event[f.name] is None]
        if lacks:
            return await self._beside(one, f"the event has no {', '.join(lacks)}", REFUSED)
        while True:
            try:
                seen = await self._worker.observe(event, one.body_hash)
                stored = (
                    await self._worker.record(placed(one.record, seen), seen.own)
                    if seen.decision is None
                    else decode(seen.decision)
                )
            except EventLost:
                continue
            except Conflict as e:
                return await self._beside(one, e.detail, REFUSED)
            if stored.told == one.record:
                return RECORDED
            return await self._beside(one, "another decision was recorded first", CONTRADICTED)

    async def _beside(self, one: Spilled, reason: str, outcome: str) -> str:
        await self._worker.tell(one.record, one.event, reason)
        _log.error("event %s of %s: %s", one.record.event_id, one.record.tenant, reason)
        return outcome
