"""Spans of a history with what a retriever of their beginning proposes: what both stages are
learned from and judged on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from raypipe.windows.spec import WindowView
from training.recommend import fit as retrieval_fit
from training.recommend.blend import Blend
from training.recommend.catalogue import read_catalogue
from training.recommend.evaluate import LENGTHS, Evaluation, by_length
from training.recommend.events import Tables
from training.recommend.interactions import Interactions
from training.recommend.measures import beyond_accuracy, by_user
from training.recommend.neighbours import ItemKNN
from training.recommend.popularity import Popularity
from training.recommend.port import Method, Retriever
from training.recommend.products import Run, in_process
from training.recommend.ranking.features import Attributes, Columns, Table, VisitorProfile
from training.recommend.ranking.moments import Moments, histories, with_first_looks
from training.recommend.ranking.windows import LoggedWindows
from training.recommend.rows import Integers, Rows


@dataclass(frozen=True)
class FirstStage:
    """What is fitted for candidates, and how many are asked for."""

    retrieval: retrieval_fit.Options = field(default_factory=retrieval_fit.Options)
    beside: Mapping[str, Method] = field(default_factory=lambda: {"itemknn": ItemKNN()})
    """More methods, whose scores the ranker sees."""
    candidates: int = 200


@dataclass(frozen=True)
class Retrievers:
    """Fitted on all before ``as_of_ms``: ``blend`` gives candidates, ``single`` scores of them."""

    as_of_ms: int
    blend: Blend
    popular: Popularity
    single: Mapping[str, Retriever]


@dataclass(frozen=True)
class Span:
    """Moments, what each visitor had done before [moments, items], and the candidates."""

    at: Moments
    known: Rows
    table: Table

    def __repr__(self) -> str:
        return f"Span({len(self.at)} visits, {len(self.table)} candidates)"

    @classmethod
    def joined(cls, parts: Sequence[Span]) -> Span:
        """One after the other."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            Moments.joined([p.at for p in parts]),
            Rows.joined([p.known for p in parts]),
            Table.joined([p.table for p in parts]),
        )

    def figures(
        self, ranked: Rows, train: Rows, k: int, lengths: Sequence[int] = LENGTHS
    ) -> Evaluation:
        """Of lists [moments, items], out of all that each visit took; ``train`` [users, items] is
        what was known before the span."""
        codes, names = by_length(self.known.sizes, lengths)
        figures, beyond = by_user(ranked, self.at.truth, k), beyond_accuracy(ranked, train, k)
        return Evaluation(self.at.user.astype("i8"), {k: figures}, {k: beyond}, codes, names)


class History:
    """A shop's log, as both stages read it.

    Args:
        interactions: of the log, to the end of the last span at least.
        tables: the log's rows by event type, for the catalogue and the windows.
        tenant: whose windows are read.
        first: what is fitted for candidates.
        item_views: views whose key is the item.
        user_views: views whose key is the user.
        profile: of users.
        run: where sparse products are computed.
    """

    def __init__(
        self,
        interactions: Interactions,
        tables: Tables,
        tenant: str,
        first: FirstStage,
        *,
        item_views: tuple[WindowView, ...] = (),
        user_views: tuple[WindowView, ...] = (),
        profile: VisitorProfile | None = None,
        run: Run = in_process,
    ) -> None:
        self.interactions = interactions
        self._tables = tables
        self._first = first
        self._run = run
        self._profile = profile
        self._windows = LoggedWindows(
            tables, tenant, interactions.items, interactions.users, item_views, user_views
        )

    def before(self, time_ms: int) -> Interactions:
        """All that came before a moment."""
        return self.interactions.between(int(self.interactions.time[0]), time_ms)

    def retrievers(self, as_of_ms: int) -> Retrievers:
        """Fitted on all that came before."""
        before, options = self.before(as_of_ms), self._first.retrieval
        blend, popular = retrieval_fit.retrievers(
            self._tables, before, options, as_of_ms, self._run
        )
        matrix = before.matrix(options.weights, as_of_ms=as_of_ms)
        beside = {n: method.fit(matrix, self._run) for n, method in self._first.beside.items()}
        single = {p.name: p.retriever for p in blend.parts}
        return Retrievers(as_of_ms, blend, popular, {**single, **beside})

    def span(self, at: Moments, fitted: Retrievers) -> Span:
        """The moments with their candidates; the catalogue is that of the retrievers' moment."""
        known = histories(self.interactions, at, self._first.retrieval.weights)
        catalogue = read_catalogue(self._tables, self.interactions.items, as_of_ms=fitted.as_of_ms)
        columns = Columns(self.interactions, Attributes.of(catalogue), self._windows, self._profile)
        count = self._first.candidates
        lists = scored(fitted.single, known, count)
        return Span(at, known, columns.table(at, fitted.blend.retrieve(known, count), lists=lists))

    def visits(
        self, start_ms: int, end_ms: int, *, every_ms: int | None = None, most: int | None = None
    ) -> tuple[Span, Retrievers]:
        """The visits that begin in a span and take something new, of sessions that name nobody also
        the first looks, with candidates of retrievers that were fitted before it.

        Args:
            start_ms, end_ms: the span.
            every_ms: retrievers are fitted anew so often, and what is returned are the newest ones.
            most: of more moments so many are drawn, the same ones each time.

        Raises StageError when there is no such visit.
        """
        at = with_first_looks(self.interactions, start_ms, end_ms)
        if most is not None and len(at) > most:
            drawn = np.random.default_rng(0).choice(len(at), most, replace=False)
            at = at.at(np.sort(drawn))
        every = every_ms or end_ms - start_ms
        step = _steps(at.time, start_ms, end_ms, every)
        spans = []
        for one in np.unique(step):
            fitted = self.retrievers(start_ms + int(one) * every)
            spans.append(self.span(at.at(np.flatnonzero(step == one)), fitted))
        return Span.joined(spans), fitted


def _steps(time: Integers, start_ms: int, end_ms: int, every_ms: int) -> Integers:
    """The step of a span that each moment is of; an event's own time may lie outside.

    >>> _steps(np.array([-1, 0, 9, 10, 25, 99]), 0, 25, 10).tolist()
    [0, 0, 0, 1, 2, 2]
    """
    return np.clip((time - start_ms) // every_ms, 0, (end_ms - start_ms - 1) // every_ms)


def scored(
    retrievers: Mapping[str, Retriever], known: Rows, candidates: int, seen: Rows | None = None
) -> dict[str, Rows]:
    """What each single retriever gives, deep enough that most candidates have its score."""
    return {n: r.retrieve(known, 3 * candidates, seen=seen) for n, r in retrievers.items()}
