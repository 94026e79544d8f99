"""A resumable sweep over XGBoost on Ray Tune.

Every trial reads the dataset from the lake, on whatever node it runs, and reports the validation's
area under the precision-recall curve every few rounds. It is saved where it may be stopped, so a
resumed one goes on from there. No checkpoint is removed while the sweep runs: a snapshot that was
made before the removal would name it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import xgboost
from ray import tune
from ray.tune.integration.xgboost import TuneReportCheckpointCallback

from raypipe.lake import Place
from training.dataset import Dataset
from training.plan import FIRST_POINT, FIXED, METRIC, SweepPlan, SweepResult, Trial
from training.split import Part, Split
from training.sweeps import ROUNDS, Say, Study, none_ended, parameters, run, worth

BEST, BEST_ROUNDS = "best_aucpr", "best_rounds"

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
    study = Study(_NAME, plan, search_space(), [FIRST_POINT], BEST, _line)
    grid = run(
        study,
        _trainable(dataset, split, plan),
        storage,
        resume=resume,
        note=note,
        trial_ended=trial_ended,
    )
    return _result(grid, plan)


def _line(settings: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    return (
        f"aucpr {result.get(BEST, 0.0):.4f} after {result.get(ROUNDS, 0)} rounds, "
        f"depth {settings['max_depth']}, rate {settings['learning_rate']:.3f}"
    )


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
            parameters=parameters(result),
        )
        found.append((trial, model))
    found.sort(key=lambda f: worth(f[0]))
    best, model = found[0]
    if model is None:
        raise none_ended(grid, "a model")
    return SweepResult(tuple(t for t, _ in found), bytes(model[: best.rounds].save_raw("ubj")))
