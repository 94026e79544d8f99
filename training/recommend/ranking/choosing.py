"""How an order is chosen: learned on one span, with as many trees as do best on a later one.

What is served learns once more, from both spans, by the same settings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from training.recommend.ranking import ranker
from training.recommend.ranking.features import Table
from training.recommend.ranking.port import Order
from training.recommend.ranking.spans import Span


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


def from_both(chosen: Chosen, learn: Span, choose: Span) -> Order:
    """What was chosen, learned once more from the span that chose it as well."""
    return chosen.again(Table.joined([learn.table, choose.table]))
