"""The shoppers: hidden style, level of prices, eagerness; and what they think of an item."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from raypipe.simulate.draws import Floats, Ints, Purpose, generator
from raypipe.simulate.shop.config import ShopConfig
from raypipe.simulate.shop.items import Items, near, styles

_EAGER_SIGMA = 0.7
_SECOND_STYLE = 0.3
_PRICE_WEIGHT = 0.5
_CATEGORY_SIGMA = 0.8


class Shoppers:
    """Columns by shopper number; who joins later has a higher number."""

    def __init__(self, config: ShopConfig, items: Items) -> None:
        self._config = config
        self._items = items
        rng = generator(config.seed, Purpose.SHOPPER)
        count = self.known(config.days)
        self.group = rng.integers(0, config.groups, count)
        other = rng.integers(0, config.groups, count)
        middle = styles(config)
        mixed = (1 - _SECOND_STYLE) * middle[self.group] + _SECOND_STYLE * middle[other]
        self.style = near(rng, mixed)
        self.price_level: Floats = rng.normal(0, 0.4, count)
        self.category: npt.NDArray[np.float32] = _CATEGORY_SIGMA * rng.standard_normal(
            (count, config.categories), np.float32
        )
        eager = np.exp(_EAGER_SIGMA * rng.standard_normal(count) - _EAGER_SIGMA**2 / 2)
        self.visits: Floats = config.visits_per_day * eager

    def __len__(self) -> int:
        return len(self.group)

    def known(self, day: int) -> int:
        """How many there are on a day."""
        joined = self._config.shoppers * self._config.join_per_year * (day + 1) / 365
        return self._config.shoppers + int(joined)

    def liking(self, shopper: Ints, item: Ints) -> Floats:
        """What each shopper thinks of an item for himself, on the scale of log-odds.

        ``shopper`` [n], ``item`` [n] or [n, m]; the same shape as ``item``.
        """
        wide = item if item.ndim == 2 else item[:, None]
        style = np.einsum("nd,nmd->nm", self.style[shopper], self._items.style[wide])
        away = self._items.price_level[wide] - self.price_level[shopper][:, None]
        fond = self.category[shopper[:, None], self._items.category[wide]]
        out: Floats = self._config.taste * style - _PRICE_WEIGHT * away**2 + fond
        return out if item.ndim == 2 else out[:, 0]
