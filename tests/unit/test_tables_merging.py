"""Tables of several workers together are the table of one worker."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raypipe.events.schema import EventType, Field, Kind
from raypipe.log.port import Chunk
from raypipe.tables.engine import OTHER_GROUPS, TableEngine
from raypipe.tables.merging import merge
from raypipe.tables.spec import Table, count, ratio, total

START = 1_790_000_040_000
MINUTE = 60_000
SALE = EventType(
    "sale",
    (
        Field("shop", Kind.STRING, required=False),
        Field("amount", Kind.INTEGER, minimum=0, maximum=1_000_000),
    ),
)
MEASURES = (
    count("sales"),
    count("large", where="amount > 500"),
    total("amount", "amount"),
    ratio("share", "large", "sales"),
)


def sales(seed: int, n: int = 400, shops: int = 6) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    found = []
    for i in range(n):
        at = START + i * 1_000
        found.append(
            {
                "tenant": "default",
                "event_id": f"s-{i}",
                "event_time": at - rng.randrange(90_000),
                "received_at": at,
                "shop": rng.choice([None, *(f"shop-{k}" for k in range(shops))]),
                "amount": rng.randrange(1_000),
            }
        )
    return found


def read(table: Table, rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int | None]:
    engine = TableEngine((table,), (SALE,))
    batch = pa.RecordBatch.from_pylist(rows, SALE.arrow_schema)
    if rows:
        engine.apply([Chunk("sale", np.arange(len(rows)), batch)])
    now = START + 400_000
    found = engine.read("default", table.name, START - 10 * MINUTE, now, now)
    return found, engine.watermark(table.name)


@pytest.mark.parametrize("group_by", [(), ("shop",)])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_merged_rows_are_those_of_one_worker(workers: int, group_by: tuple[str, ...]) -> None:
    table = Table("busy", ("sale",), MEASURES, group_by=group_by, allowed_lateness="10m")
    rows = sales(workers)
    rng = random.Random(1)
    shares: list[list[dict[str, Any]]] = [[] for _ in range(workers)]
    for row in rows:
        rng.choice(shares).append(row)
    merged, watermark = merge(table, [read(table, share) for share in shares])
    whole, newest = read(table, rows)
    assert merged == whole
    assert watermark == min(share[-1]["received_at"] for share in shares)
    assert newest == rows[-1]["received_at"]


def test_a_group_that_lost_events_elsewhere_joins_the_others() -> None:
    table = Table("busy", ("sale",), MEASURES, group_by=("shop",), groups=2)
    first = [row | {"shop": s} for row, s in zip(sales(1, 4), "aabc", strict=True)]
    second = [row | {"shop": s} for row, s in zip(sales(2, 4), "bbac", strict=True)]
    for row in (*first, *second):
        row["event_time"] = START
    found, _ = merge(table, [read(table, first), read(table, second)])
    rows = [(r["shop"], r["sales"]) for r in found if r["start"] <= START < r["end"]]
    # Both have room for a and b; c came third with each.
    assert rows == [("a", 3), ("b", 3), (OTHER_GROUPS, 2)]
    second[0]["shop"] = second[1]["shop"] = "d"
    found, _ = merge(table, [read(table, first), read(table, second)])
    rows = [(r["shop"], r["sales"]) for r in found if r["start"] <= START < r["end"]]
    # The first has lost d to its other row, the second b: only a is whole.
    assert rows == [("a", 3), (OTHER_GROUPS, 5)]
    assert sum(r["amount"] for r in found) == sum(r["amount"] for r in (*first, *second))


def test_nothing_is_final_before_every_worker_has_come_so_far() -> None:
    table = Table("busy", ("sale",), MEASURES, allowed_lateness="1m")
    rows = sales(3)
    ahead, behind = read(table, rows), read(table, rows[:200])
    merged, watermark = merge(table, [ahead, behind])
    final = {r["start"] for r in merged if r["final"]}
    assert final == {r["start"] for r in behind[0] if r["final"]}
    assert final < {r["start"] for r in ahead[0] if r["final"]}
    assert watermark == behind[1]
    merged, watermark = merge(table, [ahead, read(table, [])])
    assert watermark is None
    assert not any(r["final"] for r in merged)
