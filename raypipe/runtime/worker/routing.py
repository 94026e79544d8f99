"""Several workers seen as one: each question goes to those that can answer it.

A decision event goes to the owner of its primary key first, which alone knows whether the event is
new, and right after its answer, which waits for no disk, to the owners of the other keys at once.
Theirs are durable when they come, so whoever records a decision knows that all that it was made
from is in the logs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import numpy as np

from raypipe.errors import Conflict, Unavailable
from raypipe.ledger.exposure import Counted
from raypipe.ledger.outcome import Outcome
from raypipe.ledger.record import DecisionRecord, OwnerOffsets
from raypipe.log.port import Group
from raypipe.ownership.routes import Ownership, Way, merge_windows
from raypipe.project import Project
from raypipe.runtime.worker import protocol
from raypipe.runtime.worker.client import WorkerClient
from raypipe.runtime.worker.intake import Bulk
from raypipe.runtime.worker.reviews import Review, Wanted
from raypipe.tables.merging import merge
from raypipe.tenancy.keys import Credential, Presented

INLINE_ROWS = 1_000
"""Rows of a request whose owners are found sooner than a thread would begin."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Seen:
    """An event that several workers have, as protocol.Observed tells it of one."""

    offset: int
    windows: bytes
    event: dict[str, Any]
    decision: bytes | None
    own: bytes
    owner_offsets: OwnerOffsets


