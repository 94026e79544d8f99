"""Profiles: what a declaration may say, the day of an offset, values against plain loops."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.builds import Day
from features.intake import day_name
from features.profiles.compute import Run, prepare, write_facts, write_values
from features.profiles.days import Days, finished
from raypipe.clock import DAY_MS, HOUR_MS
from raypipe.errors import DeclarationError
from raypipe.events.schema import EventType, Field, Kind
from raypipe.lake import Place
from raypipe.profiles import Profile, Value, check_profile, facts
from raypipe.project import Entity, Label, Model, Project
from raypipe.windows.spec import WindowView, count, spans

READING = EventType("reading", (Field("plot", Kind.STRING), Field("heat", Kind.INTEGER)))
ALARM = EventType("alarm", (Field("plot", Kind.STRING, required=False), Field("of", Kind.STRING)))
EVENTS = {"reading": READING, "alarm": ALARM}
DAY_0 = 20_000
START = DAY_0 * DAY_MS
PLOT = Profile(
    "climate",
    "plot",
    "plot",
    facts=(
        facts("reading", readings="count(*)", heat_sum="sum(heat)", heats="list(heat)"),
        facts("alarm", alarms="count(*)"),
    ),
    values=(
        Value("mean", "sum(heat_sum) / sum(readings)"),
        Value("median_2d", "list_aggregate(flatten(list(heats) FILTER (age < 2)), 'median')"),
        Value("alarms", "coalesce(sum(alarms), 0)"),
        Value("age", "max(age) FILTER (readings > 0)"),
    ),
    lookback="5d",
)


def test_columns_are_named_by_profile_and_hashes_follow_what_decides() -> None:
    assert PLOT.column_names == (
        "climate_mean",
        "climate_median_2d",
        "climate_alarms",
        "climate_age",
    )
    assert PLOT.fact_columns(READING) == ("heat",)
    assert PLOT.fact_columns(ALARM) == ()
    assert (PLOT.lookback_days, PLOT.ttl_ms, PLOT.delay_ms) == (5, 7 * DAY_MS, HOUR_MS)
    same = replace(PLOT, description="else", owner="else")
    assert same.definition_hash == PLOT.definition_hash
    for change in (
        {"lookback": "6d"},
        {"ttl": "6d"},
        {"delay": "2h"},
        {"values": PLOT.values[:2]},
        {"facts": (*PLOT.facts[:1], facts("alarm", alarms="count(of)"))},
    ):
        assert replace(PLOT, **change).definition_hash != PLOT.definition_hash


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"facts": ()}, "no facts"),
        ({"facts": (facts("reading"),)}, "no facts"),
        ({"values": ()}, "no values"),
        ({"name": "Climate"}, "names"),
        ({"values": (Value("a b", "1"),)}, "names"),
        ({"values": (Value("a", "1"), Value("a", "2"))}, "each occurs once"),
        ({"facts": (facts("reading", age="count(*)"),)}, "can't be called"),
        ({"facts": (facts("reading", n="count(*)"), facts("reading", m="count(*)"))}, "several"),
        ({"lookback": "36h"}, "whole days"),
        ({"lookback": "-1d"}, "not a duration"),
        ({"ttl": "soon"}, "not a duration"),
        ({"delay": ""}, "not a duration"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(DeclarationError, match=says):
        replace(PLOT, **change)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"facts": (facts("reading", n="count(cold)"),)}, "facts don't run.*cold"),
        ({"facts": (facts("reading", n="heat"),)}, "facts don't run"),
        ({"facts": (facts("reading", n="count(* FROM x"),)}, "facts don't run"),
        ({"values": (Value("a", "sum(nothing)"),)}, "values don't run.*nothing"),
        ({"values": (Value("a", "readings"),)}, "values don't run"),
        ({"values": (Value("a", "list(readings)"),)}, "values don't run"),
    ],
)
def test_sql_that_does_not_run_is_refused_before_anything_is_made(
    change: dict[str, Any], says: str
) -> None:
    check_profile(PLOT, EVENTS)
    with pytest.raises(DeclarationError, match=says):
        check_profile(replace(PLOT, **change), EVENTS)


def project(**change: Any) -> Project:
    view = WindowView("plot", "plot", "reading", "plot", (count(),), spans("1h/1m"))
    given = {
        "name": "field",
        "events": (READING, ALARM),
        "entities": (Entity("plot"),),
        "views": (view,),
        "derived": (),
        "decision": "reading",
        "label": Label("alarm", "of", DAY_MS),
        "models": (Model("frost", ("heat", "climate_mean")),),
        "profiles": (PLOT,),
    }
    return Project(**(given | change))  # type: ignore[arg-type]


def test_a_project_knows_its_profiles() -> None:
    assert project().profile_names == PLOT.column_names
    assert set(PLOT.column_names) < set(project().feature_names)
    other = project(profiles=(replace(PLOT, lookback="6d"),))
    assert other.definition_hash != project().definition_hash


@pytest.mark.parametrize(
    ("profile", "says"),
    [
        (replace(PLOT, name="plot"), "unique"),
        (replace(PLOT, entity="shop"), "unknown entity"),
        (replace(PLOT, key="card"), "no field 'card'"),
        (replace(PLOT, key="event_id"), "several keys"),
        (replace(PLOT, facts=(facts("storm", n="count(*)"),)), "unknown event type"),
    ],
)
def test_a_profile_that_does_not_fit_its_project_is_refused(profile: Profile, says: str) -> None:
    models = (Model("frost", ("heat",)),)
    with pytest.raises(DeclarationError, match=says):
        project(profiles=(profile,), models=models)


# days


def on(*days: tuple[int, int, int]) -> list[Day]:
    """Days of a log: number from DAY_0, first offset, the one behind the last."""
    return [Day(day_name(DAY_0 + d), start, end) for d, start, end in days]


def test_each_offset_is_of_the_day_of_the_log_that_holds_it() -> None:
    days = finished(on((0, 0, 2), (1, 2, 5), (3, 5, 6)), 0, after=None, today=DAY_0 + 9)
    assert days == Days(DAY_0, DAY_0 + 3, 0, 6, ((DAY_0, 0), (DAY_0 + 1, 2), (DAY_0 + 3, 5)))
    assert days.of(np.arange(6)).tolist() == [DAY_0 + d for d in (0, 0, 1, 1, 1, 3)]
    found = days.newest(np.array([DAY_0 - 1, DAY_0, DAY_0 + 1, DAY_0 + 2, DAY_0 + 3]))
    assert found.tolist() == [-1, 1, 4, 4, 5]


def test_today_has_not_ended_and_days_go_on_where_they_were() -> None:
    known = on((0, 0, 1), (1, 1, 2), (2, 2, 3))
    days = finished(known, 0, after=None, today=DAY_0 + 2)
    assert days is not None
    assert (days.first, days.last, days.begin, days.end) == (DAY_0, DAY_0 + 1, 0, 2)
    assert finished(known, 0, after=None, today=DAY_0) is None
    # A finished day that went on in the log: the rest is of the next one.
    known = on((0, 0, 1), (1, 1, 4), (2, 4, 5), (3, 5, 6))
    days = finished(known, 2, after=DAY_0 + 1, today=DAY_0 + 3)
    assert days == Days(DAY_0 + 2, DAY_0 + 2, 2, 5, ((DAY_0 + 2, 2),))
    # Only such rows are new: they wait for the day after the last made one to end.
    known = on((0, 0, 1), (1, 1, 7))
    assert finished(known, 5, after=DAY_0 + 1, today=DAY_0 + 2) is None
    days = finished(known, 5, after=DAY_0 + 1, today=DAY_0 + 3)
    assert days == Days(DAY_0 + 2, DAY_0 + 2, 5, 7, ((DAY_0 + 2, 5),))


def test_no_rows_are_no_days() -> None:
    assert finished([], 0, after=None, today=DAY_0) is None
    assert finished(on((0, 0, 3)), 3, after=DAY_0, today=DAY_0 + 9) is None


# values


Event = tuple[str, dict[str, Any]]


def stream(seed: int, size: int) -> list[Event]:
    """Arrivals of ten days: readings and alarms, some without a plot, some of another tenant."""
    random = np.random.default_rng(seed)
    arrived = np.sort(START + random.integers(0, 10 * DAY_MS, size))
    out: list[Event] = []
    for i, at in enumerate(arrived.tolist()):
        key = f"p{random.integers(0, 12)}"
        row = {
            "tenant": "us" if random.random() < 0.9 else "them",
            "event_id": f"e{i}",
            "event_time": at - int(random.integers(0, DAY_MS)),
            "received_at": at,
        }
        if random.random() < 0.8:
            out.append(("reading", row | {"plot": key, "heat": int(random.integers(-9, 40))}))
        else:
            plot = None if random.random() < 0.2 else key
            out.append(("alarm", row | {"plot": plot, "of": f"e{i}"}))
    return out


def by_loops(events: list[Event], tenant: str) -> dict[tuple[str, int], list[float | None]]:
    """Values by key and day of PLOT's declaration, written out."""
    rows = defaultdict(list)
    for kind, e in events:
        if e["tenant"] == tenant and e["plot"] is not None:
            rows[e["plot"], e["received_at"] // DAY_MS].append((kind, e))
    last = max(e["received_at"] for _, e in events) // DAY_MS
    out: dict[tuple[str, int], list[float | None]] = {}
    for plot in {p for p, _ in rows}:
        for day in range(DAY_0, last + 1):
            seen = [(day - d, k, e) for d in range(day - 4, day + 1) for k, e in rows[plot, d]]
            heats = [e["heat"] for _, k, e in seen if k == "reading"]
            newest = [e["heat"] for age, k, e in seen if k == "reading" and age < 2]
            if seen:
                out[plot, day] = [
                    sum(heats) / len(heats) if heats else None,
                    float(statistics.median(newest)) if newest else None,
                    float(sum(k == "alarm" for _, k, _ in seen)),
                    max((float(age) for age, k, _ in seen if k == "reading"), default=None),
                ]
    return out


def tables(events: list[Event], begin: int, end: int) -> dict[str, pa.Table]:
    out = {}
    for name, event in EVENTS.items():
        at = [i for i in range(begin, end) if events[i][0] == name]
        table = pa.Table.from_pylist([events[i][1] for i in at], event.arrow_schema)
        out[name] = table.add_column(0, "offset", pa.array(at, pa.int64()))
    return out


def make(run: Run, given: dict[str, pa.Table], kept: list[str]) -> list[str]:
    """What the job does with one segment, without Ray; the files that were written."""
    prepared = pa.concat_tables(
        [prepare(given[e.name], run, e) for e in run.events], promote_options="none"
    )
    written = list(kept)
    # Two blocks, as a shuffle leaves them: any order of rows, several key ranges in one.
    for odd in (0, 1):
        mine = prepared.filter(pa.array(prepared.column("part").to_numpy() % 2 == odd))
        backwards = mine.take(np.arange(len(mine))[::-1])
        written += write_facts(backwards, run).column(0).to_pylist()
    for part in range(run.parts):
        files = [n for n in written if n.startswith("facts/") and n.endswith(f"{part:04d}.parquet")]
        if files:
            task = pa.table({"part": [part], "files": [files]})
            written += write_values(task, run).column(0).to_pylist()
    return written


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("cuts", [[], [3], [1, 2, 7]])
def test_values_equal_plain_loops_however_the_days_are_made(
    tmp_path: Path, cuts: list[int], parts: int
) -> None:
    events = stream(5, 900)
    days_of = [e["received_at"] // DAY_MS - DAY_0 for _, e in events]
    written: list[str] = []
    for first, after in zip([0, *cuts], [*cuts, 10], strict=True):
        mine = [i for i, d in enumerate(days_of) if first <= d < after]
        starts = {days_of[i]: i for i in reversed(mine)}
        days = Days(
            DAY_0 + first,
            DAY_0 + after - 1,
            mine[0],
            mine[-1] + 1,
            tuple((DAY_0 + d, starts[d]) for d in sorted(starts)),
        )
        run = Run(PLOT, (READING, ALARM), "us", days, Place.at(tmp_path), parts)
        # Rows outside of the segment are passed over.
        given = tables(events, max(0, mine[0] - 20), min(len(events), mine[-1] + 20))
        written = make(run, given, written)
    found: dict[tuple[str, int], list[float | None]] = {}
    newest = {d: max(i for i, x in enumerate(days_of) if x <= d) for d in range(10)}
    for name in written:
        if name.startswith("values/"):
            table = pq.read_table(tmp_path / name)
            ends = table.column("event_timestamp").cast(pa.int64()).to_numpy() // 1_000
            made = table.column("created").cast(pa.int64()).to_numpy() // 1_000
            assert (made - ends == PLOT.delay_ms).all()
            for i, (plot, end) in enumerate(zip(table["plot"].to_pylist(), ends, strict=True)):
                day = int(end) // DAY_MS - 1
                assert (plot, day) not in found
                assert table["newest_climate"][i].as_py() == newest[day - DAY_0]
                found[plot, day] = [table[c][i].as_py() for c in PLOT.column_names]
    wanted = by_loops(events, "us")
    assert len(wanted) > 100
    assert found == wanted
