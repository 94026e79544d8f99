"""A sweep over learners of orders on Ray Tune, by NDCG over all items.

What a trial is compared by is the NDCG of what a visit took out of the whole catalogue, not out of
the candidates: a candidate list that lacks what was taken would make every order of it look good.

Spans are put into the object store once; every trial maps them. Optuna proposes, ASHA stops early.
A trial learns on one thread, so its trees are the same anywhere: the winner is grown again from its
settings, and nothing but figures is stored.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from raypipe.errors import StageError, UsageError
from raypipe.lake import Place
from training.plan import Trial
from training.recommend.measures import by_user
from training.recommend.ranking.lambdarank import LightGBM
from training.recommend.ranking.lessons import Lesson, by_moment
from training.recommend.ranking.port import Growth, Learner, Order
from training.recommend.ranking.ranker import FIRST_POINT, XGBoost
from training.recommend.ranking.spans import Span
from training.tune_session import environment, quiet

Say = Callable[[str], None]

LEARNER, ROUNDS, BEST, BEST_ROUNDS = "learner", "rounds", "best_ndcg", "best_rounds"
LEARNERS: Mapping[str, Learner] = {one.name: one for one in (XGBoost(), LightGBM())}

_NAME = "ranker"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TuningPlan:
    """How much to try.

    A trial reports after every ``report_every`` trees and may be stopped after ``grace_rounds``.
    ``k`` is the length of the lists. ``concurrency`` None means a trial per CPU of the session.
    """

    trials: int = 8
    max_rounds: int = 200
    grace_rounds: int = 40
    report_every: int = 20
    k: int = 20
    seed: int = 7
    concurrency: int | None = None

    def __post_init__(self) -> None:
        for name in ("trials", "max_rounds", "grace_rounds", "report_every", "k"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class Tuned:
    """The best order, and all trials, best first; a trial's metric is its best NDCG@k."""

    order: Order
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The trial that the order comes from."""
        return self.trials[0]


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
    learn: Span, choose: Span, plan: TuningPlan, *, storage: Place, say: Say = _log.info
) -> Tuned:
    """Run a sweep in the current Ray session.

    Args:
        learn: what trials learn from.
        choose: later moments, by which trials are compared and their trees counted.
        plan: how much to try.
        storage: folder for Tune's records; an earlier sweep there is removed.
        say: gets one line per ended trial.

    Raises:
        StageError: nothing was taken in ``learn``, or no trial ended well.
    """
    lesson = by_moment(learn.table)
    experiment = storage / _NAME
    experiment.remove_tree()
    token = _say.set(say)
    try:
        with quiet(), environment():
            grid = _tuner(experiment, lesson, choose, plan).fit()
    finally:
        _say.reset(token)
    trials = _trials(grid, plan)
    best = trials[0]
    if best.metric is None:
        errors = [str(e).strip().splitlines()[-1] for e in grid.errors]
        raise StageError(
            f"none of {len(trials)} trials ended with an order"
            + (f"; the first error: {errors[0]}" if errors else "")
        )
    growth = Growth(best.rounds, seed=plan.seed, threads=1)
    return Tuned(_learn(best.parameters, lesson, choose.table.names, growth), trials)


def _tuner(experiment: Place, lesson: Lesson, choose: Span, plan: TuningPlan) -> tune.Tuner:
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    trainable = tune.with_resources(
        tune.with_parameters(_trial, lesson=lesson, choose=choose, plan=plan), {"cpu": 1}
    )
    return tune.Tuner(
        trainable,
        param_space=search_space(),
        tune_config=tune.TuneConfig(
            metric=BEST,
            mode="max",
            num_samples=plan.trials,
            search_alg=ConcurrencyLimiter(
                OptunaSearch(seed=plan.seed, points_to_evaluate=first_points()[: plan.trials]),
                max_concurrent=plan.concurrency or max(1, int(resources.get("CPU", 1))),
            ),
            scheduler=ASHAScheduler(
                time_attr=ROUNDS,
                max_t=plan.max_rounds + 1,  # a trial ends by itself
                grace_period=min(plan.grace_rounds, plan.max_rounds),
                reduction_factor=3,
            ),
            trial_dirname_creator=_trial_id,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=experiment.name,
            storage_path=experiment.parent.key,
            storage_filesystem=experiment.filesystem,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=2),
            callbacks=[_Announcer()],
        ),
    )


def _trial_id(trial: Any) -> str:
    return str(trial.trial_id)


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


_say: ContextVar[Say] = ContextVar("say")


class _Announcer(tune.Callback):
    """A line for each ended trial. Tune pickles it with the experiment, so it looks ``say`` up."""

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ended = [t for t in trials if BEST in t.last_result and t.is_finished()]
        best = max((t.last_result[BEST] for t in (*ended, trial)), default=0.0)
        result = trial.last_result
        _say.get()(
            f"trial {trial.config[LEARNER]}, depth {trial.config['max_depth']}, "
            f"rate {trial.config['learning_rate']:.3f}: NDCG {result[BEST]:.4f} of all items "
            f"with {result[BEST_ROUNDS]} trees (best so far {best:.4f})"
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        _say.get()(f"trial {trial.trial_id} failed; see {trial.path}")


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
                parameters={k: _plain(v) for k, v in (result.config or {}).items()},
            )
        )
    # Of equal ones the smaller model, and never by chance: the ids are random.
    found.sort(
        key=lambda t: (t.metric is None, -(t.metric or 0.0), t.rounds, sorted(t.parameters.items()))
    )
    return tuple(found)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
