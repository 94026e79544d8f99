"""Values of other policies' lists, where the simulated shop knows them; chances by enumeration."""

from __future__ import annotations

import math
from functools import cache
from itertools import permutations

import numpy as np
import pytest
from scipy.stats import binomtest

from raypipe.errors import UsageError
from raypipe.experiments import slates
from raypipe.experiments.exploration import (
    plackett_luce,
    plackett_luce_chance,
    shuffled,
    shuffled_chance,
)
from raypipe.experiments.offpolicy import Value
from raypipe.simulate.shop.clicks import attraction, examined
from raypipe.simulate.shop.config import ShopConfig
from raypipe.simulate.shop.world import Shop

VISITS, CANDIDATES, PLACES, EPSILON = 3_000, 12, 4, 0.5
TRIALS = 150


@cache
def visits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chance of a click if looked at [visits, candidates]; the best guess of the shop, another's.

    The shop shows what all people want; the other policy knows half of each one's taste.
    """
    shop = Shop(ShopConfig(start_ms=1_790_035_200_000, days=10, shoppers=800, items=300))
    rng = np.random.default_rng(0)
    who = rng.integers(0, 800, VISITS)
    items = np.flatnonzero(shop.items.on_shelf(5))
    shown = np.stack([rng.choice(items, CANDIDATES, replace=False) for _ in range(VISITS)])
    wanted = shop.items.interest(5)[shown]
    shown = np.take_along_axis(shown, np.argsort(-wanted, axis=1), axis=1)
    like = attraction(shop, 5, who, shown)
    taste = shop.shoppers.liking(who, shown)
    other = 0.5 * taste + rng.normal(0, 0.5, taste.shape) + shop.items.interest(5)[shown]
    return like, shop.items.interest(5)[shown], other


def held(hits: int) -> bool:
    """Whether so many of the trials' intervals may be 95 % of them."""
    return binomtest(hits, TRIALS).proportion_ci(0.99).high >= 0.95


def covered(estimates: list[list[Value]], truth: float) -> dict[str, int]:
    hits = {"ips": 0, "snips": 0, "dr": 0}
    for values in estimates:
        for v in values:
            hits[v.method] += truth in v.interval
    return hits


def test_intervals_hold_the_value_of_another_order_of_lists_that_were_shuffled() -> None:
    like, _, other = visits()
    looks = examined(PLACES)
    best = np.argsort(-other, axis=1)[:, :PLACES]
    truth = float((np.take_along_axis(like, best, axis=1) * looks).sum(axis=1).mean())
    plain = float((like[:, :PLACES] * looks).sum(axis=1).mean())
    guess = np.full(like.shape, like.mean())[:, :PLACES] * looks  # a poor model will do
    estimates = []
    rng = np.random.default_rng(1)
    for _ in range(TRIALS):
        rows = rng.integers(0, VISITS, 4_000)
        lists = shuffled(4_000, CANDIDATES, PLACES, EPSILON, rng)
        chance = np.take_along_axis(like[rows], lists.picked, axis=1) * looks
        clicked = (rng.random(chance.shape) < chance).astype(float)
        target = (lists.picked == best[rows]).astype(float)
        q = guess[rows]
        estimates.append(
            [
                slates.ips(clicked, lists.propensity, target),
                slates.snips(clicked, lists.propensity, target),
                slates.doubly_robust(clicked, lists.propensity, target, q, q),
            ]
        )
    hits = covered(estimates, truth)
    assert {m: held(n) for m, n in hits.items()} == dict.fromkeys(hits, True), hits
    # They tell the two policies apart, which is what they are for.
    assert np.mean([v.interval.low > plain for v, *_ in estimates]) > 0.5
    assert np.mean([v[2].error for v in estimates]) < np.mean([v[0].error for v in estimates])


