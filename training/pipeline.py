"""One training run: dataset, split, sweep, and what an interrupted one needs to go on.

``home/tune/<model>`` holds the dataset, what was asked for (``work.json``) and the sweep's state.
``work.json`` is there from the moment the sweep can be resumed until its model is published.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec

from raypipe.clock import Clock, SystemClock
from raypipe.errors import IntegrityError, UsageError
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
    home: Path,
    options: Options,
    progress: Progress,
    *,
    resume: bool = False,
    clock: Clock | None = None,
) -> TrainReport:
    """One training run in the current Ray session; the new version becomes the current one.

    Args:
        project: must declare ``options.model``.
        home: features are read from it; models, reports and the sweep are written there.
        options: what to do. With ``resume``, what an interrupted run was told is kept.
        progress: stages, and a line per finished trial.
        resume: finish an interrupted run; its dataset is used again, so later events don't count.
        clock: names the version.

    Raises:
        UsageError: an interrupted run was told otherwise, or was about other declarations.
        StageError: too little history, or no trial succeeded.
    """
    folder = home / "tune" / options.model
    work = _interrupted(folder, project, options, progress) if resume else None
    resumed = work is not None
    if work is None:
        work = _prepare(project, home, folder, options, progress)
    result = _sweep(folder, work, progress, resumed)
    with progress.stage("evaluate", unit="events") as stage:
        dataset = Dataset.load(folder / "dataset", verify=False)
        now_ms = (clock or SystemClock()).now_ms()
        report = publish(project, home, work.options, work.split, dataset, result, now_ms)
        stage.advance(report.test["rows"])
        stage.say(f"average precision {report.test['average_precision']:.3f} on test")
    (folder / _WORK).unlink()
    for checkpoint in (folder / "sweep").glob("*/checkpoint_*"):
        shutil.rmtree(checkpoint)
    return report


def _prepare(
    project: Project, home: Path, folder: Path, options: Options, progress: Progress
) -> Work:
    with progress.stage("dataset", unit="events") as stage:
        dataset = build(project, home / "features", model=options.model, as_of_ms=options.as_of_ms)
        stage.advance(len(dataset))
        split = time_split(
            dataset.event_time,
            dataset.y,
            horizon_ms=dataset.origin.horizon_ms,
            gap_ms=options.gap_ms,
            validation_share=options.validation_share,
            test_share=options.test_share,
        )
        shutil.rmtree(folder, ignore_errors=True)
        fingerprint = dataset.save(folder / "dataset")
        work = Work(options, split, fingerprint, project.definition_hash)
        text = msgspec.json.format(msgspec.json.encode(work), indent=2)
        staging = folder / f".{_WORK}.tmp"
        staging.write_bytes(text)
        staging.replace(folder / _WORK)
        stage.say(f"{len(dataset.names)} features, {dataset.positives:,} positive")
    if split.warning:
        progress.note(split.warning)
    return work


def _interrupted(
    folder: Path, project: Project, options: Options, progress: Progress
) -> Work | None:
    """What an earlier run was about, None when there was none."""
    try:
        work = msgspec.json.decode((folder / _WORK).read_bytes(), type=Work)
    except FileNotFoundError:
        progress.note("no interrupted run to resume: starting a new one")
        return None
    except msgspec.DecodeError as e:
        raise IntegrityError(
            f"{folder / _WORK} is not what was written: {e}", hint="Train without --resume."
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
            f"{folder / 'dataset'} is not the interrupted run's", hint="Train without --resume."
        )
    return work


def _sweep(folder: Path, work: Work, progress: Progress, resumed: bool) -> SweepResult:
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
