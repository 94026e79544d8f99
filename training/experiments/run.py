"""Plan an experiment from history, and report on it: from the log to a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from features.experiments import run as units
from raypipe.errors import IntegrityError
from raypipe.experiments.bandit import Shares
from raypipe.experiments.checks import maturity_ms
from raypipe.experiments.results import Analysis
from raypipe.experiments.spec import Experiment
from raypipe.lake import Place
from raypipe.project import load_project
from training.experiments import report as pages
from training.experiments.analysis import analyse
from training.experiments.bandits import next_shares, next_version
from training.experiments.planning import Forecast, forecast

if TYPE_CHECKING:
    from raypipe.config import Settings
    from raypipe.runtime.progress import Progress

FOLDER = "reports/experiments"
PLAN = "plan.json"


def plan(
    settings: Settings, progress: Progress, reference: str, since: str | None = None
) -> Forecast:
    """How long an experiment, a file or a published one, has to run; kept for its report.

    Args:
        since: of what history; by default as long as the horizon.

    Raises what ``features.experiments.run.history`` raises, StageError for a history that can't
    plan it.
    """
    experiment, made = units.history(settings, progress, reference, since)
    primary = experiment.primary
    ripe = primary.within_ms + maturity_ms(primary, load_project(settings.project))
    found = forecast(experiment, made.table(settings.lake), ripe)
    data = msgspec.json.format(msgspec.json.encode(found), indent=2)
    (_folder(settings, experiment) / PLAN).write(data)
    return found


def report(settings: Settings, progress: Progress, reference: str) -> tuple[Analysis, Place]:
    """Analyse a published experiment as of the newest event; with the folder of the report.

    Intervals are tuned for the units of its plan, if one was made.

    Raises what ``features.experiments.run.run`` raises.
    """
    experiment, made = units.run(settings, progress, reference)
    folder = _folder(settings, experiment)
    planned = _planned(folder / PLAN)
    with progress.stage("analysis", unit="units"):
        analysis = analyse(
            experiment,
            made.table(settings.lake),
            made.as_of_ms,
            None if planned is None else planned.planned_units,
        )
        pages.write(analysis, folder)
    return analysis, folder


def reallocate(
    settings: Settings, progress: Progress, reference: str, floor: float
) -> tuple[Experiment, Shares]:
    """The next version of a published experiment, whose arms have the shares of a bandit.

    Args:
        floor: the least share of an arm, of what all arms have.

    Raises what ``features.experiments.run.run`` raises, StageError while an arm is too little
    known, UsageError for a floor that the arms can't all have.
    """
    experiment, made = units.run(settings, progress, reference)
    found = next_shares(experiment, made.table(settings.lake), floor=floor)
    return next_version(experiment, found), found


def _planned(file: Place) -> Forecast | None:
    try:
        return msgspec.json.decode(file.read(), type=Forecast)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as e:
        raise IntegrityError(f"{file.url} is no plan: {e}", hint="Make it again.") from e


def _folder(settings: Settings, experiment: Experiment) -> Place:
    return settings.lake / FOLDER / experiment.name / str(experiment.version)
