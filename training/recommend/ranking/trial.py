"""Both stages on a history: who learns from when, and whether the second is worth its time.

Three spans follow each other: the ranker learns on the first, its rounds are chosen on the second,
both teach once more, and the third judges. Before each span the retriever is fitted on all that
came before it, so the ranker learns from candidates as bad as those that it will get.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from raypipe.clock import DAY_MS
from raypipe.profiles import Profile
from training.recommend.evaluate import Evaluation
from training.recommend.events import Tables
from training.recommend.fit import Options
from training.recommend.interactions import Interactions
from training.recommend.ranking import fit
from training.recommend.ranking.choosing import Choose, SecondStage, plainly, second_stage
from training.recommend.ranking.spans import History, Retrievers, Span
from training.recommend.rows import Rows

Say = Callable[[str], None]
LENGTHS = (0, 1, 3, 20)
"""Segments of visits: no history, one or two items, 3 to 19, 20 and more."""


@dataclass(frozen=True)
class Plan(fit.Plan):
    """Spans at the end of the history, and what is fitted; new items and profiles are left out."""

    profile: Profile | None = None
    retrieval: Options = field(default_factory=lambda: Options(attributes=()))
    choose_ms: int = 5 * DAY_MS
    judge_ms: int = 10 * DAY_MS


@dataclass(frozen=True)
class Outcome:
    """Figures of the last span, a row for each visit: by popularity, the retriever and both stages;
    ``second`` made the last ones."""

    popular: Evaluation
    retriever: Evaluation
    two_stage: Evaluation
    second: SecondStage

    @property
    def evaluations(self) -> dict[str, Evaluation]:
        """By name, the plainest first."""
        return {
            "popularity": self.popular,
            "retriever": self.retriever,
            "two stages": self.two_stage,
        }


def run(
    interactions: Interactions,
    tables: Tables,
    tenant: str,
    plan: Plan,
    *,
    choose_order: Choose | None = None,
    say: Say = lambda _: None,
) -> Outcome:
    """Fit both stages and judge them; ``choose_order`` other than the plain one may be a sweep.

    Figures are over all that a visit took, not over what the candidates hold: what the retriever
    misses counts against all.

    Raises StageError when a span has no visit that takes anything new.
    """
    end = int(interactions.time[-1]) + 1
    judge = end - plan.judge_ms
    choose = judge - plan.choose_ms
    learn = choose - plan.learn_ms
    history = History(
        interactions,
        tables,
        tenant,
        plan,
        item_views=plan.item_views,
        user_views=plan.user_views,
    )

    def part(
        name: str, start: int, stop: int, every_ms: int | None = None, most: int | None = None
    ) -> tuple[Span, Retrievers]:
        span, fitted = history.visits(start, stop, every_ms=every_ms, most=most)
        taken = int((span.table.grade > 0).sum())
        say(f"{name}: {len(span.at)} visits, {taken} taken candidates")
        return span, fitted

    learned, _ = part("learn", learn, choose, plan.refit_ms, plan.visits)
    chosen, _ = part("choose", choose, judge, plan.refit_ms, plan.visits)
    second = second_stage(choose_order or plainly(plan.rounds), learned, chosen, plan.k)
    judged, fitted = part("judge", judge, end)
    train = history.before(judge).matrix()

    def figures(ranked: Rows) -> Evaluation:
        return judged.figures(ranked, train, plan.k, LENGTHS)

    return Outcome(
        figures(fitted.popular.retrieve(judged.known, plan.k)),
        figures(judged.table.candidates),
        figures(second.ordered(judged, plan.k)),
        second,
    )
