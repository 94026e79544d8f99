"""What every event log does. The model is a list of rows; it shares no code with a log."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raypipe.errors import (
    ConfigError,
    Conflict,
    IntegrityError,
    Unavailable,
    UsageError,
)
from raypipe.lake import Place
from raypipe.log import codec, export, files, identity, live, sqlite, writing
from raypipe.log.port import DECISION, DuplicateId, EventLog, Fenced, Group, Part
from raypipe.log.sqlite import SqliteLog
from tests.contract.kafka_server import KafkaServer
from tests.contract.log_kit import (
    GROWN,
    REFUND,
    SALE,
    Open,
    Row,
    check_ids_are_compared,
    grouped,
    history,
    on_kafka,
    placed,
    refunds,
    rows_in,
    rows_of,
    sales,
    verdicts,
)
from tests.recovery.nursery import Nursery


def untouched() -> Iterator[pa.RecordBatch]:
    raise AssertionError("taken from although the range is sealed already")
    yield


@pytest.fixture(params=["sqlite", "kafka"])
def adapter(request: pytest.FixtureRequest) -> Open:
    return SqliteLog if request.param == "sqlite" else on_kafka(request.getfixturevalue("kafka"))


@pytest.fixture
def open_any(adapter: Open) -> Iterator[Open]:
    """Opens logs that are closed in the end."""
    opened: list[EventLog] = []

    def open(directory: Path) -> EventLog:
        opened.append(adapter(directory))
        return opened[-1]

    yield open
    for log in opened:
        log.close()


@pytest.fixture
def open_log(open_any: Open, tmp_path: Path) -> Callable[[], EventLog]:
    """Opens the same log again and again, as another process would."""
    return lambda: open_any(tmp_path / "log")


@pytest.fixture
def log(open_log: Callable[[], EventLog]) -> EventLog:
    return open_log()


# append


def test_offsets_follow_each_other_over_batches_kinds_and_appends(log: EventLog) -> None:
    first = log.append(
        0, [sales("a", "b"), verdicts("d1", "d2"), refunds("r")], producer="p", seq=0
    )
    second = log.append(0, [refunds("q", "s")], producer="p", seq=1)
    assert [o.tolist() for o in first] == [[0, 1], [2, 3], [4]]
    assert [o.tolist() for o in second] == [[5, 6]]
    assert log.end(0) == 7


def test_a_group_keeps_the_order_over_its_kinds(log: EventLog) -> None:
    group, rows = grouped("srssrrs", "g")
    given = log.append(0, [sales("a"), group, refunds("b")], producer="p", seq=0)
    assert [o.tolist() for o in given] == [[0], list(range(1, 8)), [8]]
    expected = [*rows_of([sales("a")]), *rows, *rows_of([refunds("b")])]
    assert rows_in(log) == expected
    assert log.counts(0) == {"refund": 4, "sale": 5}
    for start in range(9):
        for limit in range(1, 10 - start):
            assert rows_in(log, start, limit) == expected[start : start + limit]


def test_a_group_of_one_kind_and_an_empty_one(log: EventLog) -> None:
    kind, batch = sales("a", "b")
    empty = Group.of(*refunds())
    half = Group((*Group.of(kind, batch).parts, *empty.parts))
    assert log.append(1, [half], producer="p", seq=0)[0].tolist() == [0, 1]
    given = log.append(0, [empty, Group.of(kind, batch)], producer="p", seq=0)
    assert [o.tolist() for o in given] == [[], [0, 1]]
    assert rows_in(log) == rows_of([(kind, batch)])
    assert log.kinds(0) == ["sale"]


def test_rows_of_a_group_are_not_found_by_id(log: EventLog) -> None:
    log.append(0, [grouped("sr", "g")[0], sales("a")], producer="p", seq=0)
    assert log.find(0, "sale", "t", "g0") is None
    assert log.find(0, "sale", "t", "a") is not None


def test_a_repeated_group_is_written_once(log: EventLog) -> None:
    group, rows = grouped("ssrs", "g")
    first = log.append(0, [group], producer="p", seq=0)
    again = log.append(0, [group], producer="p", seq=0)
    assert [o.tolist() for o in first] == [o.tolist() for o in again]
    assert rows_in(log) == rows


@pytest.mark.parametrize("positions", [[0, 2], [1, 0], [0, 0], [-1, 0], [0]])
def test_a_group_with_gaps_is_refused(log: EventLog, positions: list[int]) -> None:
    kind, batch = sales("a", "b")
    with pytest.raises(UsageError, match="position"):
        log.append(
            0, [Group((Part(kind, batch, np.array(positions, np.int32)),))], producer="p", seq=0
        )
    assert log.end(0) == 0


def test_an_export_holds_the_rows_of_groups(log: EventLog, tmp_path: Path) -> None:
    group, rows = grouped("srssrrs", "g")
    log.append(0, [group], producer="p", seq=0)
    (found,) = log.export(0, "sale", Place.at(tmp_path / "export"), 0, 7)
    table = pq.read_table(found.url)
    assert table.column("offset").to_pylist() == [0, 2, 3, 6]
    assert table.drop_columns(["offset"]).to_pylist() == [r for k, r in rows if k == "sale"]


def test_partitions_count_on_their_own(log: EventLog) -> None:
    log.append(3, [sales("a", "b")], producer="p", seq=0)
    (offsets,) = log.append(7, [sales("a")], producer="p", seq=0)
    assert offsets.tolist() == [0]
    assert (log.end(3), log.end(7), log.end(0)) == (2, 1, 0)
    assert rows_in(log, partition=7) == rows_of([sales("a")])
    assert log.kinds(0) == []
    assert list(log.read(0, 0, 10)) == []


def test_a_repeated_append_returns_its_offsets_and_writes_nothing(
    log: EventLog, open_log: Callable[[], EventLog]
) -> None:
    batches = [sales("a", "b"), verdicts("d")]
    log.append(0, batches, producer="p", seq=4)
    log.append(0, [refunds("r")], producer="p", seq=5)
    for again in (log, open_log()):
        offsets = again.append(0, batches, producer="p", seq=4)
        assert [o.tolist() for o in offsets] == [[0, 1], [2]]
    assert log.end(0) == 4


def test_a_repeated_append_of_other_batches_is_refused(log: EventLog) -> None:
    log.append(0, [sales("a", "b")], producer="p", seq=0)
    with pytest.raises(Conflict, match="seq 0"):
        log.append(0, [sales("c")], producer="p", seq=0)
    with pytest.raises(Conflict):
        log.seal(0, {"sale": [placed(sales("c", "d")[1], [0, 1])]}, 2, producer="p", seq=0)
    assert log.end(0) == 2


def test_seq_belongs_to_its_producer(log: EventLog) -> None:
    log.append(0, [sales("a")], producer="p", seq=0)
    (offsets,) = log.append(0, [sales("b")], producer="q", seq=0)
    assert offsets.tolist() == [1]


def test_an_empty_batch_has_no_offsets(log: EventLog) -> None:
    offsets = log.append(0, [sales(), refunds("r"), verdicts()], producer="p", seq=0)
    assert [o.tolist() for o in offsets] == [[], [0], []]
    assert log.append(0, [], producer="p", seq=1) == []
    assert log.counts(0) == {"refund": 1}


def test_a_slice_is_logged_as_its_own_rows(log: EventLog) -> None:
    kind, batch = sales("a", "b", "c", "d")
    log.append(0, [(kind, batch.slice(1, 2))], producer="p", seq=0)
    assert rows_in(log) == rows_of([(kind, batch)])[1:3]


@pytest.mark.parametrize(
    "batch",
    [
        ("sale", sales("a")[1].drop_columns(["tenant"])),
        ("sale", verdicts("d")[1]),
        (DECISION, sales("a")[1]),
        ("sale", pa.record_batch({"tenant": ["t"], "event_id": pa.array([None], pa.string())})),
        ("Bad/../kind", sales("a")[1]),
        (
            "sale",
            pa.record_batch({"tenant": ["t"], "event_id": pa.array(["a"]).dictionary_encode()}),
        ),
    ],
    ids=["no tenant", "no event_id", "no decision_id", "null id", "kind", "dictionary"],
)
def test_what_has_no_identity_or_no_plain_form_is_refused(
    log: EventLog, batch: tuple[str, pa.RecordBatch]
) -> None:
    with pytest.raises(UsageError):
        log.append(0, [refunds("r"), batch], producer="p", seq=0)
    assert log.end(0) == 0


@pytest.mark.parametrize("partition", [-1, 1 << 15])
def test_a_partition_outside_of_the_range_is_refused(log: EventLog, partition: int) -> None:
    with pytest.raises(UsageError):
        log.append(partition, [sales("a")], producer="p", seq=0)


# duplicates and epochs


def test_an_id_that_is_logged_is_refused_with_all_its_append(log: EventLog) -> None:
    ordered, count, _ = history("srs", "h")
    log.seal(0, ordered, count, producer="load", seq=0)
    log.append(0, [sales("a", "b")], producer="p", seq=0)
    for taken in (sales("c", "b"), sales("h2"), refunds("h1"), sales("e", "e")):
        with pytest.raises(DuplicateId) as refused:
            log.append(0, [verdicts("new"), taken], producer="p", seq=1)
        assert refused.value.status == 409
        assert taken[1].column("event_id")[-1].as_py() in refused.value.detail
    assert log.end(0) == 5
    assert log.find(0, DECISION, "t", "new") is None
    log.append(0, [verdicts("new"), sales("c")], producer="p", seq=1)
    assert log.end(0) == 7


def test_the_same_id_of_another_tenant_kind_or_partition_is_new(log: EventLog) -> None:
    log.append(0, [sales("a")], producer="p", seq=0)
    log.append(0, [sales("a", tenant="u"), refunds("a"), verdicts("a")], producer="p", seq=1)
    log.append(1, [sales("a")], producer="p", seq=0)
    assert (log.end(0), log.end(1)) == (4, 1)


def test_a_writer_of_an_older_epoch_is_fenced_off(log: EventLog) -> None:
    old = log.begin_epoch(0)
    log.append(0, [sales("a")], producer="p", seq=0, epoch=old)
    new = log.begin_epoch(0)
    assert new == old + 1
    with pytest.raises(Fenced):
        log.append(0, [sales("b")], producer="p", seq=1, epoch=old)
    with pytest.raises(Fenced):
        log.seal(0, {"sale": [placed(sales("b")[1], [0])]}, 1, producer="l", seq=0, epoch=old)
    with pytest.raises(Fenced):
        log.append(0, [sales("b")], producer="p", seq=1, epoch=new + 1)
    assert log.end(0) == 1
    log.append(0, [sales("b")], producer="p", seq=1, epoch=new)
    log.append(1, [sales("b")], producer="p", seq=1, epoch=0)
    log.append(0, [sales("c")], producer="unfenced", seq=0)
    assert log.end(0) == 3


def test_an_acknowledged_append_is_answered_again_after_fencing(log: EventLog) -> None:
    old = log.begin_epoch(0)
    log.append(0, [sales("a")], producer="p", seq=0, epoch=old)
    log.begin_epoch(0)
    (offsets,) = log.append(0, [sales("a")], producer="p", seq=0, epoch=old)
    assert offsets.tolist() == [0]


def test_a_seal_is_fenced_when_the_epoch_rises_while_it_writes(log: EventLog) -> None:
    epoch = log.begin_epoch(0)

    def batches() -> Iterator[pa.RecordBatch]:
        yield placed(sales("a")[1], [0])
        log.begin_epoch(0)

    with pytest.raises(Fenced):
        log.seal(0, {"sale": batches()}, 1, producer="l", seq=0, epoch=epoch)
    assert log.end(0) == 0


# reading


def test_batches_come_back_as_they_were_written(log: EventLog) -> None:
    batches = [sales("a", "b", "c"), sales("d", schema=GROWN), refunds("é", "日本"), sales("z")]
    log.append(0, batches, producer="p", seq=0)
    chunks = list(log.read(0, 0, 100))
    assert [c.kind for c in chunks] == [kind for kind, _ in batches]
    for chunk, (_, batch) in zip(chunks, batches, strict=True):
        assert chunk.batch.schema.equals(batch.schema, check_metadata=True)
        assert chunk.batch.equals(batch)


def test_sealed_rows_come_back_with_their_schema_and_without_helpers(log: EventLog) -> None:
    ordered, count, rows = history("ssrs", "h")
    log.seal(0, ordered, count, producer="l", seq=0)
    schemas = {c.kind: c.batch.schema for c in log.read(0, 0, 100)}
    assert schemas["sale"].equals(SALE, check_metadata=True)
    assert schemas["refund"].equals(REFUND, check_metadata=True)
    assert rows_in(log) == rows


def test_one_sequence_over_live_sealed_and_live_from_every_offset(log: EventLog) -> None:
    model: list[Row] = []
    for part in range(3):
        batches = [sales(f"a{part}", f"b{part}", schema=GROWN), verdicts(f"d{part}")]
        log.append(0, batches, producer="p", seq=part)
        ordered, count, rows = history("srssrrrss"[: 9 - part], f"h{part}-", step=2)
        start, end = log.seal(0, ordered, count, producer="l", seq=part)
        model += rows_of(batches)
        assert (start, end) == (len(model), len(model) + count)
        model += rows
    log.append(0, [refunds("last")], producer="p", seq=9)
    model += rows_of([refunds("last")])
    assert log.end(0) == len(model)
    for offset in range(len(model) + 2):
        for limit in (1, 2, 5, len(model)):
            assert rows_in(log, offset, limit) == model[offset : offset + limit]


def test_nothing_is_read_past_the_end_nor_for_no_rows(log: EventLog) -> None:
    log.append(0, [sales("a")], producer="p", seq=0)
    assert list(log.read(0, 1, 10)) == []
    assert list(log.read(0, 99, 10)) == []
    assert list(log.read(0, 0, 0)) == []
    with pytest.raises(UsageError):
        list(log.read(0, -1, 10))


def test_a_reader_waits_for_an_append_of_this_process(log: EventLog) -> None:
    waiting = threading.Event()
    got: list[Row] = []

    def reader() -> None:
        waiting.set()
        got.extend(rows_of([(c.kind, c.batch) for c in log.read(0, 0, 10, wait_ms=60_000)]))

    thread = threading.Thread(target=reader)
    thread.start()
    waiting.wait()
    log.append(0, [sales("a", "b")], producer="p", seq=0)
    thread.join(60)
    assert got == rows_of([sales("a", "b")])


def test_a_reader_that_waits_in_vain_gets_nothing(log: EventLog) -> None:
    assert list(log.read(0, 0, 10, wait_ms=20)) == []


def test_a_read_goes_on_into_what_is_appended_meanwhile(log: EventLog) -> None:
    log.append(0, [sales("a")], producer="p", seq=0)
    chunks = log.read(0, 0, 10)
    next(chunks)
    log.append(0, [sales("b")], producer="p", seq=1)
    assert [c.offsets.tolist() for c in chunks] == [[1]]


# finding


def test_find_returns_offset_and_row_of_live_and_sealed_ids(log: EventLog) -> None:
    ordered, count, rows = history("ssrsrs", "h", step=2)
    log.seal(0, ordered, count, producer="l", seq=0)
    batches = [sales("a", "b", "c"), sales("d", schema=GROWN), verdicts("v")]
    log.append(0, batches, producer="p", seq=0)
    ordered, count, more = history("rs", "i")
    log.seal(0, ordered, count, producer="l", seq=1)
    for offset, (kind, row) in enumerate([*rows, *rows_of(batches), *more]):
        found = log.find(0, kind, "t", row.get("event_id") or row["decision_id"])
        assert found is not None
        assert found[0] == offset
        assert found[1].to_pylist() == [row]
    assert log.find(0, "sale", "t", "nobody") is None
    assert log.find(0, "sale", "other", "a") is None
    assert log.find(0, "refund", "t", "a") is None
    assert log.find(0, "sale", "t", "h2") is None
    assert log.find(1, "sale", "t", "a") is None


def test_the_first_of_two_rows_with_one_id_wins(log: EventLog) -> None:
    log.append(0, [sales("a")], producer="p", seq=0)
    log.seal(0, {"sale": [placed(sales("a", "b", "b")[1], [0, 1, 2])]}, 3, producer="l", seq=0)
    log.seal(0, {"sale": [placed(sales("b")[1], [0])]}, 1, producer="l", seq=1)
    for id, offset in (("a", 0), ("b", 2)):
        found = log.find(0, "sale", "t", id)
        assert found is not None
        assert found[0] == offset


# sealing


def test_a_repeated_seal_returns_its_range_and_takes_nothing(log: EventLog) -> None:
    log.append(0, [sales("a")], producer="p", seq=0)
    ordered, count, _ = history("srs", "h")
    assert log.sealed_range(0, "l", 7) is None
    assert log.seal(0, ordered, count, producer="l", seq=7) == (1, 4)
    assert log.seal(0, {"sale": untouched()}, count, producer="l", seq=7) == (1, 4)
    assert log.sealed_range(0, "l", 7) == (1, 4)
    assert log.sealed_range(1, "l", 7) is None
    assert log.sealed_range(0, "p", 0) is None
    with pytest.raises(Conflict):
        log.seal(0, {"sale": untouched()}, count + 1, producer="l", seq=7)
    assert log.end(0) == 4


BATCH = sales("a", "b", "c")[1]


@pytest.mark.parametrize(
    ("ordered", "count"),
    [
        ({"sale": [placed(BATCH, [0, 1, 2])]}, 4),
        ({"sale": [placed(BATCH, [0, 1, 3])]}, 3),
        ({"sale": [placed(BATCH, [-1, 0, 1])]}, 3),
        ({"sale": [placed(BATCH, [0, 2, 1])]}, 3),
        ({"sale": [placed(BATCH, [0, 1, 1])]}, 3),
        ({"sale": [placed(BATCH, [0, 1, 2]), placed(BATCH, [0, 1, 2])]}, 3),
        ({"sale": [placed(BATCH, [3, 4, 5]), placed(BATCH, [0, 1, 2])]}, 6),
        ({"sale": [placed(BATCH, [0, 1, 2])], "refund": [placed(BATCH, [2, 3, 4])]}, 5),
        ({"sale": []}, 1),
        ({}, 1),
    ],
    ids=[
        "missing", "beyond", "negative", "descending", "twice", "batch twice", "batches descend",
        "kinds overlap", "empty", "nothing",
    ],
)  # fmt: skip
def test_positions_that_are_not_each_once_are_refused(
    log: EventLog, ordered: dict[str, list[pa.RecordBatch]], count: int
) -> None:
    with pytest.raises(IntegrityError):
        log.seal(0, ordered, count, producer="l", seq=0)
    assert log.end(0) == 0
    assert log.find(0, "sale", "t", "a") is None
    assert log.seal(0, {"sale": [placed(BATCH, [0, 1, 2])]}, 3, producer="l", seq=0) == (0, 3)


@pytest.mark.parametrize(
    ("ordered", "count"),
    [
        ({"sale": [BATCH]}, 3),
        ({"sale": []}, 0),
        ({"sale": [placed(BATCH.drop_columns(["event_id"]), [0, 1, 2])]}, 3),
        ({"not/a kind": [placed(BATCH, [0, 1, 2])]}, 3),
    ],
    ids=["no position", "no rows", "no id", "kind"],
)
def test_history_that_is_wrongly_shaped_is_refused(
    log: EventLog, ordered: dict[str, list[pa.RecordBatch]], count: int
) -> None:
    with pytest.raises(UsageError):
        log.seal(0, ordered, count, producer="l", seq=0)
    assert log.end(0) == 0


def test_a_source_that_fails_leaves_nothing(log: EventLog, tmp_path: Path) -> None:
    def broken() -> Iterator[pa.RecordBatch]:
        yield placed(refunds("r")[1], [3])
        raise RuntimeError("the table ends here")

    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RuntimeError, match="ends here"):
        log.seal(
            0, {"sale": [placed(BATCH, [0, 1, 2])], "refund": broken()}, 5, producer="l", seq=0
        )
    assert log.end(0) == 0
    # All files but the lock of the sealed directory are as they were.
    assert {p.name for p in tmp_path.rglob("*")} - {p.name for p in before} <= {".lock"}


def test_a_seal_gives_way_to_an_append_that_came_first(log: EventLog) -> None:
    def batches() -> Iterator[pa.RecordBatch]:
        yield placed(BATCH, [0, 1, 2])
        log.append(0, [refunds("r")], producer="p", seq=0)

    with pytest.raises(Unavailable):
        log.seal(0, {"sale": batches()}, 3, producer="l", seq=0)
    assert rows_in(log) == rows_of([refunds("r")])
    assert log.seal(0, {"sale": [placed(BATCH, [0, 1, 2])]}, 3, producer="l", seq=0) == (1, 4)


# export


def exported_to(log: EventLog, kind: str, directory: Path, start: int, end: int) -> list[Path]:
    return [Path(p.url) for p in log.export(0, kind, Place.at(directory), start, end)]


def exported(paths: list[Path]) -> dict[int, dict[str, Any]]:
    rows: dict[int, dict[str, Any]] = {}
    for path in paths:
        table = pq.read_table(path)
        assert table.schema.names[0] == "offset"
        assert table.schema.field(0).type == pa.int64()
        for row in table.to_pylist():
            offset = row.pop("offset")
            assert offset > max(rows, default=-1)
            rows[offset] = row
    return rows


@pytest.fixture
def seamed(log: EventLog) -> tuple[EventLog, list[Row]]:
    """A log of live, sealed, live, sealed, live rows, and its model."""
    model: list[Row] = []
    for part, layout in enumerate(("srsss", "rrss")):
        batches = [sales(f"a{part}", f"b{part}"), verdicts(f"d{part}"), refunds(f"r{part}")]
        log.append(0, batches, producer="p", seq=part)
        ordered, count, rows = history(layout, f"h{part}-")
        log.seal(0, ordered, count, producer="l", seq=part)
        model += [*rows_of(batches), *rows]
    batches = [sales("y"), sales("z", schema=GROWN)]
    log.append(0, batches, producer="p", seq=2)
    return log, [*model, *rows_of(batches)]


@pytest.mark.parametrize("kind", ["sale", "refund", DECISION, "unknown"])
def test_an_export_of_any_range_holds_its_rows_once(
    seamed: tuple[EventLog, list[Row]], kind: str, tmp_path: Path
) -> None:
    log, model = seamed
    for start in range(len(model)):
        for end in (start, start + 1, start + 6, len(model) + 5):
            found = exported(exported_to(log, kind, tmp_path / "out", start, end))
            expected = {
                o: row for o, (k, row) in enumerate(model) if k == kind and start <= o < end
            }
            assert found.keys() == expected.keys()
            for offset, row in expected.items():
                assert {n: v for n, v in found[offset].items() if v is not None or n in row} == row


def test_an_exported_column_that_some_batches_lack_is_null_there(
    seamed: tuple[EventLog, list[Row]], tmp_path: Path
) -> None:
    log, model = seamed
    (path,) = exported_to(log, "sale", tmp_path, len(model) - 2, len(model))
    assert pq.read_table(path)["windows"].to_pylist() == [None, b"zz"]


def test_an_export_is_the_same_anywhere_and_is_not_made_twice(
    seamed: tuple[EventLog, list[Row]], tmp_path: Path
) -> None:
    log, model = seamed
    one = exported_to(log, "sale", tmp_path / "one", 0, len(model))
    two = exported_to(log, "sale", tmp_path / "two", 0, len(model))
    assert [p.name for p in one] == [p.name for p in two]
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]
    before = [(p, p.stat().st_mtime_ns, p.stat().st_ino) for p in one]
    assert exported_to(log, "sale", tmp_path / "one", 0, len(model)) == one
    assert [(p, p.stat().st_mtime_ns, p.stat().st_ino) for p in one] == before
    assert {p.suffix for p in (tmp_path / "one").iterdir()} == {".parquet"}


def test_a_log_is_told_from_any_other(log: EventLog, open_any: Open, tmp_path: Path) -> None:
    theirs = open_any(tmp_path / "another").id
    assert len({log.id, theirs}) == 2
    assert theirs.isalnum()
    assert open_any(tmp_path / "another").id == theirs


def test_batches_that_cannot_be_one_table_are_named(log: EventLog, tmp_path: Path) -> None:
    kind, batch = sales("a")
    text = batch.set_column(3, "amount", pa.array(["much"]))
    log.append(0, [(kind, batch.slice(0)), ("sale", sales("b")[1])], producer="p", seq=0)
    log.append(0, [(kind, text.set_column(1, "event_id", pa.array(["c"])))], producer="p", seq=1)
    with pytest.raises(IntegrityError, match="unify"):
        exported_to(log, "sale", tmp_path, 0, 10)
    assert list(tmp_path.glob("*.parquet*")) == []


# groups, counts, reopening


def test_a_group_keeps_its_last_offset_and_state(
    log: EventLog, open_log: Callable[[], EventLog]
) -> None:
    log.append(0, [sales("a", "b", "c")], producer="p", seq=0)
    assert log.committed("g", 0) is None
    log.commit("g", 0, 2, "state-2")
    log.commit("h", 0, 1, "other")
    log.commit("g", 0, 3, "state-3")
    again = open_log()
    assert again.committed("g", 0) == (3, "state-3")
    assert again.committed("h", 0) == (1, "other")
    assert again.committed("g", 1) is None
    for wrong in (4, -1):
        with pytest.raises(UsageError):
            log.commit("g", 0, wrong, "")


def test_counts_are_rows_by_kind_live_and_sealed(seamed: tuple[EventLog, list[Row]]) -> None:
    log, model = seamed
    expected: dict[str, int] = {}
    for kind, _ in model:
        expected[kind] = expected.get(kind, 0) + 1
    assert log.counts(0) == expected
    assert log.kinds(0) == sorted(expected)
    assert log.counts(1) == {}


def test_another_opening_sees_the_same_log(
    seamed: tuple[EventLog, list[Row]], open_log: Callable[[], EventLog]
) -> None:
    log, model = seamed
    epoch = log.begin_epoch(0)
    log.close()
    again = open_log()
    assert rows_in(again) == model
    again.append(0, [sales("new")], producer="p", seq=99, epoch=epoch)
    assert again.begin_epoch(0) == epoch + 1


def test_a_closed_log_says_so(log: EventLog) -> None:
    log.append(0, [sales("a")], producer="p", seq=0)
    log.close()
    log.close()
    with pytest.raises(Unavailable, match="closed"):
        log.end(0)


def test_threads_read_whole_appends_while_another_writes(log: EventLog) -> None:
    appends, readers = 60, 3
    failures: list[str] = []

    def read() -> None:
        offset = 0
        while offset < appends * 3:
            for chunk in log.read(0, offset, 10**6, wait_ms=60_000):
                if chunk.offsets[0] != offset or (chunk.kind == "sale") != (offset % 3 == 0):
                    failures.append(repr(chunk))
                offset += len(chunk)
            if offset % 3:
                failures.append(f"half an append is visible at {offset}")

    threads = [threading.Thread(target=read) for _ in range(readers)]
    for thread in threads:
        thread.start()
    for seq in range(appends):
        batches = [sales(f"a{seq}", f"b{seq}"), verdicts(f"d{seq}")]
        log.append(0, batches, producer="p", seq=seq)
    for thread in threads:
        thread.join(120)
    assert failures == []


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["append", "retry", "seal", "reopen"]),
        st.lists(st.integers(1, 4), min_size=1, max_size=3),
        st.text("sr", min_size=1, max_size=8),
    ),
    max_size=12,
)


def check_any_history(
    adapter: Open, directory: Path, steps: list[tuple[str, list[int], str]], data: st.DataObject
) -> None:
    log = adapter(directory)
    model: list[Row] = []
    last: tuple[Any, ...] | None = None
    for seq, (action, sizes, layout) in enumerate(steps):
        if action == "append":
            makers = [sales, refunds, verdicts]
            batches = [
                makers[b](*(f"{seq}-{b}-{i}" for i in range(n))) for b, n in enumerate(sizes)
            ]
            got = log.append(0, batches, producer="p", seq=seq)
            last = (batches, seq, [o.tolist() for o in got])
            model += rows_of(batches)
        elif action == "retry" and last:
            got = log.append(0, last[0], producer="p", seq=last[1])
            assert [o.tolist() for o in got] == last[2]
        elif action == "seal":
            ordered, count, rows = history(layout, f"{seq}-", step=sizes[0])
            span = log.seal(0, ordered, count, producer="l", seq=seq)
            assert span == (len(model), len(model) + count)
            model += rows
        elif action == "reopen":
            log.close()
            log = adapter(directory)
    offset = data.draw(st.integers(0, len(model)))
    limit = data.draw(st.integers(1, len(model) + 1))
    assert rows_in(log, offset, limit) == model[offset : offset + limit]
    for at, (kind, row) in enumerate(model):
        found = log.find(0, kind, "t", row.get("event_id") or row["decision_id"])
        assert found is not None
        assert (found[0], found[1].to_pylist()) == (at, [row])
    log.close()


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS, data=st.data())
def test_any_history_of_calls_equals_a_list_of_rows(
    steps: list[tuple[str, list[int], str]],
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    check_any_history(SqliteLog, tmp_path_factory.mktemp("any") / "log", steps, data)


# Fewer: an example makes topics, takes them over and waits for a broker at each step.
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS, data=st.data())
def test_any_history_of_calls_on_kafka_equals_a_list_of_rows(
    kafka: KafkaServer,
    steps: list[tuple[str, list[int], str]],
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    check_any_history(on_kafka(kafka), tmp_path_factory.mktemp("any") / "log", steps, data)


# the embedded adapter alone


def test_a_url_names_the_directory(tmp_path: Path) -> None:
    log = SqliteLog.open(f"sqlite:///{tmp_path}/log")
    assert log.directory == tmp_path / "log"
    log.close()
    for wrong in ("kafka://broker", "sqlite:", "log", "sqlite:///"):
        with pytest.raises(ConfigError):
            SqliteLog.open(wrong)


def test_colliding_hashes_never_confuse_two_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (live, writing, sqlite, identity):
        monkeypatch.setattr(
            module, "hash_keys", lambda kind, keys: np.full(len(keys[0]), 2**63 + 5, dtype="<u8")
        )
    log = SqliteLog(tmp_path)
    check_ids_are_compared(log)
    log.close()


def test_a_kind_with_two_schemas_in_turns_writes_each_schema_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every append after one of the other form would wait for a commit more."""
    log, written = SqliteLog(tmp_path), []
    encode = codec.encode_schema
    monkeypatch.setattr(codec, "encode_schema", lambda s: written.append(s) or encode(s))
    kind, alone = sales("a")
    bulk = alone.drop_columns([alone.schema.names[-1]])
    for seq in range(6):
        tenant = pa.array([f"t{seq}"])
        row = (alone, bulk)[seq % 2].set_column(0, alone.schema.field(0), tenant)
        log.append(0, [(kind, row)], producer="p", seq=seq)
    assert len(written) == 2
    log.close()


