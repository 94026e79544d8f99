"""The newcomers of the suite `two_stage`, in a shop small enough for a test."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.recommendations import newcomers
from benchmarks.recommendations.newcomers import (
    CUSTOMER,
    FIRST_LOOK,
    KINDS,
    NOBODY,
    SESSION,
    Judged,
)
from benchmarks.shop_log import START_MS, TENANT, logged
from raypipe.clock import DAY_MS
from raypipe.simulate.shop.config import ShopConfig
from raypipe.simulate.shop.world import Shop
from training.recommend.events import guests_of, read_interactions
from training.recommend.ranking.moments import Moments, moments
from training.recommend.ranking.spans import History
from training.recommend.ranking.trial import Plan
from training.recommend.rows import empty

KNOWN = {CUSTOMER: {1, 2}, FIRST_LOOK: {1}, SESSION: {2}, NOBODY: {0}}
SIZE: dict[str, Any] = {"shoppers": 150, "items": 60, "days": 14, "join_per_year": 9.0}


@pytest.fixture(scope="module")
def history() -> History:
    tables = logged(Shop(ShopConfig(start_ms=START_MS, seed=3, **SIZE)))
    return History(read_interactions(tables, joined=True, guests=True), tables, TENANT, Plan())


def test_newcomers_are_those_of_whom_nothing_one_or_two_items_are_known(history: History) -> None:
    interactions = history.interactions
    start, end = START_MS + 7 * DAY_MS, START_MS + 14 * DAY_MS
    found = newcomers._newcomers(history, start, end)
    assert tuple(found) == KINDS
    guests = guests_of(interactions)
    for kind, at in found.items():
        sizes = set()
        for user, offset in zip(at.user, at.offset, strict=True):
            assert kind == NOBODY or guests[user] == (kind != CUSTOMER)
            before = (interactions.user == user) & (interactions.offset < offset)
            sizes.add(len(set(interactions.item[before].tolist())))
        assert sizes == KNOWN[kind]
        assert len(at) > 10


def test_popularity_is_counted_at_the_midnight_before(history: History) -> None:
    interactions = history.interactions
    at = moments(interactions, START_MS + 10 * DAY_MS, START_MS + 13 * DAY_MS)
    width = interactions.shape[1]
    found = newcomers._popular(history, at, empty(len(at), width), 5)
    for row in (0, len(at) // 2, len(at) - 1):
        midnight = (int(at.time[row]) - START_MS) // DAY_MS * DAY_MS + START_MS
        for days in (1, 7, 30):
            since = midnight - days * DAY_MS
            lately = (interactions.time < midnight) & (interactions.time >= since)
            if lately.sum() >= 10 * len(set(interactions.item[lately].tolist())):
                break
        users = [
            set(interactions.user[lately & (interactions.item == i)]) for i in range(found.width)
        ]
        best = sorted(range(found.width), key=lambda i: (-len(users[i]), i))[:5]
        assert found.row(row)[0].tolist() == best


def test_gains_are_those_of_visitors_over_all_shops() -> None:
    one = Judged(np.array([0.1, 0.2]), np.array([0.2, 0.2]), np.array([0.3, 0.4]))
    other = Judged(np.array([0.5]), np.array([0.5]), np.array([0.7]))
    found, notes = newcomers.figures([dict.fromkeys(KINDS, one), dict.fromkeys(KINDS, other)])
    assert found["cold_start_visitors"] == 3
    assert found["session_gain_low"] == pytest.approx(0.2)
    assert found["session_gain_high"] == pytest.approx(0.2)
    assert len(notes) == len(KINDS)
    users = np.array([4, 9, 4], np.int32)
    at = Moments(users, np.arange(3), np.arange(3), empty(3, 1))
    values = newcomers._by_visitor(at, np.array([1.0, 5.0, 2.0]))
    assert values.tolist() == [1.5, 5.0]
