"""Loading tables into the real log: order, duplicates, quarantine, once and only once."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from raypipe.clock import DAY_MS, ManualClock
from raypipe.errors import ConfigError, MalformedBody, Unavailable, UsageError
from raypipe.events import merge, tables
from raypipe.events.load import LoadReport, load
from raypipe.events.quarantine import Quarantine
from raypipe.log.sqlite import SqliteLog
from tests.recovery.nursery import Nursery
from tests.unit.events_kit import DISPUTES, PROJECT, SALES, mapping

T = 1_700_000_000_000
NOW = T + 30 * DAY_MS


class Home:
    """A log, a quarantine and a staging folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log = SqliteLog(root / "log")
        self.quarantine = Quarantine(root / "quarantine.db")

    def load(self, *paths: Path, text: str = SALES + DISPUTES, **options: Any) -> LoadReport:
        return load(
            self.log,
            PROJECT,
            list(paths),
            mapping(text),
            tenant=options.pop("tenant", "default"),
            currency="EUR",
            quarantine=self.quarantine,
            staging_dir=self.root / "staging",
            clock=options.pop("clock", ManualClock(NOW)),
            **options,
        )

    def events(self) -> list[tuple[int, str, dict[str, Any]]]:
        found = [
            (int(offset), chunk.kind, row)
            for chunk in self.log.read(0, 0, 1_000_000)
            for offset, row in zip(chunk.offsets, chunk.batch.to_pylist(), strict=True)
        ]
        return sorted(found, key=lambda event: event[0])

    def ids(self) -> list[str]:
        return [row["event_id"] for _, _, row in self.events()]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def sales(*rows: tuple[int, int, float, int]) -> pa.Table:
    """Rows of (id, seconds after T, amount, fraud)."""
    ids, at, amounts, frauds = zip(*rows, strict=True) if rows else ((), (), (), ())
    return pa.table(
        {
            "ID": pa.array(ids, pa.int64()),
            "AT": pa.array([T + 1000 * s for s in at], pa.int64()),
            "CARD": pa.array(["card"] * len(ids), pa.string()),
            "AMOUNT": pa.array(amounts, pa.float64()),
            "FRAUD": pa.array(frauds, pa.int8()),
        }
    )


def parquet(path: Path, table: pa.Table) -> Path:
    pq.write_table(table, path)
    return path


def as_csv(path: Path, table: pa.Table) -> Path:
    times = table["AT"].cast(pa.timestamp("ms"))
    pa.csv.write_csv(table.set_column(1, "AT", times), path)
    return path


WEEK = 7 * 86_400


@pytest.mark.parametrize("write", [parquet, as_csv], ids=["parquet", "csv"])
def test_sales_and_their_disputes_enter_in_order_of_arrival(
    home: Home, tmp_path: Path, write: Callable[[Path, pa.Table], Path]
) -> None:
    given = sales((3, WEEK + 5, 1.5, 0), (1, 0, 57.16, 1), (2, 10, 2.0, 1), (4, 5, 3.0, 0))
    path = write(tmp_path / ("t.csv" if write is as_csv else "t.parquet"), given)
    report = home.load(path)
    events = home.events()
    assert [(offset, kind, row["event_id"]) for offset, kind, row in events] == [
        (0, "sale", "s1"),
        (1, "sale", "s4"),
        (2, "sale", "s2"),
        (3, "dispute", "d1"),
        (4, "sale", "s3"),
        (5, "dispute", "d2"),
    ]
    first, dispute = events[0][2], events[3][2]
    assert (first["amount"], first["currency"], first["tenant"]) == (5716, "EUR", "default")
    assert first["received_at"] == first["event_time"] == T
    assert (dispute["sale_id"], dispute["event_time"]) == ("s1", T + 7 * DAY_MS)
    assert (report.start, report.end, report.read, report.rejected) == (0, 6, 4, 0)
    assert report.accepted == {"sale": 4, "dispute": 2}
    assert not report.already_loaded