def test_sealed_files_are_cut_and_described_as_declared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "GROUP_ROWS", 4)
    monkeypatch.setattr(writing, "_FILE_GROUPS", 3)
    log = SqliteLog(tmp_path)
    ids = [f"i{n}" for n in range(30)]
    kind, batch = sales(*ids)
    grown = sales(*(f"g{n}" for n in range(5)), schema=GROWN)[1]
    parts = [placed(batch.slice(i, 7), range(i, min(i + 7, 30))) for i in range(0, 30, 7)]
    log.seal(0, {kind: [*parts, placed(grown, range(30, 35))]}, 35, producer="l", seq=0)
    paths = exported_to(log, kind, tmp_path / "out", 0, 35)
    assert [p.parent for p in paths] == [tmp_path / "sealed"] * 4
    sizes = [
        [
            pq.ParquetFile(p).metadata.row_group(g).num_rows
            for g in range(pq.ParquetFile(p).num_row_groups)
        ]
        for p in paths
    ]
    assert sizes == [[4, 4, 4], [4, 4, 4], [4, 2], [4, 1]]
    assert list(exported(paths)) == list(range(35))
    for offset in range(35):
        assert (
            rows_in(log, offset, 3) == rows_of([(kind, batch), (kind, grown)])[offset : offset + 3]
        )
    for n, id in enumerate(ids):
        found = log.find(0, kind, "t", id)
        assert found is not None
        assert found[0] == n
    log.close()


