"""How shoppers answer to a list: they look down it, and click on what they like.

The examination hypothesis: a click needs a look, and whether there is a look depends on the place
alone (Richardson, Dominowska & Ragno, Predicting clicks, WWW 2007; Craswell et al., WSDM 2008). So
what an other list would have got is known here, and estimates from logs can be judged.
"""

from __future__ import annotations

import numpy as np

from raypipe.simulate.draws import Floats, Ints, Purpose, generator
from raypipe.simulate.shop.world import Shop

EXAMINED = 0.7
"""Power by which looks fade down a list: the place p, from 1, is looked at with p^-0.7."""

_THRESHOLD = 3.0
"""Log-odds that an item must be liked by for an even chance of a click."""


def examined(places: int) -> Floats:
    """Chance that each place of a list is looked at, [places].

    >>> examined(3).round(3).tolist()
    [1.0, 0.616, 0.463]
    """
    out: Floats = np.arange(1.0, places + 1) ** np.float64(-EXAMINED)
    return out


def attraction(shop: Shop, day: int, shopper: Ints, item: Ints) -> Floats:
    """Chance of a click on an item that is looked at, [n, k]; 0 for what is off the shelf."""
    wish = shop.shoppers.liking(shopper, item) + shop.items.interest(day)[item]
    out: Floats = 1 / (1 + np.exp(_THRESHOLD - np.maximum(wish, -50)))
    return np.where(np.isfinite(wish), out, 0.0)


def expected(shop: Shop, day: int, shopper: Ints, shown: Ints) -> Floats:
    """Chance of a click on each place of each list, [n, k]; an item of -1 is an empty place."""
    there = shown >= 0
    chance = attraction(shop, day, shopper, np.where(there, shown, 0))
    return np.where(there, chance * examined(shown.shape[1]), 0.0)


def clicks(shop: Shop, day: int, shopper: Ints, shown: Ints, *, name: int = 0) -> Ints:
    """Which places are clicked, uint8 [n, k]; the same for the same seed, day and ``name``."""
    rng = generator(shop.config.seed, Purpose.SHOP_CLICK, day, name)
    return (rng.random(shown.shape) < expected(shop, day, shopper, shown)).astype(np.int64)
