"""A resumable sweep over XGBoost on Ray Tune.

Every trial reads the dataset from the lake, on whatever node it runs, reports the validation's area
under the precision-recall curve every few rounds, and may be stopped early by ASHA. Optuna
proposes what to try next. The experiment has a fixed place, so a killed sweep goes on from its
last snapshot: finished trials are kept, unfinished ones go on from their checkpoint. No checkpoint
is removed while it runs: a snapshot that was made before the removal would name it.
Ray Tune's snapshots are pickles: a lake is as trusted as the code that works on it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import lru_cache
from pickle import UnpicklingError
from typing import Any

import ray
import xgboost
from ray import cloudpickle, tune
from ray.tune.integration.xgboost import TuneReportCheckpointCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from raypipe.aborts import reach
from raypipe.errors import StageError
from raypipe.lake import Place
from training.dataset import Dataset
from training.plan import FIRST_POINT, FIXED, METRIC, SweepPlan, SweepResult, Trial
from training.split import Part, Split
from training.tune_session import environment, quiet

Say = Callable[[str], None]

ROUNDS, BEST, BEST_ROUNDS = "rounds", "best_aucpr", "best_rounds"

_NAME = "sweep"
_log = logging.getLogger(__name__)


def search_space() -> dict[str, Any]:
    """What trials vary, as a Ray Tune search space."""
    return {
        "max_depth": tune.randint(3, 9),
        "learning_rate": tune.loguniform(0.02, 0.3),
        "min_child_weight": tune.loguniform(1.0, 50.0),
        "subsample": tune.uniform(0.6, 1.0),
        "colsample_bytree": tune.uniform(0.4, 1.0),
        "reg_lambda": tune.loguniform(0.3, 30.0),
        "scale_pos_weight": tune.loguniform(1.0, 20.0),
    }


def sweep(
    dataset: Place,
    split: Split,
    plan: SweepPlan,
    *,
    storage: Place,
    resume: bool = False,
    note: Say = _log.info,
    trial_ended: Say = _log.info,
) -> SweepResult:
    """Run a sweep, or finish an interrupted one, in the current Ray session.

    Args:
        dataset: folder of a saved Dataset.
        split: trials learn on train and report on validation; test is never read.
        plan: how much to try.
        storage: folder of the experiment; without ``resume`` an earlier one there is removed.
        resume: go on with the experiment at ``storage`` if there is one.
        note: gets what the user should know, a line each.
        trial_ended: gets one line per finished trial.

    Raises:
        StageError: no trial ended well; names the first trial's error.
    """
    experiment = storage / _NAME
    announcer = _Announcer(trial_ended)
    token = _announcer.set(announcer)
    try:
        with quiet(), environment():
            trainable = _trainable(dataset, split, plan)
            tuner = _restored(experiment, trainable, plan, note) if resume else None
            if tuner is None:
                experiment.remove_tree()
                tuner = _fresh(experiment, trainable, plan)
            grid = tuner.fit()
        announcer.flush()
        return _result(grid, plan)
    finally:
        _announcer.reset(token)


def _fresh(experiment: Place, trainable: Any, plan: SweepPlan) -> tune.Tuner:
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    concurrency = plan.concurrency or max(1, int(resources.get("CPU", 1)))
    return tune.Tuner(
        trainable,
        param_space=search_space(),
        tune_config=tune.TuneConfig(
            metric=BEST,
            mode="max",
            num_samples=plan.trials,
            search_alg=ConcurrencyLimiter(
                OptunaSearch(seed=plan.seed, points_to_evaluate=[FIRST_POINT]),
                max_concurrent=concurrency,
            ),
            scheduler=_Scheduler(
                time_attr=ROUNDS,
                # A trial ends by itself, after its last checkpoint.
                max_t=plan.max_rounds + 1,
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
        ),
    )


def _restored(experiment: Place, trainable: Any, plan: SweepPlan, note: Say) -> tune.Tuner | None:
    """The interrupted experiment, or None when nothing can be resumed."""
    statuses = _statuses(experiment)
    where = {"path": experiment.key, "storage_filesystem": experiment.filesystem}
    if not statuses or not tune.Tuner.can_restore(**where):
        note("the sweep has no intact snapshot to resume from: starting it anew")
        return None
    ended = statuses.count("TERMINATED")
    note(f"resuming the sweep: {ended} of {plan.trials} trials are finished")
    return tune.Tuner.restore(
        **where,
        trainable=trainable,
        param_space=search_space(),
        resume_unfinished=True,
        restart_errored=True,
    )


def _statuses(experiment: Place) -> list[str]:
    """Status of each trial in the newest snapshot; none when there is none or it is torn."""
    names = experiment.names()
    snapshots = [n for n in names if n.startswith("experiment_state-") and n.endswith(".json")]
    searchers = [n for n in names if n.startswith(("search_gen_state-", "searcher-state-"))]
    if not snapshots or len(searchers) != 2 * len(snapshots):
        return []
    try:
        for searcher in searchers:
            cloudpickle.loads((experiment / searcher).read())
        trials = json.loads((experiment / snapshots[-1]).read())["trial_data"]
        return [json.loads(state)["status"] for state, _ in trials]
    except (ValueError, KeyError, EOFError, UnpicklingError):
        return []


def _trial_id(trial: Any) -> str:
    return str(trial.trial_id)


def _trainable(dataset: Place, split: Split, plan: SweepPlan) -> Any:
    def trial(config: dict[str, Any]) -> None:
        _train(config, dataset, split, plan)

    return tune.with_resources(trial, {"cpu": FIXED["nthread"]})


def _train(config: Mapping[str, Any], dataset: Place, split: Split, plan: SweepPlan) -> None:
    """One trial, from its checkpoint on if it has one."""
    booster, done = None, 0
    checkpoint = tune.get_checkpoint()
    if checkpoint:
        booster = TuneReportCheckpointCallback.get_model(checkpoint)
        done = booster.num_boosted_rounds()
    if done >= plan.max_rounds:
        return
    train, validation = _matrices(dataset, split.train, split.validation)
    xgboost.train(
        {**FIXED, "seed": plan.seed, **config},
        train,
        num_boost_round=plan.max_rounds - done,
        evals=[(validation, "validation")],
        xgb_model=booster,
        callbacks=[_Report(plan, *_best(booster))],
        verbose_eval=False,
    )


def _best(booster: xgboost.Booster | None) -> tuple[float, int]:
    """The best metric that a trial's model reached, and after how many rounds."""
    attributes = booster.attributes() if booster is not None else {}
    return float(attributes.get(BEST) or "-inf"), int(attributes.get(BEST_ROUNDS) or 0)


