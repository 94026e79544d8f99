"""A build of the greenhouse's features, or a model, in a process of its own, to be killed by tests.

Ray is left out: a build's passes run the same blocks here, one after the other.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from features import building, passes, pipeline, steps
from features.batch import Written
from raypipe.config import Settings
from raypipe.lake import Place
from raypipe.log.sqlite import SqliteLog
from raypipe.runtime.progress import Quiet
from raypipe.windows.engine import compile_windows
from tests.domains.greenhouse import INPUTS, project


def run(several: Sequence[passes.Pass], done: Callable[[int, Written], None]) -> None:
    for number, one in enumerate(several):
        for written in passes.here(one):
            done(number, written)


def prepare() -> None:
    """What every start would do again: import the trainer, load the kernels."""
    for name in ("xgboost", "training.artefact", "training.registry"):
        importlib.import_module(name)
    compile_windows(project.views, project.decision)


def build(home: str, lake: str) -> None:
    """Build the features of the log under a home on a lake."""
    passes.run = run
    building.session.start = lambda settings: None
    steps.SLICE_ROWS = int(os.environ.get("RAYPIPE_TEST_SLICE_ROWS", steps.SLICE_ROWS))
    settings = Settings(home=Path(home), lake_url=lake, features_blocks=3)
    with closing(SqliteLog(Path(home) / "log")) as log:
        made = pipeline.compute(project, log, settings, Quiet())
    print(made.manifest.build)


def model(lake: str, created: str) -> None:
    """Write a small model of a moment, and promote it."""
    import xgboost

    from training import artefact, registry

    created_ms = int(created)
    rng = np.random.default_rng(created_ms)
    x = rng.normal(size=(200, len(INPUTS))).astype(np.float32)
    matrix = xgboost.DMatrix(x, x[:, 0] > 0, feature_names=list(INPUTS), nthread=1)
    booster = xgboost.train({"objective": "binary:logistic", "nthread": 1}, matrix, 5)
    models = Place.at(lake) / "models"
    version = artefact.write(
        models,
        bytes(booster.save_raw("ubj")),
        project=project,
        name="flooding",
        created_ms=created_ms,
        training={},
        data_fingerprint="",
        parameters={},
        metrics={},
        thresholds={"review": 0.5, "block": 0.9},
    )
    registry.promote(models, "flooding", version.name)
    print(version.name)
