"""Upkeep of the embedded log: what readers see is what they saw. The model is a list of rows."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raypipe.clock import DAY_MS, MINUTE_MS, ManualClock
from raypipe.errors import ConfigError, Conflict, IntegrityError
from raypipe.lake import Place
from raypipe.log import compaction, files, merging, writing
from raypipe.log.port import DECISION, DuplicateId, Expired
from raypipe.log.retention import GRACE_MS
from raypipe.log.sqlite import SqliteLog
from raypipe.log.upkeep import Policy, policy, until, upkeep
from tests.contract.upkeep_kit import (
    ALONE,
    EVENTS,
    NOW,
    RECEIPT,
    REFUND,
    SALE,
    VERDICT,
    Model,
    batch,
    bulk,
    check,
    fill,
    read,
    rows_of,
    same,
)
from tests.recovery.nursery import Nursery


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteLog]:
    opened = SqliteLog(tmp_path / "log")
    yield opened
    opened.close()


# compaction


@pytest.mark.parametrize("range_rows", [1, 7, 11, 40, 10**6])
def test_compacted_rows_are_the_rows_that_were_logged(log: SqliteLog, range_rows: int) -> None:
    model = fill(log)
    done = log.compact(0, 50, range_rows=range_rows)
    assert done.ranges[0][0] == 0
    assert done.rows == done.ranges[-1][1] <= 50
    assert log.live_start(0) == done.rows
    check(log, model)
    model += fill(log, start=8)
    check(log, model)
    log.compact(0, log.end(0), range_rows=range_rows)
    assert log.live_start(0) == log.end(0) == len(model)
    check(log, model)
    again = SqliteLog(log.directory)
    check(again, model)
    model += fill(again, start=16)
    check(again, model)
    again.close()
    for start in range(0, 60, 7):
        for limit in (1, 5, 30):
            part = model[start : start + limit]
            assert same(read(log, start, limit), [(row, schema) for row, schema, _ in part])


def test_rows_of_several_schemas_lie_in_one_file_and_come_out_as_they_were(
    log: SqliteLog, tmp_path: Path
) -> None:
    model = fill(log, 4)
    log.compact(0, len(model))
    (path,) = log.export(0, "sale", Place.at(tmp_path / "out"), 0, len(model))
    table = pq.read_table(path.url)
    assert table.schema.names == ["offset", *SALE.names, "windows", "_schema"]
    sales = [(at, row) for at, ((kind, row), _, _) in enumerate(model) if kind == "sale"]
    assert table.column("offset").to_pylist() == [at for at, _ in sales]
    assert table.column("windows").to_pylist() == [row.get("windows") for _, row in sales]
    check(log, model)


def test_a_column_that_changed_its_type_gets_files_of_its_own(log: SqliteLog) -> None:
    other = SALE.set(3, pa.field("amount", pa.string()))
    rows = [{"tenant": "t", "event_id": "x", "event_time": 1, "amount": "much"}]
    items = [
        batch("sale", SALE, "a", "b"),
        ("sale", pa.RecordBatch.from_pylist(rows, schema=other)),
        batch("sale", ALONE, "c"),
        batch("sale", SALE, "d"),
    ]
    log.append(0, items, producer="p", seq=0)
    log.compact(0, 5)
    check(log, [row for item in items for row in rows_of(item)])


def test_files_are_cut_at_their_size_also_when_schemas_mix(
    log: SqliteLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "GROUP_ROWS", 3)
    monkeypatch.setattr(writing, "_FILE_GROUPS", 2)
    model = fill(log, 6)
    log.compact(0, len(model), range_rows=40)
    check(log, model)
    for start in range(len(model)):
        assert same(read(log, start, 9), [(r, s) for r, s, _ in model[start : start + 9]])


def test_few_rows_wait_for_more_unless_they_cannot_grow(log: SqliteLog) -> None:
    model = fill(log, 2)
    assert log.compact(0, len(model), least_rows=len(model) + 1).rows == 0
    position = pa.RecordBatch.from_arrays(
        [pa.array([0], pa.int64()), *batch("sale", SALE, "h")[1].columns],
        schema=SALE.insert(0, pa.field("_position", pa.int64())),
    )
    log.seal(0, {"sale": [position]}, 1, producer="load", seq=0)
    model += rows_of(batch("sale", SALE, "h"))
    model += fill(log, 1, start=2)
    done = log.compact(0, len(model), least_rows=1_000)
    assert done.ranges == ((0, 22),)
    check(log, model)
    assert log.sealed_range(0, "load", 0) == (22, 23)


def test_a_batch_that_reaches_over_the_bound_stays_live(log: SqliteLog) -> None:
    model = fill(log, 1)
    assert log.compact(0, 2).rows == 0
    assert log.compact(0, 7).ranges == ((0, 3),)
    check(log, model)


def test_ids_of_compacted_rows_stay_taken_and_those_of_groups_stay_unknown(log: SqliteLog) -> None:
    fill(log, 2)
    log.compact(0, log.end(0))
    for taken in (batch("sale", SALE, "a0"), batch(DECISION, VERDICT, "v1")):
        with pytest.raises(DuplicateId):
            log.append(0, [taken], producer="q", seq=0)
    assert log.find(0, "sale", "t", "g0-0") is None
    log.append(0, [batch("sale", SALE, "g0-0")], producer="q", seq=0)
    found = log.find(0, "sale", "t", "g0-0")
    assert found is not None
    assert found[0] == log.end(0) - 1


def test_a_retry_of_a_compacted_append_is_refused_and_writes_nothing(log: SqliteLog) -> None:
    model = fill(log, 3)
    log.compact(0, 22)
    with pytest.raises(Conflict, match="long ago"):
        log.append(0, [bulk("s", "again")], producer="p", seq=1)
    (given,) = log.append(0, [batch("refund", REFUND, "z")], producer="p", seq=3)
    assert given.tolist() == [len(model)]
    log.append(0, [bulk("s", "other")], producer="other", seq=0)
    check(log, [*model, *rows_of(batch("refund", REFUND, "z")), *rows_of(bulk("s", "other"))])


def test_the_database_uses_and_gives_back_what_was_freed(log: SqliteLog) -> None:
    text = "x" * 50_000
    model = []
    for seq in range(100):
        item = batch(DECISION, VERDICT, f"{text}{seq}")
        log.append(0, [item], producer="p", seq=seq)
        model += rows_of(item)
    before = log.file_bytes()
    log.compact(0, 95)
    freed = log.file_bytes()
    assert freed["file_bytes"] == before["file_bytes"]
    assert freed["free_bytes"] > 0.9 * before["file_bytes"]
    assert log.shrink(0, 60.0) > 0.9 * before["file_bytes"]
    assert log.file_bytes()["free_bytes"] == 0
    assert same(read(log), [(row, schema) for row, schema, _ in model])


def test_a_log_of_the_first_format_is_taken_over(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path)
    model = fill(log, 2)
    log.close()
    db = sqlite3.connect(tmp_path / "log.db")
    for table in ("manifest", "horizon", "expired", "forgotten", "doomed"):
        db.execute(f"drop table {table}")
    db.execute("pragma user_version = 1")
    db.close()
    again = SqliteLog(tmp_path)
    check(again, model)
    again.compact(0, len(model))
    check(again, model)
    again.close()


def test_rows_that_parquet_would_change_stay_live(
    log: SqliteLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fill(log, 2)
    real = writing.KindWriter.add

    def wrong(self: Any, offsets: Any, batch: pa.RecordBatch, **how: Any) -> None:
        if "reason" in batch.schema.names:
            at = batch.schema.get_field_index("reason")
            batch = batch.set_column(at, "reason", pa.array(["?"] * batch.num_rows))
        real(self, offsets, batch, **how)

    with monkeypatch.context() as broken:
        broken.setattr(writing.KindWriter, "add", wrong)
        with pytest.raises(IntegrityError, match="otherwise"):
            log.compact(0, len(model))
    check(log, model)
    assert log.live_start(0) == 0
    log.compact(0, len(model))
    check(log, model)


def test_damage_of_a_compacted_file_is_noticed(log: SqliteLog) -> None:
    model = fill(log, 4)
    log.compact(0, len(model))
    (file,) = (log.directory / "sealed").glob("*-refund-0000.parquet")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    fresh = SqliteLog(log.directory)
    with pytest.raises(IntegrityError, match="sealed file"):
        read(fresh)
    fresh.close()


# beside readers and writers


def test_a_reader_in_the_middle_of_a_range_reads_on(log: SqliteLog) -> None:
    model = fill(log, 6)
    reading = log.read(0, 0, len(model))
    seen = [next(reading) for _ in range(3)]
    log.compact(0, len(model), range_rows=20)
    seen += list(reading)
    rows = {
        o: r for c in seen for o, r in zip(c.offsets.tolist(), c.batch.to_pylist(), strict=True)
    }
    assert same([rows[o] for o in sorted(rows)], [row for (_, row), _, _ in model])


def test_readers_never_see_a_gap_while_ranges_are_sealed(
    log: SqliteLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "HOLD_S", 0.0)
    stop = threading.Event()
    wrong: list[str] = []

    def watch() -> None:
        other = SqliteLog(log.directory)
        while not stop.is_set():
            end = other.end(0)
            at = 0
            try:
                for chunk in other.read(0, 0, end):
                    at += len(chunk)
                if at != end:
                    wrong.append(f"{at} of {end}")
                if other.find(0, DECISION, "t", "v0") is None:
                    wrong.append("v0 is away")
            except IntegrityError as e:
                wrong.append(str(e))
        other.close()

    model = fill(log, 1)
    watchers = [threading.Thread(target=watch) for _ in range(2)]
    for watcher in watchers:
        watcher.start()
    for turn in range(12):
        model += fill(log, 4, start=1 + 4 * turn)
        log.compact(0, log.end(0) - 5, range_rows=17)
        log.merge_ids(0, NOW)
    stop.set()
    for watcher in watchers:
        watcher.join(60)
    assert wrong == []
    check(log, model)


def append_beside(directory: str, appends: str) -> None:
    log = SqliteLog(Path(directory))
    epoch = log.begin_epoch(0)
    for seq in range(int(appends)):
        items = [batch("sale", ALONE, f"w{seq}"), bulk("srs", f"wg{seq}-")]
        log.append(0, items, producer="w", seq=seq, epoch=epoch)
    log.close()


def test_another_process_appends_meanwhile(nursery: Nursery, log: SqliteLog) -> None:
    model = []
    appends = 150
    for seq in range(appends):
        for item in (batch("sale", ALONE, f"w{seq}"), bulk("srs", f"wg{seq}-")):
            model += rows_of(item)
    process = nursery.start(append_beside, log.directory, appends)
    ranges = 0
    while not process.ended:
        ranges += len(log.compact(0, log.end(0) - 4, range_rows=40).ranges)
    assert process.wait() == 0
    log.compact(0, log.end(0))
    check(log, model)


# merged ids


def test_merged_arrays_find_what_single_ones_found(
    log: SqliteLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "STEP_ROWS", 5)
    model = []
    for turn in range(20):
        model += fill(log, 1, start=turn)
        log.compact(0, len(model))
        log.merge_ids(0, NOW)
        arrays = log.usage(0).id_arrays
        assert arrays <= 3 * 3 * 3  # kinds x tiers x (fan - 1)
    check(log, model)
    assert len(list((log.directory / "sealed").glob("*-ids.npy"))) > log.usage(0).id_arrays
    log.remove_doomed(NOW + GRACE_MS)
    maps = Path("/proc/self/maps").read_text()
    assert "-ids.npy" in maps
    assert "-ids.npy (deleted)" not in maps
    assert len(list((log.directory / "sealed").glob("*-ids.npy"))) == log.usage(0).id_arrays
    again = SqliteLog(log.directory)
    check(again, model)
    again.close()


# retention


def used(log: SqliteLog, offset: int | None = None) -> None:
    log.commit("windows", 0, log.end(0) if offset is None else offset, "snapshot")


def test_old_events_go_and_records_stay(log: SqliteLog, tmp_path: Path) -> None:
    model = fill(log, 3, at=NOW - 40 * DAY_MS)
    model += fill(log, 3, start=3, at=NOW - 5 * DAY_MS)
    log.compact(0, 33)
    log.compact(0, 66)
    used(log)
    gone = log.retain(0, EVENTS, NOW - 30 * DAY_MS, NOW)
    assert (gone.first, gone.expired) == (33, {"refund": 6, "sale": 21})
    assert gone.bytes > 0
    check(log, model, first=33)
    for opened in (log, SqliteLog(log.directory)):
        with pytest.raises(Expired, match="before offset 33 ") as refused:
            list(opened.read(0, 5, 10))
        assert refused.value.status == 410
        assert "offset 33" in refused.value.hint
        with pytest.raises(Expired):
            opened.export(0, "sale", Place.at(tmp_path / "out"), 0, 66)
        assert opened.first(0, "sale") == 33
        assert opened.first(0, DECISION) == opened.first(0, "receipt") == 0
    (path, *more) = log.export(0, DECISION, Place.at(tmp_path / "out"), 0, 66)
    offsets = [o for p in (path, *more) for o in pq.read_table(p.url)["offset"].to_pylist()]
    assert offsets == [o for o, ((kind, _), _, _) in enumerate(model) if kind == DECISION]
    cut = log.export(0, DECISION, Place.at(tmp_path / "out"), 12, 50)
    assert [o for p in cut for o in pq.read_table(p.url)["offset"].to_pylist()] == [
        o for o in offsets if 12 <= o < 50
    ]
    epoch = log.begin_epoch(0)
    log.append(0, [batch("sale", SALE, "a0")], producer="q", seq=0, epoch=epoch)
    assert log.end(0) == 67


def test_files_stay_for_their_readers_and_then_go(log: SqliteLog) -> None:
    fill(log, 3, at=NOW - 40 * DAY_MS)
    log.compact(0, 33)
    used(log)
    sealed = log.directory / "sealed"
    before = {p.name for p in sealed.iterdir()}
    log.retain(0, EVENTS, NOW - 30 * DAY_MS, NOW)
    SqliteLog(log.directory).close()
    assert {p.name for p in sealed.iterdir()} == before
    assert log.remove_doomed(NOW + GRACE_MS - 1) == 0
    assert log.remove_doomed(NOW + GRACE_MS) > 0
    left = {p.name.split("-")[2].split(".")[0] for p in sealed.glob("*-*")}
    assert left == {DECISION, "receipt"}


@pytest.mark.parametrize(("committed", "first"), [(None, 0), (32, 0), (33, 33), (65, 33), (66, 66)])
def test_nothing_goes_that_a_consumer_still_needs(
    log: SqliteLog, committed: int | None, first: int
) -> None:
    model = fill(log, 6, at=NOW - 40 * DAY_MS)
    log.compact(0, 33)
    log.compact(0, 66)
    if committed is not None:
        used(log)
        log.commit("other", 0, committed, "")
    assert log.retain(0, EVENTS, NOW, NOW).first == first
    check(log, model, first)


def test_a_log_whose_rows_are_all_gone_goes_on(log: SqliteLog) -> None:
    items = [batch("sale", SALE, "a", "b"), bulk("sr", "g")]
    log.append(0, items, producer="p", seq=0)
    log.compact(0, 4)
    used(log)
    log.retain(0, EVENTS, NOW, NOW)
    assert (log.first(0), log.end(0), log.kinds(0), log.usage(0).sealed_ranges) == (4, 4, [], 0)
    assert list(log.read(0, 4, 10)) == []
    log.append(0, [batch("sale", SALE, "a")], producer="p", seq=1)
    again = SqliteLog(log.directory)
    assert (again.first(0), again.end(0), again.counts(0)) == (4, 5, {"sale": 1})
    again.close()


def test_a_young_range_keeps_all_that_came_after_it(log: SqliteLog) -> None:
    fill(log, 1, at=NOW - 40 * DAY_MS)
    log.compact(0, 11)
    fill(log, 1, start=1, at=NOW - 2 * DAY_MS)
    log.compact(0, 22)
    fill(log, 1, start=2, at=NOW - 40 * DAY_MS)
    log.compact(0, 33)
    used(log)
    assert log.retain(0, EVENTS, NOW - 30 * DAY_MS, NOW).first == 11
    assert log.retain(0, EVENTS, NOW - 30 * DAY_MS, NOW).expired == {}
    assert log.retain(0, EVENTS, NOW - DAY_MS, NOW).first == 33


# the round


def test_a_round_keeps_the_newest_rows_live(log: SqliteLog) -> None:
    ages = (60, 30, 20, 9, 3)
    for seq, minutes in enumerate(ages):
        fill(log, 1, start=seq, at=NOW - minutes * MINUTE_MS)
    by_age = Policy(keep_rows=0, keep_ms=10 * MINUTE_MS, least_rows=1)
    # Records that bear no time are as young as the event after them.
    assert until(log, 0, by_age, NOW) == 31
    assert until(log, 0, Policy(keep_rows=40, keep_ms=0), NOW) == 15
    report = upkeep(log, 0, by_age, ManualClock(NOW))
    assert (report.compacted_rows, report.first, report.end) == (31, 0, 55)
    assert report.longest_hold_ms > 0
    assert log.live_start(0) == 31
    assert upkeep(log, 0, by_age, ManualClock(NOW)).compacted_rows == 0
    later = ManualClock(NOW + 11 * MINUTE_MS)
    rules = Policy(0, 0, 1, retention_ms=30 * MINUTE_MS, events=EVENTS)
    used(log)
    report = upkeep(log, 0, rules, later)
    assert (report.compacted_rows, report.first) == (24, 31)
    assert report.expired == {"refund": 6, "sale": 21}
    later.advance(GRACE_MS)
    assert upkeep(log, 0, rules, later).removed_bytes > 0


def test_usage_tells_where_rows_are(log: SqliteLog) -> None:
    model = fill(log, 4, at=NOW)
    log.compact(0, 22)
    found = log.usage(0)
    assert (found.first, found.end) == (0, 44)
    assert (found.live_rows, found.sealed_rows, found.sealed_ranges) == (22, 22, 1)
    assert found.rows == log.counts(0)
    assert found.oldest_event_ms == NOW
    assert found.live_bytes > 0
    assert found.sealed_bytes == sum(
        p.stat().st_size for p in (log.directory / "sealed").glob("*-*")
    )
    assert log.partitions() == [0]
    assert len(model) == 44


def test_retention_covers_the_longest_window() -> None:
    assert policy(["sale"], 30 * DAY_MS, retention_days=30).retention_ms == 30 * DAY_MS
    assert policy(["sale"], 30 * DAY_MS, retention_days=None).retention_ms is None
    with pytest.raises(ConfigError, match=r"is 29, .* spans 30 days") as refused:
        policy(["sale"], 30 * DAY_MS, retention_days=29)
    assert "30 days" in refused.value.hint


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.text("ABsrvk", min_size=1, max_size=6)),
        st.tuples(st.just("compact"), st.tuples(st.integers(0, 30), st.integers(1, 20))),
        st.tuples(st.just("seal"), st.integers(1, 6)),
        st.tuples(st.just("retain"), st.integers(0, 12)),
        st.tuples(st.just("commit"), st.integers(0, 30)),
        st.tuples(st.just("merge"), st.none()),
        st.tuples(st.just("reopen"), st.none()),
    ),
    min_size=4,
    max_size=16,
)


def items_of(layout: str, seq: int) -> list[Any]:
    """Batches by capital letters, groups by runs of small ones."""
    items: list[Any] = []
    for n, letter in enumerate(layout):
        ids = [f"{seq}-{n}-{i}" for i in range(1 + n % 3)]
        match letter:
            case "A":
                items.append(batch("sale", ALONE, *ids, at=seq))
            case "B":
                items.append(batch("refund", REFUND, *ids, at=seq))
            case "v":
                items.append(batch(DECISION, VERDICT, *ids))
            case "k":
                items.append(batch("receipt", RECEIPT, *ids))
            case _:
                items.append(bulk(f"{letter}rs{letter}", f"{seq}-{n}-", at=seq))
    return items


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_any_upkeep_equals_a_list_of_rows(
    steps: list[tuple[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("any") / "log"
    log = SqliteLog(directory)
    model: Model = []
    spans: list[tuple[int, int]] = []
    first = committed = 0
    for seq, (action, value) in enumerate(steps):
        if action == "append":
            items = items_of(value, seq)
            log.append(0, items, producer="p", seq=seq)
            model += [row for item in items for row in rows_of(item)]
        elif action == "compact":
            keep, size = value
            done = log.compact(0, len(model) - keep, range_rows=size)
            assert all(end <= len(model) - keep for _, end in done.ranges)
            spans += done.ranges
        elif action == "seal":
            kind, rows = batch("sale", SALE, *(f"{seq}-h{i}" for i in range(value)), at=seq)
            position = pa.RecordBatch.from_arrays(
                [pa.array(range(value), pa.int64()), *rows.columns],
                schema=SALE.insert(0, pa.field("_position", pa.int64())),
            )
            spans.append(log.seal(0, {kind: [position]}, value, producer="l", seq=seq))
            model += rows_of((kind, rows))
        elif action == "retain":
            at = first
            for start, end in sorted(spans):
                times = [r["event_time"] for (_, r), _, _ in model[start:end] if "event_time" in r]
                if start != at or end > committed or (times and max(times) >= value):
                    continue
                at = end
                # What bears no time goes with an old range behind it.
                first = end if times else first
            assert log.retain(0, EVENTS, value, NOW).first == first
        elif action == "commit":
            committed = max(committed, min(value, len(model)))
            log.commit("windows", 0, committed, "")
        elif action == "merge":
            log.merge_ids(0, NOW)
        else:
            log.close()
            log = SqliteLog(directory)
    check(log, model, first)
    log.close()
