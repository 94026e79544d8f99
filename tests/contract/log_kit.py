"""Rows for the contract of the event log, and the list of rows that it is compared with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raypipe.log.kafka.log import KafkaLog
from raypipe.log.port import DECISION, Chunk, DuplicateId, EventLog, Group, Part
from tests.contract.kafka_server import KafkaServer

Open = Callable[[Path], EventLog]
"""Opens the log that belongs to a folder."""

Row = tuple[str, dict[str, Any]]

SALE = pa.schema(
    [
        pa.field("tenant", pa.string(), nullable=False),
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("event_time", pa.int64(), nullable=False),
        pa.field("amount", pa.int64()),
    ],
    metadata={"version": "1"},
)
GROWN = SALE.append(pa.field("windows", pa.binary(), nullable=False)).append(
    pa.field("hash", pa.binary(4))
)
REFUND = pa.schema([*list(SALE)[:3], pa.field("reason", pa.string())])
VERDICT = pa.schema(
    [("tenant", pa.string()), ("decision_id", pa.string()), ("score", pa.float64())]
)


def sales(*ids: str, tenant: str = "t", schema: pa.Schema = SALE) -> tuple[str, pa.RecordBatch]:
    rows = [
        {
            "tenant": tenant,
            "event_id": i,
            "event_time": 1_000 + n,
            "amount": None if n == 2 else n * 7,
            "windows": i.encode() * 2,
            "hash": b"abcd",
        }
        for n, i in enumerate(ids)
    ]
    return "sale", pa.RecordBatch.from_pylist(rows, schema=schema)


def refunds(*ids: str) -> tuple[str, pa.RecordBatch]:
    rows = [{"tenant": "t", "event_id": i, "event_time": 5, "reason": f"ré {i}"} for i in ids]
    return "refund", pa.RecordBatch.from_pylist(rows, schema=REFUND)


def verdicts(*ids: str) -> tuple[str, pa.RecordBatch]:
    rows = [{"tenant": "t", "decision_id": i, "score": 0.5} for i in ids]
    return DECISION, pa.RecordBatch.from_pylist(rows, schema=VERDICT)


def placed(batch: pa.RecordBatch, positions: Sequence[int]) -> pa.RecordBatch:
    """The batch as seal() wants it."""
    field = pa.field("_position", pa.int64())
    schema = batch.schema.insert(0, field)
    columns = [pa.array(positions, pa.int64()), *batch.columns]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def history(layout: str, prefix: str, step: int = 3) -> tuple[dict[str, Any], int, list[Row]]:
    """Arguments of seal() and the rows in order, for a layout like 'srsss': sale, refund, ..."""
    made = {"s": sales, "r": refunds}
    rows: list[Row] = []
    places: dict[str, list[int]] = {}
    for at, letter in enumerate(layout):
        kind, batch = made[letter](f"{prefix}{at}")
        rows.append((kind, batch.to_pylist()[0]))
        places.setdefault(letter, []).append(at)
    ordered: dict[str, list[pa.RecordBatch]] = {}
    for letter, at in places.items():
        kind = made[letter]("x")[0]
        schema = made[letter]("x")[1].schema
        batch = pa.RecordBatch.from_pylist([rows[i][1] for i in at], schema=schema)
        whole = placed(batch, at)
        ordered[kind] = [whole.slice(i, step) for i in range(0, len(at), step)]
    return ordered, len(layout), rows


def rows_of(batches: Sequence[tuple[str, pa.RecordBatch]]) -> list[Row]:
    return [(kind, row) for kind, batch in batches for row in batch.to_pylist()]


def runs(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """The same rows in offset order: runs of one kind."""
    found = list(chunks)
    owners = np.repeat(np.arange(len(found)), [len(c) for c in found])
    places = np.concatenate([np.arange(len(c)) for c in found])
    order = np.argsort(np.concatenate([c.offsets for c in found]))
    owners, places = owners[order], places[order]
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(owners)], strict=True):
        chunk, at = found[owners[start]], slice(places[start], places[stop - 1] + 1)
        yield Chunk(chunk.kind, chunk.offsets[at], chunk.batch[at])


def rows_in(log: EventLog, offset: int = 0, limit: int = 10**9, partition: int = 0) -> list[Row]:
    """All rows read, in order, after checking that their offsets have no gap."""
    out: dict[int, Row] = {}
    for chunk in log.read(partition, offset, limit):
        assert len(chunk) > 0
        assert chunk.offsets.dtype == np.int64
        assert len(chunk) == chunk.batch.num_rows
        assert (np.diff(chunk.offsets) > 0).all()
        rows = rows_of([(chunk.kind, chunk.batch)])
        out |= zip(chunk.offsets.tolist(), rows, strict=True)
    assert sorted(out) == list(range(offset, offset + len(out)))
    return [out[at] for at in sorted(out)]


def check_ids_are_compared(log: EventLog) -> None:
    """Every row is found by its id and no id comes twice, whatever hashes say of them."""
    ordered, count, rows = history("srrss", "h")
    log.seal(0, ordered, count, producer="l", seq=0)
    batches = [sales("a", "b"), refunds("a"), verdicts("a"), sales("c")]
    log.append(0, batches, producer="p", seq=0)
    for offset, (kind, row) in enumerate([*rows, *rows_of(batches)]):
        found = log.find(0, kind, "t", row.get("event_id") or row["decision_id"])
        assert found is not None
        assert (found[0], found[1].to_pylist()) == (offset, [row])
    assert log.find(0, "sale", "t", "nobody") is None
    for taken in (sales("b"), sales("h0"), sales("n", "n")):
        with pytest.raises(DuplicateId):
            log.append(0, [taken], producer="p", seq=1)


def grouped(layout: str, prefix: str) -> tuple[Group, list[Row]]:
    """A group and its rows in order, for a layout like 'srsss': sale, refund, ..."""
    made = {"s": sales, "r": refunds}
    parts, rows = [], {}
    for letter in dict.fromkeys(layout):
        at = [i for i, found in enumerate(layout) if found == letter]
        kind, batch = made[letter](*(f"{prefix}{i}" for i in at))
        parts.append(Part(kind, batch, np.array(at, np.int32)))
        rows |= zip(at, rows_of([(kind, batch)]), strict=True)
    return Group(tuple(parts)), [rows[at] for at in sorted(rows)]


def on_kafka(server: KafkaServer) -> Open:
    """Each folder has a topic of its own; the folder holds the index."""

    def open(directory: Path) -> EventLog:
        topic = hashlib.sha256(bytes(directory)).hexdigest()[:16]
        return KafkaLog.open(server.url(topic), directory)

    return open