class _Report(TuneReportCheckpointCallback):
    """Reports every few rounds, and saves where a trial may be stopped and at its end.

    The model carries how good it was at best and after how many rounds, so that one checkpoint
    is enough to resume a trial and to cut its model there.
    """

    def __init__(self, plan: SweepPlan, best: float, best_rounds: int) -> None:
        super().__init__(frequency=plan.grace_rounds, results_postprocessing_fn=self._figures)
        self._every = plan.report_every
        self._metric, self._rounds = float("nan"), 0
        self._best, self._best_rounds = best, best_rounds

    def after_iteration(self, model: xgboost.Booster, epoch: int, evals_log: Any) -> bool:
        # XGBoost counts epochs from zero again when it goes on from a checkpoint.
        self._rounds = model.num_boosted_rounds()
        self._metric = evals_log["validation"][METRIC][-1]
        self._evals_log = evals_log
        if self._metric > self._best:
            self._best, self._best_rounds = self._metric, self._rounds
            model.set_attr(**{BEST: repr(self._best), BEST_ROUNDS: str(self._best_rounds)})
        if self._rounds % self._every == 0 or self._rounds % self._frequency == 0:
            super().after_iteration(model, self._rounds - 1, evals_log)
        return False

    def _figures(self, _flat: dict[str, Any]) -> dict[str, Any]:
        return {
            METRIC: self._metric,
            ROUNDS: self._rounds,
            BEST: self._best,
            BEST_ROUNDS: self._best_rounds,
        }


