"""Profiles from the log to a decision: made daily on Ray, joined in training, read online."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.builds import Build
from features.pipeline import build
from features.profiles import made
from features.profiles.daily import update
from features.profiles.lookup import ProfileReader
from features.profiles.online import materialize
from features.store.asof import join, join_on_ray
from features.store.historical import historical, sources
from features.store.packed.reader import OnlineReader
from features.store.repo import open_store
from raypipe.clock import DAY_MS, HOUR_MS
from raypipe.config import Settings
from raypipe.errors import DeclarationError, IntegrityError, NotFound
from raypipe.lake import Place
from raypipe.log.sqlite import SqliteLog
from raypipe.profiles import Value
from raypipe.project import Project
from raypipe.runtime.progress import Quiet
from tests.domains.orchard import PROFILE, append, project
from training import dataset

if TYPE_CHECKING:
    import feast

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

ROOT = Path(__file__).parents[2]
NAME = "tests.domains.orchard:project"
DAYS = 12


def settings(home: Path) -> Settings:
    return Settings(home=home, project=NAME, features_blocks=3)


def filled(home: Path, first: int, last: int) -> Settings:
    """The log of a home with some more days in it."""
    found = settings(home)
    with closing(SqliteLog.open(found.log_url)) as log:
        for day in range(first, last):
            append(log, day)
    return found


def manifest(home: Path) -> made.Manifest:
    found = made.current(Place.at(home), PROFILE)
    assert found is not None
    return found


def values(home: Path) -> pa.Table:
    """All that counts, in order."""
    files = made.values_files(Place.at(home), PROFILE, manifest(home))
    table = pa.concat_tables([pq.read_table(f.url) for f in files])
    return table.sort_by([("tree", "ascending"), ("event_timestamp", "ascending")])


@pytest.fixture(scope="module")
def home(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose features were built once over all days."""
    folder = tmp_path_factory.mktemp("orchard")
    build(filled(folder, 0, DAYS), Quiet())
    return folder


@pytest.fixture(scope="module")
def store(home: Path) -> feast.FeatureStore:
    return open_store(home)


def test_day_by_day_gives_what_one_run_over_all_days_gives(home: Path, tmp_path: Path) -> None:
    segments = []
    for first, last in ((0, 4), (4, 5), (5, DAYS)):
        build(filled(tmp_path, first, last), Quiet())
        segments.append(len(manifest(tmp_path).segments))
    assert segments == [1, 2, 3]
    before = manifest(tmp_path)
    build(settings(tmp_path), Quiet())
    assert manifest(tmp_path) == before  # no day has ended since
    assert values(tmp_path).equals(values(home))
    assert len(values(home)) > 100


