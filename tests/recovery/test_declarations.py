"""A log over several versions of a declaration: what is written once is read by all later ones."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from features.log_files import LogFiles
from raypipe.config import Settings
from raypipe.errors import Conflict, DeclarationError
from raypipe.events.declarations import check_declarations, recorded
from raypipe.events.schema import Field, Kind, Tag
from raypipe.lake import Place
from raypipe.log.port import DECLARATION
from raypipe.log.sqlite import SqliteLog
from raypipe.project import Project
from raypipe.runtime.progress import Quiet
from raypipe.runtime.worker.core import WorkerCore
from raypipe.runtime.worker.snapshots import Snapshots
from raypipe.windows.spec import WindowView, count, distinct, spans
from serving.run import serve
from tests.domains.greenhouse import OPENING, project

NOW = 1_790_000_000_000
DECLARED = len(project.events)


def opening(number: int, **more: Any) -> dict[str, Any]:
    return {
        "tenant": "default",
        "event_id": f"o-{number}",
        "event_time": NOW + number * 1_000,
        "received_at": NOW + number * 1_000,
        "valve": "v-1",
        "gardener": None,
        "litres": 5,
        "mode": "drip",
    } | more


def declared(*fields: Field, views: tuple[WindowView, ...] = ()) -> Project:
    """The greenhouse with other fields of an opening."""
    opening = replace(OPENING, fields=fields)
    (model,) = project.models
    inputs = tuple(n for n in model.features if n != "mode" or n in opening)
    return replace(
        project,
        events=(opening, *project.events[1:]),
        views=(*project.views, *views),
        models=(replace(model, features=inputs),),
    )


NOZZLE = Field("nozzle", Kind.STRING, required=False)
NOZZLES = WindowView(
    "nozzles",
    "valve",
    "opening",
    "valve",
    (distinct("nozzle"), count(where="nozzle == 'n-2'", name="second")),
    spans("1h/1m", "1d/30m"),
)
SECOND = declared(*OPENING.fields, NOZZLE, views=(NOZZLES,))
THIRD = declared(*(f for f in OPENING.fields if f.name != "mode"), NOZZLE)


def observe(core: WorkerCore, event: dict[str, Any]) -> Any:
    return core.observe(event, event["event_id"].encode().ljust(32))


@pytest.fixture
def log(tmp_path: Path) -> SqliteLog:
    """Ten openings by a worker of the first declaration, ten by one of the second."""
    log = SqliteLog(tmp_path / "log")
    folder = Place.at(tmp_path / "snapshots")
    first = WorkerCore(project, log, snapshots=Snapshots(folder, project.definition_hash, 60))
    for i in range(10):
        observe(first, opening(i))
    first.save()
    second = WorkerCore(SECOND, log)
    for i in range(10, 20):
        observe(second, opening(i, nozzle=f"n-{i % 3}"))
    second.commit()
    return log


def test_a_worker_of_an_added_field_reads_old_rows_and_new_ones(log: SqliteLog) -> None:
    replayed = WorkerCore(SECOND, log)
    now = NOW + 60_000
    values = replayed.read("default", "valve", "v-1", now)
    assert values["valve_count_1h"] == 20
    assert round(values["nozzles_nozzle_distinct_1h"]) == 3
    assert values["nozzles_second_count_1h"] == 3


def test_a_retry_across_versions_gets_what_it_got(log: SqliteLog) -> None:
    core = WorkerCore(SECOND, log)
    old = opening(3, nozzle=None)
    again, _ = observe(core, old)
    assert (again.offset, again.event) == (DECLARED + 3, old)
    assert not core.dirty
    with pytest.raises(Conflict):
        core.observe(old, b"x" * 32)


def test_each_declaration_is_recorded_once_and_none_is_lost(log: SqliteLog) -> None:
    WorkerCore(SECOND, log)
    assert log.counts(0)[DECLARATION] == DECLARED + 1
    found = recorded(log, "opening")
    assert [e.definition_hash for e in found] == [
        OPENING.definition_hash,
        SECOND.event("opening").definition_hash,
    ]
    assert check_declarations(log, SECOND).num_rows == 0
    # A text is no part of a declaration; tags are, and change nothing for rows.
    told = declared(*OPENING.fields, replace(NOZZLE, description="of the hose"))
    assert check_declarations(log, told).num_rows == 0
    tagged = declared(*OPENING.fields, replace(NOZZLE, tags=frozenset({Tag.KEY})))
    for project_now in (tagged, SECOND):
        WorkerCore(project_now, log)
    assert len(recorded(log, "opening")) == 4


def test_a_breaking_change_is_refused_with_every_reason_and_writes_nothing(log: SqliteLog) -> None:
    litres = replace(OPENING.field("litres"), maximum=10)
    worse = declared(*(litres if f.name == "litres" else f for f in THIRD.event("opening").fields))
    end = log.end(0)
    with pytest.raises(DeclarationError) as e:
        WorkerCore(worse, log)
    assert "opening.mode: was removed" in e.value.detail
    assert "opening.litres: maximum went from 1000000 to 10" in e.value.detail
    assert "required=False" in e.value.detail
    assert "declaration" in e.value.hint
    assert log.end(0) == end
    # The version before goes on.
    assert WorkerCore(SECOND, log).read("default", "valve", "v-1", NOW)["valve_count_2d"] > 0


def test_a_type_that_comes_back_is_compared_with_what_it_was(log: SqliteLog) -> None:
    floodless = replace(
        project,
        events=(SECOND.event("opening"), replace(project.events[1], name="leak")),
        views=project.views[:2],
        derived=project.derived,
        label=replace(project.label, event="leak"),
        models=(replace(project.models[0], features=project.models[0].features[:-1]),),
    )
    WorkerCore(floodless, log)
    back = replace(project.event("flood"), fields=project.event("flood").fields[:2])
    with pytest.raises(DeclarationError, match=r"flood\.gardener: was removed"):
        WorkerCore(replace(SECOND, events=(SECOND.event("opening"), back)), log)


def test_files_beside_the_worker_show_rows_of_all_versions(log: SqliteLog, tmp_path: Path) -> None:
    files = LogFiles(log, SECOND, "default", tmp_path / "kept", tmp_path / "scratch")
    rows = files.table("opening").to_table()
    assert rows.num_rows == 20
    assert rows["nozzle"].null_count == 10
    assert rows.schema.names == ["offset", *SECOND.event("opening").arrow_schema.names]


def test_bulk_rows_of_an_earlier_declaration_replay(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "bulk")
    batch = pa.RecordBatch.from_pylist([opening(i) for i in range(5)], OPENING.arrow_schema)
    log.append(0, [("opening", batch)], producer="bulk", seq=0)
    core = WorkerCore(SECOND, log)
    assert core.read("default", "valve", "v-1", NOW + 9_000)["valve_count_1h"] == 5


def test_serving_refuses_it_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(home=tmp_path, project=f"{__name__}:THIRD")
    with closing(SqliteLog.open(settings.log_url)) as log:
        WorkerCore(project, log)
        end = log.end(0)
        monkeypatch.setattr("raypipe.project.load_project", lambda reference: THIRD)
        with pytest.raises(DeclarationError, match=r"opening\.mode: was removed"):
            serve(settings, Quiet(), lambda *where: None)
        assert log.end(0) == end
