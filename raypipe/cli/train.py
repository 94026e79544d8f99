"""``raypipe train``: sweep, evaluate and keep a model."""

from __future__ import annotations

from typing import Annotated

import typer

from raypipe.cli import _options, _output, _stage
from raypipe.cli._options import Config, Home, Json, Quiet, Set


def train(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A declared model [the project's first].")
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option("--trials", metavar="N", help="Models tried in the sweep (setting trials)."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Finish an interrupted sweep.")] = False,
    label_as_of: Annotated[
        str | None,
        typer.Option(
            "--label-as-of",
            metavar="TIME",
            help="Train on what was known then: ms UTC or ISO 8601 (setting label_as_of).",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Seed of the sweep (setting seed).")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """Sweep, evaluate and keep a model.

    Trains on the computed features, chooses on later days and measures on days after those.
    """
    settings = _options.settings(
        home, config, set_, trials=trials, label_as_of=label_as_of, seed=seed
    )
    with _stage.session():
        report = _stage.call(
            "training.fraud:train", settings, _options.progress(quiet), model=model, resume=resume
        )
        text = None if json else _stage.call("training.fraud:summary", report)
    _output.write(report.describe(), as_json=json, text=text)
    return 0
