"""Lists that shoppers were shown, as a log of impressions: place, propensity, clicked or not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raypipe.errors import UsageError
from raypipe.simulate.draws import Floats, Ints
from raypipe.simulate.shop.clicks import clicks
from raypipe.simulate.shop.tables import items, shoppers
from raypipe.simulate.shop.world import Shop


@dataclass(frozen=True, slots=True)
class Impressions:
    """What was shown and clicked on a day.

    ``shopper`` [n]; ``item`` [n, k] from the top, -1 for an empty place; ``propensity`` [n, k] with
    which it was put there; ``clicked`` [n, k] of 0 and 1.
    """

    day: int
    shopper: Ints
    item: Ints
    propensity: Floats
    clicked: Ints

    def __len__(self) -> int:
        return len(self.shopper)

    def table(self) -> pa.Table:
        """A row for each place that held something; places count from 1."""
        row, place = np.nonzero(self.item >= 0)
        return pa.table(
            {
                "list": pa.array(row),
                "customer_id": shoppers(self.shopper[row]),
                "item_id": items(self.item[row, place]),
                "place": pa.array(place + 1),
                "propensity": pa.array(self.propensity[row, place]),
                "clicked": pa.array(self.clicked[row, place].astype(np.bool_)),
            }
        )


def show(
    shop: Shop, day: int, shopper: Ints, item: Ints, propensity: Floats, *, name: int = 0
) -> Impressions:
    """Show lists on a day and log what became of them; ``name`` as of ``clicks``.

    Raises UsageError for propensities of another shape than the lists'.
    """
    if propensity.shape != item.shape or len(shopper) != len(item):
        raise UsageError(
            f"{len(shopper)} shoppers, lists of shape {item.shape}, propensities of shape "
            f"{propensity.shape}",
            hint="Give each place of each shopper's list its propensity.",
        )
    clicked = clicks(shop, day, shopper, item, name=name)
    return Impressions(day, shopper, item, propensity, clicked)
