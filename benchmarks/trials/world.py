"""Customers of a simulated world: what each spent day by day, and its payments with the truth."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from raypipe.clock import DAY_MS

START_MS = 1_760_054_400_000  # 2025-10-10, midnight
BEFORE, DAYS = 28, 28
"""Days before the experiment, and days in which units come, or in which a unit is counted."""

Floats = npt.NDArray[np.float64]


class People(NamedTuple):
    """Spending in money, by customer and day [n, 84]; payments' amounts and fraud [m]."""

    daily: Floats
    payments: Floats
    amount: Floats
    fraud: npt.NDArray[np.bool_]

    @property
    def before(self) -> Floats:
        """What each spent in the 28 days before."""
        found: Floats = self.daily[:, :BEFORE].sum(axis=1)
        return found

    @property
    def spent(self) -> Floats:
        """What each spent in the 28 days that count, whenever those begin."""
        found: Floats = self.daily[:, BEFORE : BEFORE + DAYS].sum(axis=1)
        return found


def people(customers: int, seed: int) -> People:
    """Those who paid at least once in the world's 84 days."""
    from raypipe.simulate.config import WorldConfig
    from raypipe.simulate.world import World

    days = BEFORE + 2 * DAYS
    world = World(
        WorldConfig(
            seed=seed, start_ms=START_MS, days=days, customers=customers, turnover_per_year=0.0
        )
    )
    who, when, amount, fraud = [], [], [], []
    for batch in world.batches():
        t = batch.transactions
        who.append(t["customer_id"].to_numpy())
        when.append((t["event_time"].to_numpy() - START_MS) // DAY_MS)
        amount.append(t["amount"].to_numpy() / 100.0)
        fraud.append(batch.labels["is_fraud"].to_numpy().astype(np.bool_))
    names, place = np.unique(np.concatenate(who).astype(str), return_inverse=True)
    day = np.clip(np.concatenate(when), 0, days - 1)
    paid = np.concatenate(amount)
    daily = np.zeros((len(names), days))
    np.add.at(daily, (place, day), paid)
    counted = (day >= BEFORE) & (day < BEFORE + DAYS)
    payments = np.bincount(place[counted], minlength=len(names)).astype(np.float64)
    return People(daily, payments, paid, np.concatenate(fraud))
