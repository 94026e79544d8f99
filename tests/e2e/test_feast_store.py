"""Feast's registry, offline and online store over feature files, on a domain without cards."""

from __future__ import annotations

import math
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import features.materialize
from features.builds import Build, Manifest, folder
from features.online import OnlineRow, read
from features.payments import project as payments
from features.profiles import made
from features.store import historical as offline
from features.store import registry
from features.store.names import at_event_folder, state_folder
from features.store.registry import Change, registered
from features.store.repo import home_of, open_store
from raypipe.clock import DAY_MS, HOUR_MS
from raypipe.errors import NotFound, StageError
from raypipe.events.schema import EventType, Field, Kind, Tag
from raypipe.lake import Place
from raypipe.project import Entity, Label, Model, Project
from raypipe.vector.expressions import Derived
from raypipe.windows.spec import WindowView, count, mean, since_last, spans, total

if TYPE_CHECKING:
    import feast

ROOT = Path(__file__).parents[2]
UTC_US = pa.timestamp("us", tz="UTC")
NOW = 1_750_000_000_000
GROWER = "growers@example.org"

READING = EventType(
    "reading",
    (
        Field("plot_id", Kind.STRING, tags=frozenset({Tag.KEY}), description="the plot"),
        Field("hub", Kind.STRING, required=False, tags=frozenset({Tag.KEY, Tag.SUBJECT})),
        Field("heat", Kind.INTEGER, minimum=-100, maximum=100),
    ),
)
ALARM = EventType("alarm", (Field("reading_id", Kind.STRING), Field("plot_id", Kind.STRING)))
SPANS = spans("1h/1m", "1d/30m")
PLOT = WindowView(
    "plot",
    "plot",
    "reading",
    "plot_id",
    (count(), total("heat", lags=[("1d", "1h")]), mean("heat"), since_last()),
    SPANS,
    "climate of a plot",
    GROWER,
    (("crop", "any"),),
)
# The entity is named like its key column here, and unlike it above.
HUB = WindowView("hub", "hub", "reading", "hub", (count(), since_last()), SPANS)
PLOT_ALARMS = WindowView("plot_alarms", "plot", "alarm", "plot_id", (count(),), SPANS)
PROJECT = Project(
    name="greenhouse",
    events=(READING, ALARM),
    entities=(
        Entity("plot", "a bed of plants", "plots@example.org"),
        Entity("hub", "a radio hub", "radio@example.org"),
        Entity("roof", "has no view"),
    ),
    views=(PLOT, HUB, PLOT_ALARMS),
    derived=(Derived("heat_ratio", "heat / plot_heat_mean_1d"),),
    decision="reading",
    label=Label("alarm", "reading_id", DAY_MS),
    models=(
        Model("frost", ("heat", "heat_ratio", "plot_count_1h", "hub_count_1d"), "it freezes", "me"),
        Model("plain", ("heat",)),
    ),
)

BUILD = "b1"

Row = tuple[str, int, int]
"""key, milliseconds, offset"""


@pytest.fixture(scope="module", autouse=True)
def _no_network() -> Iterator[None]:
    """Feast, DuckDB's Python side and SQLAlchemy must reach nothing."""

    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"connects to {address}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", local_only)
        yield


@pytest.fixture
def store(tmp_path: Path) -> feast.FeatureStore:
    return open_store(tmp_path)


def built(home: Path) -> Place:
    return folder(Place.at(home), BUILD)


def apply(store: feast.FeatureStore, project: Project, *versions: Any) -> list[Change]:
    return registry.apply(store, project, built(home_of(store)), *versions)


def plan(store: feast.FeatureStore, project: Project) -> list[Change]:
    return registry.plan(store, project, built(home_of(store)))


def materialize(
    home: Path, project: Project, end: int, **other: Any
) -> features.materialize.Report:
    return features.materialize.materialize(home, project, built(home), end, **other)


def historical(store: feast.FeatureStore, ids: list[str], service: str) -> pa.Table:
    rows = pa.table({"event_id": pa.array(ids, pa.string())})
    return offline.historical(store, Place.at(home_of(store)), rows, service)


