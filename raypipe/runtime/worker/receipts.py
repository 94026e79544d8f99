"""What bulk requests with an idempotency key were answered: log records, so a retry after any
crash gets the same offsets and counts nothing twice."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import pyarrow as pa

from raypipe.errors import Conflict
from raypipe.log.port import EventLog

RECEIPT = "receipt"
"""The kind of these records; their ``event_id`` is the idempotency key."""

SCHEMA = pa.schema(
    [
        pa.field("tenant", pa.string(), nullable=False),
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("received_at", pa.int64(), nullable=False),
        pa.field("body_hash", pa.binary(32), nullable=False),
        pa.field("first_offset", pa.int64(), nullable=False),
        pa.field("accepted", pa.int64(), nullable=False),
        pa.field("duplicates", pa.binary(), nullable=False),
    ]
)

_RECENT = 10_000


@dataclass(frozen=True, slots=True)
class Receipt:
    """One answer: ``accepted`` rows took the offsets from ``first_offset`` on.

    ``duplicates`` are the other good rows' numbers among the good ones, little-endian int32.
    """

    tenant: str
    event_id: str
    received_at: int
    body_hash: bytes
    first_offset: int
    accepted: int
    duplicates: bytes


class Receipts:
    """Stored receipts and those that wait for the next commit."""

    def __init__(self, log: EventLog, partition: int) -> None:
        self._log = log
        self._partition = partition
        self._recent: OrderedDict[tuple[str, str], Receipt] = OrderedDict()
        self.waiting: list[Receipt] = []

    def find(self, tenant: str, key: str, body_hash: bytes) -> Receipt | None:
        """What this request was answered before; raises Conflict if it came with another body."""
        receipt = self._recent.get((tenant, key))
        if receipt is None:
            stored = self._log.find(self._partition, RECEIPT, tenant, key)
            if stored is None:
                return None
            receipt = Receipt(**stored[1].to_pylist()[0])
            self._remember(receipt)
        if receipt.body_hash != body_hash:
            raise Conflict(
                f"idempotency key {key!r} came before with another body",
                hint="A retry sends the same bytes; something new takes a new key.",
            )
        return receipt

    def add(self, receipt: Receipt) -> None:
        """Have it written with the next commit."""
        self.waiting.append(receipt)
        self._remember(receipt)

    def take(self) -> pa.RecordBatch:
        """The waiting ones as a batch for the log; they are found all the same."""
        rows = [{name: getattr(r, name) for name in SCHEMA.names} for r in self.waiting]
        self.waiting.clear()
        return pa.RecordBatch.from_pylist(rows, SCHEMA)

    def _remember(self, receipt: Receipt) -> None:
        self._recent[receipt.tenant, receipt.event_id] = receipt
        if len(self._recent) > _RECENT:
            self._recent.popitem(last=False)