@lru_cache(maxsize=1)
def _matrices(
    dataset: Place, train: Part, validation: Part
) -> tuple[xgboost.DMatrix, xgboost.DMatrix]:
    """Binned once per process: trials that follow each other in it share them."""
    data = Dataset.load(dataset, verify=False)
    made: list[xgboost.DMatrix] = []
    for part in (train, validation):
        rows = part.rows(data.event_time)
        made.append(
            xgboost.QuantileDMatrix(
                data.x[rows],
                data.y[rows],
                feature_names=list(data.names),
                max_bin=FIXED["max_bin"],
                nthread=FIXED["nthread"],
                ref=made[0] if made else None,
            )
        )
    return made[0], made[1]


class _Announcer:
    """Lines about ended trials, told only when a snapshot has them: a told trial is never redone.

    Tune pickles the scheduler with the experiment, so the scheduler looks this up.
    """

    def __init__(self, tell: Say) -> None:
        self._tell = tell
        self.lines: list[str] = []

    def flush(self) -> None:
        """Tell what is durable by now."""
        for line in self.lines:
            self._tell(line)
            reach("training.trial_ended")
        self.lines.clear()


_announcer: ContextVar[_Announcer] = ContextVar("announcer")


class _Scheduler(ASHAScheduler):
    """ASHA that has the experiment saved as soon as a trial has ended."""

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        super().on_trial_complete(tune_controller, trial, result)
        others = [t for t in tune_controller.get_trials() if t is not trial]
        ended = [t for t in others if t.status == "TERMINATED"]
        best = max(t.last_result.get(BEST, 0.0) for t in (*ended, trial))
        _announcer.get().lines.append(
            f"trial {len(ended) + 1}: aucpr {result.get(BEST, 0.0):.4f} (best so far {best:.4f}) "
            f"after {result.get(ROUNDS, 0)} rounds, depth {trial.config['max_depth']}, "
            f"rate {trial.config['learning_rate']:.3f}"
        )

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_error(tune_controller, trial)
        _announcer.get().lines.append(f"trial {trial.trial_id} failed; see {trial.path}")

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        # The first hook after a trial's end at which its new state is in a snapshot.
        if _announcer.get().lines:
            tune_controller.checkpoint(force=True, wait=True)
            _announcer.get().flush()
        return super().choose_trial_to_run(tune_controller)


def _result(grid: tune.ResultGrid, plan: SweepPlan) -> SweepResult:
    found: list[tuple[Trial, xgboost.Booster | None]] = []
    for result in (grid[i] for i in range(len(grid))):
        checkpoint = None if result.error else result.checkpoint
        model = checkpoint and TuneReportCheckpointCallback.get_model(checkpoint)
        metric, rounds = _best(model)
        full = model is not None and model.num_boosted_rounds() >= plan.max_rounds
        trial = Trial(
            id=result.path.rpartition("/")[2],
            state="failed" if model is None else "finished" if full else "stopped",
            metric=None if model is None else metric,
            rounds=rounds,
            parameters={k: _plain(v) for k, v in (result.config or {}).items()},
        )
        found.append((trial, model))
    # Of equal ones the smaller model, and never by chance: the ids are random.
    found.sort(
        key=lambda f: (
            f[0].metric is None,
            -(f[0].metric or 0.0),
            f[0].rounds,
            sorted(f[0].parameters.items()),
        )
    )
    best, model = found[0]
    if model is None:
        errors = [str(e).strip().splitlines()[-1] for e in grid.errors]
        raise StageError(
            f"none of {len(found)} trials ended with a model"
            + (f"; the first error: {errors[0]}" if errors else "")
        )
    return SweepResult(tuple(t for t, _ in found), bytes(model[: best.rounds].save_raw("ubj")))


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
