"""Spans of a shop's history, and what is learned and judged on them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from benchmarks.shop_log import START_MS, TENANT, logged
from raypipe.clock import DAY_MS
from raypipe.errors import StageError
from raypipe.simulate.shop.config import ShopConfig
from raypipe.simulate.shop.world import Shop
from training.recommend.events import Tables, read_interactions
from training.recommend.interactions import Interactions
from training.recommend.ranking import ranker, trial
from training.recommend.ranking.choosing import plainly
from training.recommend.ranking.features import Table
from training.recommend.ranking.spans import History, Span

SIZE: dict[str, Any] = {"shoppers": 150, "items": 60, "days": 14, "join_per_year": 9.0}
PLAN = trial.Plan(
    learn_ms=4 * DAY_MS, choose_ms=2 * DAY_MS, judge_ms=3 * DAY_MS, refit_ms=2 * DAY_MS, rounds=12
)


@pytest.fixture(scope="module")
def shop() -> tuple[Interactions, Tables]:
    tables = logged(Shop(ShopConfig(start_ms=START_MS, seed=4, **SIZE)))
    return read_interactions(tables, joined=True, guests=True), tables


def test_retrievers_are_fitted_anew_so_often(shop: tuple[Interactions, Tables]) -> None:
    history = History(*shop, TENANT, PLAN)
    start, middle, end = (START_MS + days * DAY_MS for days in (6, 8, 10))
    span, fitted = history.visits(start, end, every_ms=2 * DAY_MS)
    assert fitted.as_of_ms == middle
    early = span.at.time < middle
    assert early.any()
    assert not early.all()
    for as_of_ms, mask in ((start, early), (middle, ~early)):
        rows = np.flatnonzero(mask)
        alone = history.span(span.at.at(rows), history.retrievers(as_of_ms))
        inside = mask[span.table.moment]
        assert np.array_equal(span.table.x[inside], alone.table.x, equal_nan=True)
        assert np.array_equal(span.table.grade[inside], alone.table.grade)
        assert np.array_equal(span.known.take(rows).columns, alone.known.columns)
    once, first = history.visits(start, end)
    assert first.as_of_ms == start
    assert np.array_equal(once.at.offset, span.at.offset)


def test_what_is_judged_has_learned_from_both_spans(shop: tuple[Interactions, Tables]) -> None:
    seen: list[Span] = []

    @dataclass(frozen=True)
    class Watched:
        order: ranker.Ranker

        def again(self, table: Table) -> ranker.Ranker:
            learn, choose = seen
            assert len(table) == len(learn.table) + len(choose.table)
            assert np.array_equal(table.x[-len(choose.table) :], choose.table.x, equal_nan=True)
            return ranker.fit(table, rounds=3)

        def describe(self) -> dict[str, Any]:
            return {}

    def choose(learn: Span, later: Span) -> Watched:
        seen.extend((learn, later))
        assert learn.at.time.max() < later.at.time.min()
        return Watched(ranker.fit(learn.table, rounds=7))

    said: list[str] = []
    found = trial.run(*shop, TENANT, PLAN, choose_order=choose, say=said.append)
    assert found.ranker.trees == 3
    assert [line.split(":")[0] for line in said] == ["learn", "choose", "judge"]
    assert len(found.two_stage.users) == len(found.popular.users) == len(found.retriever.users)


def test_as_many_trees_as_were_chosen_are_grown_again(shop: tuple[Interactions, Tables]) -> None:
    history = History(*shop, TENANT, PLAN)
    learn, _ = history.visits(START_MS + 5 * DAY_MS, START_MS + 8 * DAY_MS)
    later, _ = history.visits(START_MS + 8 * DAY_MS, START_MS + 10 * DAY_MS)
    chosen = plainly(12)(learn, later)
    again = chosen.again(Table.joined([learn.table, later.table]))
    assert again.trees == chosen.order.trees <= 12
    assert chosen.describe()["parameters"] == dict(ranker.FIRST_POINT)


def test_tables_of_different_columns_are_not_joined(shop: tuple[Interactions, Tables]) -> None:
    history = History(*shop, TENANT, PLAN)
    table = history.visits(START_MS + 5 * DAY_MS, START_MS + 6 * DAY_MS)[0].table
    other = replace(table, names=(*table.names[:-1], "another"))
    with pytest.raises(StageError, match="not the same columns"):
        Table.joined([table, other])