def process(home: Path, abort_at: str = "") -> None:
    """A run in a process of its own, which is killed where it has to be."""
    import ray

    code = (
        "import sys, ray; from pathlib import Path\n"
        "from features.pipeline import compute, profiles\n"
        "from raypipe.config import Settings; from raypipe.log.sqlite import SqliteLog\n"
        "from raypipe.runtime.progress import Quiet\n"
        f"from {NAME.partition(':')[0]} import project\n"
        "ray.init(address=sys.argv[2], log_to_driver=False)\n"
        f"given = Settings(home=Path(sys.argv[1]), project={NAME!r}, features_blocks=3)\n"
        "log = SqliteLog.open(given.log_url)\n"
        "made = compute(project, log, given, Quiet())\n"
        "profiles(project, given, Quiet(), made)\n"
    )
    address = ray.get_runtime_context().gcs_address
    done = subprocess.run(
        [sys.executable, "-c", code, str(home), address],
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAYPIPE_ABORT_AT": abort_at},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == (-9 if abort_at else 0), done.stderr


def test_a_run_that_is_killed_changes_nothing_and_the_next_one_makes_it_whole(
    home: Path, tmp_path: Path
) -> None:
    build(filled(tmp_path, 0, 5), Quiet())
    before, old = manifest(tmp_path), values(tmp_path)
    filled(tmp_path, 5, DAYS)
    process(tmp_path, "profiles.before_manifest")
    assert manifest(tmp_path) == before
    assert values(tmp_path).equals(old)
    process(tmp_path)
    assert values(tmp_path).equals(values(home))


def test_another_definition_starts_anew_and_broken_sql_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(filled(tmp_path, 0, 4), Quiet())
    lake, events = Place.at(tmp_path), Build.current(Place.at(tmp_path))
    old = manifest(tmp_path)
    changed = replace(PROFILE, values=(*PROFILE.values, Value("n", "count(*)")))
    other = replace(project, profiles=(changed,))

    def run(p: Project) -> None:
        update(p, events, today=10**6)

    run(other)
    new = made.current(lake, changed)
    assert new is not None
    assert made.current(lake, PROFILE) is None
    assert (new.last_day, new.end_offset) == (old.last_day, old.end_offset)
    # Who opened the values before goes on reading them.
    assert all(f.exists() for f in made.values_files(lake, PROFILE, old))
    run(project)
    assert manifest(tmp_path) == old
    broken = replace(PROFILE, values=(Value("n", "sum(nothing)"),))
    wrong = replace(project, profiles=(broken,), models=project.models[:1], derived=())
    monkeypatch.setattr("features.pipeline.load_project", lambda _: wrong)
    with pytest.raises(DeclarationError, match="nothing"):
        build(settings(tmp_path), Quiet())
    assert manifest(tmp_path) == old


def last_known(table: pa.Table) -> dict[str, dict[str, Any]]:
    return {row["tree"]: row for row in table.to_pylist()}


def test_online_is_the_last_day_through_feast_and_without_it(
    home: Path, store: feast.FeatureStore
) -> None:
    newest = last_known(values(home))
    end = (manifest(home).last_day or 0) * DAY_MS + DAY_MS
    ours = ProfileReader(project.profiles, home, None)
    feasts = OnlineReader(store, [f"{PROFILE.name}:{c}" for c in PROFILE.column_names])
    for tree in (*newest, "unknown"):
        for now in (end, end + PROFILE.ttl_ms, end + PROFILE.ttl_ms + 1):
            found = ours.read({"tree": tree}, now)
            (theirs,) = feasts.read({"tree": [tree]}, now).values.tolist()
            by_name = dict(zip(feasts.names, theirs, strict=True))
            np.testing.assert_array_equal(found.values, [by_name[c] for c in PROFILE.column_names])
            if tree == "unknown" or now > end + PROFILE.ttl_ms:
                assert found.times == (-1,)
                assert all(map(math.isnan, found.values))
            elif newest[tree]["event_timestamp"].timestamp() * 1_000 == end:
                assert found.times == (end,)
                wanted = [newest[tree][c] for c in PROFILE.column_names]
                np.testing.assert_array_equal(found.values, np.array(wanted, float))
    assert all(map(math.isnan, ours.read({"tree": None}, end).values))
    # Written again it is the same; an emptied store is filled again.
    assert materialize(store, project, Place.at(home)) == 0
    with pytest.raises(NotFound, match="online_url to a Redis"):
        ProfileReader(project.profiles, home / "elsewhere", None)


def asked(home: Path, size: int = 900) -> pa.Table:
    """Keys and times before, in and after the days; some keys unknown or null, some rows twice."""
    random = np.random.default_rng(3)
    table = values(home)
    low = table.column("event_timestamp").cast(pa.int64()).to_numpy().min()
    at = low + random.integers(-3 * DAY_MS, (DAYS + 12) * DAY_MS, size) * 1_000
    # Just around the midnights and the times from which values are known.
    edges = low + random.integers(0, DAYS, size) * DAY_MS * 1_000
    edges += random.choice([-1, 0, 1, HOUR_MS * 1_000 - 1, HOUR_MS * 1_000], size)
    at = np.where(random.random(size) < 0.5, at, edges)
    trees: list[str | None] = [f"t{k}" for k in random.integers(0, 14, size)]
    trees[3] = None
    times = pa.array([*at.tolist(), *at[:50].tolist()]).cast(pa.timestamp("us", tz="UTC"))
    return pa.table(
        {
            "tree": pa.array(trees + trees[:50], pa.string()),
            "event_timestamp": times,
            "place": pa.array(range(size + 50)),
        }
    )


def test_historical_values_are_those_of_feasts_own_store(
    home: Path, store: feast.FeatureStore
) -> None:
    rows = asked(home)
    names = [f"{PROFILE.name}:{c}" for c in PROFILE.column_names]
    names += [f"tree_state:{c}" for c in project.views[0].column_names]
    for known_only in (True, False):
        ours = historical(store, Place.at(home), rows, names, known_only=known_only)
        theirs = (
            store.get_historical_features(
                entity_df=rows.to_pandas(),
                features=names,
                filter_by_created_timestamp=known_only,
            )
            .to_df()
            .sort_values("place")
        )
        assert len(theirs) == len(ours) == len(rows)
        for name in names:
            column = name.partition(":")[2]
            np.testing.assert_array_equal(
                ours.column(column).to_numpy(), theirs[column].to_numpy(float), column
            )
        known = ours.column(f"{PROFILE.name}_yield_mean")
        assert 0.1 < known.null_count / len(rows) < 0.9


def test_a_join_in_tasks_is_the_join(home: Path, store: feast.FeatureStore) -> None:
    import ray.data

    rows = asked(home)
    found = sources(store, Place.at(home), [f"{PROFILE.name}:{c}" for c in PROFILE.column_names])
    whole = join(rows, found)
    parts = ray.data.from_arrow(rows).repartition(3)
    pieces = join_on_ray(parts, found, rows_per_task=200).take_all()
    assert sorted(r["place"] for r in pieces) == list(range(len(rows)))
    by_place = {r["place"]: r for r in pieces}
    assert [by_place[r["place"]] for r in whole.to_pylist()] == whole.to_pylist()


def test_training_sees_what_was_known_when_an_event_arrived(home: Path) -> None:
    lake = Place.at(home)
    made_of = dataset.build(project, lake, model="picked")
    known = {(r["tree"], r["created"]): r for r in values(home).to_pylist()}
    with closing(SqliteLog.open(settings(home).log_url)) as log:
        rows = [
            row | {"offset": int(o)}
            for chunk in log.read(0, 0, 10**6)
            if chunk.kind == project.decision
            for row, o in zip(chunk.batch.to_pylist(), chunk.offsets, strict=True)
        ]
    events = {row["offset"]: row for row in rows}
    names = [n for n in made_of.names if n in PROFILE.column_names]
    assert names
    missing = 0
    for x, offset in zip(made_of.x, made_of.offsets.tolist(), strict=True):
        event = events[offset]
        of_tree = [
            r
            for (tree, there), r in known.items()
            if tree == event["tree"] and there.timestamp() * 1_000 <= event["received_at"]
        ]
        newest = max(of_tree, key=lambda r: r["event_timestamp"], default=None)
        for name in names:
            value = None if newest is None else newest[name]
            found = x[made_of.names.index(name)]
            missing += value is None
            assert math.isnan(found) if value is None else found == np.float32(value)
    assert 0 < missing < len(made_of) * len(names)


def test_training_refuses_profiles_that_are_not_what_was_made(tmp_path: Path) -> None:
    lake = Place.at(tmp_path)
    build(filled(tmp_path, 0, 4), Quiet())
    (file, *_) = made.values_files(lake, PROFILE, manifest(tmp_path))
    good = file.read()
    file.write(good[:40] + bytes([good[40] ^ 1]) + good[41:])
    with pytest.raises(IntegrityError, match="sha256"):
        dataset.build(project, lake, model="picked")
    file.remove()
    with pytest.raises(IntegrityError, match="is missing"):
        dataset.build(project, lake, model="picked")
    made.folder(lake, PROFILE).remove_tree()
    with pytest.raises(IntegrityError, match="not made as it is declared now"):
        dataset.build(project, lake, model="picked")
