"""Rows of every kind for a log under upkeep, and the check that it still has them all.

The model is a list of rows; it shares no code with a log.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from raypipe.clock import DAY_MS
from raypipe.log.port import DECISION, Appended, Group, Part
from raypipe.log.sqlite import SqliteLog

NOW = 1_000 * DAY_MS
EVENTS = ("refund", "sale")

Row = tuple[str, dict[str, Any]]
Model = list[tuple[Row, str, bool]]
"""Each row, its schema, whether find knows it."""

SALE = pa.schema(
    [
        pa.field("tenant", pa.string(), nullable=False),
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("event_time", pa.int64(), nullable=False),
        pa.field("amount", pa.float64()),
    ],
    metadata={"version": "1"},
)
ALONE = SALE.append(pa.field("windows", pa.binary(), nullable=False))
REFUND = pa.schema([*list(SALE)[:3], pa.field("reason", pa.string())])
VERDICT = pa.schema([("tenant", pa.string()), ("decision_id", pa.string()), ("note", pa.string())])
RECEIPT = pa.schema([("tenant", pa.string()), ("event_id", pa.string()), ("accepted", pa.int64())])


def batch(kind: str, schema: pa.Schema, *ids: str, at: int = 0) -> tuple[str, pa.RecordBatch]:
    rows = [
        {
            "tenant": "t",
            "event_id": i,
            "decision_id": i,
            "event_time": at + n,
            "amount": float("nan") if n % 3 == 2 else n / 7,
            "windows": i.encode(),
            "reason": f"ré {i}",
            "note": i,
            "accepted": n,
        }
        for n, i in enumerate(ids)
    ]
    return kind, pa.RecordBatch.from_pylist(rows, schema=schema)


def bulk(layout: str, prefix: str, at: int = 0) -> Group:
    """A group for a layout like 'srs': sales and refunds, none of them in the id index."""
    parts = []
    for letter in dict.fromkeys(layout):
        places = [i for i, found in enumerate(layout) if found == letter]
        kind, schema = ("sale", SALE) if letter == "s" else ("refund", REFUND)
        rows = batch(kind, schema, *(f"{prefix}{i}" for i in places), at=at)[1]
        parts.append(Part(kind, rows, np.array(places, np.int32)))
    return Group(tuple(parts))


def rows_of(item: Appended) -> Model:
    """The rows in their order."""
    if not isinstance(item, Group):
        schema = str(item[1].schema.to_string(show_schema_metadata=True))
        return [((item[0], row), schema, True) for row in item[1].to_pylist()]
    found: dict[int, tuple[Row, str, bool]] = {}
    for part in item.parts:
        schema = str(part.batch.schema.to_string(show_schema_metadata=True))
        for place, row in zip(part.positions.tolist(), part.batch.to_pylist(), strict=True):
            found[place] = ((part.kind, row), schema, False)
    return [found[i] for i in sorted(found)]


def read(log: SqliteLog, offset: int = 0, limit: int = 10**9) -> list[tuple[Row, str]]:
    """All rows and schemas in order, their offsets checked."""
    out: dict[int, tuple[Row, str]] = {}
    for chunk in log.read(0, offset, limit):
        assert len(chunk) == chunk.batch.num_rows > 0
        schema = str(chunk.batch.schema.to_string(show_schema_metadata=True))
        for at, row in zip(chunk.offsets.tolist(), chunk.batch.to_pylist(), strict=True):
            assert at not in out
            out[at] = ((chunk.kind, row), schema)
    assert sorted(out) == list(range(offset, offset + len(out)))
    return [out[at] for at in sorted(out)]


def same(found: Any, expected: Any) -> bool:
    """Equal, a NaN to a NaN too."""
    return repr(found) == repr(expected)


def check(log: SqliteLog, model: Model, first: int = 0) -> None:
    """Every row, every id, the counts and the end are the model's."""
    assert same(read(log, first), [(row, schema) for row, schema, _ in model[first:]])
    assert log.end(0) == len(model)
    assert log.first(0) == first
    for at, ((kind, row), _, known) in enumerate(model):
        found = log.find(0, kind, "t", row.get("event_id") or row["decision_id"])
        if known and (at >= first or kind not in EVENTS):
            assert found is not None
            assert same((found[0], found[1].to_pylist()), (at, [row]))
        else:
            assert found is None
    counts: dict[str, int] = {}
    for at, ((kind, _), _, _) in enumerate(model):
        if at >= first or kind not in EVENTS:
            counts[kind] = counts.get(kind, 0) + 1
    assert log.counts(0) == counts


def items(seq: int, at: int = 0) -> list[Appended]:
    """What append ``seq`` always sends: 11 rows of every kind, a group among them."""
    return [
        batch("sale", ALONE, f"a{seq}", f"b{seq}", f"c{seq}", at=at),
        bulk("srssr", f"g{seq}-", at=at),
        batch("sale", SALE, f"d{seq}", at=at),
        batch(DECISION, VERDICT, f"v{seq}"),
        batch("receipt", RECEIPT, f"k{seq}"),
    ]


def fill(log: SqliteLog, appends: int = 8, start: int = 0, at: int = 0) -> Model:
    """Append so often; the model's rows."""
    for seq in range(start, start + appends):
        log.append(0, items(seq, at), producer="p", seq=seq)
    return expected(appends, start, at)


def expected(appends: int, start: int = 0, at: int = 0) -> Model:
    """The rows of so many appends."""
    return [r for seq in range(start, start + appends) for i in items(seq, at) for r in rows_of(i)]
