"""The batch day by day: equal to one run over everything, kept, mended, and resumed after kills."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray  # noqa: F401 - to be patched
from typer.testing import CliRunner

from features import building, passes, pipeline, showing, steps
from features.batch import Written
from features.builds import Build
from features.store.names import definition_folder
from raypipe.cli._app import app
from raypipe.clock import HOUR_MS
from raypipe.config import Settings
from raypipe.errors import IntegrityError, NotFound
from raypipe.log.sqlite import SqliteLog
from raypipe.project import Project
from raypipe.runtime.progress import Quiet
from raypipe.runtime.worker.core import GROUP, WorkerCore
from raypipe.windows.spec import WindowView, count, total
from tests.contract.log_kit import runs
from tests.domains.greenhouse import SPANS, project
from tests.recovery import lake_process
from tests.recovery.nursery import Nursery

START_MS = 1_780_012_800_000  # 2026-05-29, midnight
DAYS = 6
A_DAY = 72
OF_THE_DAY = A_DAY + A_DAY // 9
"""Events of a day: openings, and a flood for each ninth."""


@pytest.fixture(autouse=True)
def ran(monkeypatch: pytest.MonkeyPatch) -> list[passes.Pass]:
    """Passes run here, and are told; a day is a slice."""
    told: list[passes.Pass] = []

    def run(several: Sequence[passes.Pass], done: object) -> None:
        for number, one in enumerate(several):
            told.append(one)
            for written in passes.here(one):
                assert isinstance(written, Written)
                done(number, written)  # type: ignore[operator]

    monkeypatch.setattr(passes, "run", run)
    monkeypatch.setattr(building.session, "start", lambda settings: None)
    monkeypatch.setattr(steps, "SLICE_ROWS", 1)
    return told


def append(log: SqliteLog, first: int, days: int = 1) -> None:
    """Whole days of openings, one in twenty minutes, from valve 0 half of the time."""
    for day in range(first, first + days):
        openings = []
        for i in range(day * A_DAY, (day + 1) * A_DAY):
            at = START_MS + i * HOUR_MS // 3
            openings.append(
                {
                    "tenant": "default",
                    "event_id": f"o-{i}",
                    "event_time": at - (2 * HOUR_MS if i % 11 == 0 else 0),
                    "received_at": at,
                    "valve": f"v-{i % 13 if i % 2 else 0}",
                    "gardener": None if i % 5 == 0 else f"g-{i % 7}",
                    "litres": i % 900,
                    "mode": "spray",
                }
            )
        floods = [
            {n: o[n] for n in ("tenant", "event_time", "received_at", "valve", "gardener")}
            | {"event_id": f"f-{o['event_id']}", "opening_id": o["event_id"]}
            for o in openings[::9]
        ]
        batches = [
            (kind, pa.RecordBatch.from_pylist(rows, project.event(kind).arrow_schema))
            for kind, rows in (("opening", openings), ("flood", floods))
        ]
        log.append(0, batches, producer="test", seq=day)


def settings(home: Path, blocks: int = 3) -> Settings:
    return Settings(home=home, features_blocks=blocks)


def compute(log: SqliteLog, home: Path, what: Project = project, **other: object) -> Build:
    blocks = other.pop("blocks", 3)
    return pipeline.compute(what, log, settings(home, blocks), Quiet(), **other)  # type: ignore[arg-type]


def plan(log: SqliteLog, home: Path, what: Project = project, verify: bool = False) -> dict:
    made = building.plan(what, log, settings(home), verify=verify)
    return showing.describe(what, made)


def values(build: Build, kind: str, view: WindowView) -> pa.Table:
    """All rows of a view in log order, every file checked."""
    tables = []
    for name, sha256 in build.files_of(kind, view.name).items():  # type: ignore[arg-type]
        data = (build.place / name).read()
        assert hashlib.sha256(data).hexdigest() == sha256
        tables.append(pq.read_table(pa.BufferReader(data)))
    return pa.concat_tables(tables).sort_by("offset" if kind == "at_event" else "created")


def check_same(a: Build, b: Build, what: Project = project) -> None:
    """Every value of both, bit for bit."""
    for view in what.views:
        for kind in ("at_event", "state"):
            one, two = values(a, kind, view), values(b, kind, view)
            assert one.num_rows == two.num_rows > 0
            assert one.schema == two.schema
            for name in one.column_names:
                x, y = (t.column(name).combine_chunks() for t in (one, two))
                if pa.types.is_floating(x.type):
                    x, y = (c.to_numpy().view(np.uint64).tolist() for c in (x, y))
                assert x == y or x.equals(y), name


def state(log: SqliteLog) -> list[pa.Table]:
    """What a worker has that starts from the batch's state alone."""
    committed = log.committed(GROUP, 0)
    assert committed is not None
    assert committed[0] == log.end(0)
    return WorkerCore(project, log)._state.windows.snapshot()


