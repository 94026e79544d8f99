"""The stage on which honest people and fraudsters act."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raypipe.clock import DAY_MS
from raypipe.simulate import catalog
from raypipe.simulate.catalog import Rhythm
from raypipe.simulate.config import WorldConfig
from raypipe.simulate.customers import Customers
from raypipe.simulate.draws import Floats, Ints
from raypipe.simulate.market import Market

SMALLEST, LARGEST = 50, 2_000_000
"""Bounds of an amount, minor units."""

_SIGMA = np.array([c.sigma for c in catalog.CATEGORIES], np.float32)


@dataclass(frozen=True)
class Scene:
    """What all payments of a world have in common."""

    config: WorldConfig
    customers: Customers
    market: Market
    rhythm: Rhythm
    midnight: int
    """Start of day 0: the UTC day that holds the world's start, ms."""

    def starts(self, day: int) -> int:
        """First millisecond of a day."""
        return self.midnight + day * DAY_MS

    def weekday(self, day: int) -> int:
        """0 for Monday to 6; 1970-01-01 was a Thursday."""
        return (self.starts(day) // DAY_MS + 3) % 7

    def price(
        self, rng: np.random.Generator, customer: Ints, merchant: Ints, extra: Floats | float = 0.0
    ) -> Ints:
        """Amounts at the customer's level and the merchant's prices; ``extra`` adds to the log."""
        category = self.market.category[merchant]
        noise = _SIGMA[category] * rng.standard_normal(len(customer), np.float32)
        log = self.customers.level[customer, category] + self.market.price[merchant] + noise + extra
        amount = np.exp(log).astype(np.int64)
        # A third of all prices end with 99.
        odd = rng.integers(0, 3, len(amount), np.uint8) == 0
        amount = np.where(odd, amount // 100 * 100 + 99, amount)
        return np.clip(amount, SMALLEST, LARGEST)