def test_exports_that_reach_further_reuse_their_full_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "STEP", 4)
    log = SqliteLog(tmp_path / "log")
    log.append(0, [sales(*(f"a{n}" for n in range(10)))], producer="p", seq=0)
    first = exported_to(log, "sale", tmp_path / "out", 0, 10)
    log.append(0, [sales(*(f"b{n}" for n in range(5)))], producer="p", seq=1)
    second = exported_to(log, "sale", tmp_path / "out", 0, 15)
    assert second[:2] == first[:2]
    assert list(exported(second)) == list(range(15))
    log.close()


def test_a_paused_reader_does_not_hold_the_write_ahead_log(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path)
    payload = "x" * 100_000
    log.append(0, [sales("first", "second")], producer="p", seq=0)
    paused = log.read(0, 0, 10**9)
    next(paused)
    sizes = []
    for seq in range(1, 601):
        log.append(0, [sales(f"{seq}{payload}")], producer="p", seq=seq)
        sizes.append((tmp_path / "log.db-wal").stat().st_size)
    # 60 MB went through; the checkpoints keep the file at a few thousand pages.
    assert max(sizes) < 25_000_000
    assert sum(len(c) for c in paused) == 600
    log.close()


def test_a_writer_that_never_ends_is_reported(tmp_path: Path) -> None:
    log, other = SqliteLog(tmp_path), SqliteLog(tmp_path, busy_timeout_ms=20)
    with log._db.write(), pytest.raises(Unavailable, match="another writer"):
        other.append(0, [sales("a")], producer="p", seq=0)
    other.append(0, [sales("a")], producer="p", seq=0)
    log.close()
    other.close()


def append_some(directory: str, producer: str, n: str) -> None:
    log = SqliteLog(Path(directory))
    for seq in range(int(n)):
        row = {"tenant": "t", "event_id": f"{producer}{seq}", "event_time": seq}
        log.append(0, [("sale", pa.RecordBatch.from_pylist([row]))], producer=producer, seq=seq)
    log.close()


def test_processes_start_write_and_wait_together(nursery: Nursery, tmp_path: Path) -> None:
    directory, writers, each = tmp_path / "log", 4, 25
    running = [nursery.start(append_some, directory, f"w{n}-", each) for n in range(writers)]
    log = SqliteLog(directory)
    rows: list[Row] = []
    while len(rows) < writers * each:
        for chunk in log.read(0, len(rows), 10**6, wait_ms=60_000):
            assert chunk.offsets[0] == len(rows)
            rows += rows_of([(chunk.kind, chunk.batch)])
    assert [p.wait() for p in running] == [0] * writers
    for n in range(writers):
        mine = [r["event_time"] for _, r in rows if r["event_id"].startswith(f"w{n}-")]
        assert mine == list(range(each))
    log.close()
