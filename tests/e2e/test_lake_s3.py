"""The whole line on a lake in a real S3 server, against the same line on a folder."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from features.builds import Build
from features.online import read
from features.pipeline import build
from features.store.historical import historical
from features.store.repo import open_store
from raypipe.clock import HOUR_MS
from raypipe.config import Settings
from raypipe.lake import Place
from raypipe.log.sqlite import SqliteLog
from raypipe.runtime.progress import Quiet
from raypipe.runtime.worker.core import GROUP, WorkerCore
from serving.scoring import load_judge
from tests.domains.greenhouse import INPUTS, project
from training import artefact, registry
from training.dataset import Dataset
from training.pipeline import run
from training.plan import Options
from training.report import TrainReport

pytestmark = [pytest.mark.ray, pytest.mark.slow]

START_MS = 1_780_000_000_000
OPENINGS, SEALED = 3_000, 2_000
WINDOWS = ["valve_count_2d", "floods_count_2d"]


@dataclass(frozen=True)
class Done:
    """What one line left."""

    settings: Settings
    lake: Place
    report: TrainReport
    committed: tuple[int, str]


def events() -> list[tuple[str, dict[str, object]]]:
    """Openings one in ten minutes; much water by spray floods an hour later."""
    rng = random.Random(5)
    rows: list[tuple[str, dict[str, object]]] = []
    for i in range(OPENINGS):
        at = START_MS + i * HOUR_MS // 6
        opening = {"valve": f"v-{rng.randrange(9)}", "gardener": rng.choice(["ann", "bo", None])}
        mode, litres = rng.choice(["drip", "spray"]), rng.randrange(1_000)
        named = {"tenant": "default", "event_id": f"o-{i}", "event_time": at, "received_at": at}
        rows.append(("opening", named | opening | {"mode": mode, "litres": litres}))
        if mode == "spray" and litres > 800:
            later = {"event_time": at + HOUR_MS, "received_at": at + HOUR_MS}
            flood = named | later | {"event_id": f"f-{i}", "opening_id": f"o-{i}"}
            rows.append(("flood", flood | opening))
    return sorted(rows, key=lambda r: int(str(r[1]["received_at"])))


def fill(log: SqliteLog) -> None:
    """History as sealed files, and live rows behind it."""
    rows = events()
    sealed: dict[str, Iterator[pa.RecordBatch]] = {}
    for event in project.events:
        at = [i for i, (kind, _) in enumerate(rows[:SEALED]) if kind == event.name]
        batch = pa.RecordBatch.from_pylist([rows[i][1] for i in at], event.arrow_schema)
        position = pa.field("_position", pa.int64(), nullable=False)
        schema = pa.schema([position, *event.arrow_schema])
        columns = [pa.array(at, pa.int64()), *batch.columns]
        sealed[event.name] = iter([pa.RecordBatch.from_arrays(columns, schema=schema)])
    log.seal(0, sealed, SEALED, producer="history", seq=0)
    live = [
        (kind, pa.RecordBatch.from_pylist([row], project.event(kind).arrow_schema))
        for kind, row in rows[SEALED:]
    ]
    log.append(0, live, producer="live", seq=0)


@pytest.fixture(scope="module")
def lines(
    ray_session: None, s3_query: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Done, Done]:
    """The same log through both lakes: features, Feast, dataset, sweep, model."""
    folder = tmp_path_factory.mktemp("lines")
    with closing(SqliteLog(folder / "log")) as log:
        fill(log)
    done = []
    for name, lake_url in (("local", ""), ("s3", f"s3://lake/line?{s3_query}")):
        home = folder / name
        settings = Settings(
            home=home,
            lake_url=lake_url or str(home),
            log_url=f"sqlite:///{folder / 'log'}",
            project="tests.domains.greenhouse:project",
            features_blocks=3,
        )
        build(settings, Quiet())
        # One trial after the other: the second's parameters depend on the first's result.
        options = Options(model="flooding", trials=2, max_rounds=50, concurrency=1)
        report = run(project, settings.lake, options, Quiet())
        with closing(SqliteLog.open(settings.log_url)) as log:
            committed = log.committed(GROUP, 0)
        assert committed is not None
        done.append(Done(settings, settings.lake, report, committed))
    local, remote = done
    return local, remote


def test_both_lakes_hold_the_same_features(lines: tuple[Done, Done]) -> None:
    local, remote = (Build.current(d.lake) for d in lines)
    assert local.files == remote.files
    assert local.manifest.rows == remote.manifest.rows == OPENINGS
    assert remote.place.url.startswith("s3://lake/line/features/")
    for name, sha256 in remote.files.items():
        assert (remote.place / name).sha256() == sha256
    # What lies on one node was brought to where all can read it; the rest stays where it is.
    for kind in ("opening", "flood"):
        assert [f.name for f in remote.events(kind)] == [f.name for f in local.events(kind)]
        assert all(f.exists() and f.below(remote.lake) for f in remote.events(kind))


def test_both_lakes_give_the_same_model(lines: tuple[Done, Done]) -> None:
    local, remote = lines
    assert local.report.data["fingerprint"] == remote.report.data["fingerprint"]
    assert local.report.sha256 == remote.report.sha256
    assert local.report.test == remote.report.test
    assert len(remote.report.sweep) == 2
    loaded = artefact.load(registry.locate(remote.lake / "models", "flooding"), project)
    assert loaded.reference == f"flooding@{remote.report.version}"
    data = Dataset.load(remote.lake / "tune" / "flooding" / "dataset")
    assert data.x.tobytes() == Dataset.load(local.lake / "tune/flooding/dataset").x.tobytes()
    judge = load_judge(remote.lake / "models", project, "flooding", None, "review")
    assert judge.scorer.score(data.x[7]) == float(loaded.booster.inplace_predict(data.x[7:8])[0])


def test_reports_and_results_lie_in_the_lake_and_nothing_of_them_at_home(
    lines: tuple[Done, Done],
) -> None:
    remote = lines[1]
    assert remote.report.directory.startswith("s3://lake/line/reports/")
    page = Place.at(f"{remote.report.directory}?{remote.lake.options}") / "report.html"
    assert b"<html" in page.read()
    assert remote.lake.names() == ["export", "features", "models", "reports", "tune"]
    tune = remote.lake / "tune" / "flooding"
    assert "work.json" not in tune.names()
    assert not any("checkpoint_" in f.url for f in tune.files())
    assert sorted(p.name for p in remote.settings.home.iterdir()) == ["feast", "features.lock"]


def test_a_worker_starts_from_the_state_in_the_lake(
    lines: tuple[Done, Done], tmp_path: Path
) -> None:
    local, remote = lines
    states = []
    for name, done in (("a", local), ("b", remote), ("c", None)):
        with closing(SqliteLog(tmp_path / name)) as log:
            fill(log)
            if done is not None:
                log.commit(GROUP, 0, *done.committed)
            states.append(WorkerCore(project, log)._state.windows.snapshot())
    assert remote.committed[1].startswith("s3://")
    for ours, theirs, replayed in zip(*states, strict=True):
        assert ours.equals(theirs)
        assert ours.equals(replayed)


def test_feast_reads_both_lakes_alike(lines: tuple[Done, Done]) -> None:
    ids = [f"o-{i}" for i in range(0, OPENINGS, 97)] + ["unknown"]
    view = project.views[0]
    at = pa.array([(START_MS + 9 * HOUR_MS) * 1_000] * 9).cast(pa.timestamp("us", "UTC"))
    asked = pa.table({"valve": [f"v-{i}" for i in range(9)], "event_timestamp": at})
    names = [f"{view.name}_state:{c}" for c in view.column_names]
    found, joined, online = [], [], []
    for done in lines:
        store = open_store(done.settings.home)
        found.append(historical(store, done.lake, pa.table({"event_id": ids}), "flooding_v1"))
        joined.append(historical(store, done.lake, asked, names))
        now = START_MS + OPENINGS * HOUR_MS // 6
        online.append(read(store, view, [f"v-{i}" for i in range(9)], now))
    assert "valve_count_2d" in INPUTS
    counts = found[1].column("valve_count_2d").to_numpy()
    assert np.nanmax(counts) > 10
    assert np.isnan(counts[-1])
    for name in found[0].column_names:
        a, b = (f.column(name).to_numpy() for f in found)
        np.testing.assert_array_equal(a, b)
    for name in joined[0].column_names:
        a, b = (j.column(name).to_numpy() for j in joined)
        np.testing.assert_array_equal(a, b)
    # NaN equals nothing, so by text.
    assert repr(online[0]) == repr(online[1])
    assert all(row.event_time is not None for row in online[1])
    assert all(row.values["valve_count_2d"] > 0 for row in online[1])
