"""Merchants: where they are, what they sell, how dear and how popular they are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from raypipe.simulate import catalog
from raypipe.simulate.config import WorldConfig
from raypipe.simulate.draws import Floats, Ints, Purpose, generator

_PRICE_SIGMA = 0.3
_POPULATION = (0.85, 0.15)
"""How much of the merchants' spread over categories follows counter and online demand."""


class Market:
    """Columns by merchant number, and the choice of a merchant.

    Merchants of one category and country form a group. Inside a group the chance of the merchant
    of rank r (from 1) is proportional to the integral of x**-zipf from r to r + 1: Zipf's law in
    closed form, so that choosing costs one power and no table. A group without merchants uses its
    whole category, a category without any uses all merchants.
    """

    def __init__(self, config: WorldConfig) -> None:
        rng = generator(config.seed, Purpose.MERCHANT)
        count, countries = config.merchants, len(catalog.COUNTRIES)
        self._zipf = config.zipf
        demand = np.array([[c.pos, c.online] for c in catalog.CATEGORIES])
        demand = (demand / demand.sum(0)) @ np.array(_POPULATION)
        shares = np.outer(demand, [c.share for c in catalog.COUNTRIES]).ravel()
        # The largest remainders first: small worlds still cover the largest groups.
        exact = shares / shares.sum() * count
        sizes = np.floor(exact).astype(np.int64)
        sizes[np.argsort(sizes - exact, kind="stable")[: count - sizes.sum()]] += 1

        group = np.repeat(np.arange(len(sizes)), sizes)
        self._number = rng.permutation(count)
        """Merchant number by place; places are sorted by group and, inside it, by popularity."""
        self.category = np.empty(count, np.int8)
        self.country = np.empty(count, np.int8)
        self.category[self._number] = group // countries
        self.country[self._number] = group % countries
        self.price = (_PRICE_SIGMA * rng.standard_normal(count)).astype(np.float32)

        starts = np.cumsum(sizes) - sizes
        wide = sizes.reshape(-1, countries).sum(1)
        wide_starts = np.cumsum(wide) - wide
        first, size = starts.copy(), sizes.copy()
        for i in np.flatnonzero(sizes == 0):
            c = i // countries
            first[i], size[i] = (wide_starts[c], wide[c]) if wide[c] else (0, count)
        self._first, self._size = first, size.astype(np.float64)

    def pick(
        self,
        category: npt.NDArray[np.integer],
        country: npt.NDArray[np.integer],
        random: Floats,
    ) -> Ints:
        """Merchant numbers for uniform random numbers in (0, 1): equal numbers, equal merchant."""
        group = category.astype(np.int64) * len(catalog.COUNTRIES) + country
        size = self._size[group]
        if self._zipf == 1.0:
            rank = np.exp(random * np.log1p(size))
        else:
            power = 1.0 - self._zipf
            rank = ((np.power(size + 1.0, power) - 1.0) * random + 1.0) ** (1.0 / power)
        rank = np.clip(rank, 1.0, size)
        out: Ints = self._number[self._first[group] + rank.astype(np.int64) - 1]
        return out
