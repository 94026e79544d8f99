"""Verdicts on candidates against one obvious question after the other; refusals of nonsense."""

from __future__ import annotations

import numpy as np
import pytest

from raypipe.clock import DAY_MS
from raypipe.errors import DeclarationError, InvalidRequest, UsageError
from serving.recommend.diversity import Diversity
from serving.recommend.exploration import Exploration
from serving.recommend.rules import Caps, Filters, Items, Rules, Verdict, Visitor, judged
from serving.recommend.selection import Asked, Selection, choose

NOW = 400 * DAY_MS
COUNT = 60


def shelf(rng: np.random.Generator) -> Items:
    price = rng.integers(1, 10, COUNT) * 100.0
    return Items(
        category=rng.integers(-1, 4, COUNT),
        brand=rng.integers(-1, 6, COUNT),
        price=np.where(rng.random(COUNT) < 0.1, np.nan, price),
        in_stock=rng.random(COUNT) < 0.8,
    )


def verdict(code: int, items: Items, rules: Rules, visitor: Visitor, filters: Filters) -> Verdict:
    if not items.in_stock[code] and not rules.show_out_of_stock:
        return Verdict.OUT_OF_STOCK
    for bought, at in zip(visitor.bought, visitor.bought_ms, strict=True):
        if bought == code and (rules.rebuy_ms is None or NOW - at < rules.rebuy_ms):
            return Verdict.BOUGHT
    if code in visitor.hidden.tolist():
        return Verdict.HIDDEN
    category, brand, price = items.category[code], items.brand[code], items.price[code]
    if filters.categories is not None and (category < 0 or category not in filters.categories):
        return Verdict.FILTERED
    if filters.brands is not None and (brand < 0 or brand not in filters.brands):
        return Verdict.FILTERED
    if filters.price_from is not None and not price >= filters.price_from:
        return Verdict.FILTERED
    if filters.price_to is not None and not price <= filters.price_to:
        return Verdict.FILTERED
    return Verdict.ALLOWED


@pytest.mark.parametrize("seed", range(20))
def test_each_candidate_gets_the_first_verdict_that_holds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    items = shelf(rng)
    rules = Rules(
        rebuy_ms=[None, 0, 30 * DAY_MS][seed % 3], show_out_of_stock=bool(rng.random() < 0.3)
    )
    bought = rng.choice(COUNT, 15, replace=False)
    visitor = Visitor(bought, NOW - rng.integers(0, 60, 15) * DAY_MS, rng.integers(0, COUNT, 6))
    filters = [
        Filters(),
        Filters(categories=np.array([0, 2, -1]), price_to=600.0),
        Filters(brands=np.array([1, 3, 4]), price_from=300.0),
        Filters(price_from=200.0, price_to=700.0),
    ][seed % 4]
    codes = rng.permutation(COUNT)[:40]
    found = judged(codes, items, rules, visitor, filters, NOW)
    expected = [verdict(int(c), items, rules, visitor, filters) for c in codes]
    assert found.tolist() == expected
    assert len(set(expected)) > 1


def test_an_item_comes_again_when_the_interval_is_over() -> None:
    items = Items([0], [0], [100.0], [True])
    codes, rules = np.array([0]), Rules(rebuy_ms=30 * DAY_MS)
    for age, said in ((30 * DAY_MS - 1, Verdict.BOUGHT), (30 * DAY_MS, Verdict.ALLOWED)):
        visitor = Visitor(np.array([0]), np.array([NOW - age]))
        assert judged(codes, items, rules, visitor, Filters(), NOW).tolist() == [said]


def test_what_was_left_out_is_counted_by_rule() -> None:
    items = Items([0] * 5, [0] * 5, [100.0] * 5, [True, True, False, False, True])
    visitor = Visitor(np.array([1]), np.array([NOW]), np.array([3]))
    asked = Asked(3, NOW, 1, visitor)
    shown = choose(np.arange(5), np.arange(5, 0, -1.0), items, asked, Selection())
    assert shown.codes.tolist() == [0, 4]
    assert shown.candidates.tolist() == [0, 4]
    assert shown.left_out == {"out_of_stock": 2, "bought": 1}


def test_no_candidates_give_an_empty_list() -> None:
    items = Items([0], [0], [1.0], [True])
    none = np.zeros(0, np.int64)
    shown = choose(none, none.astype(np.float32), items, Asked(5, NOW, 1), Selection())
    assert len(shown) == 0
    assert shown.left_out == {}
    only = Asked(5, NOW, 1, sponsored=np.array([0]))
    paid = choose(
        none, none.astype(np.float32), items, only, Selection(rules=Rules(sponsored=(1,)))
    )
    assert paid.codes.tolist() == [0]
    assert paid.candidates.tolist() == [-1]
    assert paid.sponsored.tolist() == [True]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Rules(sponsored=(3, 1)), r"sponsored places are \[3, 1\]"),
        (lambda: Rules(sponsored=(0,)), "count from 1"),
        (lambda: Rules(rebuy_ms=-1), "-1 ms after it was bought"),
        (lambda: Caps(category=-2), "caps of -2 a category"),
        (lambda: Diversity(relevance=1.5), "lambda, the weight of relevance, is 1.5"),
        (lambda: Diversity(category=0.7, brand=0.4), "weigh 0.7, 0.4, 0"),
        (lambda: Exploration(share=2.0), "share of 2"),
        (lambda: Exploration(temperature=0.0), "temperature is 0"),
        (lambda: Exploration(temperature=float("nan")), "temperature is nan"),
        (lambda: Items([0], [0], [1.0], []), "columns of 1, 1, 1 and 0 items"),
    ],
)
def test_nonsense_is_refused(make: object, says: str) -> None:
    with pytest.raises(DeclarationError, match=says):
        make()  # type: ignore[operator]


def test_requests_that_cannot_be_met_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="prices from 9 to 3"):
        Filters(price_from=9.0, price_to=3.0)
    with pytest.raises(UsageError, match="a list of 0 items"):
        Asked(0, NOW, 1)
    items = Items([0], [0], [1.0], [True])
    with pytest.raises(UsageError, match="2 scores for 1 candidates"):
        choose(np.zeros(1, np.int64), np.zeros(2), items, Asked(1, NOW, 1), Selection())
