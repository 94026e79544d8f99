"""One training run: dataset, split, sweep, and what an interrupted one needs to go on.

``tune/<model>`` in the lake holds the dataset, what was asked for (``work.json``) and the sweep's
state. ``work.json`` is there from the moment the sweep can be resumed until its model is published.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from raypipe.clock import Clock, SystemClock
from raypipe.errors import IntegrityError, UsageError
from raypipe.lake import Place
from raypipe.project import Project
from raypipe.runtime.progress import Progress
from training.dataset import Dataset, build
from training.plan import Options, SweepResult
from training.publish import publish
from training.report import TrainReport
from training.split import Split, time_split

_WORK = "work.json"


@dataclass(frozen=True)
class Work:
    """What a sweep is about; written before it begins, so that it can be resumed."""

    options: Options
    split: Split
    fingerprint: str
    definition_hash: str


def run(
    project: Project,
    lake: Place,
    options: Options,
    progress: Progress,
    *,
    resume: bool = False,
    clock: Clock | None = None,
) -> TrainReport:
    """One training run in the current Ray session; the new version becomes the current one.

    Args:
        project: must declare ``options.model``.
        lake: features are read from it; models, reports and the sweep are written there.
        options: what to do. With ``resume``, what an interrupted run was told is kept.
        progress: stages, and a line per finished trial.
        resume: finish an interrupted run; its dataset is used again, so later events don't count.
        clock: names the version.

    Raises:
        UsageError: an interrupted run was told otherwise, or was about other declarations.
        StageError: too little history, or no trial succeeded.
    """
    folder = lake / "tune" / options.model
    work = _interrupted(folder, project, options, progress) if resume else None
    resumed = work is not None
    if work is None:
        work = _prepare(project, lake, folder, options, progress)
    result = _sweep(folder, work, progress, resumed)
    with progress.stage("evaluate", unit="events") as stage:
        dataset = Dataset.load(folder / "dataset", verify=False)
        now_ms = (clock or SystemClock()).now_ms()
        report = publish(project, lake, work.options, work.split, dataset, result, now_ms)
        stage.advance(report.test["rows"])
        stage.say(f"average precision {report.test['average_precision']:.3f} on test")
    (folder / _WORK).remove()
    saved = {f.parent for f in (folder / "sweep").files()}
    for checkpoint in (f for f in saved if f.name.startswith("checkpoint_")):
        checkpoint.remove_tree()
    return report


def _prepare(
    project: Project, lake: Place, folder: Place, options: Options, progress: Progress
) -> Work:
    with progress.stage("dataset", unit="events") as stage:
        dataset = build(project, lake, model=options.model, as_of_ms=options.as_of_ms)
        stage.advance(len(dataset))
        split = time_split(
            dataset.event_time,
            dataset.y,
            horizon_ms=dataset.origin.horizon_ms,
            gap_ms=options.gap_ms,
            validation_share=options.validation_share,
            test_share=options.test_share,
        )
        (folder / _WORK).remove()
        folder.remove_tree()
        fingerprint = dataset.save(folder / "dataset")
        work = Work(options, split, fingerprint, project.definition_hash)
        text = msgspec.json.format(msgspec.json.encode(work), indent=2)
        (folder / _WORK).write(text)
        stage.say(f"{len(dataset.names)} features, {dataset.positives:,} positive")
    if split.warning:
        progress.note(split.warning)
    return work


def _interrupted(
    folder: Place, project: Project, options: Options, progress: Progress
) -> Work | None:
    """What an earlier run was about, None when there was none."""
    try:
        work = msgspec.json.decode((folder / _WORK).read(), type=Work)
    except FileNotFoundError:
        progress.note("no interrupted run to resume: starting a new one")
        return None
    except msgspec.DecodeError as e:
        raise IntegrityError(
            f"{(folder / _WORK).url} is not what was written: {e}", hint="Train without --resume."
        ) from e
    if work.definition_hash != project.definition_hash:
        raise UsageError(
            f"the declarations of project {project.name!r} changed since the interrupted run",
            hint="Build the features again and train without --resume.",
        )
    conflicts = options.conflicts(work.options)
    if conflicts:
        raise UsageError(
            "an interrupted run can't be told otherwise: " + ", ".join(conflicts),
            hint="Resume without these flags, or train without --resume.",
        )
    dataset = Dataset.load(folder / "dataset", verify=False)
    if dataset.fingerprint() != work.fingerprint:
        raise IntegrityError(
            f"{(folder / 'dataset').url} is not the interrupted run's",
            hint="Train without --resume.",
        )
    return work


def _sweep(folder: Place, work: Work, progress: Progress, resumed: bool) -> SweepResult:
    from training.tune import sweep

    plan = work.options.sweep
    with progress.stage("sweep", total=plan.trials, unit="trials") as stage:

        def ended(line: str) -> None:
            stage.advance()
            progress.note(line)

        result = sweep(
            folder / "dataset",
            work.split,
            plan,
            storage=folder,
            resume=resumed,
            note=progress.note,
            trial_ended=ended,
        )
        stage.reach(len(result.trials))
        stage.say(f"best validation aucpr {result.best.metric:.4f}")
    return result
