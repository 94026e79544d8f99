"""How an order is chosen: learned on one span, with as many trees as do best on a later one.

What is served learns once more, from both spans, by the same settings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from training.recommend.intervals import bootstrap
from training.recommend.measures import by_user
from training.recommend.ranking import ranker
from training.recommend.ranking.features import Table
from training.recommend.ranking.port import Order
from training.recommend.ranking.spans import Span
from training.recommend.rows import Rows


class Chosen(Protocol):
    """What was learned on one span and chosen on a later one."""

    @property
    def order(self) -> Order:
        """Learned on the first span alone."""

    def again(self, table: Table) -> Order:
        """Of as many trees by the same settings, learned from another table."""

    def describe(self) -> dict[str, Any]:
        """The settings, as plain data."""


Choose = Callable[[Span, Span], Chosen]
"""Learns on the first span and chooses on the second."""


@dataclass(frozen=True)
class Plain:
    """By the settings that are tried first."""

    order: ranker.Ranker

    def again(self, table: Table) -> ranker.Ranker:
        """See Chosen."""
        return ranker.fit(table, rounds=self.order.trees)

    def describe(self) -> dict[str, Any]:
        """See Chosen."""
        return {"parameters": dict(ranker.FIRST_POINT)}


def plainly(rounds: int) -> Choose:
    """XGBoost at the settings that are tried first, of so many trees at most."""

    def chosen(learn: Span, choose: Span) -> Plain:
        return Plain(ranker.fit(learn.table, validation=choose.table, rounds=rounds))

    return chosen


LONGEST = 3
"""Known items from which on the order is used whatever the newest days say."""

FEWEST = 20
"""Visitors that can show that it is better for a shorter history."""


@dataclass(frozen=True)
class SecondStage:
    """A learned order, used where at least ``least`` items of a visitor are known.

    Of a shorter history there is little to learn from, and the retriever's order stands.
    """

    order: Order
    least: int

    def ordered(self, span: Span, k: int) -> Rows:
        """The k best candidates of each moment, best first."""
        ranked = self.order.ordered(span.table, k)
        few = span.known.sizes < self.least
        if not few.any():
            return ranked
        row = np.arange(len(few))
        both = Rows.joined([ranked, span.table.candidates.first(k)])
        return both.take(np.where(few, row + len(few), row))


def second_stage(choose_order: Choose, learn: Span, choose: Span, k: int) -> SecondStage:
    """What is judged and served: chosen, and learned once more from the span that chose it."""
    chosen = choose_order(learn, choose)
    return SecondStage(from_both(chosen, learn, choose), least_known(chosen.order, choose, k))


def from_both(chosen: Chosen, learn: Span, choose: Span) -> Order:
    """What was chosen, learned once more from the span that chose it as well."""
    return chosen.again(Table.joined([learn.table, choose.table]))


def least_known(order: Order, choose: Span, k: int) -> int:
    """From how many known items on an order does better than the retriever's, at most LONGEST.

    Better is a gain in NDCG@k, on the span that chose it, with a 95 % interval above zero.
    """
    ranked = by_user(order.ordered(choose.table, k), choose.at.truth, k)["ndcg"]
    gain = ranked - by_user(choose.table.candidates.first(k), choose.at.truth, k)["ndcg"]
    least = LONGEST
    while least > 0:
        mine = choose.known.sizes == least - 1
        _, which = np.unique(choose.at.user[mine], return_inverse=True)
        moments = np.bincount(which)
        if len(moments) < FEWEST or bootstrap(np.bincount(which, gain[mine]) / moments).low <= 0:
            break
        least -= 1
    return least
