"""Both stages on a history: who learns from when, and whether the second is worth its time.

Three spans follow each other: the ranker learns on the first, its rounds are chosen on the second,
and the third judges. Before each span the retriever is fitted on all that came before it, so the
ranker learns from candidates as bad as those that it will get.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from raypipe.clock import DAY_MS
from raypipe.windows.spec import WindowView
from training.recommend.blend import fallback
from training.recommend.catalogue import read_catalogue
from training.recommend.evaluate import Evaluation, by_length
from training.recommend.events import Tables
from training.recommend.interactions import SHOP, Interactions, Weights
from training.recommend.measures import beyond_accuracy, by_user
from training.recommend.neighbours import ItemKNN, RP3Beta
from training.recommend.popularity import popular_in_window
from training.recommend.port import Method, Retriever
from training.recommend.ranking import ranker
from training.recommend.ranking.features import Attributes, Columns, Table
from training.recommend.ranking.moments import Moments, histories, moments
from training.recommend.ranking.windows import LoggedWindows
from training.recommend.rows import Rows

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """Spans at the end of the history, and what is fitted."""

    learn_ms: int = 14 * DAY_MS
    choose_ms: int = 5 * DAY_MS
    judge_ms: int = 10 * DAY_MS
    candidates: int = 200
    k: int = 20
    weights: Weights = SHOP
    main: Method = field(default_factory=RP3Beta)
    beside: Mapping[str, Method] = field(default_factory=lambda: {"itemknn": ItemKNN()})
    """More methods, whose scores the ranker sees."""
    windows_ms: tuple[int, ...] = (DAY_MS, 7 * DAY_MS, 30 * DAY_MS)
    rounds: int = 400


@dataclass(frozen=True)
class Outcome:
    """Figures of the last span, one row a visit: the retriever's order and the ranker's."""

    retriever: Evaluation
    two_stage: Evaluation
    ranker: ranker.Ranker


def run(
    interactions: Interactions,
    tables: Tables,
    tenant: str,
    plan: Plan,
    *,
    item_views: tuple[WindowView, ...] = (),
    user_views: tuple[WindowView, ...] = (),
    say: Say = lambda _: None,
) -> Outcome:
    """Fit both stages and judge them.

    Figures are over all that a visit took, not over what the candidates hold: what the retriever
    misses counts against both.

    Raises StageError when a span has no visit that takes anything new.
    """
    end = int(interactions.time[-1]) + 1
    judge = end - plan.judge_ms
    choose = judge - plan.choose_ms
    learn = choose - plan.learn_ms

    windows = LoggedWindows(
        tables, tenant, interactions.items, interactions.users, item_views, user_views
    )

    def part(name: str, start: int, stop: int) -> tuple[Moments, Rows, Table]:
        before = interactions.between(int(interactions.time[0]), start)
        at = moments(interactions, start, stop)
        known = histories(interactions, at, plan.weights)
        main, others = _retrievers(before, start, plan)
        catalogue = read_catalogue(tables, interactions.items, as_of_ms=start)
        columns = Columns(interactions, Attributes.of(catalogue), windows)
        lists = {n: r.retrieve(known, 3 * plan.candidates) for n, r in others.items()}
        table = columns.table(at, main.retrieve(known, plan.candidates), lists=lists)
        say(f"{name}: {len(at)} visits, {int((table.grade > 0).sum())} taken candidates")
        return at, known, table

    _, _, learned = part("learn", learn, choose)
    _, _, chosen = part("choose", choose, judge)
    fitted = ranker.fit(learned, validation=chosen, rounds=plan.rounds)
    at, known, table = part("judge", judge, end)
    train = interactions.between(int(interactions.time[0]), judge).matrix()
    return Outcome(
        _figures(at, known, table.candidates, train, plan.k),
        _figures(at, known, fitted.ordered(table, plan.k), train, plan.k),
        fitted,
    )


def _retrievers(
    before: Interactions, as_of_ms: int, plan: Plan
) -> tuple[Retriever, dict[str, Retriever]]:
    matrix = before.matrix(plan.weights, as_of_ms=as_of_ms)
    main = plan.main.fit(matrix)
    popular, _ = popular_in_window(before, as_of_ms, plan.windows_ms)
    beside = {name: method.fit(matrix) for name, method in plan.beside.items()}
    return fallback(main, popular), {"main": main, "popular": popular, **beside}


def _figures(at: Moments, known: Rows, ranked: Rows, train: Rows, k: int) -> Evaluation:
    codes, names = by_length(known.sizes)
    figures, beyond = by_user(ranked, at.truth, k), beyond_accuracy(ranked, train, k)
    return Evaluation(at.user.astype("i8"), {k: figures}, {k: beyond}, codes, names)