def test_equal_times_are_ordered_by_id_and_then_by_declaration(home: Home, tmp_path: Path) -> None:
    same = SALES + DISPUTES.replace('shift = "7d"', "").replace('prefix = "d"', 'prefix = "s"')
    home.load(parquet(tmp_path / "t.parquet", sales((2, 0, 1, 1), (1, 0, 1, 1))), text=same)
    assert [(kind, row["event_id"]) for _, kind, row in home.events()] == [
        ("sale", "s1"),
        ("dispute", "s1"),
        ("sale", "s2"),
        ("dispute", "s2"),
    ]


def test_mapped_arrival_times_decide_the_order(home: Home, tmp_path: Path) -> None:
    table = sales((1, 0, 1, 0), (2, 1, 1, 0), (3, 2, 1, 0)).append_column(
        "GOT", pa.array([T + 9_000, T + 8_000, T + 8_000])
    )
    text = SALES + 'received_at = "GOT"\n'
    home.load(parquet(tmp_path / "t.parquet", table), text=text)
    assert home.ids() == ["s2", "s3", "s1"]


def test_of_rows_with_one_id_the_first_to_arrive_stays(home: Home, tmp_path: Path) -> None:
    table = sales((1, 50, 3.0, 0), (1, 10, 2.0, 0), (1, 10, 1.0, 0), (2, 0, 1.0, 0))
    report = home.load(parquet(tmp_path / "t.parquet", table))
    assert [(r["event_id"], r["amount"]) for _, _, r in home.events()] == [("s2", 100), ("s1", 200)]
    assert report.duplicates == {"sale": 2}
    assert report.accepted == {"sale": 2}
    assert home.log.end(0) == report.end == 2


def test_an_id_may_serve_two_event_types(home: Home, tmp_path: Path) -> None:
    same = SALES + DISPUTES.replace('prefix = "d"', 'prefix = "s"')
    report = home.load(parquet(tmp_path / "t.parquet", sales((1, 0, 1, 1))), text=same)
    assert report.duplicates == {}
    assert home.ids() == ["s1", "s1"]


def test_refused_rows_go_to_quarantine_with_every_reason_counted(
    home: Home, tmp_path: Path
) -> None:
    table = sales((1, 0, -5.0, 0), (2, 0, float("nan"), 0), (3, 0, 0.001, 1), (4, 0, 1, 0))
    seen: list[tuple[int, int]] = []
    report = home.load(
        parquet(tmp_path / "t.parquet", table), progress=lambda *done: seen.append(done)
    )
    assert home.ids() == ["s4"]
    assert (report.read, report.rejected) == (4, 4)
    whole = "/amount: must be a number, and whole in minor units unless the mapping says"
    assert report.reasons == {
        f"{whole} `round = true`": 2,
        "/amount: must be at least 0": 1,
        "/amount: is required": 1,
    }
    assert home.quarantine.counts() == {
        "sale": report.reasons | {f"{whole} `round = true`": 1},
        "dispute": {f"{whole} `round = true`": 1},
    }
    assert seen[-1] == (4, 4)
    kept = [(r.event_type, r.body) for r in home.quarantine.rows()]
    assert ("sale", f'{{"ID": 1, "AT": {T}, "CARD": "card", "AMOUNT": -5.0}}') in kept
    disputed = f'{{"ID": 3, "AT": {T}, "CARD": "card", "AMOUNT": 0.001, "FRAUD": 1}}'
    assert [body for kind, body in kept if kind == "dispute"] == [disputed]
    assert home.quarantine.rows()[0].source.endswith(" t")


