"""Looks by place, and orders learned from clicks that they bias, where the shop knows the truth."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from raypipe.errors import StageError, UsageError
from raypipe.experiments.exploration import shuffled
from raypipe.simulate.shop.clicks import attraction, examined
from raypipe.simulate.shop.config import ShopConfig
from raypipe.simulate.shop.lists import Impressions, show
from raypipe.simulate.shop.world import Shop
from training.recommend.intervals import bootstrap
from training.recommend.ranking import ranker
from training.recommend.ranking.features import Table
from training.recommend.ranking.positions import examination
from training.recommend.rows import Rows

PLACES, SHOPPERS, ITEMS, DAY = 10, 1_000, 400, 5


@cache
def shop() -> Shop:
    return Shop(
        ShopConfig(start_ms=1_790_035_200_000, days=10, shoppers=SHOPPERS, items=ITEMS, groups=6)
    )


def wanted(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Shoppers, and for each what a search found: items that are on the shelf."""
    rng = np.random.default_rng(seed)
    there = np.flatnonzero(shop().items.on_shelf(DAY))
    found = np.argpartition(rng.random((count, len(there))), PLACES, axis=1)[:, :PLACES]
    return rng.integers(0, SHOPPERS, count), there[found]


@cache
def drawn() -> Impressions:
    """Lists in a drawn order: what looks by place are learned from."""
    who, items = wanted(12_000, 1)
    lists = shuffled(len(who), PLACES, PLACES, 1.0, np.random.default_rng(2))
    order = np.take_along_axis(items, lists.picked, axis=1)
    return show(shop(), DAY, who, order, lists.propensity, name=1)


def sorted_lists(by: np.ndarray, count: int, seed: int) -> Impressions:
    """Lists as the shop sorts them, the lowest value first, whoever looks."""
    who, items = wanted(count, seed)
    order = np.take_along_axis(items, np.argsort(by[items], axis=1), axis=1)
    return show(shop(), DAY, who, order, np.ones(order.shape), name=seed)


def cheapest_first(count: int, seed: int) -> Impressions:
    return sorted_lists(shop().items.price, count, seed)


def test_looks_by_place_are_those_that_were_planted() -> None:
    found = examination(drawn().clicked, drawn().propensity, level=0.999)
    planted = examined(PLACES)
    assert ((found.low <= planted) & (planted <= found.high)).all()
    assert found.chance == pytest.approx(planted, abs=0.08)
    assert (np.diff(found.chance) <= 0).all()
    assert found.of(np.array([1, 3, 99])).tolist() == found.chance[[0, 2, -1]].tolist()
    # Lists with the best ones on top give another curve: looks and liking are one there.
    best_first = examination(sorted_lists(-shop().items.interest(DAY), 12_000, 3).clicked)
    assert (best_first.high[1:] < planted[1:]).all()


def table(shown: Impressions) -> Table:
    """What is known of each candidate: price, demand, and a blurred guess of the taste."""
    rng = np.random.default_rng(9)
    wide = np.sort(shown.item, axis=1), np.argsort(shown.item, axis=1)
    items = wide[0]
    clicked = np.take_along_axis(shown.clicked, wide[1], axis=1)
    taste = shop().shoppers.liking(shown.shopper, items) + rng.normal(0, 0.5, items.shape)
    known = (np.log(shop().items.price[items]), shop().items.interest(DAY)[items], taste)
    x = np.stack([k.ravel() for k in known], axis=1).astype(np.float32)
    rows = Rows(np.arange(len(items) + 1) * PLACES, items.ravel(), np.ones(items.size), ITEMS)
    return Table(("log_price", "demand", "taste"), x, rows, clicked.ravel().astype(float))


def places(shown: Impressions) -> np.ndarray:
    """Of each candidate of the table, from 1."""
    return (np.argsort(shown.item, axis=1) + 1).ravel()


def test_weighted_clicks_find_what_is_liked_and_plain_ones_what_stood_on_top() -> None:
    learned, later = cheapest_first(4_000, 4), cheapest_first(2_000, 5)
    looks = examination(drawn().clicked, drawn().propensity).of(places(learned))
    settings = {"max_depth": 4, "learning_rate": 0.1, "min_child_weight": 1.0}
    orders = {
        "plain": ranker.fit(table(learned), rounds=40, parameters=settings),
        "weighted": ranker.fit(
            table(learned), rounds=40, parameters=settings, seen=looks, most=10.0
        ),
    }
    liked = {}
    for name, order in orders.items():
        first = order.ordered(table(later), 3)
        items = first.columns.reshape(-1, 3).astype(np.int64)
        liked[name] = attraction(shop(), DAY, later.shopper, items).mean(axis=1)
    gain = bootstrap(liked["weighted"] - liked["plain"], repeats=400)
    assert gain.low > 0, (gain, liked["plain"].mean())


def test_impressions_are_a_table_of_places() -> None:
    item = np.array([[3, -1], [5, 7]])
    shown = show(shop(), DAY, np.array([1, 2]), item, np.array([[0.5, 0.5], [1.0, 0.25]]))
    rows = shown.table().to_pylist()
    assert [(r["list"], r["customer_id"], r["item_id"], r["place"]) for r in rows] == [
        (0, "shopper_00000001", "item_00000003", 1),
        (1, "shopper_00000002", "item_00000005", 1),
        (1, "shopper_00000002", "item_00000007", 2),
    ]
    assert [r["propensity"] for r in rows] == [0.5, 1.0, 0.25]
    assert [r["clicked"] for r in rows] == shown.clicked[item >= 0].astype(bool).tolist()
    with pytest.raises(UsageError, match="2 shoppers, lists of shape"):
        show(shop(), DAY, np.array([1, 2]), item, np.ones((2, 3)))


def test_what_says_nothing_of_looks_is_refused() -> None:
    with pytest.raises(StageError, match="nobody clicked on the first place of 4 lists"):
        examination(np.zeros((4, 3)))
    with pytest.raises(UsageError, match="clicks of shape"):
        examination(np.ones((4, 3)), np.ones((4, 2)))
    with pytest.raises(UsageError, match="place 0"):
        examination(np.ones((4, 3))).of(np.array([0]))
