"""A world as the tests look at it: numpy columns of all its transactions, with the truth."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy.typing as npt
import pyarrow as pa

from raypipe.simulate.config import WorldConfig
from raypipe.simulate.world import World, WorldBatch

MONDAY = 1_750_032_000_000
"""Monday 2025-06-16, 00:00 UTC."""


def config(**settings: Any) -> WorldConfig:
    small = {"start_ms": MONDAY, "days": 20, "customers": 400, "merchants": 150}
    return WorldConfig(**{**small, **settings})


def world(**settings: Any) -> World:
    return World(config(**settings))


def joined(batches: Iterable[WorldBatch]) -> WorldBatch:
    found = list(batches)
    return WorldBatch(
        pa.concat_tables([b.transactions for b in found]).combine_chunks(),
        pa.concat_tables([b.chargebacks for b in found]).combine_chunks(),
        pa.concat_tables([b.labels for b in found]).combine_chunks(),
    )


def same(a: WorldBatch, b: WorldBatch) -> bool:
    return (
        a.transactions.equals(b.transactions)
        and a.chargebacks.equals(b.chargebacks)
        and a.labels.equals(b.labels)
    )


def columns(table: pa.Table) -> dict[str, npt.NDArray[Any]]:
    """Numpy columns; text as objects, with None for null."""
    return {n: table[n].to_numpy(zero_copy_only=False) for n in table.column_names}


def seen(batch: WorldBatch) -> dict[str, npt.NDArray[Any]]:
    """Transactions with their truth, by column."""
    assert batch.labels["event_id"].equals(batch.transactions["event_id"])
    return columns(batch.transactions) | columns(batch.labels.drop_columns("event_id"))
