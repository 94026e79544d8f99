"""The batch over a log whose oldest events were deleted: it goes on, or says what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from features import pipeline
from features.builds import Build
from features.log_files import LogFiles
from features.store.names import definition_folder
from raypipe.clock import DAY_MS
from raypipe.config import Settings
from raypipe.log import export
from raypipe.log.port import Expired
from raypipe.log.retention import GRACE_MS
from raypipe.log.sqlite import SqliteLog
from raypipe.runtime.progress import Quiet
from raypipe.runtime.worker.core import GROUP, WorkerCore
from raypipe.windows.spec import WindowView, count
from tests.domains.greenhouse import SPANS, project
from tests.recovery.test_batch_increments import (
    OF_THE_DAY,
    START_MS,
    append,
    check_same,
    compute,
    ran,
    values,
)

__all__ = ["ran"]

EVENTS = [e.name for e in project.events]
GONE = 2
"""Days whose events were deleted."""


def delete(log: SqliteLog) -> None:
    """The first days' events, of a log that is sealed day by day."""
    while log.compact(0, log.live_start(0) + OF_THE_DAY).ranges:
        pass
    gone = log.retain(0, EVENTS, START_MS + GONE * DAY_MS, START_MS)
    assert gone.first == GONE * OF_THE_DAY
    assert log.remove_doomed(START_MS + GRACE_MS) > 0


@pytest.fixture(autouse=True)
def _a_day_is_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "STEP", OF_THE_DAY)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteLog]:
    """Four days, computed, the first two of them deleted, two more days behind them."""
    opened = SqliteLog(tmp_path / "log")
    append(opened, 0, 4)
    compute(opened, tmp_path)
    delete(opened)
    append(opened, 4, 2)
    yield opened
    opened.close()


@pytest.fixture
def whole(tmp_path: Path) -> Build:
    """The features of a log that kept all."""
    log = SqliteLog(tmp_path / "kept" / "log")
    append(log, 0, 6)
    built = compute(log, tmp_path / "kept")
    log.close()
    return built


def test_features_go_on_and_keep_what_they_had(
    log: SqliteLog, tmp_path: Path, whole: Build
) -> None:
    built = compute(log, tmp_path)
    check_same(built, whole)
    inputs = [i for found in built.manifest.events.values() for i in found]
    assert min(i.start for i in inputs) == GONE * OF_THE_DAY
    assert all((built.lake / i.path).exists() for i in inputs)
    left = sorted(p.name for p in (tmp_path / "export" / log.id).iterdir())
    named = {Path(i.path).name for i in inputs}
    assert all(name in named or int(name.split("-")[2]) >= GONE * OF_THE_DAY for name in left)


def test_a_worker_starts_from_the_batchs_state(log: SqliteLog, tmp_path: Path) -> None:
    compute(log, tmp_path)
    committed = log.committed(GROUP, 0)
    assert committed is not None
    assert committed[0] == log.end(0)
    core = WorkerCore(project, log)
    assert core.next_offset == log.end(0) >= 6 * OF_THE_DAY
    assert core.read("default", "valve", "v-0", START_MS + 6 * DAY_MS)["valve_count_2d"] > 0


def test_a_new_view_begins_where_the_log_does(log: SqliteLog, tmp_path: Path, whole: Build) -> None:
    view = WindowView("fresh", "valve", "opening", "valve", (count(),), SPANS)
    more = replace(project, views=(*project.views, view))
    built = compute(log, tmp_path, more)
    check_same(built, whole)
    found = values(built, "at_event", view)
    offsets = found.column("offset").to_pylist()
    assert min(offsets) == GONE * OF_THE_DAY
    assert compute(log, tmp_path, more).manifest.segments == built.manifest.segments
    kept = SqliteLog(tmp_path / "kept" / "log")
    expected = values(compute(kept, tmp_path / "kept", more), "at_event", view)
    kept.close()
    column = view.column_names[0]
    last = 5 * OF_THE_DAY
    for table in (found, expected):
        assert table.num_rows > 0
    one, two = (
        t.filter(pc.greater_equal(t.column("offset"), last)).column(column).to_pylist()
        for t in (found, expected)
    )
    assert one == two


def test_what_cannot_be_computed_again_is_refused(log: SqliteLog, tmp_path: Path) -> None:
    built = compute(log, tmp_path)
    view = project.views[0]
    path = sorted(
        (tmp_path / "features" / built.manifest.build / "at_event").glob(
            f"{definition_folder(view)}/*"
        )
    )[0]
    path.unlink()
    with pytest.raises(Expired, match=f"before offset {GONE * OF_THE_DAY} were deleted"):
        compute(log, tmp_path)


def test_features_that_fell_behind_the_log_are_refused(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log")
    append(log, 0)
    compute(log, tmp_path)
    append(log, 1, 3)
    log.commit(GROUP, 0, log.end(0), "elsewhere")
    delete(log)
    with pytest.raises(Expired, match="new events from offset"):
        compute(log, tmp_path)
    log.close()


def test_a_first_build_begins_with_the_log(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log")
    append(log, 0, 4)
    log.commit(GROUP, 0, log.end(0), "")
    delete(log)
    built = pipeline.compute(project, log, Settings(home=tmp_path, features_blocks=3), Quiet())
    assert [d.day for d in built.manifest.days] == ["2026-05-31", "2026-06-01"]
    assert built.manifest.days[0].start == GONE * OF_THE_DAY
    log.close()


def test_tables_hold_what_is_left(log: SqliteLog, tmp_path: Path) -> None:
    files = LogFiles(log, project, "default", tmp_path / "kept", tmp_path / "scratch")
    offsets = pa.concat_arrays(
        [
            chunk
            for kind in EVENTS
            for chunk in files.table(kind).to_table(columns=["offset"]).column(0).chunks
        ]
    )
    assert sorted(offsets.to_pylist()) == list(range(GONE * OF_THE_DAY, 6 * OF_THE_DAY))
