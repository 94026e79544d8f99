"""A resumable sweep on Ray Tune: what is the same of every one.

Optuna proposes what to try next, ASHA stops early. The experiment has a fixed place, so a killed
sweep goes on from its last snapshot: finished trials are kept, unfinished ones go on from their
checkpoint, or begin again where they write none. Ray Tune's snapshots are pickles: a lake is as
trusted as the code that works on it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any

import ray
from ray import cloudpickle, tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from raypipe.aborts import reach
from raypipe.errors import StageError
from raypipe.lake import Place
from training.plan import SweepPlan, Trial
from training.tune_session import environment, quiet

Say = Callable[[str], None]

ROUNDS = "rounds"
"""What a trial reports as its progress."""


@dataclass(frozen=True)
class Study:
    """What is tried.

    Args:
        name: folder of the experiment.
        plan: how much to try.
        space: what trials vary, as a Ray Tune search space.
        first: what is tried first.
        metric: the reported figure that trials are compared by: a trial's best so far.
        line: tells of an ended trial, from its settings and its last report.
    """

    name: str
    plan: SweepPlan
    space: Mapping[str, Any]
    first: Sequence[Mapping[str, Any]]
    metric: str
    line: Callable[[Mapping[str, Any], Mapping[str, Any]], str]


def run(
    study: Study,
    trainable: Any,
    storage: Place,
    *,
    resume: bool,
    note: Say,
    trial_ended: Say,
) -> tune.ResultGrid:
    """Run a study, or finish an interrupted one, in the current Ray session.

    Args:
        study: what is tried.
        trainable: one trial; reports ``ROUNDS`` and the study's metric.
        storage: folder of the experiment; without ``resume`` an earlier one there is removed.
        resume: go on with the experiment at ``storage`` if there is one.
        note: gets what the user should know, a line each.
        trial_ended: gets one line per finished trial.
    """
    experiment = storage / study.name
    announcer = _Announcer(study, trial_ended)
    token = _announcer.set(announcer)
    try:
        with quiet(), environment():
            tuner = restored(experiment, trainable, study, note) if resume else None
            if tuner is None:
                experiment.remove_tree()
                tuner = _fresh(experiment, trainable, study)
            grid = tuner.fit()
        announcer.flush()
    finally:
        _announcer.reset(token)
    return grid


def restored(experiment: Place, trainable: Any, study: Study, note: Say) -> tune.Tuner | None:
    """The interrupted experiment, or None when nothing can be resumed."""
    statuses = _statuses(experiment)
    where = {"path": experiment.key, "storage_filesystem": experiment.filesystem}
    if not statuses or not tune.Tuner.can_restore(**where):
        note("the sweep has no intact snapshot to resume from: starting it anew")
        return None
    ended = statuses.count("TERMINATED")
    note(f"resuming the sweep: {ended} of {study.plan.trials} trials are finished")
    return tune.Tuner.restore(
        **where,
        trainable=trainable,
        param_space=dict(study.space),
        resume_unfinished=True,
        restart_errored=True,
    )


def parameters(result: tune.Result) -> dict[str, Any]:
    """A trial's settings as plain data."""
    return {
        k: v.item() if hasattr(v, "item") else v  # of NumPy
        for k, v in (result.config or {}).items()
    }


def worth(trial: Trial) -> tuple[Any, ...]:
    """Sorts trials, the best first. Of equal ones the smaller model, and never by chance: the ids
    are random."""
    given = sorted(trial.parameters.items())
    return trial.metric is None, -(trial.metric or 0.0), trial.rounds, given


def none_ended(grid: tune.ResultGrid, what: str) -> StageError:
    """The error of a sweep that gave nothing; names the first trial's."""
    errors = [str(e).strip().splitlines()[-1] for e in grid.errors]
    return StageError(
        f"none of {len(grid)} trials ended with {what}"
        + (f"; the first error: {errors[0]}" if errors else "")
    )


def _fresh(experiment: Place, trainable: Any, study: Study) -> tune.Tuner:
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    plan = study.plan
    first = [dict(point) for point in study.first[: plan.trials]]
    return tune.Tuner(
        trainable,
        param_space=dict(study.space),
        tune_config=tune.TuneConfig(
            metric=study.metric,
            mode="max",
            num_samples=plan.trials,
            search_alg=ConcurrencyLimiter(
                OptunaSearch(seed=plan.seed, points_to_evaluate=first),
                max_concurrent=plan.concurrency or max(1, int(resources.get("CPU", 1))),
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


class _Announcer:
    """Lines about ended trials, told only when a snapshot has them: a told trial is never redone.

    Tune pickles the scheduler with the experiment, so the scheduler looks this up.
    """

    def __init__(self, study: Study, tell: Say) -> None:
        self._study = study
        self._tell = tell
        self.lines: list[str] = []

    def ended(self, trial: Any, result: Mapping[str, Any], others: Sequence[Any]) -> None:
        """Take note of a trial; ``others`` ended before."""
        name = self._study.metric
        best = max(t.last_result.get(name, 0.0) for t in (*others, trial))
        about = self._study.line(trial.config, result)
        self.lines.append(f"trial {len(others) + 1}: {about} (best so far {best:.4f})")

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
        _announcer.get().ended(trial, result, [t for t in others if t.status == "TERMINATED"])

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_error(tune_controller, trial)
        _announcer.get().lines.append(f"trial {trial.trial_id} failed; see {trial.path}")

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        # The first hook after a trial's end at which its new state is in a snapshot.
        if _announcer.get().lines:
            tune_controller.checkpoint(force=True, wait=True)
            _announcer.get().flush()
        return super().choose_trial_to_run(tune_controller)
