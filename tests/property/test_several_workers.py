"""Window values of several workers that crash at any step are those of the logs that they left."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.contract.kafka_server import KafkaServer
from tests.contract.log_kit import on_kafka
from tests.domains.greenhouse import project
from tests.property.workers_checks import Left, check_once, check_values, logged
from tests.property.workers_world import Event, World

START = 1_790_000_000_000


def events(seed: int) -> list[tuple[str, Event]]:
    """Openings and floods of a few valves and gardeners, some late, some without a gardener."""
    rng = random.Random(seed)
    found: list[tuple[str, Event]] = []
    for i in range(130):
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


def requests(
    world: World, rows: list[tuple[str, Event]], given_up: set[str]
) -> tuple[list[Any], set[str]]:
    """Decisions one by one, the rest in bulk; and the ids of what asked for a decision.

    Args:
        given_up: ids of events whose clients don't ask again.
    """
    found: list[Any] = []
    alone: set[str] = set()
    waiting: list[tuple[str, Event]] = []
    for kind, row in rows:
        if row["event_id"] in given_up:
            found.append(world.abandon(row))
            continue
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


def check_restart(world: World) -> None:
    """A worker that replays its log alone comes to the same state."""
    world.forget_snapshots()
    world.seal()
    for worker in world.workers:
        fresh = world.started(worker)
        found = fresh._state.windows.snapshot()
        for mine, theirs in zip(found, world.cores[worker]._state.windows.snapshot(), strict=True):
            assert mine.equals(theirs)


@pytest.mark.parametrize(("workers", "seed"), [(1, 0), (2, 0), (2, 1), (3, 2)])
def test_crashes_at_any_step_lose_nothing_and_count_nothing_twice(
    tmp_path: Path, workers: int, seed: int
) -> None:
    check(World(project, workers, tmp_path, seed), events(seed))


def test_the_same_on_kafka(tmp_path: Path, kafka: KafkaServer) -> None:
    log = on_kafka(kafka)(tmp_path / "log")
    check(World(project, 2, tmp_path, 4, log), events(4)[:60])
    log.close()


def check(world: World, rows: list[tuple[str, Event]]) -> None:
    """Run clients, forwarders and crashes to their end, and look at what they left."""
    given_up = {row["event_id"] for kind, row in rows[::9] if kind == "opening"}
    todo, alone = requests(world, rows, given_up)
    world.run(todo, crashes=0.05)
    assert world.crashes > 2
    left = Left(world.log, world.ownership, world.answers)
    there = {row["id"] for p in world.workers for row in logged(left, p) if row["whole"]}
    check_once(
        left, [r for r in rows if r[1]["event_id"] in there or r[1]["event_id"] not in given_up]
    )
    check_values(left, alone)
    check_restart(world)
