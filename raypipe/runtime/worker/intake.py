"""What a worker knows of bulk requests: ids that came lately, answers by key, refused rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe.aborts import reach
from raypipe.errors import Conflict, UsageError
from raypipe.events.quarantine import Quarantine, Refusal
from raypipe.log.port import Appended, EventLog, Group, Part
from raypipe.runtime.worker.ids import KnownIds
from raypipe.runtime.worker.receipts import RECEIPT, Receipt, Receipts

NO_ROWS = Group(())


@dataclass(frozen=True, slots=True)
class Dedup:
    """How far back ids of bulk rows are remembered: by number, and by time."""

    ids: int = 16_000_000
    horizon_ms: int = 600_000


DEDUP = Dedup()


@dataclass(frozen=True, slots=True)
class Bulk:
    """Validated rows of one bulk request.

    ``refused`` are (event type, body, reasons) of rows for the quarantine, ``source`` says there
    where they came from. ``key`` is the request's idempotency key, ``body_hash`` the sha256 of its
    bytes.
    """

    tenant: str
    group: Group
    received_at: int
    source: str
    body_hash: bytes
    key: str | None = None
    refused: Sequence[tuple[str, str, Sequence[str]]] = ()


class Intake:
    """Not thread-safe. What it was told to keep is written with the worker's next commit."""

    def __init__(
        self, log: EventLog, partition: int, quarantine: Quarantine | None, ids: KnownIds
    ) -> None:
        self._ids = ids
        self._receipts = Receipts(log, partition)
        self._quarantine = quarantine
        self._refusals: list[Refusal] = []
        self._counters = {
            "bulk_retries": 0.0,
            "duplicates": 0.0,
            "refused": 0.0,
            "refused_unkept": 0.0,
        }

    def take(self, bulk: Bulk, offset: int) -> tuple[Receipt, Group]:
        """The answer to a request and its new rows, which take the offsets from ``offset`` on.

        Raises Conflict for a known key with another body, UsageError for refused rows where there
        is no quarantine.
        """
        if bulk.refused and self._quarantine is None:
            raise UsageError("refused rows came to a worker without a quarantine")
        if bulk.key is not None:
            known = self._receipts.find(bulk.tenant, bulk.key, bulk.body_hash)
            if known is not None:
                self._counters["bulk_retries"] += 1
                return known, NO_ROWS
        group, duplicates = self._new_rows(bulk.group, bulk.received_at)
        self._refusals += [
            Refusal(bulk.tenant, bulk.source, *row, bulk.key or "") for row in bulk.refused
        ]
        self._counters["duplicates"] += len(duplicates)
        self._counters["refused"] += len(bulk.refused)
        receipt = Receipt(
            bulk.tenant,
            bulk.key or "",
            bulk.received_at,
            bulk.body_hash,
            offset,
            len(group),
            duplicates.astype("<i4").tobytes(),
        )
        if bulk.key is not None:
            self._receipts.add(receipt)
        return receipt, group

    def _new_rows(self, group: Group, received_at: int) -> tuple[Group, npt.NDArray[np.int32]]:
        """The rows whose ids are new, numbered anew, and the positions of the others."""
        news = [self._ids.add(p.kind, p.batch, received_at) for p in group.parts]
        if all(new.all() for new in news):
            return group, np.empty(0, np.int32)
        kept = np.zeros(len(group), np.bool_)
        for part, new in zip(group.parts, news, strict=True):
            kept[part.positions] = new
        places = (np.cumsum(kept) - 1).astype(np.int32)
        parts = [
            Part(p.kind, p.batch.filter(pa.array(new)), places[p.positions[new]])
            for p, new in zip(group.parts, news, strict=True)
            if new.any()
        ]
        return Group(tuple(parts)), np.flatnonzero(~kept).astype(np.int32)

    def claim(self, kind: str, event: Mapping[str, Any]) -> None:
        """Remember the id of an event that came alone and isn't in the log's index.

        Raises Conflict when it came in bulk.
        """
        if not self._ids.claim(kind, event):
            raise came_in_bulk(event["event_id"])

    @property
    def dirty(self) -> bool:
        """Whether anything waits for a commit."""
        return bool(self._refusals or self._receipts.waiting)

    def take_off(self) -> tuple[list[Refusal], list[Appended]]:
        """The refused rows and the records that the next commit must make durable."""
        refusals, self._refusals = self._refusals, []
        return refusals, [(RECEIPT, self._receipts.take())] if self._receipts.waiting else []

    def keep(self, refusals: Sequence[Refusal]) -> None:
        """Make refused rows durable; any thread may do it."""
        if refusals and self._quarantine is not None:
            kept = self._quarantine.keep(refusals)
            self._counters["refused_unkept"] += len(refusals) - kept
            reach("worker.quarantined")

    def stats(self) -> dict[str, float]:
        """Counters."""
        return dict(self._counters)


def came_in_bulk(event_id: str) -> Conflict:
    """A decision is asked for about an event that was only reported."""
    return Conflict(
        f"event_id {event_id!r} came in bulk before",
        hint="Only events that first came one by one can be sent again for a decision.",
    )
