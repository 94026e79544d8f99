"""Who owns which key, what the others are told, and what several workers refuse."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raypipe.errors import ConfigError, DeclarationError, UsageError
from raypipe.log.partitions import PartitionedLog, partitions
from raypipe.log.port import OWNERSHIP, Chunk, Group, Part
from raypipe.log.sqlite import SqliteLog
from raypipe.ownership.buckets import owned
from raypipe.ownership.checks import check_patterns, check_tables
from raypipe.ownership.claim import check_claim, recorded, require_single
from raypipe.ownership.routes import AT, PRIMARY, Ownership, merge_windows, projected
from raypipe.patterns.spec import Pattern, Step
from raypipe.project import Project
from raypipe.runtime.worker.core import WorkerCore
from raypipe.tables.spec import Table, count, distinct
from raypipe.windows.hashing import BUCKETS
from raypipe.windows.spec import WindowView
from raypipe.windows.spec import total as total_of
from tests.domains import greenhouse
from tests.domains.greenhouse import project


def events(n: int) -> list[dict[str, Any]]:
    rng = random.Random(n)
    return [
        {
            "tenant": rng.choice(["default", "other"]),
            "event_id": f"o-{i}",
            "event_time": 1_790_000_000_000 + i,
            "received_at": 1_790_000_000_000 + i,
            "valve": f"v-{rng.randrange(50)}",
            "gardener": rng.choice([None, f"g-{rng.randrange(50)}"]),
            "litres": i,
            "mode": "drip",
        }
        for i in range(n)
    ]


def batch_of(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, project.event("opening").arrow_schema)


@pytest.mark.parametrize("workers", [1, 2, 3, 7, 64])
def test_each_bucket_has_one_owner_and_shares_are_even(workers: int) -> None:
    shares = [owned(worker, workers) for worker in range(workers)]
    assert [bucket for share in shares for bucket in share] == list(range(BUCKETS))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("workers", [2, 5])
def test_one_event_and_many_go_the_same_way(workers: int) -> None:
    ownership = Ownership(project, workers)
    rows = events(200)
    batch = batch_of(rows)
    ways = [ownership.way("opening", row) for row in rows]
    assert ownership.primaries("opening", batch).tolist() == [way.primary for way in ways]
    assert {way.primary for way in ways} == set(range(workers))
    for row, way in zip(rows, ways, strict=True):
        assert way.primary == ownership.of_key(row["tenant"], "valve", row["valve"])
    chunk = Chunk("opening", np.arange(10, 210), batch)
    for primary in range(workers):
        mine = np.array([way.primary == primary for way in ways])
        log = Chunk("opening", chunk.offsets[mine], batch.filter(pa.array(mine)))
        for other in set(range(workers)) - {primary}:
            part = ownership.projection(log, primary, other)
            told = {} if part is None else {r["event_id"]: r for r in part.batch.to_pylist()}
            assert told.keys() == {
                row["event_id"]
                for row, way in zip(rows, ways, strict=True)
                if way.primary == primary and other in way.others
            }
            for row, way in zip(rows, ways, strict=True):
                if row["event_id"] in told:
                    found = told[row["event_id"]]
                    assert (found.pop(PRIMARY), found.pop(AT)) == (primary, 10 + row["litres"])
                    # What one event's part has, a batch's has too, and no more than the event.
                    assert way.others[other].items() <= found.items()
                    assert {n: v for n, v in found.items() if v is not None}.items() <= row.items()


def test_the_others_are_told_what_their_views_read_and_no_more() -> None:
    ownership = Ownership(project, 2)
    for row in events(50):
        for part in ownership.way("opening", row).others.values():
            assert part.keys() == {*("tenant", "event_id", "event_time", "received_at", "gardener")}
    assert "litres" in ownership.schemas["opening"].names
    assert "mode" not in ownership.schemas["opening"].names


def test_an_event_without_its_primary_key_belongs_to_the_next_and_then_to_its_id() -> None:
    views = (greenhouse.VIEWS[1], greenhouse.VIEWS[0])  # the gardener first
    ownership = Ownership(_with(views=views, derived=(), models=()), 3)
    (row,) = events(1)
    with_gardener = row | {"gardener": "ann"}
    assert ownership.way("opening", with_gardener).primary == ownership.of_key(
        row["tenant"], "gardener", "ann"
    )
    without = row | {"gardener": None}
    way = ownership.way("opening", without)
    assert way.primary == ownership.of_key(row["tenant"], "valve", row["valve"])
    assert not way.others
    # The view without a key is the primary owner's to answer.
    assert way.views == (way.primary, way.primary)
    floods = Ownership(_with(views=(greenhouse.VIEWS[1],), derived=(), models=()), 3)
    primaries = {
        floods.way("flood", {"tenant": "default", "event_id": f"f-{i}"}).primary for i in range(40)
    }
    assert primaries == {0, 1, 2}


def _with(**changes: Any) -> Project:
    same = {n: getattr(project, n) for n in ("name", "events", "entities", "decision", "label")}
    return Project(**same | {"views": project.views, "derived": (), "models": ()} | changes)


def test_a_request_is_split_and_keeps_its_order() -> None:
    ownership = Ownership(project, 3)
    rows = events(60)
    floods = [
        {**{n: row[n] for n in ("tenant", "event_time", "received_at", "valve", "gardener")},
         "event_id": f"f-{i}", "opening_id": "o"}
        for i, row in enumerate(rows[:20])
    ]  # fmt: skip
    places = np.arange(80, dtype=np.int32)
    flood_batch = pa.RecordBatch.from_pylist(floods, project.event("flood").arrow_schema)
    group = Group(
        (Part("opening", batch_of(rows), places[places % 4 != 0]),
         Part("flood", flood_batch, places[places % 4 == 0]))
    )  # fmt: skip
    names = [""] * 80
    for part in group.parts:
        ids = part.batch.column("event_id").to_pylist()
        for place, name in zip(part.positions.tolist(), ids, strict=True):
            names[place] = name
    found = []
    for mine, where in ownership.split(group).values():
        assert np.all(np.diff(where) > 0)
        shares = [""] * len(mine)
        for part in mine.parts:
            ids = part.batch.column("event_id").to_pylist()
            for place, name in zip(part.positions.tolist(), ids, strict=True):
                shares[place] = name
        assert shares == [names[place] for place in where.tolist()]
        found += where.tolist()
    assert sorted(found) == list(range(80))


def test_windows_are_merged_from_the_owners_of_the_views() -> None:
    found = {0: b"aaBBcccc", 2: b"xxyyzzzz"}
    assert merge_windows([2, 2, 4], [2, 0, 2], found) == b"xxBBzzzz"


def test_a_log_belongs_to_its_number_of_workers(tmp_path: Path) -> None:
    log = PartitionedLog(tmp_path / "log")
    for partition in range(2):
        WorkerCore(project, log, partition, ownership=Ownership(project, 2))
        WorkerCore(project, log, partition, ownership=Ownership(project, 2))
        assert log.counts(partition)[OWNERSHIP] == 1
    with pytest.raises(ConfigError, match="2 workers, and `workers` is 3"):
        WorkerCore(project, log, 0, ownership=Ownership(project, 3))
    with pytest.raises(ConfigError, match="2 workers, and `workers` is 1"):
        WorkerCore(project, log)
    with pytest.raises(UsageError, match="belongs to 2 workers"):
        require_single(log, "`raypipe features`")


def test_a_log_of_one_worker_stays_one(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log")
    WorkerCore(project, log)
    assert recorded(log, 0) == []
    assert partitions(tmp_path / "log") == [0]
    with pytest.raises(ConfigError, match="1 worker, and `workers` is 2"):
        WorkerCore(project, log, 0, ownership=Ownership(project, 2))
    require_single(log, "`raypipe features`")


def test_views_that_read_more_than_the_others_were_told_are_refused(tmp_path: Path) -> None:
    log = PartitionedLog(tmp_path / "log")
    gardener = WindowView(
        "gardener", "gardener", "opening", "gardener", (total_of("litres"),), greenhouse.SPANS
    )
    less = _with(views=(WindowView(
        "valve", "valve", "opening", "valve", (greenhouse.count(),), greenhouse.SPANS
    ), greenhouse.VIEWS[1]))  # fmt: skip
    WorkerCore(less, log, 0, ownership=Ownership(less, 2))
    for views, reason in (
        ((less.views[0], gardener), "read litres too"),
        ((greenhouse.VIEWS[1], less.views[0]), "keys"),
        ((less.views[0],), "keys"),
    ):
        with pytest.raises(DeclarationError, match=reason):
            check_claim(log, 0, Ownership(_with(views=views), 2))
    check_claim(log, 0, Ownership(less, 2))


def test_tables_that_count_different_values_are_refused() -> None:
    check_tables([Table("busy", ("opening",), (count("openings"),))])
    with pytest.raises(DeclarationError, match="'gardeners' counts different values"):
        check_tables([Table("busy", ("opening",), (distinct("gardeners", "gardener"),))])


def pattern(**keys: str) -> Pattern:
    steps = tuple(Step(f"s-{kind}", (kind,)) for kind in keys)
    return Pattern("p", tuple(keys.items()), steps, 1_000, "{s-opening.count}")


def test_patterns_group_by_the_primary_key() -> None:
    ownership = Ownership(project, 2)
    check_patterns(ownership, [pattern(opening="valve"), pattern(opening="valve", flood="valve")])
    with pytest.raises(DeclarationError, match="'valve', not of 'gardener'"):
        check_patterns(ownership, [pattern(opening="gardener")])


def test_a_projection_has_a_kind_of_its_own() -> None:
    assert projected("opening") == "projected_opening"
    clash = greenhouse.EventType("projected_flood", (greenhouse.VALVE,))
    with pytest.raises(DeclarationError, match="taken by the projections of 'flood'"):
        Ownership(_with(events=(*project.events, clash)), 2)
