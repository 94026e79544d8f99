"""The table of units against SQL over the same rows, which shares no code with it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.experiments.facts import Plan
from features.experiments.run import Units, here
from raypipe.clock import DAY_MS, HOUR_MS
from raypipe.experiments.checks import check
from raypipe.experiments.reading import parse_experiment
from raypipe.lake import Place
from raypipe.ledger.exposure import EXPOSURE, EXPOSURE_SCHEMA
from raypipe.ledger.record import LOG_KIND, LOG_SCHEMA
from tests.domains.greenhouse import project

START = 1_790_000_000_000
DAYS = 20
AS_OF = START + DAYS * DAY_MS
UNTIL = START + 15 * DAY_MS

DECLARED = """
name: less_water
version: 3
unit: gardener
arms:
  control: {share: 0.5}
  strict: {share: 0.25}
  mild: {share: 0.25}
segments: [mode, valve]
metrics:
  - {name: passed, of: conversion}
  - {name: worth, of: revenue, value: litres * 2, within: 3d}
  - {name: lost, of: fraud_loss, value: litres}
  - {name: refused, of: false_positive, kind: mean, where: mode == 'drip'}
  - {name: took, of: latency, within: 5d}
  - {name: floods, of: flood, kind: mean, direction: down, within: 4d, maturity: 2d}
  - {name: flooded, of: flood, kind: share, direction: down, where: valve != 'v1'}
  - {name: some, of: conversion, kind: share, within: 2d}
