"""Train a model that tells rare events: ``raypipe train``, or ``python -m training.fraud``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raypipe.errors import RaypipeError
from raypipe.project import load_project
from training.pipeline import run
from training.plan import Options
from training.report import TrainReport

if TYPE_CHECKING:
    from raypipe.config import Settings
    from raypipe.runtime.progress import Progress


def train(
    settings: Settings, progress: Progress, *, model: str | None = None, resume: bool = False
) -> TrainReport:
    """Train a declared model as the settings say; starts a Ray session if none runs.

    Args:
        model: its name, by default the project's first.

    Raises DeclarationError when the project declares no such model.
    """
    from raypipe.runtime import session

    project = load_project(settings.project)
    options = Options(
        model=project.model(model or project.models[0].name).name,
        trials=settings.trials,
        seed=settings.seed,
        as_of_ms=settings.label_as_of,
        review_fpr=settings.max_false_positive_rate,
        review_precision=settings.min_precision,
        block_fpr=min(Options.block_fpr, settings.max_false_positive_rate),
    )
    session.start(settings)
    return run(project, settings.lake, options, progress, resume=resume)


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m training.fraud``; the exit code."""
    parser = argparse.ArgumentParser("training.fraud", description="Train a declared model.")
    parser.add_argument("--model", help="its name; default: the project's first")
    parser.add_argument("--config", type=Path, help="settings file; default ./raypipe.toml")
    parser.add_argument("--home", type=Path, help="folder of everything that raypipe keeps")
    parser.add_argument("--lake-url", help="where what all nodes read and write lies")
    parser.add_argument("--project", help="module:attribute of the declared project")
    parser.add_argument("--trials", type=int, help="models tried in the sweep")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--label-as-of", help="train on what was known then (ms UTC or ISO 8601)")
    parser.add_argument(
        "--max-false-positive-rate", type=float, help="allowed on validation by the review point"
    )
    parser.add_argument("--resume", action="store_true", help="finish an interrupted run")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    flags = vars(parser.parse_args(argv))
    config, resume, model = flags.pop("config"), flags.pop("resume"), flags.pop("model")
    as_json, quiet = flags.pop("json"), flags.pop("quiet")

    from raypipe.config import load_settings
    from raypipe.runtime import session
    from raypipe.runtime.progress import reporter

    try:
        settings, progress = load_settings(flags, config), reporter(quiet=quiet)
        report = train(settings, progress, model=model, resume=resume)
    except RaypipeError as e:
        sys.stderr.write(f"{e}\n")
        return e.exit_code
    finally:
        session.stop()
    text = json.dumps(report.describe()) if as_json else summary(report)
    sys.stdout.write(text + "\n")
    return 0


def summary(report: TrainReport) -> str:
    """The few lines that a terminal shows."""
    review = report.operating_points["review"]
    precision = review["precision"]
    lines = [
        f"model      {report.model}@{report.version}",
        f"test       average precision {report.test['average_precision']:.3f} "
        f"(chance {report.test['base_rate']:.4f}), ROC AUC {report.test['roc_auc']:.3f}",
        f"review     score > {review['threshold']:.4f}: recall {review['recall']:.3f}, precision "
        + (f"{precision:.3f}" if precision is not None else "-")
        + f", false positives {review['fpr']:.4f} (limit {review['fpr_limit']})",
        f"accuracy   {review['accuracy']:.4f} (flagging nothing: {review['base_accuracy']:.4f})",
        f"report     {report.directory}/report.html",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
