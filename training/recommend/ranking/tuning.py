"""A sweep over learners of orders on Ray Tune, by NDCG over all items.

What a trial is compared by is the NDCG of what a visit took out of the whole catalogue, not out of
the candidates: a candidate list that lacks what was taken would make every order of it look good.

Spans are put into the object store once; every trial maps them. A trial learns on one thread, so
its trees are the same anywhere: the winner is grown again from its settings, and nothing but
figures is stored. A trial that was interrupted begins again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray import tune

from raypipe.errors import UsageError
from raypipe.lake import Place
from training.plan import SweepPlan, Trial
from training.recommend.measures import by_user
from training.recommend.ranking.features import Table
from training.recommend.ranking.lambdarank import LightGBM
from training.recommend.ranking.lessons import Lesson, by_moment
from training.recommend.ranking.port import Growth, Learner, Order
from training.recommend.ranking.ranker import FIRST_POINT, XGBoost
from training.recommend.ranking.spans import Span
from training.sweeps import ROUNDS, Say, Study, none_ended, parameters, run, worth

LEARNER, BEST, BEST_ROUNDS = "learner", "best_ndcg", "best_rounds"
LEARNERS: Mapping[str, Learner] = {one.name: one for one in (XGBoost(), LightGBM())}

_NAME = "ranker"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TuningPlan(SweepPlan):
    """How much to try. ``k`` is the length of the lists that are compared."""

    max_rounds: int = 200
    grace_rounds: int = 40
    report_every: int = 20
    k: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1:
            raise UsageError(f"k is {self.k}; it must be at least 1")


@dataclass(frozen=True)
class Tuned:
    """The best order, and all trials, best first; a trial's metric is its best NDCG@k."""

    order: Order
    trials: tuple[Trial, ...]
    seed: int

    @property
    def best(self) -> Trial:
        """The trial that the order comes from."""
        return self.trials[0]

    def again(self, table: Table) -> Order:
        """As many trees by the best trial's settings, learned from another table."""
        growth = Growth(self.best.rounds, seed=self.seed)
        return _learn(self.best.parameters, by_moment(table), table.names, growth)

    def describe(self) -> dict[str, Any]:
        """Plain data."""
        return {"parameters": dict(self.best.parameters), "trials": len(self.trials)}


def search_space() -> dict[str, Any]:
    """What trials vary, as a Ray Tune search space; the names mean the same to both learners."""
    return {
        LEARNER: tune.choice(list(LEARNERS)),
        "max_depth": tune.randint(3, 8),
        "learning_rate": tune.loguniform(0.02, 0.2),
        "min_child_weight": tune.loguniform(0.5, 50.0),
        "subsample": tune.uniform(0.6, 1.0),
        "colsample_bytree": tune.uniform(0.4, 1.0),
        "reg_lambda": tune.loguniform(0.3, 30.0),
    }


def first_points() -> list[dict[str, Any]]:
    """What is tried first: the settings that go without a sweep, for each learner."""
    return [{LEARNER: name, **FIRST_POINT, "reg_lambda": 1.0} for name in LEARNERS]


def full_ndcg(order: Order, span: Span, k: int) -> float:
    """Mean NDCG@k over the span's moments, out of everything that was taken."""
    return float(by_user(order.ordered(span.table, k), span.at.truth, k)["ndcg"].mean())


def tuned(
    learn: Span,
    choose: Span,
    plan: TuningPlan,
    *,
    storage: Place,
    resume: bool = False,
    note: Say = _log.info,
    trial_ended: Say = _log.info,
) -> Tuned:
    """Run a sweep, or finish an interrupted one, in the current Ray session.

    Args:
        learn: what trials learn from.
        choose: later moments, by which trials are compared and their trees counted.
        plan: how much to try.
        storage: folder for Tune's records; without ``resume`` an earlier sweep there is removed.
        resume: go on with the sweep at ``storage``, which must have been of these spans.
        note: gets what the user should know, a line each.
        trial_ended: gets one line per ended trial.

    Raises:
        StageError: nothing was taken in ``learn``, or no trial ended well.
    """
    lesson = by_moment(learn.table)
    trainable = tune.with_resources(
        tune.with_parameters(_trial, lesson=lesson, choose=choose, plan=plan), {"cpu": 1}
    )
    study = Study(_NAME, plan, search_space(), first_points(), BEST, _line)
    grid = run(study, trainable, storage, resume=resume, note=note, trial_ended=trial_ended)
    trials = _trials(grid, plan)
    best = trials[0]
    if best.metric is None:
        raise none_ended(grid, "an order")
    growth = Growth(best.rounds, seed=plan.seed, threads=1)
    order = _learn(best.parameters, lesson, choose.table.names, growth)
    return Tuned(order, trials, plan.seed)


def _trial(config: dict[str, Any], *, lesson: Lesson, choose: Span, plan: TuningPlan) -> None:
    best, best_rounds = float("-inf"), 0

    def told(rounds: int, order: Order) -> None:
        nonlocal best, best_rounds
        value = full_ndcg(order, choose, plan.k)
        if value > best:
            best, best_rounds = value, rounds
        tune.report({"ndcg": value, ROUNDS: rounds, BEST: best, BEST_ROUNDS: best_rounds})

    growth = Growth(plan.max_rounds, plan.seed, 1, plan.report_every, told)
    _learn(config, lesson, choose.table.names, growth)


def _learn(
    config: Mapping[str, Any], lesson: Lesson, names: tuple[str, ...], growth: Growth
) -> Order:
    parameters = {k: v for k, v in config.items() if k != LEARNER}
    return LEARNERS[config[LEARNER]].learn(lesson, names, parameters, growth)


def _line(settings: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    return (
        f"{settings[LEARNER]}, depth {settings['max_depth']}, rate "
        f"{settings['learning_rate']:.3f}: NDCG {result.get(BEST, 0.0):.4f} of all items with "
        f"{result.get(BEST_ROUNDS, 0)} trees"
    )


def _trials(grid: tune.ResultGrid, plan: TuningPlan) -> tuple[Trial, ...]:
    found = []
    for result in (grid[i] for i in range(len(grid))):
        figures = result.metrics or {}
        good = result.error is None and BEST in figures
        full = figures.get(ROUNDS, 0) >= plan.max_rounds
        found.append(
            Trial(
                id=result.path.rpartition("/")[2],
                state="failed" if not good else "finished" if full else "stopped",
                metric=figures[BEST] if good else None,
                rounds=figures.get(BEST_ROUNDS, 0),
                parameters=parameters(result),
            )
        )
    return tuple(sorted(found, key=worth))