class RoutingClient:
    """Asks the workers of an Ownership; has the methods of a WorkerClient.

    Args:
        clients: one for each worker, in the order of their partitions.
    """

    def __init__(self, clients: Sequence[WorkerClient], ownership: Ownership) -> None:
        self.each = clients
        self._ownership = ownership
        self._widths = [8 * len(v.columns) for v in ownership.project.views]

    @property
    def reachable(self) -> bool:
        """Whether all were there when last heard of."""
        return all(client.reachable for client in self.each)

    async def observe(self, event: dict[str, Any], body_hash: bytes) -> Seen:
        """See WorkerClient.observe; the windows are those of all owners."""
        kind = self._ownership.project.decision
        way = self._ownership.way(kind, event)
        first = await self.each[way.primary].observe(event, body_hash)
        if first.decision is not None:
            return Seen(
                first.offset, first.windows, first.event, first.decision, first.windows,
                msgspec.UNSET,
            )  # fmt: skip
        if first.event["received_at"] != event["received_at"]:
            # An earlier try came first: the others are told of that one.
            way = self._ownership.way(kind, first.event)
        others = await _together(
            self.each[worker].hear_one(way.primary, first.offset, kind, part, body_hash)
            for worker, part in way.others.items()
        )
        return self._seen(way, first, dict(zip(way.others, others, strict=True)))

    def _seen(
        self, way: Way, first: protocol.Observed, others: Mapping[int, protocol.HeardOne]
    ) -> Seen:
        windows = {way.primary: first.windows} | {w: h.windows for w, h in others.items()}
        offsets = ((way.primary, first.offset), *((w, h.offset) for w, h in others.items()))
        merged = merge_windows(self._widths, way.views, windows)
        return Seen(first.offset, merged, first.event, None, first.windows, offsets)

    async def record(self, record: DecisionRecord, own: bytes) -> DecisionRecord:
        """See WorkerClient.record; ``own`` is what the event's worker gave."""
        if isinstance(record.owner_offsets, msgspec.UnsetType):
            raise ValueError("a decision among several workers names the offsets of its event")
        return await self.each[record.owner_offsets[0][0]].record(record, own)

    async def tell(self, record: DecisionRecord, event: dict[str, Any], reason: str) -> None:
        """See WorkerClient.tell; the owner of the event's primary key keeps it."""
        way = self._ownership.way(self._ownership.project.decision, event)
        await self.each[way.primary].tell(record, event, reason)

    async def decision(self, tenant: str, decision_id: str) -> DecisionRecord | None:
        """See WorkerClient.decision; an id doesn't tell who has it, so all are asked."""
        return await _first(
            (client.decision(tenant, decision_id) for client in self.each),
            lambda found: found is not None,
        )

    async def read(self, tenant: str, entity: str, key: str, now: int) -> dict[str, float]:
        """See WorkerClient.read."""
        worker = self._ownership.of_key(tenant, entity, key)
        return await self.each[worker].read(tenant, entity, key, now)

    async def ingest(self, project: Project, bulk: Bulk) -> protocol.Ingested:
        """See WorkerClient.ingest. The rows go to the owners of their primary keys, which tell the
        others later; the offsets of several logs are not told.

        An answer with another ``received_at`` is of an earlier try, and says no more than that:
        ask again with the rows as they were read then.
        """
        if len(bulk.group) > INLINE_ROWS:
            split = await asyncio.to_thread(self._ownership.split, bulk.group)
        else:
            split = self._ownership.split(bulk.group)
        if bulk.refused:
            # They have no worker; of a request one must keep them, and the same one each time.
            split.setdefault(0, (Group(()), np.empty(0, np.int64)))
        taken = await _together(
            self.each[worker].ingest(project, _share(bulk, group, keeps=worker == 0))
            for worker, (group, _) in split.items()
        )
        received_at = min(answer.received_at for answer in taken)
        doubled = [np.empty(0, np.int64)]
        for (_, places), answer in zip(split.values(), taken, strict=True):
            mine = np.frombuffer(answer.duplicates, "<i4")
            if answer.accepted + len(mine) == len(places):
                doubled.append(places[mine])
            elif received_at == bulk.received_at:
                raise Conflict(
                    "the same request was answered under other declarations",
                    hint="Its rows are in; look them up, or send them with another "
                    "Idempotency-Key.",
                )
        numbers = np.sort(np.concatenate(doubled)).astype("<i4")
        accepted = sum(answer.accepted for answer in taken)
        return protocol.Ingested(0, received_at, protocol.SEVERAL_LOGS, accepted, numbers.tobytes())

    async def table(
        self, tenant: str, table: str, since: int, until: int, now: int
    ) -> tuple[list[dict[str, Any]], int | None]:
        """See WorkerClient.table; the rows of all workers together."""
        asked = (client.table(tenant, table, since, until, now) for client in self.each)
        declared = next(t for t in self._ownership.project.tables if t.name == table)
        return merge(declared, await _together(asked))

    async def event_of(self, tenant: str, decision_id: str) -> dict[str, Any] | None:
        """See WorkerClient.event_of."""
        return await (await self._decider(tenant, decision_id)).event_of(tenant, decision_id)

    async def exposures(self, tenant: str, experiment: str) -> list[Counted]:
        """See WorkerClient.exposures; those of all workers together."""
        total: dict[str, Counted] = {}
        for arms in await _together(c.exposures(tenant, experiment) for c in self.each):
            for one in arms:
                known = total.get(one.arm)
                total[one.arm] = one if known is None else known.with_(one)
        return list(total.values())

    async def reviews(self, tenant: str, wanted: Wanted) -> tuple[list[Review], int]:
        """See WorkerClient.reviews; those of all workers in one order."""
        pages = await _together(client.reviews(tenant, wanted) for client in self.each)
        found = sorted((r for page, _ in pages for r in page), key=lambda r: r.place)
        return found[: wanted.limit], sum(number for _, number in pages)

    async def claim_review(
        self, tenant: str, decision_id: str, holder: str, lease_ms: int
    ) -> Review:
        """See WorkerClient.claim_review."""
        worker = await self._decider(tenant, decision_id)
        return await worker.claim_review(tenant, decision_id, holder, lease_ms)

    async def report(self, outcome: Outcome) -> Outcome:
        """See WorkerClient.report."""
        worker = await self._decider(outcome.tenant, outcome.decision_id)
        return await worker.report(outcome)

    async def _decider(self, tenant: str, decision_id: str) -> WorkerClient:
        """The worker that has a decision; any, which then says that there is none."""
        record = await self.decision(tenant, decision_id)
        if record is None or isinstance(record.owner_offsets, msgspec.UnsetType):
            return self.each[0]
        return self.each[record.owner_offsets[0][0]]

    async def verify(self, shown: Presented) -> Credential | None:
        """See WorkerClient.verify; all workers read the same keys, so whoever is here answers."""
        return await _first((c.verify(shown) for c in self.each), lambda _: True)

    async def stats(self) -> dict[str, float]:
        """The sums of the workers' counters and gauges; returns when all have answered."""
        total: dict[str, float] = {}
        for found in await _together(client.stats() for client in self.each):
            for name, value in found.items():
                total[name] = total.get(name, 0.0) + value
        return total

    async def figures(self, within_s: float) -> list[dict[str, float] | None]:
        """Counters and gauges of each worker; None for one that does not answer in time."""
        found = await _together(client.figures(within_s) for client in self.each)
        return [one for (one,) in found]

    async def close(self) -> None:
        """Close the connections."""
        for client in self.each:
            await client.close()


def _share(bulk: Bulk, group: Group, *, keeps: bool) -> Bulk:
    """One worker's share of a request."""
    return Bulk(
        bulk.tenant,
        group,
        bulk.received_at,
        bulk.source,
        bulk.body_hash,
        bulk.key,
        bulk.refused if keeps else (),
    )


async def _together(asked: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """All answers, in order; the first error ends the others."""
    tasks = [asyncio.ensure_future(one) for one in asked]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def _first(asked: Iterable[Awaitable[_T]], wanted: Any) -> _T:
    """The first wanted answer, else the last one; raises Unavailable if no one could answer."""
    tasks = [asyncio.ensure_future(one) for one in asked]
    failures: list[Exception] = []
    answers: list[_T] = []
    try:
        for done in asyncio.as_completed(tasks):
            try:
                found = await done
            except Unavailable as e:
                failures.append(e)
                continue
            if wanted(found):
                return found
            answers.append(found)
    finally:
        for task in tasks:
            task.cancel()
    if failures:
        raise failures[0]
    return answers[0]
