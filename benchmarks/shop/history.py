"""What a shop's customers did in the 30 days before: sealed into the log, as a load would."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.shop.traffic import ITEMS, MERCHANTS
from features.commerce import project
from raypipe.clock import DAY_MS
from raypipe.log.port import POSITION, EventLog

PER_CUSTOMER = {"page_view": 3, "payment": 3, "login": 1}
DAYS = 30

_BATCH_ROWS = 131_072

Ints = npt.NDArray[np.int64]


def preload(log: EventLog, customers: int, end_ms: int, seed: int) -> int:
    """Seal the history of so many customers, ending before ``end_ms``; returns its rows."""
    rng = np.random.default_rng(seed)
    who = {kind: np.repeat(np.arange(customers), n) for kind, n in PER_CUSTOMER.items()}
    times = {kind: end_ms - rng.integers(1, DAYS * DAY_MS, len(ids)) for kind, ids in who.items()}
    order = np.argsort(np.concatenate(list(times.values())), kind="stable")
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    ordered, begin = {}, 0
    for kind, ids in who.items():
        mine = ranks[begin : begin + len(ids)]
        begin += len(ids)
        by_rank = np.argsort(mine)
        ordered[kind] = _batches(
            kind, mine[by_rank], times[kind][by_rank], ids[by_rank], np.random.default_rng(seed)
        )
    log.seal(0, ordered, len(order), producer="history", seq=0)
    return len(order)


def _batches(
    kind: str, ranks: Ints, times: Ints, who: Ints, rng: np.random.Generator
) -> Iterator[pa.RecordBatch]:
    schema = project.event(kind).arrow_schema
    for at in range(0, len(ranks), _BATCH_ROWS):
        part = slice(at, at + _BATCH_ROWS)
        n = len(ranks[part])
        columns = {
            "tenant": pa.repeat("default", n),
            "event_id": text("h", ranks[part], 12),
            "event_time": pa.array(times[part]),
            "received_at": pa.array(times[part]),
            **_fields(kind, who[part], rng),
        }
        arrays = [columns.get(f.name, pa.nulls(n, f.type)) for f in schema]
        with_position = schema.insert(0, pa.field(POSITION, pa.int64()))
        yield pa.RecordBatch.from_arrays([pa.array(ranks[part]), *arrays], schema=with_position)


def _fields(kind: str, who: Ints, rng: np.random.Generator) -> dict[str, pa.Array]:
    n = len(who)
    customer = text("c", who, 7)
    if kind == "page_view":
        visit = who * 10 + rng.integers(0, 4, n)
        item = (ITEMS * rng.random(n) ** 3).astype(np.int64)
        return {
            "customer_id": customer,
            "session_id": text("s", visit, 8),
            "item_id": text("i", item, 5),
        }
    if kind == "login":
        return {
            "customer_id": customer,
            "device_id": text("d", who, 7),
            "success": pa.array(rng.random(n) < 0.9),
        }
    seller = (MERCHANTS * rng.random(n) ** 3).astype(np.int64)
    return {
        "order_id": text("o", who, 11),
        "customer_id": customer,
        "card_id": text("k", who, 7),
        "merchant_id": text("m", seller, 4),
        "device_id": text("d", who, 7),
        "amount": pa.array(rng.integers(100, 50_000, n)),
        "currency": pa.repeat("EUR", n),
        "approved": pa.array(rng.random(n) < 0.95),
    }


def text(prefix: str, numbers: Ints, width: int) -> pa.Array:
    """``prefix`` and each number with leading zeros."""
    digits = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), width, "0")
    return pc.binary_join_element_wise(pa.scalar(prefix), digits, "")
