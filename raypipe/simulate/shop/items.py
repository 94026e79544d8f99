"""The items of a shop: what the catalogue says of them, and what it doesn't.

Hidden are an item's style, its quality and its life: when it appears, whether and how fast it goes
out of fashion, and in which part of the year its category is wanted.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from raypipe.simulate.draws import Floats, Ints, Purpose, generator
from raypipe.simulate.shop.config import ShopConfig

STYLE = 8
"""Numbers that describe a style."""

_QUALITY_SIGMA = 0.8
_RISE_DAYS = 3.0
_LIFE_DAYS = (20.0, 120.0)
_OLDEST_DAYS = 400.0
_WITHIN_GROUP = 0.5
"""Length of what separates one from the middle of its group, beside that of 1."""

_GONE = -6.0
"""Log of the interest below which an item is taken off the shelf."""

YEAR = 365.25


def styles(config: ShopConfig) -> Floats:
    """The middle of each hidden group, [groups, STYLE], of length 1."""
    middle = generator(config.seed, Purpose.SHOP_STYLE).standard_normal((config.groups, STYLE))
    out: Floats = middle / np.linalg.norm(middle, axis=1, keepdims=True)
    return out


def near(rng: np.random.Generator, middle: Floats) -> Floats:
    """Styles near others, of length 1."""
    around = middle + _WITHIN_GROUP / np.sqrt(STYLE) * rng.standard_normal(middle.shape)
    out: Floats = around / np.linalg.norm(around, axis=1, keepdims=True)
    return out


class Items:
    """Columns by item number. Days count from the start of the history, and may be negative."""

    def __init__(self, config: ShopConfig) -> None:
        rng = generator(config.seed, Purpose.SHOP_ITEM)
        count = config.items
        self.group = rng.integers(0, config.groups, count)
        self.style = near(rng, styles(config)[self.group])
        self.category = rng.integers(0, config.categories, count)
        # A brand has a style more often than not, so attributes tell something of it.
        own = rng.integers(0, config.brands, count)
        kin = self.group + config.groups * rng.integers(0, config.brands, count)
        self.brand = np.where(rng.random(count) < 0.7, kin % config.brands, own)
        median = np.exp(rng.normal(7.8, 0.8, config.categories))
        price = median[self.category] * np.exp(rng.normal(0, 0.5, count))
        self.price: Ints = np.maximum(np.rint(price), 100).astype(np.int64)
        self.price_level: Floats = np.log(price / median[self.category])
        self.quality: Floats = _QUALITY_SIGMA * rng.standard_normal(count)
        self._life(config, rng, count)
        self.season_at = rng.uniform(0, YEAR, config.categories)
        self._season = config.season

    def _life(self, config: ShopConfig, rng: np.random.Generator, count: int) -> None:
        before = -rng.uniform(1, _OLDEST_DAYS, count)
        during = rng.uniform(0, config.days, count)
        launched = rng.random(count) < config.launched_share
        self.launch: Ints = np.floor(np.where(launched, during, before)).astype(np.int64)
        fading = rng.random(count) < config.fading_share
        low, high = _LIFE_DAYS
        life = np.exp(rng.uniform(np.log(low), np.log(high), count))
        self.life: Floats = np.where(fading, life, np.inf)
        # Where the interest of a fading item passes _GONE.
        gone = np.where(fading, self.launch - _GONE * life, 2.0**40)
        self.gone: Ints = np.ceil(gone).astype(np.int64)

    def __len__(self) -> int:
        return len(self.group)

    def on_shelf(self, day: int) -> npt.NDArray[np.bool_]:
        """Whether each can be bought on a day."""
        return (self.launch <= day) & (day < self.gone)

    def interest(self, day: int) -> Floats:
        """Log of how much anybody cares for each item on a day: quality, life and season.

        -inf for what is not on the shelf.
        """
        age = np.maximum(day - self.launch, 0)
        rise = np.log1p(-np.exp(-(age + 1) / _RISE_DAYS))
        season = self._season * np.cos(2 * np.pi * (day - self.season_at) / YEAR)
        out = self.quality + rise - age / self.life + season[self.category]
        return np.where(self.on_shelf(day), out, -np.inf)