minimum_effect: 0.05
horizon: 15d
before: 6d
"""
"""Every kind, with and without a window, a condition, a maturity and a label."""

PRESENT = {"passed": "ratio", "worth": "mean", "lost": "mean", "refused": "mean", "took": "ratio"}
PRESENT |= {"floods": "mean", "flooded": "share", "some": "share"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Place]]:
    folder = tmp_path_factory.mktemp("log")
    tables = world(np.random.default_rng(5))
    found: dict[str, list[Place]] = {}
    for kind, table in tables.items():
        cut = table.num_rows // 3
        for i, part in enumerate((table.slice(0, cut), table.slice(cut))):
            path = folder / f"{kind}-{i}.parquet"
            pq.write_table(part, path)
            found.setdefault(kind, []).append(Place.at(path))
    return found


def world(rng: np.random.Generator) -> dict[str, pa.Table]:
    """Openings with and without decisions, floods, exposures to several arms and experiments."""
    openings, decisions, floods, exposures = [], [], [], []
    for i in range(4_000):
        offset = 10 * i
        time = START - 8 * DAY_MS + int(rng.integers(0, (DAYS + 10) * DAY_MS))
        opening = {
            "offset": offset,
            "tenant": "t" if rng.random() < 0.95 else "other",
            "event_id": f"o-{i}",
            "event_time": time,
            "received_at": time + int(rng.integers(0, 50)),
            "valve": f"v{rng.integers(4)}",
            "gardener": None if rng.random() < 0.05 else f"g{rng.integers(900)}",
            "litres": int(rng.integers(0, 500)),
            "mode": [None, "drip", "spray"][rng.integers(3)],
        }
        openings.append(opening)
        if rng.random() < 0.9:
            decisions.append(
                {
                    "offset": offset + 1,
                    "tenant": opening["tenant"],
                    "decision_id": f"dec-{i}",
                    "event_id": f"o-{i}",
                    "event_time": time,
                    "decided_at": opening["received_at"] + int(rng.integers(1, 30)),
                    "model": "m@1",
                    "action": ["approve", "approve", "review", "block"][rng.integers(4)],
                    "degraded": False,
                    "record": b"",
                }
            )
            unit = opening["gardener"]
            if unit is not None and time >= START and int(unit[1:]) % 5:
                arm = ["control", "strict", "mild"][int(unit[1:]) % 3]
                exposures.append(
                    {
                        "offset": offset + 2,
                        "tenant": opening["tenant"],
                        "event_id": f"dec-{i}/x",
                        "experiment": "less_water@3" if rng.random() < 0.9 else "less_water@2",
                        "arm": arm if rng.random() < 0.98 else "mild",
                        "unit": unit,
                        "propensity": 0.5,
                        "decision_id": f"dec-{i}",
                        "decided_event_id": f"o-{i}",
                        "event_offset": offset,
                        "event_time": time,
                        "decided_at": decisions[-1]["decided_at"],
                    }
                )
        if rng.random() < 0.25:
            late = time + int(rng.integers(0, 2 * DAY_MS))
            floods.append(
                {
                    "offset": offset + 3,
                    "tenant": opening["tenant"],
                    "event_id": f"f-{i}",
                    "event_time": late,
                    "received_at": late,
                    "opening_id": f"o-{i}",
                    "valve": opening["valve"],
                    "gardener": opening["gardener"],
                }
            )

    def table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
        fields = [f.with_nullable(True) for f in schema]
        return pa.Table.from_pylist(rows, pa.schema([pa.field("offset", pa.int64()), *fields]))

    return {
        "opening": table(openings, project.event("opening").arrow_schema),
        "flood": table(floods, project.event("flood").arrow_schema),
        LOG_KIND: table(decisions, LOG_SCHEMA),
        EXPOSURE: table(exposures, EXPOSURE_SCHEMA),
    }


def computed(
    files: dict[str, list[Place]],
    parts: int,
    folder: Path,
    declared: str = DECLARED,
    until: int = UNTIL,
    since: int | None = None,
) -> tuple[pa.Table, int]:
    experiment = parse_experiment(declared)
    check(experiment, project)
    plan = Plan(experiment, project, "t", AS_OF, until, parts, since)
    assert set(plan.kinds) <= set(files)
    files = {kind: files[kind] for kind in plan.kinds}
    counted = here(plan, files, Place.at(folder) / "units")
    made = Units(
        experiment=experiment.id,
        folder="units",
        as_of_ms=AS_OF,
        units=sum(n for n, _ in counted),
        mixed=sum(m for _, m in counted),
    )
    table = made.table(Place.at(folder))
    assert len(table) == made.units
    return table, made.mixed


ROWS = {
    "passed": ("decided", "(action = 'approve')::double", "true", 0, 0),
    "worth": ("decided", "if(action = 'approve', litres * 2, 0)", "true", 3, 0),
    "lost": ("decided", "if(action = 'approve' and positive, litres, 0)", "true", 0, 1),
    "refused": ("decided", "(action <> 'approve' and not positive)::double", "mode = 'drip'", 0, 1),
    "took": ("decided", "decided_at - received_at", "true", 5, 0),
    "floods": ("flooded", "1.0", "true", 4, 2),
    "flooded": ("flooded", "1.0", "valve <> 'v1'", 0, 0),
    "some": ("decided", "(action = 'approve')::double", "true", 2, 0),
}
"""By metric: from where, the value, the condition, days within, days until it is mature."""

FOUND = """
with mine as (
  {mine}
), first as (
  select distinct on (unit) unit, arm, event_time began, decided_event_id from mine
  order by unit, event_time, "offset"
), known as (
  select opening_id id, min(event_time) knew from floods
  where tenant = 't' and event_time <= {as_of} group by 1
), decided as (
  select o.gardener unit, o.event_time time, o.* , d.action, d.decided_at,
    coalesce(known.knew <= o.event_time + {hour} * 24, false) positive
  from openings o join decisions d using (tenant, event_id) left join known on known.id = event_id
  where tenant = 't'
), flooded as (
  select gardener unit, event_time time, * from floods where tenant = 't' and event_time <= {as_of}
), rows as (
  select r.unit, r.time, ({value})::double v from {source} r where {where}
)
select first.unit, first.arm, first.began,
  coalesce(sum(v) filter (time >= began and {after}), 0) total,
  count(v) filter (time >= began and {after}) number,
  sum(v) filter (time < began and time >= began - {before}) past,
  count(v) filter (time < began and time >= began - {before}) past_number
from first left join rows using (unit) group by all order by 1
"""


EXPOSURES = "select * from exposures where tenant = 't' and experiment = 'less_water@3'"
WOULD_BE = """
  select gardener unit, 'control' arm, event_id decided_event_id, * from openings
  where tenant = 't' and gardener is not null and mode = 'drip'
