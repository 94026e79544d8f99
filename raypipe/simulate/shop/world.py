"""A day in the shop: who comes, what is looked at, put into carts and ordered.

What is shown in the shop follows what all people care for; what is looked at of it follows hidden
taste. So popularity is visible in the log and taste is only to be found out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raypipe.clock import DAY_MS
from raypipe.errors import UsageError
from raypipe.simulate.draws import Floats, Ints, Purpose, generator
from raypipe.simulate.shop.config import ShopConfig
from raypipe.simulate.shop.items import Items
from raypipe.simulate.shop.shoppers import Shoppers

CONSIDERED = 24
"""Items that pass before somebody's eyes before he looks at one."""

LONGEST_MS = 3 * 3_600_000
"""A visit begins so long before midnight, and never reaches it."""

_GAP_MS = 45_000
_CART = 1.6
"""Log-odds by which liking must be exceeded for an even chance that a look ends in the cart."""
_ORDER = 0.55

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Looks:
    """Looks at items, in order of visit and time; all columns have one length.

    ``visit`` counts the day's visits from 0; ``anonymous`` is whether its visitor has not logged
    in; times are ms UTC. An item of the cart may be ordered; the order comes at the visit's end.
    """

    visit: Ints
    shopper: Ints
    item: Ints
    time: Ints
    anonymous: Flags
    added: Flags
    ordered: Flags
    quantity: Ints

    def __len__(self) -> int:
        return len(self.visit)


class Shop:
    """A shop that is known from its config. Days count from 0; later ones than the history's are
    the future, for trying out what was learned.
    """

    def __init__(self, config: ShopConfig) -> None:
        self.config = config
        self.items = Items(config)
        self.shoppers = Shoppers(config, self.items)

    def __repr__(self) -> str:
        return f"Shop({len(self.shoppers)} shoppers, {len(self.items)} items, {self.config.days} d)"

    def looks(self, day: int) -> Looks:
        """All looks of a day; the same each time.

        Raises UsageError for a day before the history.
        """
        if day < 0:
            raise UsageError(f"day {day} lies before the history", hint="Days count from 0.")
        config = self.config
        rng = generator(config.seed, Purpose.SHOP_DAY, day)
        here = min(self.shoppers.known(day), len(self.shoppers))
        comes = np.repeat(np.arange(here), rng.poisson(self.shoppers.visits[:here]))
        visitor = rng.permutation(comes)
        size = 1 + rng.poisson(config.looks_per_visit - 1, len(visitor))
        visit = np.repeat(np.arange(len(visitor)), size)
        shopper = visitor[visit]
        anonymous = (rng.random(len(visitor)) < config.anonymous_share)[visit]

        item, liking = self._chosen(rng, day, shopper)
        added = rng.random(len(visit)) < 1 / (1 + np.exp(config.taste + _CART - liking))
        ordered = added & (rng.random(len(visit)) < _ORDER)
        start = (rng.beta(2.6, 1.7, len(visitor)) * (DAY_MS - LONGEST_MS)).astype(np.int64)
        gap = np.minimum(rng.exponential(_GAP_MS, len(visit)), LONGEST_MS / 200).astype(np.int64)
        return Looks(
            visit=visit,
            shopper=shopper,
            item=item,
            time=config.start_ms + day * DAY_MS + start[visit] + _within(gap + 1, size),
            anonymous=anonymous,
            added=added,
            ordered=ordered,
            quantity=1 + (rng.random(len(visit)) < 0.12),
        )

    def _chosen(self, rng: np.random.Generator, day: int, shopper: Ints) -> tuple[Ints, Floats]:
        """Of some items that are shown by interest, the one that is liked most, with chance."""
        share = np.cumsum(np.exp(self.items.interest(day)))
        if not share[-1] > 0:
            raise UsageError(
                f"no item is on the shelf on day {day}",
                hint="Lower launched_share or fading_share.",
            )
        drawn = rng.random((len(shopper), CONSIDERED)) * share[-1]
        passing = np.searchsorted(share, drawn, side="right")
        liking = self.shoppers.liking(shopper, passing)
        best = np.argmax(liking + rng.gumbel(size=liking.shape), axis=1)
        rows = np.arange(len(shopper))
        return passing[rows, best], liking[rows, best]


def _within(gaps: Ints, sizes: Ints) -> Ints:
    """Sums of gaps since each visit's begin."""
    total = np.cumsum(gaps)
    ends = np.cumsum(sizes)
    before = np.concatenate([[0], total[ends[:-1] - 1]]) if len(sizes) else total
    out: Ints = total - np.repeat(before, sizes)
    return out
