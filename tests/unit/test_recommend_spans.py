"""Spans of a shop's history, and what is learned and judged on them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.shop_log import START_MS, TENANT, logged
from raypipe.clock import DAY_MS
from raypipe.errors import StageError
from raypipe.simulate.shop.config import ShopConfig
from raypipe.simulate.shop.world import Shop
from training.recommend.events import Tables, read_interactions
from training.recommend.interactions import Interactions
from training.recommend.ranking import ranker, trial
from training.recommend.ranking.choosing import SecondStage, least_known, plainly
from training.recommend.ranking.features import Table
from training.recommend.ranking.port import best
from training.recommend.ranking.spans import History, Span
from training.recommend.rows import Rows

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


def test_of_too_many_moments_some_are_drawn(shop: tuple[Interactions, Tables]) -> None:
    history = History(*shop, TENANT, PLAN)
    start, end = START_MS + 6 * DAY_MS, START_MS + 8 * DAY_MS
    whole, _ = history.visits(start, end)
    assert len(whole.at) > 40
    drawn, _ = history.visits(start, end, most=40)
    again, _ = history.visits(start, end, most=40)
    assert len(drawn.at) == 40
    assert np.array_equal(drawn.at.offset, again.at.offset)
    assert (np.diff(drawn.at.offset) >= 0).all()
    assert set(zip(drawn.at.user, drawn.at.offset, strict=True)) <= set(
        zip(whole.at.user, whole.at.offset, strict=True)
    )
    assert drawn.at.time.max() > whole.at.time[len(whole.at) // 2]
    assert len(history.visits(start, end, most=len(whole.at))[0].at) == len(whole.at)


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
    assert found.second.order.trees == 3
    assert [line.split(":")[0] for line in said] == ["learn", "choose", "judge"]
    assert len(found.two_stage.users) == len(found.popular.users) == len(found.retriever.users)


class Partial:
    """Orders as it should be where the visitor's number of known items is one of some, and the
    other way round elsewhere."""

    learner = file = "none"
    names = ()
    trees = 0

    def __init__(self, span: Span, good: set[int]) -> None:
        sizes = span.known.sizes
        self._sign = np.where(np.isin(sizes, list(good)), 1.0, -1.0)

    def ordered(self, table: Table, k: int) -> Rows:
        score = table.grade * self._sign[table.moment] - 1e-6 * np.arange(len(table))
        return best(table, table.names, score, k)

    def scores(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.zeros(len(rows), np.float32)

    def model(self) -> bytes:
        return b""


@pytest.mark.parametrize(
    ("good", "least"), [({0, 1, 2}, 0), ({1, 2}, 1), ({0, 2}, 2), ({0, 1}, 3), (set(), 3)]
)
def test_an_order_is_used_from_where_it_is_better(
    shop: tuple[Interactions, Tables], good: set[int], least: int
) -> None:
    history = History(*shop, TENANT, PLAN)
    span, _ = history.visits(START_MS + 6 * DAY_MS, START_MS + 9 * DAY_MS)
    order = Partial(span, good)
    assert {0, 1, 2} < set(span.known.sizes.tolist())
    assert least_known(order, span, 5) == least
    ranked, whole = SecondStage(order, least).ordered(span, 5), order.ordered(span.table, 5)
    for row, size in enumerate(span.known.sizes.tolist()):
        expected = whole if size >= least else span.table.candidates.first(5)
        assert ranked.row(row)[0].tolist() == expected.row(row)[0].tolist()


def test_where_nobody_shows_it_the_retriever_orders_short_histories(
    shop: tuple[Interactions, Tables],
) -> None:
    history = History(*shop, TENANT, PLAN)
    span, _ = history.visits(START_MS + 6 * DAY_MS, START_MS + 9 * DAY_MS)
    many = np.flatnonzero(span.known.sizes >= 3)
    long = history.span(span.at.at(many), history.retrievers(START_MS + 6 * DAY_MS))
    assert least_known(Partial(long, set(range(3, 99))), long, 5) == 3


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
