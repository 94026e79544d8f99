"""Builds and models whose process is killed: what was published before stays, on every lake."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pytest

from features.builds import Build
from raypipe.errors import NotFound
from raypipe.lake import Place
from raypipe.log.sqlite import SqliteLog
from raypipe.runtime.worker.core import GROUP, WorkerCore
from tests.contract.log_kit import runs
from tests.domains.greenhouse import project
from tests.recovery import lake_process
from tests.recovery.nursery import Nursery
from training import artefact, registry
from training.inputs import read_features

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
START_MS = 1_780_000_000_000


@pytest.fixture(params=["folder", "s3"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        return Place.at(tmp_path / "lake")
    query = request.getfixturevalue("s3_query")
    return Place.at(f"s3://lake/{uuid.uuid4().hex}?{query}")


class Run(Protocol):
    """Runs a function of lake_process in a process; what it printed, or None if it was killed
    where it had to be."""

    def __call__(
        self, function: Callable[..., None], *words: object, abort_at: str = ""
    ) -> str | None: ...


@pytest.fixture
def run(nursery: Nursery) -> Run:
    def finish(function: Callable[..., None], *words: object, abort_at: str = "") -> str | None:
        done = nursery.finish(function, *words, env={"RAYPIPE_ABORT_AT": abort_at})
        assert done.status == (-9 if abort_at else 0), done.err
        return None if abort_at else done.out.strip()

    return finish


def append(log: SqliteLog, seq: int, count: int = 200) -> None:
    """Openings of some valves, one a minute; every tenth floods at once."""
    first = seq * count
    openings = [
        {
            "tenant": "default",
            "event_id": f"o-{i}",
            "event_time": START_MS + i * 60_000,
            "received_at": START_MS + i * 60_000,
            "valve": f"v-{i % 13}",
            "gardener": None if i % 5 == 0 else f"g-{i % 7}",
            "litres": i % 900,
            "mode": "spray",
        }
        for i in range(first, first + count)
    ]
    floods = [
        {n: o[n] for n in ("tenant", "event_time", "received_at", "valve", "gardener")}
        | {"event_id": f"f-{o['event_id']}", "opening_id": o["event_id"]}
        for o in openings[::10]
    ]
    batches = [
        (kind, pa.RecordBatch.from_pylist(rows, project.event(kind).arrow_schema))
        for kind, rows in (("opening", openings), ("flood", floods))
    ]
    log.append(0, batches, producer="test", seq=seq)


def check_whole(build: Build, events: int) -> None:
    """Every file is there and unchanged, and holds every decision event."""
    assert build.manifest.rows == events
    for name, sha256 in build.files.items():
        assert (build.place / name).sha256() == sha256
    for view in project.views:
        assert len(read_features(build, view.name, ["event_id"])) == events


def check_worker(log: SqliteLog, tmp_path: Path) -> None:
    """A worker that starts from the committed state is where one is that replayed everything."""
    replayed = SqliteLog(tmp_path / "replayed")
    for chunk in runs(log.read(0, 0, 10**6)):
        replayed.append(0, [(chunk.kind, chunk.batch)], producer="copy", seq=int(chunk.offsets[0]))
    committed = log.committed(GROUP, 0)
    assert committed is not None
    assert Place.at(committed[1]).files(), "the state that the log names is gone"
    from_state = WorkerCore(project, log)._state.windows.snapshot()
    from_start = WorkerCore(project, replayed)._state.windows.snapshot()
    for a, b in zip(from_state, from_start, strict=True):
        assert a.equals(b)
    replayed.close()


@pytest.mark.parametrize("point", ["features.before_manifest", "features.after_manifest"])
def test_a_killed_build_leaves_whole_features_and_a_state_to_start_from(
    run: Run, lake: Place, tmp_path: Path, point: str
) -> None:
    features, home = lake / "features", tmp_path / "home"
    log = SqliteLog(home / "log")
    append(log, 0)
    with pytest.raises(NotFound):
        Build.current(lake)
    first = run(lake_process.build, home, lake)
    before = Build.current(lake)
    assert before.manifest.build == first
    check_whole(before, 200)

    append(log, 1)
    run(lake_process.build, home, lake, abort_at=point)
    after = Build.current(lake)
    if point == "features.before_manifest":
        assert after == before
    else:
        assert after.manifest.end_offset > before.manifest.end_offset
        check_whole(after, 400)
    check_whole(before, 200)  # who reads it still can
    check_worker(log, tmp_path)

    third = run(lake_process.build, home, lake)
    check_whole(Build.current(lake), 400)
    assert third == first
    assert features.names() == sorted([str(first), "manifest.json"])
    assert log.committed(GROUP, 0) == (log.end(0), str(Build.current(lake).place / "snapshot"))
    log.close()


def test_features_of_one_log_are_the_same_bytes_on_every_lake(
    run: Run, s3_query: str, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    log = SqliteLog(home / "log")
    append(log, 0)
    log.close()
    lakes = Place.at(tmp_path / "lake"), Place.at(f"s3://lake/{uuid.uuid4().hex}?{s3_query}")
    run(lake_process.build, home, lakes[0])
    # An interpreter of its own: its sets have another order.
    other = "import sys; from tests.recovery import lake_process as p; p.build(*sys.argv[1:])"
    subprocess.run([sys.executable, "-c", other, home, str(lakes[1])], check=True, cwd=ROOT)
    builds = [Build.current(lake) for lake in lakes]
    assert builds[0].files == builds[1].files
    assert builds[0].manifest.events == builds[1].manifest.events


def test_a_log_never_takes_the_exported_events_of_another(
    run: Run, lake: Place, tmp_path: Path
) -> None:
    for name, seq in (("one", 0), ("two", 1)):
        home = tmp_path / name
        log = SqliteLog(home / "log")
        append(log, seq)
        log.close()
        run(lake_process.build, home, lake)
        build = Build.current(lake)
        (shard, *_) = build.place.files()
        assert shard.name.startswith("part-")
        ids = read_features(build, "valve", ["event_id"]).arrow().column("event_id").to_pylist()
        assert ids == [f"o-{i}" for i in range(seq * 200, seq * 200 + 200)]


def test_a_model_whose_write_was_killed_never_existed(run: Run, lake: Place) -> None:
    models = lake / "models"
    first = run(lake_process.model, lake, 1_760_000_000_000)
    run(lake_process.model, lake, 1_760_000_060_000, abort_at="training.before_manifest")
    assert registry.versions(models, "flooding") == [first]
    assert len((models / "flooding").names()) == 3, "a half-written version lies beside"
    assert registry.current(models, "flooding") == first
    artefact.load(registry.locate(models, "flooding"), project)
    again = run(lake_process.model, lake, 1_760_000_060_000)
    assert registry.versions(models, "flooding") == [first, again]
    loaded = artefact.load(registry.locate(models, "flooding"), project)
    assert loaded.reference == f"flooding@{again}"
