"""A build of the greenhouse's features, or a model, in a process of its own, to be killed by tests.

Ray is left out: a build's passes run the same blocks here, one after the other.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xgboost

from features import pipeline
from features.batch import EntityPass, _columns_of, prepare, write_block
from raypipe.config import Settings
from raypipe.lake import Place
from raypipe.log.sqlite import SqliteLog
from raypipe.project import Project
from raypipe.runtime.progress import Quiet
from tests.domains.greenhouse import INPUTS, project
from training import artefact, registry


def run_entity(
    project: Project,
    entity: str,
    events: Mapping[str, Sequence[Place]],
    out: Place,
    *,
    partitions: int,
) -> tuple[int, dict[str, str]]:
    plan = EntityPass.of(project, entity, partitions)
    tables = [
        prepare(pq.read_table(pa.BufferReader(f.buffer()), columns=columns), plan, kind)
        for kind in plan.kinds
        for columns in [_columns_of(project, plan, kind)]
        for f in events[kind]
    ]
    rows = pa.concat_tables(tables)
    parts = rows.column("part").to_numpy()
    done = [write_block(rows.filter(pa.array(parts == p)), plan, out) for p in np.unique(parts)]
    written = pa.concat_tables(done).to_pylist()
    return sum(w["rows"] for w in written), {w["file"]: w["sha256"] for w in written}


def build(home: Path, lake: str) -> None:
    pipeline.run_entity = run_entity
    pipeline.session.start = lambda settings: None
    settings = Settings(home=home, lake_url=lake, features_blocks=3)
    with closing(SqliteLog(home / "log")) as log:
        made = pipeline.compute(project, log, settings, Quiet())
    print(made.manifest.build)


def model(lake: str, created_ms: int) -> None:
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


if __name__ == "__main__":
    if sys.argv[1] == "build":
        build(Path(sys.argv[2]), sys.argv[3])
    else:
        model(sys.argv[2], int(sys.argv[3]))