def values_of(view: WindowView, offset: int) -> dict[str, float]:
    """Every fifth value is missing; the others name their row and column."""
    return {
        c: math.nan if (offset + i) % 5 == 4 else offset * 100 + i + 0.25
        for i, c in enumerate(view.column_names)
    }


def write_state(home: Path, view: WindowView, rows: list[Row], part: int = 0) -> None:
    table = {
        view.key: pa.array([r[0] for r in rows], pa.string()),
        "event_timestamp": pa.array([r[1] * 1_000 for r in rows], pa.int64()).cast(UTC_US),
        "created": pa.array([r[2] for r in rows], pa.int64()).cast(pa.timestamp("us")),
    }
    for name in view.column_names:
        table[name] = pa.array([values_of(view, r[2])[name] for r in rows], pa.float64())
    out = Path(state_folder(built(home), view).url)
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), out / f"part-{part:04d}.parquet")


def write_at_event(home: Path, entity: str, ids: list[str], part: int = 0) -> None:
    """All views of an entity; the offset of an event is the number in its id."""
    offsets = [int(i.removeprefix("e")) for i in ids]
    for view in (v for v in PROJECT.views if v.entity == entity):
        table = {
            "offset": pa.array(offsets, pa.int64()),
            "event_id": pa.array(ids, pa.string()),
            "event_timestamp": pa.array([(NOW + o) * 1_000 for o in offsets]).cast(UTC_US),
        }
        for name in view.column_names:
            table[name] = pa.array([values_of(view, o)[name] for o in offsets], pa.float64())
        table[f"newest_{view.name}"] = pa.array([o - 1 for o in offsets], pa.int64())
        out = Path(at_event_folder(built(home), view).url)
        out.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), out / f"part-{part:04d}.parquet")


def publish_empty(home: Path, build: str = BUILD) -> None:
    manifest = Manifest(
        build=build,
        definition_hash="",
        tenant="",
        end_offset=0,
        rows=0,
        last_event_ms=0,
        log="",
        partitions=1,
        rate=0.0,
        views={},
        segments={},
        days=[],
        events={},
    )
    Build(Place.at(home), manifest).publish()


