"""A log of payments, day after day, that suites of the batch share."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from features.payments import project
from raypipe.clock import DAY_MS
from raypipe.events.schema import Kind
from raypipe.log.sqlite import SqliteLog

START_MS = 1_760_054_400_000  # 2025-10-10, midnight
DISPUTED = 50
"""One payment in so many is charged back, a day later."""

_ROWS = 50_000
_SEED = 23
_CHOICES = {"currency": ("EUR",), "country": ("DE", "FR", "NL"), "category": ("5411", "5812")}


def day(number: int, a_day: int) -> dict[str, pa.RecordBatch]:
    """Payments and chargebacks of a day by event type, each in order of arrival.

    Half of the traffic is uniform over the keys, half has Zipf's popularity; there is a card for
    each ten payments of a month.
    """
    rng = np.random.default_rng([_SEED, number])
    first, n = number * a_day, a_day
    times = START_MS + number * DAY_MS + np.sort(rng.integers(0, DAY_MS, n))
    keys = {
        "card_id": 3 * a_day,
        "customer_id": 2 * a_day,
        "merchant_id": max(10, a_day // 10),
        "device_id": 3 * a_day,
    }
    columns: dict[str, pa.Array] = {
        "event_id": pa.array([f"t{i:011d}" for i in range(first, first + n)]),
        "event_time": pa.array(times),
        "received_at": pa.array(times),
        "amount": pa.array(np.exp(rng.normal(8.0, 1.2, n)).astype(np.int64) + 1),
    }
    for name, size in keys.items():
        popular = np.minimum(rng.zipf(1.3, n) - 1, size - 1)
        codes = np.where(rng.random(n) < 0.5, popular, rng.integers(0, size, n))
        columns[name] = pa.array([f"{name[0]}{c:09d}" for c in codes.tolist()])
    transaction, chargeback = project.event("transaction"), project.event("chargeback")
    out = {"transaction": _batch(transaction.arrow_schema, columns, n, rng)}
    some = pa.array(np.arange(0, n, DISPUTED))
    old = {name: column.take(some) for name, column in columns.items()}
    return out | {"chargeback": _disputes(chargeback.arrow_schema, old)}


def _disputes(schema: pa.Schema, old: dict[str, pa.Array]) -> pa.RecordBatch:
    columns = dict(old)
    columns["transaction_id"] = columns["event_id"]
    columns["event_id"] = pa.array([f"c{i[1:]}" for i in columns["event_id"].to_pylist()])
    return _batch(schema, columns, len(columns["event_id"]), np.random.default_rng(_SEED))


def _batch(
    schema: pa.Schema, columns: dict[str, pa.Array], n: int, rng: np.random.Generator
) -> pa.RecordBatch:
    choices = _CHOICES | {"tenant": ("default",)}
    found = []
    for field in schema:
        if field.name in columns:
            found.append(columns[field.name].cast(field.type))
        else:
            some = choices.get(field.name) or _declared(field.name)
            found.append(pa.array(some).take(pa.array(rng.integers(0, len(some), n))))
    return pa.RecordBatch.from_arrays(found, schema=schema)


def _declared(name: str) -> tuple[str, ...]:
    field = project.decision_event.field(name)
    if field.kind is not Kind.CHOICE:
        raise ValueError(f"no values for the field {name!r}")
    return field.choices


def append(log: SqliteLog, number: int, a_day: int) -> None:
    """A day that came live."""
    for kind, batch in day(number, a_day).items():
        for start in range(0, batch.num_rows, _ROWS):
            log.append(
                0, [(kind, batch.slice(start, _ROWS))], producer=f"{kind}{number}", seq=start
            )


def seal(log: SqliteLog, days: int, a_day: int) -> None:
    """Days of history, as one sealed range."""
    disputes = a_day // DISPUTED + (a_day % DISPUTED > 0)
    size = a_day + disputes

    def placed(kind: str) -> Iterator[pa.RecordBatch]:
        for number in range(days):
            batch = day(number, a_day)[kind]
            at = number * size + (0 if kind == "transaction" else a_day)
            positions = pa.array(np.arange(at, at + batch.num_rows))
            fields = [pa.field("_position", pa.int64(), nullable=False), *batch.schema]
            yield pa.RecordBatch.from_arrays([positions, *batch.columns], schema=pa.schema(fields))

    kinds = ("transaction", "chargeback")
    log.seal(0, {k: placed(k) for k in kinds}, days * size, producer="history", seq=0)


def arrow_bytes(days: int, a_day: int) -> int:
    """Bytes of the events as Arrow columns in memory: what figures call their MB."""
    a_day_bytes: int = sum(b.nbytes for b in day(0, a_day).values())
    return days * a_day_bytes
