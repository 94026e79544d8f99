from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.payments import project
from raypipe.errors import UsageError
from raypipe.events.convert import convert
from raypipe.events.mapping import read_mapping
from raypipe.events.validate import validate
from raypipe.simulate import write as writing
from raypipe.simulate.write import Report, write
from tests.unit import simulate_kit as kit

DATA = ("transactions.parquet", "chargebacks.parquet", "truth/labels.parquet")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return write(kit.world(days=30), tmp_path_factory.mktemp("world"))


def test_the_files_hold_the_world(report: Report) -> None:
    expected = kit.joined(kit.world(days=30).batches())
    tables = (expected.transactions, expected.chargebacks, expected.labels)
    for name, table in zip(DATA, tables, strict=True):
        found = pq.read_table(report.directory / name)
        assert found.schema.equals(table.schema), name
        assert found.equals(table), name


def test_equal_worlds_make_equal_bytes(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = write(kit.world(days=30), tmp_path / "again")
    assert again.hash == report.hash
    for name in (*DATA, "world.json", "load.toml"):
        assert (again.directory / name).read_bytes() == (report.directory / name).read_bytes()
    assert write(kit.world(days=30, seed=8), tmp_path / "other").hash != report.hash


def test_the_size_of_batches_does_not_change_the_bytes(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rechunked(self: Any, rows_per_batch: int) -> Any:
        return original(self, 777)

    original = writing.World.batches
    monkeypatch.setattr(writing, "ROW_GROUP", 2_000)
    expected = write(kit.world(days=30), tmp_path / "expected")
    monkeypatch.setattr(writing.World, "batches", rechunked)
    found = write(kit.world(days=30), tmp_path / "found")
    assert found.hash == expected.hash
    sizes = pq.ParquetFile(found.directory / DATA[0]).metadata
    groups = [sizes.row_group(i).num_rows for i in range(sizes.num_row_groups)]
    assert set(groups[:-1]) == {2_000}


def test_the_report_counts_what_was_written(report: Report) -> None:
    rows = pq.read_table(report.directory / DATA[0])
    labels = pq.read_table(report.directory / DATA[2])
    counts = report.counts
    assert counts.transactions == len(rows) == len(labels)
    assert counts.chargebacks == pq.read_metadata(report.directory / DATA[1]).num_rows
    assert counts.frauds == sum(labels["is_fraud"].to_pylist())
    delay = rows["received_at"].to_numpy() - rows["event_time"].to_numpy()
    assert counts.late == (delay >= 120_000).sum()
    assert counts.first_ms == min(rows["event_time"].to_pylist())
    assert counts.last_ms == max(rows["event_time"].to_pylist())


def test_world_json_tells_what_made_the_files_and_their_checksums(report: Report) -> None:
    told = json.loads((report.directory / "world.json").read_text())
    config = kit.config(days=30)
    assert told["seed"] == config.seed
    assert told["config"] == {**config.describe(), "end_ms": config.end_ms}
    assert told["counts"] == report.counts.describe()
    assert told["hash"] == report.hash
    for name in DATA:
        content = (report.directory / name).read_bytes()
        assert told["files"][name] == hashlib.sha256(content).hexdigest()


def test_the_mapping_file_loads_every_row_without_a_refusal(report: Report) -> None:
    mapping = read_mapping(report.directory / "load.toml", project)
    assert [(s.event.name, s.table) for s in mapping.streams] == [
        ("transaction", "transactions"),
        ("chargeback", "chargebacks"),
    ]
    for stream in mapping.streams:
        table = pq.read_table(report.directory / f"{stream.table}.parquet")
        converted = convert(stream, table, "EUR")
        assert not converted.failures
        validated = validate(
            stream.event, converted.table, tenant="default", currency="EUR", received_at=None
        )
        assert validated.rejected.num_rows == 0
        came = pa.table(validated.accepted.columns, names=stream.event.arrow_schema.names)
        for name in table.column_names:
            assert came[name].to_pylist() == table[name].to_pylist()


def test_progress_counts_up_to_the_rows(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    world = kit.world()
    report = write(world, tmp_path, lambda done, total: calls.append((done, total)))
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1] == (report.counts.transactions, world.config.expected_rows)


def test_an_earlier_world_is_replaced_and_strange_files_stay(
    report: Report, tmp_path: Path
) -> None:
    out = tmp_path / "world"
    shutil.copytree(report.directory, out)
    (out / "notes.txt").write_text("mine")
    again = write(kit.world(days=3), out)
    assert again.counts.transactions == pq.read_metadata(out / DATA[0]).num_rows
    assert (out / "notes.txt").read_text() == "mine"


def test_a_world_that_was_broken_off_has_no_world_json(report: Report, tmp_path: Path) -> None:
    out = tmp_path / "world"
    shutil.copytree(report.directory, out)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(kit.world(), out, stop)
    assert not (out / "world.json").exists()


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UsageError, match="taken"):
        write(kit.world(), tmp_path / "taken")


def test_the_truth_lies_apart(report: Report) -> None:
    above = {p.name for p in report.directory.iterdir() if p.is_file()}
    assert above == {"transactions.parquet", "chargebacks.parquet", "load.toml", "world.json"}
    for name in DATA[:2]:
        names = pq.read_schema(report.directory / name).names
        assert not {"is_fraud", "campaign_id", "kind"} & set(names)
