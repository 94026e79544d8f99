"""Parity finds what was planted, says why, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from features import parity
from features.parity_report import Cause, Report, last
from raypipe.errors import NotFound, UsageError
from raypipe.ledger.record import DecisionRecord
from raypipe.log.sqlite import SqliteLog
from tests.unit import served_home as served

VICTIM = "o-101"
"""Neither late nor without a gardener."""


def measure(home: Path, **options: object) -> Report:
    names = {"flooding@1": served.MODEL.features}
    return parity.run(served.settings(home), names.get, **{"keys": 100} | options)


def plant(home: Path, event_id: str, **changes: object) -> list[DecisionRecord]:
    """A log in which one decision has a bit turned over and other fields changed."""

    def change(record: DecisionRecord) -> DecisionRecord:
        if record.event_id != event_id:
            return record
        return replace(served.flipped(record, "valve_count_2d"), **changes)

    return served.write(home, change)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("untouched")
    served.write(home)
    return home


def test_what_was_served_is_what_the_batch_path_computes(untouched: Path) -> None:
    report = measure(untouched)
    assert (report.decisions, report.compared) == (served.LIVE, served.LIVE)
    assert (report.version, report.featureless, report.broken) == (0, 0, 0)
    assert set(report.mismatches.values()) == {0}
    assert not report.failed
    assert {f.feature: f.compared for f in report.features} == dict.fromkeys(
        served.MODEL.features, served.LIVE
    )
    assert any(served.late(f"o-{i}") for i in range(served.HISTORY, served.HISTORY + served.LIVE))
    assert last(served.settings(untouched).lake) == report


def test_fewer_keys_and_a_later_start_leave_decisions_out(untouched: Path) -> None:
    two = measure(untouched, keys=2)
    assert (two.keys, two.entity, two.compared) == (2, "valve", 2 * served.LIVE // 5)
    middle = served.opening(120)["received_at"]
    assert measure(untouched, since_ms=middle).decisions == served.HISTORY + served.LIVE - 120
    assert measure(untouched, entity="gardener").keys == 3
    assert measure(untouched, keys=2).features == two.features


def test_it_runs_beside_the_writer_and_leaves_nothing_behind(untouched: Path) -> None:
    log = SqliteLog(untouched / "log")
    before = log.end(0)
    assert measure(untouched).end_offset == before
    assert log.end(0) == before
    assert not list(untouched.glob(".rows-*"))


def test_one_turned_bit_is_found_by_feature_event_and_time(tmp_path: Path) -> None:
    records = plant(tmp_path, VICTIM)
    report = measure(tmp_path)
    assert report.failed
    assert report.mismatches == {Cause.LATE: 0, Cause.WORKER_AWAY: 0, Cause.UNEXPLAINED: 1}
    [found] = [f for f in report.features if f.mismatches]
    [example] = found.examples
    time = next(r.event_time for r in records if r.event_id == VICTIM)
    assert (found.feature, found.mismatches) == ("valve_count_2d", {Cause.UNEXPLAINED: 1})
    assert (found.first_time, found.last_time, example.event_time) == (time, time, time)
    assert (example.event_id, example.cause) == (VICTIM, Cause.UNEXPLAINED)
    assert example.served is not None
    assert example.recomputed is not None
    assert 0 < abs(example.served - example.recomputed) < 1e-5


def test_a_late_or_degraded_decision_explains_its_difference(tmp_path: Path) -> None:
    tardy = next(f"o-{i}" for i in range(served.HISTORY, 150) if served.late(f"o-{i}"))
    plant(tmp_path / "late", tardy)
    report = measure(tmp_path / "late")
    assert (report.mismatches[Cause.LATE], report.failed) == (1, False)
    plant(tmp_path / "away", VICTIM, degraded=True)
    report = measure(tmp_path / "away")
    assert (report.mismatches[Cause.WORKER_AWAY], report.failed) == (1, False)


def test_another_definition_or_model_is_counted_and_not_compared(tmp_path: Path) -> None:
    plant(tmp_path / "hash", VICTIM, definition_hash="0" * 64)
    plant(tmp_path / "model", VICTIM, model="flooding@gone")
    for home in (tmp_path / "hash", tmp_path / "model"):
        report = measure(home)
        assert (report.version, report.compared) == (1, served.LIVE - 1)
        assert set(report.mismatches.values()) == {0}
        assert not report.failed


def test_damaged_records_fail_and_empty_ones_are_counted(tmp_path: Path) -> None:
    plant(tmp_path / "empty", VICTIM, features=b"", degraded=True)
    report = measure(tmp_path / "empty")
    assert (report.featureless, report.failed) == (1, False)
    plant(tmp_path / "short", VICTIM, features=bytes(8))
    report = measure(tmp_path / "short")
    assert (report.broken, report.failed) == (1, True)


def test_a_record_of_another_event_than_the_one_at_its_offset_fails(tmp_path: Path) -> None:
    records = served.write(tmp_path)
    [mine] = [r for r in records if r.event_id == VICTIM]
    moved = replace(mine, event_offset=mine.event_offset + 5)
    found = _compare(tmp_path, [moved])
    assert (found["broken"], found["compared"]) == (1, 0)


def _compare(home: Path, records: list[DecisionRecord]) -> dict:
    settings = served.settings(home)
    with (
        parity.open_log(settings, served.project) as files,
        parity.connect(served.project, files) as con,
    ):
        reader = parity.Reader(con, served.project)
        return parity.compare(
            served.project,
            reader,
            settings.lake,
            records,
            {"flooding@1": served.MODEL.features}.get,
        )


def test_without_decisions_there_is_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no event log"):
        measure(tmp_path)
    SqliteLog(tmp_path / "log").close()
    report = measure(tmp_path)
    assert (report.decisions, report.compared, report.features) == (0, 0, ())


def test_an_entity_without_windows_is_refused(untouched: Path) -> None:
    with pytest.raises(UsageError, match="'shed'") as e:
        measure(untouched, entity="shed")
    assert "valve, gardener" in e.value.hint
