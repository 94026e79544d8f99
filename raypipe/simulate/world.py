"""The world: days of payments, cut into batches in the order in which they arrive."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raypipe.clock import DAY_MS, HOUR_MS, MINUTE_MS
from raypipe.errors import UsageError
from raypipe.simulate import tables
from raypipe.simulate.campaigns import Fraud
from raypipe.simulate.catalog import Rhythm
from raypipe.simulate.config import WorldConfig
from raypipe.simulate.customers import Customers
from raypipe.simulate.draws import Ints, Purpose, generator, key_of
from raypipe.simulate.ids import scramble
from raypipe.simulate.market import Market
from raypipe.simulate.pieces import Piece, join
from raypipe.simulate.rows import Campaign, Rows, no_rows, together
from raypipe.simulate.scene import Scene

LATE_MS = (2 * MINUTE_MS, 8 * HOUR_MS)
"""Shortest and longest delay of a late row; log-uniform between."""

_LIVE_CHUNK = 1_024
_TIE_BITS = 19
_NEVER = 2**43


@dataclass(frozen=True, slots=True)
class WorldBatch:
    """A piece of the world in arrival order (received_at).

    ``labels`` has one row for each transaction, in the same order, and belongs to the caller's
    eyes alone.
    """

    transactions: pa.Table
    chargebacks: pa.Table
    labels: pa.Table

    def __len__(self) -> int:
        return len(self.transactions) + len(self.chargebacks)


@dataclass(frozen=True, slots=True)
class LiveRow:
    """One transaction to send: its JSON-ready client fields, and the truth, which stays here."""

    body: dict[str, Any]
    received_at: int
    is_fraud: bool
    campaign_id: str | None
    kind: str | None


class World:
    """A seeded world of payments. All methods are pure: called again, they give the same.

    The history is what arrives before ``config.end_ms``; what arrives later is `live`. A world of
    more days with the same other settings begins with the same history.
    """

    def __init__(self, config: WorldConfig) -> None:
        self.config = config
        self._scene = Scene(
            config,
            Customers(config),
            Market(config),
            Rhythm(),
            config.start_ms // DAY_MS * DAY_MS,
        )
        self._fraud = Fraud(self._scene)
        self._id_key = key_of(config.seed, Purpose.TRANSACTION_ID)

    def __repr__(self) -> str:
        c = self.config
        return f"World(seed={c.seed}, about {c.expected_rows:,} transactions in {c.days} days)"

    def batches(self, rows_per_batch: int = 2**17) -> Iterator[WorldBatch]:
        """The history in arrival order; every batch but the last has ``rows_per_batch`` rows.

        The rows don't depend on ``rows_per_batch``. Raises UsageError if that is under 1.
        """
        if rows_per_batch < 1:
            raise UsageError(f"rows_per_batch is {rows_per_batch}", hint="It must be at least 1.")
        held: list[Piece] = []
        for piece in self._arrivals(0, self._last_day + 1):
            held.append(piece.until(self.config.end_ms))
            if sum(map(len, held)) < rows_per_batch:
                continue
            rest = join(held)
            while len(rest) >= rows_per_batch:
                batch, rest = rest.split(rows_per_batch)
                yield self._batch(batch)
            held = [rest]
        if any(map(len, held)):
            yield self._batch(join(held))

    def day(self, day: int) -> WorldBatch:
        """What happened on one UTC day, 0 for the one that holds the start, with its chargebacks.

        It is computed from the config and the day alone, whatever was asked before. Days after
        the history belong to the world too. Raises UsageError for a negative day.
        """
        if day < 0:
            raise UsageError(f"day is {day}", hint="Days count from 0, the day of the start.")
        block = self._block(day)
        rows, _ = _by_time(block, block.received)
        return self._batch(Piece(rows, _disputed(rows)))

    def live(self, count: int) -> Iterator[LiveRow]:
        """The first ``count`` transactions that arrive after the history, in arrival order.

        Raises UsageError if ``count`` is negative.
        """
        if count < 0:
            raise UsageError(f"count is {count}", hint="It must be at least 0.")
        # Late rows of the day before may arrive after the end.
        for piece in self._arrivals(max(0, self._last_day - 1)):
            if not count:
                return
            rows = piece.transactions
            rows = rows.take(rows.received >= self.config.end_ms).take(slice(0, count))
            count -= len(rows)
            for at in range(0, len(rows), _LIVE_CHUNK):
                part = rows.take(slice(at, at + _LIVE_CHUNK))
                yield from _live_rows(self._batch(Piece(part, no_rows())))

    @property
    def _last_day(self) -> int:
        return (self.config.end_ms - 1 - self._scene.midnight) // DAY_MS

    def _batch(self, piece: Piece) -> WorldBatch:
        return WorldBatch(
            tables.transactions(piece.transactions, self._scene.market),
            tables.chargebacks(piece.chargebacks),
            tables.labels(piece.transactions),
        )

    def _arrivals(self, first: int, stop: int | None = None) -> Iterator[Piece]:
        """What arrives on each day from ``first`` on; late rows of earlier days are missing."""
        late, pending = no_rows(), no_rows()
        for day in itertools.count(first) if stop is None else range(first, stop):
            block = self._block(day)
            tomorrow = self._scene.starts(day + 1)
            bought = together([late, block])
            told = together([pending, _disputed(block)])
            arrived, late = _by_time(bought, bought.received, tomorrow)
            reported, pending = _by_time(told, tables.reported_at(told), tomorrow)
            yield Piece(arrived, reported)

    def _block(self, day: int) -> Rows:
        """All payments of a day in no order of time, with ids and the chargebacks to come."""
        config = self.config
        rows = together([self._fraud.genuine(day), self._fraud.day(day)])
        rng = generator(config.seed, Purpose.ARRIVAL_DAY, day)
        count = len(rows)
        delay = (60 + 240 * rng.standard_exponential(count, np.float32)).astype(np.int64)
        late = np.flatnonzero(rng.random(count) < config.late_share)
        wait = np.exp(rng.uniform(np.log(LATE_MS[0]), np.log(LATE_MS[1]), len(late)))
        delay[late] += wait.astype(np.int64)

        fraud = rows.kind != Campaign.GENUINE
        chance = np.where(fraud, 1 - config.unreported_share, config.friendly_share)
        disputed = np.flatnonzero(rng.random(count) < chance)
        span = (config.chargeback_min_days * DAY_MS, config.chargeback_max_days * DAY_MS)
        known = np.zeros(count, np.int64)
        known[disputed] = rows.time[disputed] + rng.uniform(*span, len(disputed)).astype(np.int64)
        rows = rows.replace(
            received=rows.time + delay,
            known=known,
            number=scramble((day << 28) + np.arange(count), self._id_key),
        )
        if rows.time.min(initial=config.start_ms) < config.start_ms:
            rows = rows.take(rows.time >= config.start_ms)
        return rows


def _by_time(rows: Rows, time: Ints, until: int = _NEVER) -> tuple[Rows, Rows]:
    """The rows sorted by a time, those before ``until`` and the others."""
    # Equal times stand in the order of their scrambled numbers, which tells nothing.
    keys = (time << _TIE_BITS) | (rows.number & (2**_TIE_BITS - 1))
    order = np.argsort(keys, kind="stable")
    cut = int(np.searchsorted(keys, until << _TIE_BITS, sorter=order))
    return rows.take(order[:cut]), rows.take(order[cut:])


def _disputed(rows: Rows) -> Rows:
    return rows.take(np.flatnonzero(rows.known))


def _live_rows(batch: WorldBatch) -> Iterator[LiveRow]:
    bodies = batch.transactions.drop_columns("received_at").to_pylist()
    received = batch.transactions["received_at"].to_pylist()
    for body, at, truth in zip(bodies, received, batch.labels.to_pylist(), strict=True):
        yield LiveRow(
            {name: value for name, value in body.items() if value is not None},
            at,
            truth["is_fraud"],
            truth["campaign_id"],
            truth["kind"],
        )