def registry_rows(home: Path) -> dict[str, list[tuple[Any, ...]]]:
    with sqlite3.connect(home / "feast" / "registry.db") as db:
        names = [r[0] for r in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {n: db.execute(f"SELECT * FROM {n}").fetchall() for n in names}


def online(store: feast.FeatureStore, view: WindowView, keys: str, now: int = NOW) -> list[Row]:
    """The rows that are online, told by their values; each value is checked."""
    found = []
    for row in read(store, view, list(keys), now):
        if row.event_time is not None:
            offset = next(int(v // 100) for v in row.values.values() if not math.isnan(v))
            np.testing.assert_equal(row.values, values_of(view, offset))
            found.append((row.key, row.event_time, offset))
    return found


# registry


def test_a_strange_domain_registers_entities_views_fields_and_services(
    store: feast.FeatureStore,
) -> None:
    apply(store, PROJECT)
    entities = {e.name: e for e in store.list_entities()}
    assert {n: e.join_key for n, e in entities.items() if n != "__dummy"} == {
        "event": "event_id",
        "plot": "plot_id",
        "hub": "hub",
    }
    assert entities["hub"].owner == "radio@example.org"
    assert entities["hub"].tags["key_tags"] == "key,subject"

    views = {v.name: v for v in store.list_batch_feature_views()}
    assert sorted(views) == sorted(
        f"{v.name}_{kind}" for v in PROJECT.views for kind in ("at_event", "state")
    )
    for view in PROJECT.views:
        before, after = views[f"{view.name}_at_event"], views[f"{view.name}_state"]
        assert [f.name for f in after.features] == list(view.column_names)
        assert [f.name for f in before.features] == [*view.column_names, f"newest_{view.name}"]
        assert (before.online, after.online) == (False, True)
        assert (before.entities, after.entities) == (["event"], [view.entity])
        assert after.ttl.total_seconds() == 86_400
        for v in (before, after):
            assert v.owner == view.owner or v.owner == PROJECT.entity(view.entity).owner
            assert v.owner
            assert v.description
            assert all(f.description for f in v.features)
            assert v.tags["definition"] == view.definition_hash
            assert v.tags["event"] == view.event
            assert "tenant" in v.tags["tenancy"]
    assert views["plot_state"].tags["crop"] == "any"
    assert views["plot_state"].batch_source.created_timestamp_column == "created"

    services = {
        s.name: {p.name: [f.name for f in p.features] for p in s.feature_view_projections}
        for s in store.list_feature_services()
    }
    plot, hub = ["plot_count_1h", "plot_heat_mean_1d"], ["hub_count_1d"]
    assert services == {
        "frost_v1": {"plot_at_event": plot, "hub_at_event": hub},
        "frost_online": {"plot_state": plot, "hub_state": hub},
    }
    entry = {e.name: e for e in registered(store)}["plot_state"]
    assert entry.services == ("frost_online",)
    assert (entry.owner, entry.online, entry.ttl_seconds) == (GROWER, True, 86_400)


def test_applying_again_changes_nothing_before_and_after_materialising(
    store: feast.FeatureStore, tmp_path: Path
) -> None:
    assert {str(c) for c in plan(store, PROJECT)} >= {"+ entity hub", "+ feature view hub_state"}
    assert registry_rows(tmp_path)["feature_views"] == []
    assert apply(store, PROJECT)
    rows = registry_rows(tmp_path)
    assert apply(store, PROJECT) == []
    assert registry_rows(tmp_path) == rows
    write_state(tmp_path, HUB, [("a", NOW, 1)])
    assert materialize(tmp_path, PROJECT, NOW, store=store).rows == 1
    rows = registry_rows(tmp_path)
    assert plan(store, PROJECT) == []
    assert apply(store, PROJECT) == []
    assert registry_rows(tmp_path) == rows
    assert online(store, HUB, "a") == [("a", NOW, 1)]
    assert len(store.get_feature_view("hub_state").materialization_intervals) == 1


def test_plan_names_what_differs_and_apply_does_just_that(store: feast.FeatureStore) -> None:
    apply(store, PROJECT)
    changed = replace(
        PROJECT,
        views=(replace(PLOT, description="another text"), HUB),
        models=(Model("frost", ("heat", "plot_count_1d"), "it is cold", "me"),),
    )
    expected = [
        "- data source at_event_plot_alarms",
        "- data source state_plot_alarms",
        "~ feature service frost_online (description, features, tags)",
        "- feature view plot_alarms_at_event",
        "- feature view plot_alarms_state",
        "~ feature view plot_at_event (description)",
        "~ feature view plot_state (description)",
    ]
    assert [str(c) for c in plan(store, changed)] == expected
    assert [str(c) for c in apply(store, changed)] == expected
    assert plan(store, changed) == []
    assert store.get_feature_view("plot_state").description.startswith("another text")


def test_another_build_moves_the_sources_and_nothing_else(
    store: feast.FeatureStore, tmp_path: Path
) -> None:
    apply(store, PROJECT)
    write_state(tmp_path, HUB, [("a", NOW, 1)])
    materialize(tmp_path, PROJECT, NOW, store=store)
    changes = registry.apply(store, PROJECT, folder(Place.at(tmp_path), "b2"))
    assert {c.kind for c in changes} == {"data source", "feature view", "feature service"}
    assert {c.action for c in changes} == {"update"}
    source = store.get_feature_view("hub_state").batch_source
    moved = state_folder(folder(Place.at(tmp_path), "b2"), HUB)
    assert source.path == f"{moved}/part-*.parquet"
    assert online(store, HUB, "a") == [("a", NOW, 1)]
    assert len(store.get_feature_view("hub_state").materialization_intervals) == 1


def test_a_registered_model_version_keeps_its_inputs(store: feast.FeatureStore) -> None:
    apply(store, PROJECT)
    second = replace(PROJECT, models=(Model("frost", ("plot_count_1d",)),))
    changes = [str(c) for c in apply(store, second, {"frost": [2]})]
    assert changes[0].startswith("~ feature service frost_online (")
    assert changes[1:] == ["+ feature service frost_v2"]
    inputs = {
        s.name: [f.name for p in s.feature_view_projections for f in p.features]
        for s in store.list_feature_services()
    }
    assert inputs == {
        "frost_online": ["plot_count_1d"],
        "frost_v1": ["plot_count_1h", "plot_heat_mean_1d", "hub_count_1d"],
        "frost_v2": ["plot_count_1d"],
    }
    assert plan(store, second) == []


def test_online_rows_of_another_definition_are_dropped(
    store: feast.FeatureStore, tmp_path: Path
) -> None:
    apply(store, PROJECT)
    write_state(tmp_path, HUB, [("a", NOW, 1)])
    write_state(tmp_path, PLOT, [("a", NOW, 2)])
    materialize(tmp_path, PROJECT, NOW, store=store)
    other = replace(HUB, spans=spans("1h/1m", "1d/1h"))
    assert other.column_names == HUB.column_names
    changed = replace(PROJECT, views=(PLOT, other, PLOT_ALARMS))
    with pytest.raises(StageError, match="view 'hub' is not registered as it is declared"):
        materialize(tmp_path, changed, NOW, store=store)
    apply(store, changed)
    assert online(store, other, "a") == []
    assert online(store, PLOT, "a") == [("a", NOW, 2)]
    write_state(tmp_path, other, [("a", NOW, 1)])
    assert materialize(tmp_path, changed, NOW, store=store).rows == 1
    assert online(store, other, "a") == [("a", NOW, 1)]


@pytest.mark.slow
def test_feasts_own_command_line_sees_the_same_registry(
    store: feast.FeatureStore, tmp_path: Path
) -> None:
    lake = Place.at(tmp_path)
    for profile in payments.profiles:  # made, but no day has ended
        nothing = made.Manifest(definition_hash=profile.definition_hash, log="", tenant="", parts=1)
        made.publish(lake, profile, nothing, None)
    folders = made.values_folders(lake, payments)
    registry.apply(store, payments, built(tmp_path), profiles=folders)
    publish_empty(tmp_path)
    environment = {**os.environ, "RAYPIPE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment.pop("RAYPIPE_PROJECT", None)
    command = [sys.executable, "-W", "ignore", "-m", "feast.cli.cli", "-c", "features", "plan"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "No changes to registry" in done.stdout


# offline


def test_own_as_of_join_and_feasts_agree_on_every_value(
    store: feast.FeatureStore, tmp_path: Path
) -> None:
    apply(store, PROJECT)
    random = np.random.default_rng(3)
    size = 400
    rows: list[Row] = [
        (f"p{k}", NOW + int(t) * HOUR_MS, i)
        for i, (k, t) in enumerate(
            zip(random.integers(0, 8, size), random.integers(0, 24 * 6, size), strict=True)
        )
    ]
    assert len({r[:2] for r in rows}) < size  # ties
    rows += [("lone", NOW, 1_000), ("tie", NOW, 1_003), ("tie", NOW, 1_002)]
    write_state(tmp_path, PLOT, rows[:150])
    write_state(tmp_path, PLOT, rows[150:], part=1)
    keys = [f"p{k}" for k in random.integers(0, 10, 300)]
    times = [NOW + int(t) * HOUR_MS // 2 for t in random.integers(-20, 24 * 15, 300)]
    edges = [-1, 0, DAY_MS, DAY_MS + 1]
    keys += ["lone"] * 4 + ["tie"] * 4 + ["unknown"]
    times += [NOW + e for e in edges] * 2 + [NOW]
    keys, times = keys + keys[::3], times + times[::3]  # duplicates
    asked = pa.table(
        {
            "plot_id": pa.array(keys),
            "event_timestamp": pa.array([t * 1_000 for t in times]).cast(UTC_US),
            "place": pa.array(range(len(keys))),
        }
    )
    names = [f"plot_state:{c}" for c in PLOT.column_names]
    ours = offline.historical(store, Place.at(tmp_path), asked, names)
    assert ours.select(asked.column_names).equals(asked)
    feasts = (
        store.get_historical_features(entity_df=asked.to_pandas(), features=names)
        .to_df()
        .sort_values("place")
    )
    assert len(feasts) == len(keys)
    for name in PLOT.column_names:
        np.testing.assert_array_equal(ours.column(name).to_numpy(), feasts[name].to_numpy())
    one, ties = values_of(PLOT, 1_000), values_of(PLOT, 1_003)
    known = ours.column("plot_count_1h").to_pylist()
    (a, b) = (one["plot_count_1h"], ties["plot_count_1h"])
    assert known[300:309] == [None, a, a, None, None, b, b, None, None]
    assert 0.1 < known.count(None) / len(known) < 0.9


def test_historical_values_by_event_id_are_those_of_the_files(
    store: feast.FeatureStore, tmp_path: Path
) -> None:
    apply(store, PROJECT)
    ids = [f"e{i}" for i in range(50)]
    write_at_event(tmp_path, "plot", ids[:20])
    write_at_event(tmp_path, "plot", ids[20:], part=1)
    write_at_event(tmp_path, "hub", ids[::-1])
    asked = [*ids[::-3], "unknown", "e7", "e7"]
    got = historical(store, asked, "frost_v1")
    columns = {"plot_count_1h": PLOT, "plot_heat_mean_1d": PLOT, "hub_count_1d": HUB}
    assert got.column_names == ["event_id", *columns]
    assert got.column("event_id").to_pylist() == asked
    for name, view in columns.items():
        expected = [
            math.nan if i == "unknown" else values_of(view, int(i[1:]))[name] for i in asked
        ]
        np.testing.assert_array_equal(got.column(name).to_numpy(), expected)
    none = historical(store, [], "frost_v1")
    assert (none.num_rows, none.schema) == (0, got.schema)


def test_historical_says_what_is_missing(store: feast.FeatureStore, tmp_path: Path) -> None:
    apply(store, PROJECT)
    with pytest.raises(NotFound, match="frost_online, frost_v1"):
        historical(store, ["e1"], "frost_v9")
    with pytest.raises(StageError, match="plot_at_event"):
        historical(store, ["e1"], "frost_v1")
    write_at_event(tmp_path, "plot", [])
    write_at_event(tmp_path, "hub", [])
    assert historical(store, ["e1"], "frost_v1").column("hub_count_1d").to_pylist() == [None]


# online


def test_online_read_gives_the_newest_state_of_known_keys(
    store: feast.FeatureStore, tmp_path: Path
) -> None:
    apply(store, PROJECT)
    write_state(tmp_path, PLOT, [("a", NOW - 5_000, 0), ("a", NOW - 4_000, 1), ("b", NOW, 2)])
    write_state(tmp_path, PLOT, [("a", NOW - 4_000, 5), ("b", NOW - 1_000, 6)], part=1)
    write_state(tmp_path, HUB, [("a", NOW, 7)])
    report = materialize(tmp_path, PROJECT, NOW, store=store)
    assert [(v.view, v.rows) for v in report.views] == [("plot", 2), ("hub", 1), ("plot_alarms", 0)]
    assert str(report).startswith("3 rows of 3 views online")
    assert online(store, PLOT, "ab") == [("a", NOW - 4_000, 5), ("b", NOW, 2)]
    assert online(store, HUB, "a") == [("a", NOW, 7)]
    got = read(store, PLOT, ["b", "unknown", "b"], NOW)
    assert [r.key for r in got] == ["b", "unknown", "b"]
    assert got[1] == OnlineRow("unknown", None, {})
    np.testing.assert_equal(got[0].values, got[2].values)
    assert read(store, PLOT, [], NOW) == []


def test_a_row_older_than_the_longest_span_reads_as_none(
    store: feast.FeatureStore, tmp_path: Path
) -> None:
    apply(store, PROJECT)
    write_state(tmp_path, PLOT, [("a", NOW, 1), ("b", NOW - DAY_MS - 1_000, 2)])
    assert materialize(tmp_path, PROJECT, NOW, store=store).rows == 1
    assert online(store, PLOT, "ab", NOW + DAY_MS) == [("a", NOW, 1)]
    assert online(store, PLOT, "ab", NOW + DAY_MS + 1_000) == []


def test_many_keys_are_read_in_order(store: feast.FeatureStore, tmp_path: Path) -> None:
    apply(store, PROJECT)
    write_state(tmp_path, HUB, [(f"k{i}", NOW, i) for i in range(2_500)])
    assert materialize(tmp_path, PROJECT, NOW, store=store).rows == 2_500
    rows = read(store, HUB, [f"k{i}" for i in range(2_600)], NOW)
    assert [r.event_time for r in rows] == [NOW] * 2_500 + [None] * 100
    np.testing.assert_equal(
        [r.values for r in rows[::499]],
        [values_of(HUB, i) if i < 2_500 else {} for i in range(0, 2_600, 499)],
    )


def test_a_later_run_writes_what_is_newer_and_nothing_else(
    store: feast.FeatureStore, tmp_path: Path
) -> None:
    apply(store, PROJECT)
    write_state(tmp_path, PLOT, [("a", NOW, 5), ("b", NOW, 6), ("c", NOW + 60_000, 7)])
    assert materialize(tmp_path, PROJECT, NOW, store=store).rows == 2
    assert online(store, PLOT, "abc") == [("a", NOW, 5), ("b", NOW, 6)]
    assert materialize(tmp_path, PROJECT, NOW, store=store).rows == 0
    # The files are replaced: `a` has only older rows now, `b` a newer one of the same time.
    write_state(tmp_path, PLOT, [("a", NOW - 1_000, 9), ("a", NOW, 4), ("b", NOW, 8)])
    assert materialize(tmp_path, PROJECT, NOW, store=store).rows == 1
    assert online(store, PLOT, "ab") == [("a", NOW, 5), ("b", NOW, 8)]


def test_an_earlier_end_does_not_take_rows_back(store: feast.FeatureStore, tmp_path: Path) -> None:
    apply(store, PROJECT)
    write_state(tmp_path, PLOT, [("a", NOW - 9_000, 1), ("a", NOW, 2), ("b", NOW - 9_000, 3)])
    assert materialize(tmp_path, PROJECT, NOW, store=store).rows == 2
    assert materialize(tmp_path, PROJECT, NOW - 5_000, store=store).rows == 0
    assert online(store, PLOT, "ab") == [("a", NOW, 2), ("b", NOW - 9_000, 3)]


def test_a_run_that_was_ended_goes_on_where_it_was(
    store: feast.FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features.materialize, "BATCH_ROWS", 2)
    apply(store, PROJECT)
    write_state(tmp_path, PLOT, [(k, NOW, i) for i, k in enumerate("abcdefg")])

    def abort(view: str, rows: int) -> None:
        if rows >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        materialize(tmp_path, PROJECT, NOW, store=store, progress=abort)
    some = [r[0] for r in online(store, PLOT, "abcdefg")]
    assert some == list("abcd")
    again = open_store(tmp_path)
    assert materialize(tmp_path, PROJECT, NOW, store=again).rows == 3
    assert online(again, PLOT, "abcdefg") == [(k, NOW, i) for i, k in enumerate("abcdefg")]


def test_an_online_store_that_was_removed_is_filled_again(
    store: feast.FeatureStore, tmp_path: Path
) -> None:
    apply(store, PROJECT)
    write_state(tmp_path, PLOT, [("a", NOW, 1), ("b", NOW, 2)])
    materialize(tmp_path, PROJECT, NOW, store=store)
    (tmp_path / "feast" / "online.db").unlink()
    again = open_store(tmp_path)
    assert apply(again, PROJECT) == []
    assert online(again, PLOT, "ab") == []
    assert materialize(tmp_path, PROJECT, NOW, store=again).rows == 2
    assert online(again, PLOT, "ab") == [("a", NOW, 1), ("b", NOW, 2)]


def test_empty_tables_are_no_rows_and_no_error(store: feast.FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="not registered"):
        materialize(tmp_path, PROJECT, NOW, store=store)
    with pytest.raises(NotFound, match="'plot' is not registered"):
        read(store, PLOT, ["a"], NOW)
    apply(store, PROJECT)
    assert materialize(tmp_path, PROJECT, NOW, store=store).rows == 0
    for view in PROJECT.views:
        write_state(tmp_path, view, [])
    assert materialize(tmp_path, PROJECT, NOW, store=store).rows == 0
    assert online(store, PLOT, "a") == []
    asked = pd.DataFrame(
        {"plot_id": ["a"], "event_timestamp": [pd.Timestamp(NOW, unit="ms", tz="UTC")]}
    )
    feasts = store.get_historical_features(entity_df=asked, features=["plot_state:plot_count_1h"])
    assert feasts.to_df()["plot_count_1h"].isna().tolist() == [True]