def test_what_is_not_known_yet_is_refused(home: Home, tmp_path: Path) -> None:
    table = sales((1, 0, 1, 1), (2, -WEEK, 1, 1), (3, 1, 1, 0))
    report = home.load(parquet(tmp_path / "t.parquet", table), clock=ManualClock(T))
    assert home.ids() == ["s2", "d2", "s1"] or home.ids() == ["s2", "s1", "d2"]
    assert report.reasons == {"/received_at: must not lie in the future": 2}


def test_broken_lines_bad_bytes_and_controls_cost_their_row_alone(
    home: Home, tmp_path: Path
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(
        b"ID,AT,CARD,AMOUNT\n"
        b"1,2023-11-14T22:13:20Z,ok,1.00\n"
        b"2,2023-11-14T22:13:20Z,bad\xff,1.00\n"
        b"3,2023-11-14T22:13:20Z\n"
        b"4,yesterday,ok,1.00\n"
        b"5,2023-11-14T22:13:20Z,a\x00b,1.00\n"
        b"6,2023-11-14T22:13:20Z,,1.00\n"
    )
    report = home.load(path, text=SALES)
    assert home.ids() == ["s1"]
    assert (report.read, report.rejected) == (6, 5)
    assert home.quarantine.counts() == {
        "": {"/: has 2 values, the header names 4": 1},
        "sale": {
            "/card: is required": 1,
            "/card: must be valid UTF-8": 1,
            "/card: must not hold control characters": 1,
            "/event_time: must be ISO 8601, and a time that the clocks of UTC showed exactly once"
            " (see `ambiguous`)": 1,
        },
    }


def test_the_same_load_again_writes_nothing_and_says_so(home: Home, tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", sales((1, 0, 1, 1), (2, 0, -1, 0)))
    first = home.load(path)
    renamed = path.rename(tmp_path / "same-content.parquet")
    again = home.load(renamed, text="# other words, same meaning\n" + SALES + DISPUTES)
    assert again.already_loaded
    assert (again.load_id, again.start, again.end) == (first.load_id, first.start, first.end)
    assert home.log.end(0) == 2
    assert len(home.quarantine) == 1


def test_other_content_another_mapping_or_another_tenant_is_another_load(
    home: Home, tmp_path: Path
) -> None:
    path = parquet(tmp_path / "t.parquet", sales((1, 0, 1, 0)))
    ids = {home.load(path).load_id}
    ids.add(home.load(path, tenant="acme").load_id)
    ids.add(home.load(path, text=SALES.replace('prefix = "s"', 'prefix = "x"')).load_id)
    ids.add(home.load(parquet(tmp_path / "u.parquet", sales((2, 0, 1, 0)))).load_id)
    assert len(ids) == 4
    assert home.log.end(0) == 4


def test_streams_name_their_tables(home: Home, tmp_path: Path) -> None:
    one = parquet(tmp_path / "one.parquet", sales((1, 5, 1, 0)))
    two = as_csv(tmp_path / "two.csv", sales((2, 0, 1, 1)))
    text = SALES.replace("[stream.columns]", 'table = "one"\n[stream.columns]')
    text += DISPUTES.replace("[stream.columns]", 'table = "two"\n[stream.columns]')
    report = home.load(one, two, text=text)
    assert home.ids() == ["s1", "d2"]
    assert report.read == 2


def test_tables_and_streams_that_do_not_meet_are_refused(home: Home, tmp_path: Path) -> None:
    one = parquet(tmp_path / "one.parquet", sales((1, 0, 1, 0)))
    two = parquet(tmp_path / "two.parquet", sales((1, 0, 1, 0)))
    named = SALES.replace("[stream.columns]", 'table = "one"\n[stream.columns]')
    with pytest.raises(ConfigError, match="must name its `table`: 2 are given"):
        home.load(one, two)
    with pytest.raises(ConfigError, match=r"no stream for .* two"):
        home.load(one, two, text=named)
    with pytest.raises(ConfigError, match="table 'one', which is not among"):
        home.load(two, text=named)
    (tmp_path / "deep").mkdir()
    with pytest.raises(UsageError, match="same name"):
        home.load(one, parquet(tmp_path / "deep" / "one.parquet", sales()), text=named)
    assert home.log.end(0) == 0


def test_a_table_without_acceptable_rows_is_reported_and_leaves_no_range(
    home: Home, tmp_path: Path
) -> None:
    path = parquet(tmp_path / "t.parquet", sales((1, 0, -1, 0)))
    for _ in range(2):
        report = home.load(path)
        assert (report.start, report.end, report.rejected) == (0, 0, 1)
        assert not report.already_loaded
    assert len(home.quarantine) == 1
    assert home.load(parquet(tmp_path / "u.parquet", sales())).read == 0


def test_many_chunks_give_what_one_chunk_gives(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [(i * 7919 % 500, i * 104_729 % 1000, i % 11 - 1, int(i % 3 == 0)) for i in range(700)]
    path = parquet(tmp_path / "t.parquet", sales(*rows))
    whole = Home(tmp_path / "whole")
    expected = whole.load(path)
    monkeypatch.setattr(tables.SourceTable.chunks, "__defaults__", (64,))
    monkeypatch.setattr(merge, "_BATCH_ROWS", 50)
    calls: list[tuple[int, int]] = []
    report = home.load(path, progress=lambda *done: calls.append(done))
    assert len(calls) == 11
    assert report == expected
    assert home.events() == whole.events()
    assert sum(report.duplicates.values()) > 0


def test_a_failed_load_leaves_the_log_as_it_was(home: Home, tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", sales(*((i, i, 1, 0) for i in range(1000))))
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + b"\x00" * 2000 + whole[2004:])
    with pytest.raises(MalformedBody, match=r"t\.parquet can't be read"):
        home.load(path)
    assert home.log.end(0) == 0
    path.write_bytes(whole)
    assert home.load(path).end == 1000


def test_a_staging_folder_that_can_not_be_used_is_named(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parquet(tmp_path / "t.parquet", sales((1, 0, 1, 0)))
    with monkeypatch.context() as m:
        m.setattr(merge.Staging, "_staged", lambda self, kind: tmp_path / "none" / "x.parquet")
        with pytest.raises(Unavailable, match=r"staging.load"):
            home.load(path)
    with monkeypatch.context() as m:
        m.setattr(merge, "_SORT", "COPY (SELECT 1) TO $1 (FORMAT nothing)")
        with pytest.raises(Unavailable, match=r"staging.load"):
            home.load(path)
    assert home.log.end(0) == 0
    assert home.load(path).end == 1


def test_one_load_at_a_time(home: Home, tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", sales((1, 0, 1, 0)))
    (home.root / "staging").mkdir()
    with (home.root / "staging" / "load.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="another load"):
            home.load(path)
    assert home.load(path).end == 1


def load_once(root: str, path: str) -> None:
    Home(Path(root)).load(Path(path))


@pytest.mark.parametrize(
    "point",
    [
        "load.staged",
        "load.merged",
        "log.seal.after_temp_write",
        "log.seal.before_manifest",
        "log.seal.after_manifest",
        "load.sealed",
    ],
)
def test_a_load_killed_anywhere_is_whole_after_the_next_try(
    nursery: Nursery, home: Home, tmp_path: Path, point: str
) -> None:
    path = parquet(tmp_path / "t.parquet", sales((1, 0, 1, 1), (2, 0, -1, 0), (3, 1, 1, 0)))
    killed = nursery.finish(load_once, home.root, path, env={"RAYPIPE_ABORT_AT": point})
    assert killed.status == -9, killed.err
    visible = home.log.end(0)
    assert visible in (0, 3)
    report = home.load(path)
    assert report.already_loaded == (visible == 3)
    assert home.ids() == ["s1", "s3", "d1"]
    assert len(home.quarantine) == 1
    assert not (home.root / "staging" / "load").exists()