def enumerated(scores: np.ndarray, like: np.ndarray, k: int) -> float:
    """The value of drawn lists by going through all of them, one after the other."""
    total = 0.0
    for s, a in zip(scores, like, strict=True):
        e = np.exp(s)
        for order in permutations(range(len(s)), k):
            chance, left = 1.0, float(e.sum())
            value = 0.0
            for place, item in enumerate(order):
                chance *= e[item] / left
                left -= e[item]
                value += a[item] * (place + 1.0) ** -0.7
            total += chance * value
    return total / len(scores)


def test_intervals_hold_the_value_of_other_lists_that_are_drawn() -> None:
    like, scores, other = (a[:150, :5] for a in visits())
    logging, target = 0.7 * scores, 0.7 * other
    truth = enumerated(target, like, 3)
    looks = examined(3)
    mean = float(like.mean())
    estimates = []
    rng = np.random.default_rng(2)
    for _ in range(TRIALS):
        rows = rng.integers(0, len(like), 2_000)
        lists = plackett_luce(logging[rows], 3, rng)
        chance = np.take_along_axis(like[rows], lists.picked, axis=1) * looks
        clicked = (rng.random(chance.shape) < chance).astype(float)
        there = plackett_luce_chance(target[rows], lists.picked)
        q = np.broadcast_to(mean * looks, clicked.shape)
        logged = (clicked, lists.propensity, there)
        estimates.append(
            [
                slates.ips(*logged, sequential=True),
                slates.snips(*logged, sequential=True),
                slates.doubly_robust(*logged, q, q, sequential=True),
            ]
        )
    hits = covered(estimates, truth)
    assert {m: held(n) for m, n in hits.items()} == dict.fromkeys(hits, True), hits


def test_propensities_are_how_often_lists_come() -> None:
    scores = np.array([0.3, -1.0, 1.2, 0.0])
    rng = np.random.default_rng(3)
    lists = plackett_luce(np.tile(scores, (40_000, 1)), 2, rng)
    e = np.exp(scores)
    for a, b in permutations(range(4), 2):
        chance = e[a] / e.sum() * e[b] / (e.sum() - e[a])
        mine = (lists.picked == (a, b)).all(axis=1)
        assert lists.propensity[mine].prod(axis=1) == pytest.approx(chance)
        assert mine.mean() == pytest.approx(chance, abs=4.5 * math.sqrt(chance / 40_000))
    drawn = shuffled(40_000, 5, 2, 0.4, rng)
    for place in range(2):
        for item in range(5):
            share = float((drawn.picked[:, place] == item).mean())
            one = np.full((1, 2), item)
            assert share == pytest.approx(shuffled_chance(one, 5, 0.4)[0, place], abs=0.012)


def test_one_place_is_the_estimate_of_single_actions() -> None:
    from raypipe.experiments import offpolicy

    rng = np.random.default_rng(4)
    y, p, t, q = rng.random((4, 50, 1)) * 0.9 + 0.05
    single = [a[:, 0] for a in (y, p, t)]
    assert slates.ips(y, p, t) == offpolicy.ips(*single)
    ours, theirs = slates.snips(y, p, t), offpolicy.snips(*single)
    assert (ours.value, ours.error) == pytest.approx((theirs.value, theirs.error))
    assert slates.doubly_robust(y, p, t, q, q) == offpolicy.doubly_robust(*single, q[:, 0], q[:, 0])


def test_what_can_not_be_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(UsageError, match="lists of 5 of 3 candidates"):
        shuffled(2, 3, 5, 0.1, rng)
    with pytest.raises(UsageError, match="lists of 5 of 3 candidates"):
        plackett_luce(np.zeros((2, 3)), 5, rng)
    one = np.full((3, 2), 0.5)
    with pytest.raises(UsageError, match="shapes"):
        slates.ips(one, one, one[:, :1])
    with pytest.raises(UsageError, match="propensity is not above 0"):
        slates.ips(one, one - 0.5, one)
    with pytest.raises(UsageError, match="place 2 never held"):
        slates.snips(one, one, one * [1.0, 0.0])
    with pytest.raises(UsageError, match="predictions of shapes"):
        slates.doubly_robust(one, one, one, one[:1], one)