@pytest.fixture
def whole(tmp_path: Path) -> Build:
    """One run over all days."""
    log = SqliteLog(tmp_path / "whole" / "log")
    append(log, 0, DAYS)
    return compute(log, tmp_path / "whole")


@pytest.mark.parametrize("blocks", [1, 3, 16])
def test_day_by_day_is_one_run_over_everything_in_every_bit(
    tmp_path: Path, whole: Build, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "daily"
    log = SqliteLog(home / "log")
    monkeypatch.setattr("features.batch.PIECE_ROWS", 17)  # far less than a day of one key range
    for day in range(DAYS):
        append(log, day)
        made = compute(log, home, blocks=blocks)
        assert made.manifest.end_offset == (day + 1) * OF_THE_DAY
        assert [len(made.indexes(v.name)) for v in project.views] == [day + 1] * 3
    check_same(made, whole)
    from_batch = state(log)
    log.commit(GROUP, 0, 0, "nowhere")
    replayed = WorkerCore(project, log)._state.windows.snapshot()
    assert all(a.equals(b) for a, b in zip(from_batch, replayed, strict=True))


def test_a_day_that_goes_on_is_extended(tmp_path: Path, whole: Build) -> None:
    home = tmp_path / "parts"
    log, every = SqliteLog(home / "log"), SqliteLog(tmp_path / "whole" / "log")
    for seq, (low, high) in enumerate([(0, 31), (31, 200), (200, 201), (201, whole_end())]):
        for chunk in runs(every.read(0, low, high - low)):
            at = int(chunk.offsets[0])
            log.append(0, [(chunk.kind, chunk.batch)], producer="copy", seq=seq * 10_000 + at)
        made = compute(log, home)
    assert [d.day for d in made.manifest.days] == [f"2026-05-{29 + i}" for i in range(3)] + [
        f"2026-06-0{i + 1}" for i in range(3)
    ]
    assert made.manifest.days == whole.manifest.days
    check_same(made, whole)


def whole_end() -> int:
    return DAYS * OF_THE_DAY


def test_nothing_new_computes_nothing(tmp_path: Path, whole: Build, ran: list[passes.Pass]) -> None:
    home = tmp_path / "whole"
    log = SqliteLog(home / "log")
    ran.clear()
    assert {v["action"] for v in plan(log, home)["views"].values()} == {"keep"}
    assert compute(log, home).manifest == whole.manifest
    assert ran == []


def test_a_changed_definition_computes_its_view_again_and_no_other(
    tmp_path: Path, whole: Build, ran: list[passes.Pass]
) -> None:
    home = tmp_path / "whole"
    log = SqliteLog(home / "log")
    valve, gardener, floods = project.views
    changed = replace(gardener, aggregates=(count(), total("litres")))
    other = replace(project, views=(valve, changed, floods), derived=(), models=())
    shown = plan(log, home, other)
    assert {n: v["action"] for n, v in shown["views"].items()} == {
        "valve": "keep",
        "gardener": "compute",
        "floods": "keep",
    }
    assert shown["views"]["gardener"]["why"] == ["changed definition"]
    assert shown["views"]["gardener"]["compute_cells"] == DAYS * 3
    ran.clear()
    made = compute(log, home, other)
    assert [[v.name for v in p.plan.views] for p in ran] == [["gardener"]]
    for view in (valve, floods):
        assert made.files_of("at_event", view.name) == whole.files_of("at_event", view.name)
    assert values(made, "at_event", changed).num_rows == DAYS * A_DAY
    # The build before can still be read; a second change lets go of it.
    assert values(whole, "at_event", gardener).num_rows == DAYS * A_DAY
    last = replace(gardener, aggregates=(total("litres"),))
    compute(log, home, replace(other, views=(valve, last, floods)))
    assert not (whole.place / "at_event" / definition_folder(gardener)).files()


def test_a_new_view_is_filled_over_old_days_and_a_dropped_one_is_named(
    tmp_path: Path, whole: Build
) -> None:
    home = tmp_path / "whole"
    log = SqliteLog(home / "log")
    water = WindowView("water", "gardener", "opening", "gardener", (total("litres"),), SPANS)
    other = replace(project, views=(*project.views[:2], water), derived=(), models=())
    shown = plan(log, home, other)
    assert shown["views"]["water"]["why"] == ["new view"]
    assert (shown["views"]["water"]["first_day"], shown["removed_views"]) == (
        "2026-05-29",
        ["floods"],
    )
    made = compute(log, home, other)
    assert values(made, "state", water).num_rows == DAYS * A_DAY * 4 // 5


@pytest.mark.parametrize("bucket", [None, 1])
def test_a_day_computed_again_has_the_same_bytes(
    tmp_path: Path, whole: Build, bucket: int | None, ran: list[passes.Pass]
) -> None:
    home = tmp_path / "whole"
    log = SqliteLog(home / "log")
    ran.clear()
    (whole.place / "at_event").remove_tree()
    (whole.place / "state").remove_tree()
    made = compute(log, home)
    assert made.manifest.segments == whole.manifest.segments
    assert made.files == whole.files
    ran.clear()
    wish = steps.Wish("2026-05-31", bucket)
    made = compute(log, home, wish=wish)
    assert made.files == whole.files
    for one in ran:
        assert one.span.slices == ((2 * OF_THE_DAY, 3 * OF_THE_DAY),)
        assert one.span.parts == (None if bucket is None else {1})
        assert one.span.end == 3 * OF_THE_DAY, "later days are not read"


def test_a_day_starts_from_the_nearest_state_before_it(
    tmp_path: Path, ran: list[passes.Pass]
) -> None:
    home = tmp_path / "home"
    log = SqliteLog(home / "log")
    for day in range(DAYS):
        append(log, day)
        made = compute(log, home)
    for gone, source in ((None, 4), (4, 3), (3, 2)):
        if gone is not None:
            for view in project.views:
                folder = made.place / "snapshot" / definition_folder(view)
                (folder / f"{gone * OF_THE_DAY:012d}").remove_tree()
        ran.clear()
        again = compute(log, home, wish=steps.Wish("2026-06-02"))
        assert {p.span.start for p in ran} == {source * OF_THE_DAY}
        assert again.files == made.files


def test_old_states_go_and_a_lost_newest_one_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    log = SqliteLog(home / "log")
    monkeypatch.setattr(building, "KEEP_STATES", 2)
    for day in range(DAYS):
        append(log, day)
        made = compute(log, home)
    folder = made.place / "snapshot" / definition_folder(project.views[0])
    assert folder.names() == [f"{n * OF_THE_DAY:012d}" for n in (5, 6)]
    before = state(log)
    (folder / f"{6 * OF_THE_DAY:012d}").remove_tree()
    # The worker that told the state has recorded the declarations: rows, if no events.
    why = plan(log, home)["views"]["valve"]["why"]
    assert why == ["missing or changed files", "new events"]
    compute(log, home)
    assert all(a.equals(b) for a, b in zip(state(log), before, strict=True))


@pytest.mark.parametrize("harm", ["lost", "cut", "changed", "index"])
def test_harmed_files_are_named_and_mended(tmp_path: Path, whole: Build, harm: str) -> None:
    home = tmp_path / "whole"
    log = SqliteLog(home / "log")
    name = sorted(whole.files_of("at_event", "valve"))[5]
    place = whole.place / name
    data = bytearray(place.read())
    if harm == "lost":
        place.remove()
    elif harm == "cut":
        place.write(bytes(data[:-1]))
    elif harm == "changed":
        data[len(data) // 2] ^= 1
        place.write(bytes(data))
        assert plan(log, home)["views"]["valve"]["action"] == "keep", "only reading all tells"
    else:
        (index,) = (whole.place / "index" / definition_folder(project.views[0])).files()
        index.write(b"{}")
    view = plan(log, home, verify=True)["views"]["valve"]
    assert view["why"] == ["missing or changed files"]
    assert view["compute_cells"] == (DAYS * 3 if harm == "index" else 1)
    made = compute(log, home, verify=True)
    assert made.files == whole.files
    check_same(made, whole)


def test_another_number_of_key_ranges_is_another_base(tmp_path: Path, whole: Build) -> None:
    home = tmp_path / "whole"
    log = SqliteLog(home / "log")
    made = compute(log, home, blocks=4)
    assert made.place != whole.place
    check_same(made, whole)
    unasked = pipeline.compute(project, log, Settings(home=home), Quiet())
    assert unasked.manifest.partitions == 4, "what is there decides"


def test_the_command_line_shows_the_plan_without_ray(
    tmp_path: Path, whole: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "whole"
    append(SqliteLog(home / "log"), DAYS)
    words = [
        "plan",
        f"--home={home}",
        "--set=project=tests.domains.greenhouse:project",
        "--set=features_blocks=3",
    ]
    monkeypatch.setattr("ray.init", None)
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0, told.output
    assert "+  valve" in told.output
    assert "2026-06-04 to 2026-06-04  new events" in told.output
    shown = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert shown["buckets"] == 3
    assert shown["days"] == DAYS + 1
    for view in shown["views"].values():
        assert (view["compute_days"], view["compute_cells"], view["rows"]) == (1, 3, OF_THE_DAY)
        assert view["done_days"] == DAYS
        assert view["estimated_s"] is not None
    assert Build.current(Settings(home=home).lake).manifest == whole.manifest, (
        "nothing was computed"
    )
    wrong = CliRunner().invoke(app, ["features", f"--home={home}", "--bucket=1"])
    assert wrong.exit_code == 2


def test_a_wrong_day_or_key_range_is_refused(tmp_path: Path, whole: Build) -> None:
    home = tmp_path / "whole"
    log = SqliteLog(home / "log")
    with pytest.raises(NotFound, match="2026-07-01"):
        compute(log, home, wish=steps.Wish("2026-07-01"))
    with pytest.raises(NotFound, match="key range 3"):
        compute(log, home, wish=steps.Wish("2026-05-29", 3))


def test_a_log_that_lost_rows_is_refused(
    tmp_path: Path, whole: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SqliteLog, "end", lambda self, partition: OF_THE_DAY)
    with pytest.raises(IntegrityError, match=f"before offset {whole_end()}, the log ends at"):
        compute(SqliteLog(tmp_path / "whole" / "log"), tmp_path / "whole")
    assert Build.current(whole.lake).manifest == whole.manifest


def test_exported_events_that_are_lost_are_exported_again(tmp_path: Path, whole: Build) -> None:
    home = tmp_path / "whole"
    log = SqliteLog(home / "log")
    append(log, DAYS)
    whole.events("flood")[0].remove()
    made = compute(log, home)
    assert all(f.exists() for kind in ("opening", "flood") for f in made.events(kind))
    assert values(made, "at_event", project.views[0]).num_rows == (DAYS + 1) * A_DAY


def kill(nursery: Nursery, home: Path, point: str) -> None:
    """Build in a process that dies there."""
    env = {"RAYPIPE_ABORT_AT": point, "RAYPIPE_TEST_SLICE_ROWS": "1"}
    done = nursery.finish(lake_process.build, home, home, env=env)
    assert done.status == -9, (point, done.err)


def check_no_orphans(made: Build) -> None:
    folders = [made.place / kind for kind in ("at_event", "state")]
    assert {f.below(made.place) for folder in folders for f in folder.files()} == set(made.files)
    assert not (made.place / "journal").files()


@pytest.mark.slow
def test_killed_at_one_point_after_the_other_it_has_the_bytes_of_the_run_that_was_not(
    nursery: Nursery, tmp_path: Path, whole: Build, ran: list[passes.Pass]
) -> None:
    home = tmp_path / "killed"
    log = SqliteLog(home / "log")
    append(log, 0, DAYS)
    # Each run takes up what the one before had finished, so each gets to the next point.
    for point in (
        "features.files_written:2",
        "features.part_done:2",
        "features.step_done:2",
        "features.index_written",
        "features.snapshot_sealed",
        "features.before_manifest",
        "features.after_manifest",
    ):
        kill(nursery, home, point)
    ran.clear()
    made = compute(log, home)
    assert ran == []
    assert made.files == whole.files
    check_no_orphans(made)
    state(log)


@pytest.mark.slow
def test_what_a_killed_run_left_does_not_count_once_the_log_has_grown(
    nursery: Nursery, tmp_path: Path, whole: Build, ran: list[passes.Pass]
) -> None:
    home = tmp_path / "killed"
    log = SqliteLog(home / "log")
    append(log, 0, DAYS - 1)
    kill(nursery, home, "features.part_done:2")
    append(log, DAYS - 1)
    ran.clear()
    made = compute(log, home)
    assert {p.span.start for p in ran} == {0}
    check_same(made, whole)
    check_no_orphans(made)
