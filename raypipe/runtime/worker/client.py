"""A replica's side of the worker's socket: many requests in flight on one connection.

A worker that died is looked up again and asked again: every request is safe to repeat, because
an event counts once per id and the first decision about it wins. How long to try is the
caller's deadline.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pyarrow as pa

from raypipe.errors import error_of
from raypipe.events.schema import canonical_json
from raypipe.ledger import record as ledger
from raypipe.ledger.exposure import Counted
from raypipe.ledger.outcome import Outcome
from raypipe.log.codec import encode_group
from raypipe.ownership.routes import projected
from raypipe.patterns.spec import Pattern
from raypipe.project import Project
from raypipe.runtime.worker import protocol
from raypipe.runtime.worker.intake import Bulk
from raypipe.runtime.worker.link import Link
from raypipe.runtime.worker.loads import Load
from raypipe.runtime.worker.reach import Connect
from raypipe.runtime.worker.reviews import Review, Wanted
from raypipe.tenancy.keys import Credential, Presented, Scope

_log = logging.getLogger("raypipe.client")

RETRY_S = 0.1
"""Pause between attempts to reach a worker that is away."""

_R = TypeVar("_R", bound=protocol.Reply)


class WorkerClient:
    """Asks one worker. Methods run until they are answered: put a deadline around them.

    Args:
        connect: opens a connection to the worker; called again after each lost one.
    """

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._ids = itertools.count(1)
        self._link: Link | None = None
        self._connecting = asyncio.Lock()

    @property
    def each(self) -> Sequence[WorkerClient]:
        """A client of each worker: of this one."""
        return (self,)

    @property
    def reachable(self) -> bool:
        """Whether it was there when last heard of: the connection stands."""
        return self._link is not None and self._link.open

    async def observe(self, event: dict[str, Any], body_hash: bytes) -> protocol.Observed:
        """Take an event in once and read its windows; raises Conflict."""
        return await self._ask(
            lambda number: protocol.Observe(number, event, body_hash), protocol.Observed
        )

    async def record(self, record: ledger.DecisionRecord, windows: bytes) -> ledger.DecisionRecord:
        """Make a decision that was made from ``windows`` durable; returns the stored one, the
        first about its event.

        Raises EventLost if the worker died before it committed the event.
        """
        data = ledger.encode(record)
        reply = await self._ask(
            lambda number: protocol.Record(number, data, windows), protocol.Recorded
        )
        return record if reply.record is None else ledger.decode(reply.record)

    async def tell(self, record: ledger.DecisionRecord, event: dict[str, Any], reason: str) -> None:
        """Have an answer kept that a client got and that is not the decision about its event;
        returns when it is durable."""
        data, text = ledger.encode(record), canonical_json(event).decode()
        await self._ask(lambda number: protocol.Tell(number, data, text, reason), protocol.Told)

    async def decision(self, tenant: str, decision_id: str) -> ledger.DecisionRecord | None:
        """A tenant's stored decision."""
        reply = await self._ask(
            lambda number: protocol.Lookup(number, tenant, decision_id), protocol.Found
        )
        return None if reply.record is None else ledger.decode(reply.record)

    async def read(self, tenant: str, entity: str, key: str, now: int) -> dict[str, float]:
        """Window values of one key as of ``now``, by column; none for an unknown entity."""
        reply = await self._ask(
            lambda number: protocol.ReadKey(number, tenant, entity, key, now), protocol.KeyValues
        )
        return reply.values

    async def ingest(self, project: Project, bulk: Bulk) -> protocol.Ingested:
        """Take the rows of a bulk request in; returns when they are durable.

        Raises Conflict for a known key with another body, DeclarationError when the worker runs
        with other declarations.
        """
        numbers = {event.name: number for number, event in enumerate(project.events)}
        group = encode_group(bulk.group, [numbers[part.kind] for part in bulk.group.parts])
        refused = [(kind, body, list(reasons)) for kind, body, reasons in bulk.refused]
        return await self._ask(
            lambda number: protocol.Ingest(
                number,
                project.definition_hash,
                bulk.tenant,
                bulk.received_at,
                bulk.source,
                bulk.body_hash,
                bulk.key,
                refused,
                group,
            ),
            protocol.Ingested,
        )

    async def changes(self, limit: int, *, written: bool) -> tuple[str, pa.Table] | None:
        """At most ``limit`` keys of a view after their newest events; None when nothing changed.

        Args:
            written: whether the last ones are online now; else they come again.
        """
        reply = await self._ask(
            lambda number: protocol.TakeChanges(number, limit, written), protocol.Changed
        )
        if not reply.rows:
            return None
        with pa.ipc.open_stream(pa.py_buffer(reply.rows)) as stream:
            return reply.view, stream.read_all()

    async def table(
        self, tenant: str, table: str, since: int, until: int, now: int
    ) -> tuple[list[dict[str, Any]], int | None]:
        """Rows of a table whose windows overlap [since, until), and its watermark, ms UTC.

        Raises UsageError for more rows than one answer takes, NotFound for an unknown table.
        """
        reply = await self._ask(
            lambda number: protocol.ReadTable(number, tenant, table, since, until, now),
            protocol.TableRows,
        )
        return reply.rows, reply.watermark

    async def use_patterns(self, patterns: Sequence[Pattern]) -> list[str]:
        """Run these patterns instead of the others; returns their names.

        Raises DeclarationError when one of them doesn't fit the worker's events.
        """
        texts = [p.text for p in patterns]
        reply = await self._ask(
            lambda number: protocol.UsePatterns(number, texts), protocol.PatternsUsed
        )
        return reply.names

    async def verify(self, shown: Presented) -> Credential | None:
        """The credential behind an API key, None for one that is unknown, wrong or revoked.

        Raises Unavailable when the worker can't read its keys now.
        """
        reply = await self._ask(
            lambda number: protocol.Verify(number, shown.key_id, shown.digest), protocol.Verified
        )
        if reply.tenant is None:
            return None
        return Credential(reply.tenant, frozenset(map(Scope, reply.scopes)), shown.key_id)

    async def hear_one(
        self, primary: int, offset: int, kind: str, part: dict[str, Any], body_hash: bytes
    ) -> protocol.HeardOne:
        """Tell of an event that another worker has accepted; returns when it is durable here."""
        return await self._ask(
            lambda number: protocol.HearOne(number, primary, offset, kind, part, body_hash),
            protocol.HeardOne,
        )

    async def hear(self, project: Project, primary: int, load: Load) -> int:
        """Tell of another worker's events; returns up to where all is durable here.

        Raises Conflict for a gap before them, DeclarationError as ``ingest``.
        """
        numbers = {projected(event.name): number for number, event in enumerate(project.events)}
        group = encode_group(load.group, [numbers[part.kind] for part in load.group.parts])
        definition, ones = project.definition_hash, list(load.ones)
        reply = await self._ask(
            lambda number: protocol.Hear(
                number, definition, primary, load.first, load.end, ones, group
            ),
            protocol.Heard,
        )
        return reply.end

    async def heard(self, primary: int) -> int:
        """The offset of another worker's log up to which this one has heard of its events."""
        reply = await self._ask(lambda number: protocol.AskHeard(number, primary), protocol.Heard)
        return reply.end

    async def event_of(self, tenant: str, decision_id: str) -> dict[str, Any] | None:
        """The event that a decision is about, None if retention deleted it; raises NotFound."""
        reply = await self._ask(
            lambda number: protocol.EventOf(number, tenant, decision_id), protocol.DecidedEvent
        )
        return reply.event

    async def exposures(self, tenant: str, experiment: str) -> list[Counted]:
        """How often each arm of an experiment, ``name@version``, was decided with."""
        reply = await self._ask(
            lambda number: protocol.AskExposures(number, tenant, experiment), protocol.Exposures
        )
        return reply.arms

    async def reviews(self, tenant: str, wanted: Wanted) -> tuple[list[Review], int]:
        """Decisions that wait for a person, oldest first, and how many do in all."""
        reply = await self._ask(
            lambda number: protocol.ListReviews(number, tenant, wanted), protocol.Reviews
        )
        return reply.reviews, reply.open

    async def claim_review(
        self, tenant: str, decision_id: str, holder: str, lease_ms: int
    ) -> Review:
        """Have somebody work on a decision that waits; returns when that is durable.

        Raises NotFound when it doesn't wait, Conflict when somebody else has it.
        """
        reply = await self._ask(
            lambda number: protocol.ClaimReview(number, tenant, decision_id, holder, lease_ms),
            protocol.Claimed,
        )
        return reply.review

    async def report(self, outcome: Outcome) -> Outcome:
        """Make what became known of a decision durable; returns what was said first under its id.

        Raises NotFound and Conflict as People.report.
        """
        reply = await self._ask(lambda number: protocol.Report(number, outcome), protocol.Reported)
        return reply.outcome

    async def stats(self) -> dict[str, float]:
        """Counters and gauges of the worker."""
        return (await self._ask(protocol.Stats, protocol.StatsReply)).values

    async def figures(self, within_s: float) -> list[dict[str, float] | None]:
        """The same of each worker, of this one; None for one that does not answer in time."""
        try:
            async with asyncio.timeout(within_s):
                return [await self.stats()]
        except TimeoutError:
            return [None]

    async def close(self) -> None:
        """Close the connection."""
        if self._link is not None:
            self._link.close()
            self._link = None

    async def _ask(self, request: Callable[[int], protocol.Request], expected: type[_R]) -> _R:
        while True:
            number = next(self._ids)
            link = self._link
            try:
                if link is None or not link.open:
                    link = await self._connected()
                reply = await link.ask(request(number))
            except (OSError, EOFError) as e:
                _log.info("worker away: %s", e)
                await asyncio.sleep(RETRY_S)
                continue
            finally:
                if link is not None:
                    link.waiting.pop(number, None)
            if isinstance(reply, protocol.Failed):
                raise error_of(reply.code)(reply.detail, hint=reply.hint)
            if not isinstance(reply, expected):
                raise TypeError(f"asked for {expected.__name__}, got {type(reply).__name__}")
            return reply

    async def _connected(self) -> Link:
        async with self._connecting:
            if self._link is None or not self._link.open:
                self._link = await self._connect()
            return self._link