"""


def oracle(
    files: dict[str, list[Place]], name: str, mine: str = EXPOSURES, until: int = UNTIL
) -> list[tuple[Any, ...]]:
    source, value, where, within, ripe = ROWS[name]
    con = duckdb.connect()
    names = {"openings": "opening", "floods": "flood", "decisions": LOG_KIND, "exposures": EXPOSURE}
    for table, kind in names.items():
        con.read_parquet([str(f.local) for f in files[kind]]).create_view(table)
    open_ended = f"time < {until} and time + {ripe * DAY_MS} <= {AS_OF}"
    after = f"time < began + {within * DAY_MS} and time <= {AS_OF}" if within else open_ended
    return con.sql(
        FOUND.format(
            source=source,
            value=value,
            where=where,
            after=after,
            mine=f"{mine} and event_time < {until}",
            as_of=AS_OF,
            hour=HOUR_MS,
            before=6 * DAY_MS,
        )
    ).fetchall()


@pytest.mark.parametrize("parts", [1, 7])
def test_every_metric_is_what_sql_says(
    files: dict[str, list[Place]], parts: int, tmp_path: Path
) -> None:
    table, _ = computed(files, parts, tmp_path)
    rows = table.to_pylist()
    assert len(rows) > 100
    for name, kind in PRESENT.items():
        _, _, _, within, ripe = ROWS[name]
        for row, (unit, arm, at, total, number, past, past_number) in zip(
            rows, oracle(files, name), strict=True
        ):
            assert (row["unit"], row["arm"], row["exposed_at"]) == (unit, arm, at)
            share = kind == "share"
            assert row[name] == (float(total > 0) if share else total), (name, unit)
            if kind == "ratio":
                assert row[f"{name}__of"] == number
                expected = past / past_number if past_number else math.nan
            else:
                expected = float((past or 0) > 0) if share else (past or 0.0)
            assert row[f"{name}__before"] == pytest.approx(expected, nan_ok=True)
            assert row[f"{name}__mature"] == (at + (within + ripe) * DAY_MS <= AS_OF)
    assert {row["worth__mature"] for row in rows} == {True}
    assert {row["floods__mature"] for row in rows} == {True, False}


def test_segments_are_of_the_first_exposure_and_mixed_units_are_counted(
    files: dict[str, list[Place]], tmp_path: Path
) -> None:
    table, mixed = computed(files, 3, tmp_path)
    con = duckdb.connect()
    for name, kind in (("openings", "opening"), ("exposures", EXPOSURE)):
        con.read_parquet([str(f.local) for f in files[kind]]).create_view(name)
    mine = f"tenant = 't' and experiment = 'less_water@3' and event_time < {UNTIL}"
    expected = con.sql(
        f"""
        select unit, mode, valve from (
          select distinct on (unit) * from exposures where {mine}
          order by unit, event_time, "offset"
        ) e join openings o on o.event_id = decided_event_id order by unit
        """
    ).fetchall()
    rows = table.select(["unit", "mode", "valve"]).to_pylist()
    assert [tuple(r.values()) for r in rows] == expected
    [(several,)] = con.sql(
        f"select count(*) from (select unit from exposures where {mine} group by unit"
        " having count(distinct arm) > 1)"
    ).fetchall()
    assert mixed == several > 0


def test_history_has_everyone_who_would_have_been_in_it_as_the_control(
    files: dict[str, list[Place]], tmp_path: Path
) -> None:
    since, until = START + 2 * DAY_MS, AS_OF + 1
    declared = DECLARED + "eligible: mode == 'drip'\n"
    table, mixed = computed(files, 2, tmp_path, declared, until, since)
    expected = oracle(files, "passed", f"{WOULD_BE} and event_time >= {since}", until)
    rows = [tuple(r.values()) for r in table.select(["unit", "arm", "exposed_at"]).to_pylist()]
    assert rows == [row[:3] for row in expected]
    found = zip(table["passed"].to_pylist(), table["passed__of"].to_pylist(), strict=True)
    assert list(found) == [(total, number) for _, _, _, total, number, *_ in expected]
    assert mixed == 0
