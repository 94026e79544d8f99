"""Harvests of trees: a domain with a profile, and days of it for the log."""

from __future__ import annotations

import random
from typing import Any

import pyarrow as pa

from raypipe.clock import DAY_MS
from raypipe.events.schema import EventType, Field, Kind
from raypipe.log.sqlite import SqliteLog
from raypipe.profiles import Profile, Value, facts
from raypipe.project import Entity, Label, Model, Project
from raypipe.vector.expressions import Derived
from raypipe.windows.spec import WindowView, count, mean, spans

HARVEST = EventType(
    "harvest", (Field("tree", Kind.STRING), Field("kilos", Kind.INTEGER, minimum=0, maximum=999))
)
FROST = EventType("frost", (Field("tree", Kind.STRING), Field("harvest_id", Kind.STRING)))
PROFILE = Profile(
    "tree_year",
    "tree",
    "tree",
    facts=(
        facts("harvest", harvests="count(*)", kilos="sum(kilos)"),
        facts("frost", frosts="count(*)"),
    ),
    values=(
        Value("yield_mean", "sum(kilos) / sum(harvests)"),
        Value("frosts_4d", "coalesce(sum(frosts) FILTER (age < 4), 0)"),
    ),
    lookback="6d",
    ttl="3d",
)
project = Project(
    name="orchard",
    events=(HARVEST, FROST),
    entities=(Entity("tree"),),
    views=(
        WindowView(
            "tree", "tree", "harvest", "tree", (count(), mean("kilos")), spans("1h/1m", "1d/30m")
        ),
    ),
    derived=(Derived("to_mean", "kilos / tree_year_yield_mean"),),
    decision="harvest",
    label=Label("frost", "harvest_id", DAY_MS),
    models=(
        Model("frozen", ("kilos", "tree_count_1d")),
        Model("picked", ("kilos", "tree_count_1d", *PROFILE.column_names, "to_mean")),
    ),
    profiles=(PROFILE,),
)

START_MS = 20_200 * DAY_MS


def day(number: int) -> list[tuple[str, dict[str, Any]]]:
    """A day's events in the order in which they arrive; a tree may have none."""
    rng = random.Random(number)
    times = sorted(rng.randrange(DAY_MS) for _ in range(60))
    rows: list[tuple[str, dict[str, Any]]] = []
    for i, at in enumerate(times):
        arrived = START_MS + number * DAY_MS + at
        late = rng.randrange(DAY_MS // 4) if rng.random() < 0.2 else 0
        row = {
            "tenant": "default" if rng.random() < 0.95 else "neighbour",
            "event_id": f"h-{number}-{i}",
            "event_time": arrived - late,
            "received_at": arrived,
            "tree": f"t{rng.randrange(9)}",
        }
        if rng.random() < 0.8:
            rows.append(("harvest", row | {"kilos": rng.randrange(1, 90)}))
        else:
            rows.append(("frost", row | {"harvest_id": f"h-{number}-{rng.randrange(60)}"}))
    return rows


def append(log: SqliteLog, number: int) -> None:
    """A day into the log, event by event."""
    batches = [
        (kind, pa.RecordBatch.from_pylist([row], project.event(kind).arrow_schema))
        for kind, row in day(number)
    ]
    log.append(0, batches, producer="orchard", seq=number)
