"""Spans of a history with what a retriever of their beginning proposes: what both stages are
learned from and judged on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from raypipe.clock import DAY_MS
from raypipe.windows.spec import WindowView
from training.recommend.blend import fallback
from training.recommend.catalogue import read_catalogue
from training.recommend.events import Tables
from training.recommend.interactions import SHOP, Interactions, Weights
from training.recommend.neighbours import ItemKNN, RP3Beta
from training.recommend.popularity import Popularity, popular_in_window
from training.recommend.port import Method, Retriever
from training.recommend.ranking.features import Attributes, Columns, Table
from training.recommend.ranking.moments import Moments, histories
from training.recommend.ranking.windows import LoggedWindows
from training.recommend.rows import Rows


@dataclass(frozen=True)
class Retrieval:
    """What is fitted for candidates, and how many are asked for."""

    candidates: int = 200
    weights: Weights = SHOP
    main: Method = field(default_factory=RP3Beta)
    beside: Mapping[str, Method] = field(default_factory=lambda: {"itemknn": ItemKNN()})
    """More methods, whose scores the ranker sees."""
    windows_ms: tuple[int, ...] = (DAY_MS, 7 * DAY_MS, 30 * DAY_MS)


@dataclass(frozen=True)
class Retrievers:
    """Fitted on all before ``as_of_ms``: ``blend`` gives candidates, ``others`` scores of them."""

    as_of_ms: int
    blend: Retriever
    popular: Popularity
    others: Mapping[str, Retriever]


@dataclass(frozen=True)
class Span:
    """Moments, what each visitor had done before [moments, items], and the candidates."""

    at: Moments
    known: Rows
    table: Table

    def __repr__(self) -> str:
        return f"Span({len(self.at)} visits, {len(self.table)} candidates)"


class History:
    """A shop's log, as both stages read it.

    Args:
        interactions: of the log, to the end of the last span at least.
        tables: the log's rows by event type, for the catalogue and the windows.
        tenant: whose windows are read.
        retrieval: what is fitted.
        item_views: views whose key is the item.
        user_views: views whose key is the user.
    """

    def __init__(
        self,
        interactions: Interactions,
        tables: Tables,
        tenant: str,
        retrieval: Retrieval,
        *,
        item_views: tuple[WindowView, ...] = (),
        user_views: tuple[WindowView, ...] = (),
    ) -> None:
        self.interactions = interactions
        self._tables = tables
        self._retrieval = retrieval
        self._windows = LoggedWindows(
            tables, tenant, interactions.items, interactions.users, item_views, user_views
        )

    def before(self, time_ms: int) -> Interactions:
        """All that came before a moment."""
        return self.interactions.between(int(self.interactions.time[0]), time_ms)

    def retrievers(self, as_of_ms: int) -> Retrievers:
        """Fitted on all that came before."""
        before, asked = self.before(as_of_ms), self._retrieval
        matrix = before.matrix(asked.weights, as_of_ms=as_of_ms)
        main = asked.main.fit(matrix)
        popular, _ = popular_in_window(before, as_of_ms, asked.windows_ms)
        beside = {name: method.fit(matrix) for name, method in asked.beside.items()}
        others = {"main": main, "popular": popular, **beside}
        return Retrievers(as_of_ms, fallback(main, popular), popular, others)

    def span(self, at: Moments, fitted: Retrievers) -> Span:
        """The moments with their candidates; the catalogue is that of the retrievers' moment."""
        known = histories(self.interactions, at, self._retrieval.weights)
        catalogue = read_catalogue(self._tables, self.interactions.items, as_of_ms=fitted.as_of_ms)
        columns = Columns(self.interactions, Attributes.of(catalogue), self._windows)
        count = self._retrieval.candidates
        lists = {n: r.retrieve(known, 3 * count) for n, r in fitted.others.items()}
        return Span(at, known, columns.table(at, fitted.blend.retrieve(known, count), lists=lists))
