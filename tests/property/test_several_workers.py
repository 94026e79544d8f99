"""Window values of several workers that crash at any step are those of the logs that they left."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raypipe.ownership.routes import PREFIX
from tests.domains.greenhouse import project
from tests.property.oracle import compare, truth
from tests.property.workers_world import Event, World

START = 1_790_000_000_000
COLUMNS = ("tenant", "event_time", "valve", "gardener", "litres")


def events(seed: int) -> list[tuple[str, Event]]:
    """Openings and floods of a few valves and gardeners, some late, some without a gardener."""
    rng = random.Random(seed)
    found: list[tuple[str, Event]] = []
    for i in range(160):
        at = START + i * 1_000
        kind = "flood" if rng.random() < 0.15 else "opening"
        row: Event = {
            "tenant": "default",
            "event_id": f"e-{i}",
            "event_time": at - int(rng.random() ** 3 * 9_000_000),
            "received_at": at,
            "valve": f"v-{rng.randrange(6)}",
            "gardener": rng.choice([None, *(f"g-{n}" for n in range(4))]),
        }
        row |= (
            {"opening_id": "o"}
            if kind == "flood"
            else {"litres": rng.randrange(1_000), "mode": rng.choice([None, "drip"])}
        )
        found.append((kind, row))
    return found


def requests(world: World, rows: list[tuple[str, Event]]) -> tuple[list[Any], set[str]]:
    """Decisions one by one, the rest in bulk; and the ids of what asked for a decision."""
    found: list[Any] = []
    alone: set[str] = set()
    waiting: list[tuple[str, Event]] = []
    for kind, row in rows:
        if kind == "opening" and world.rng.random() < 0.5:
            alone.add(row["event_id"])
            found.append(world.decide(row))
            if world.rng.random() < 0.1:
                found.append(world.decide(row))  # a client that is impatient
            continue
        waiting.append((kind, row))
        if len(waiting) > world.rng.randrange(12):
            found.append(world.bulk(waiting, f"key-{len(found)}" if len(found) % 2 else None))
            waiting = []
    if waiting:
        found.append(world.bulk(waiting, None))
    return found[::-1], alone


def logged(world: World, partition: int) -> list[dict[str, Any]]:
    """What lies in a partition of events, whole and in part, in order."""
    found = []
    for chunk in world.log.read(partition, world.log.first(partition), 10**6):
        kind = chunk.kind.removeprefix(PREFIX)
        if kind not in {"opening", "flood"}:
            continue
        for offset, row in zip(chunk.offsets.tolist(), chunk.batch.to_pylist(), strict=True):
            whole = kind == chunk.kind
            event_id = row["event_id"] if whole else row["event_id"].partition("@")[0]
            found.append(
                {"offset": offset, "kind": kind, "id": event_id, "whole": whole}
                | {name: row.get(name) for name in COLUMNS}
            )
    return sorted(found, key=lambda row: row["offset"])


def check_once(world: World, rows: list[tuple[str, Event]]) -> None:
    """Each event is whole in one log, and once in the log of each of its keys' owners."""
    logs = [logged(world, partition) for partition in world.workers]
    whole = Counter(row["id"] for log in logs for row in log if row["whole"])
    assert whole == Counter(event["event_id"] for _, event in rows)
    for log in logs:
        assert set(Counter(row["id"] for row in log).values()) <= {1}
    for kind, event in rows:
        for entity in ("valve", "gardener") if kind == "opening" else ("valve",):
            if event[entity] is None:
                continue
            owner = world.ownership.of_key("default", entity, event[entity])
            (row,) = [r for r in logs[owner] if r["id"] == event["event_id"]]
            assert row[entity] == event[entity]


def check_values(world: World, alone: set[str]) -> None:
    """What decisions were made from is what SQL says over the log of each key's owner."""
    assert world.answers.keys() == alone
    at = 0
    for view in project.views:
        for partition in world.workers:
            mine = [
                row
                for row in logged(world, partition)
                if row[view.key] is not None
                and world.ownership.of_key("default", view.entity, row[view.key]) == partition
            ]
            asked = [row for row in mine if row["id"] in alone]
            if not asked:
                continue
            values = {
                row["offset"]: np.frombuffer(
                    world.answers[row["id"]], "<f8", len(view.columns), at * 8
                )
                for row in asked
            }
            true = truth(view, pa.Table.from_pylist(mine), project.decision, at=list(values))
            compare(true, view.column_names, values)
        at += len(view.columns)


def check_restart(world: World) -> None:
    """A worker that replays its log alone comes to the same state."""
    for worker in world.workers:
        fresh = world.started(worker, from_log=True)
        found = fresh._state.windows.snapshot()
        for mine, theirs in zip(found, world.cores[worker]._state.windows.snapshot(), strict=True):
            assert mine.equals(theirs)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_crashes_at_any_step_lose_nothing_and_count_nothing_twice(
    tmp_path: Path, workers: int, seed: int
) -> None:
    world = World(project, workers, tmp_path, seed)
    rows = events(seed)
    todo, alone = requests(world, rows)
    world.run(todo, crashes=0.05)
    assert world.crashes > 5
    check_once(world, rows)
    check_values(world, alone)
    check_restart(world)
