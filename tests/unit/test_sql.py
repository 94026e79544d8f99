"""SQL shows a tenant its own rows, and neither writes nor reaches anything else."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from features import query
from features.builds import Build, Manifest
from features.query import Result
from features.store.names import at_event_folder, state_folder
from raypipe.cli._app import app
from raypipe.errors import Forbidden, NotFound, RaypipeError, StageError, UsageError
from raypipe.log.sqlite import SqliteLog
from tests.domains.greenhouse import project
from tests.unit import served_home as served

LIVE_MS = served.opening(served.HISTORY)["received_at"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    served.write(folder)
    build(folder)
    return folder


def build(home: Path) -> None:
    """Features of the view `valve`: its value is the row's offset. Of both tenants, as they are."""
    view = project.views[0]
    settings = served.settings(home)
    made = Build(
        settings.lake,
        Manifest(
            build="b-1",
            definition_hash=project.definition_hash,
            tenant="default",
            end_offset=0,
            rows=0,
            last_event_ms=0,
            views={"valve": view.definition_hash, "gardener": "of another declaration"},
            log="",
            partitions=1,
            rate=0.0,
            segments={},
            days=[],
            events={},
        ),
    )
    log = SqliteLog(home / "log")
    rows = [
        (int(offset), row)
        for chunk in log.read(0, 0, 10_000)
        if chunk.kind == "opening"
        for offset, row in zip(chunk.offsets, chunk.batch.to_pylist(), strict=True)
    ]
    log.close()
    times = pa.array([r["event_time"] * 1_000 for _, r in rows]).cast(pa.timestamp("us", "UTC"))
    offsets = pa.array([o for o, _ in rows], pa.int64())
    values = dict.fromkeys(view.column_names, offsets.cast(pa.float64()))
    at_event = {
        "offset": offsets,
        "event_id": [r["event_id"] for _, r in rows],
        "event_timestamp": times,
        **values,
        "newest_valve": offsets,
    }
    state = {
        "valve": [r["valve"] for _, r in rows],
        "event_timestamp": times,
        "created": offsets.cast(pa.timestamp("us")),
        **values,
    }
    for folder, table in (
        (at_event_folder(made.place, view), at_event),
        (state_folder(made.place, view), state),
    ):
        assert folder.local is not None
        folder.local.mkdir(parents=True)
        pq.write_table(pa.table(table), folder.local / "part-0000.parquet")
    made.publish()


def ask(home: Path, sql: str, tenant: str = "default", **options: Any) -> Result:
    settings = served.settings(home, tenant=tenant)
    return query.run(
        settings, sql, **{"limit": 1_000, "timeout_s": 60.0, "memory_mb": 512} | options
    )


def one(home: Path, sql: str, tenant: str = "default") -> Any:
    [[value]] = ask(home, sql, tenant).rows
    return value


# What it shows


def test_events_lie_in_tables_by_type(home: Path) -> None:
    count = served.HISTORY + served.LIVE
    assert one(home, "select count(*) from opening") == count
    total = sum(served.opening(i)["litres"] for i in range(count))
    assert one(home, "select sum(litres) from opening") == total
    assert one(home, "select count(*) from flood f join opening o on f.opening_id = o.event_id") > 0
    names = ask(home, "select * from opening limit 1").columns
    assert names == ("offset", *(f.name for f in project.event("opening").all_fields))


def test_decisions_show_every_field_of_the_record(home: Path, tmp_path: Path) -> None:
    [record] = [r for r in served.write(tmp_path) if r.event_id == "o-77"]
    result = ask(home, "select * from decisions where event_id = 'o-77'")
    [row] = [dict(zip(result.columns, row, strict=True)) for row in result.rows]
    # The other offsets are those of several workers, whose logs SQL doesn't read.
    assert set(row) == {*record.__struct_fields__, "offset"} - {"owner_offsets"}
    [reason] = row["reasons"]
    assert reason == {"code": "LITRES", "feature": "litres", "contribution": 0.25, "words": ""}
    assert row["rule_hits"] == ["review_threshold"]
    assert (row["event_offset"], row["score"]) == (record.event_offset, 0.5)
    assert len(row["features"]) == len(served.MODEL.features)
    # Twice in one query: the rows are read again.
    joined = "select count(*) from decisions a join decisions b using (decision_id)"
    assert one(home, joined) == served.LIVE


def test_features_of_the_last_build_join_events(home: Path) -> None:
    count = served.HISTORY + served.LIVE
    joined = 'select count(*) from opening join valve_at_event using ("offset", event_id)'
    assert one(home, joined) == count
    assert one(home, "select count(*) from valve_state") == count
    moment = one(home, "select event_timestamp from valve_at_event where event_id = 'o-1'")
    assert moment == "2026-09-21T14:14:20"


def test_missing_and_outdated_features_say_so(home: Path, tmp_path: Path) -> None:
    served.write(tmp_path)
    with pytest.raises(NotFound, match="no features"):
        ask(tmp_path, "select * from valve_state")
    with pytest.raises(NotFound, match="another declaration"):
        ask(home, "select * from gardener_state")


def test_numbers_that_json_lacks_and_times_become_plain(home: Path) -> None:
    result = ask(
        home,
        "select 'nan'::double, 1/0, 1.5::decimal(9, 2), 'ab'::blob, date '2026-01-02',"
        " {'a': [1, null]}, 170141183460469231731687303715884105727::hugeint",
    )
    row = [None, None, 1.5, "6162", "2026-01-02", {"a": [1, None]}, 2**127 - 1]
    assert result.rows == [row]


def test_a_limit_cuts_and_says_so(home: Path) -> None:
    assert ask(home, "select * from opening", limit=3).truncated
    exact = ask(home, "select * from opening limit 3", limit=3)
    assert (len(exact.rows), exact.truncated) == (3, False)


# Whose rows


@pytest.mark.parametrize(
    ("table", "count"), [("opening", served.LIVE), ("flood", 0), ("decisions", served.LIVE)]
)
@pytest.mark.parametrize(
    "condition", ["", " where tenant = 'default'", " where true or tenant = ''"]
)
def test_a_tenant_sees_its_own_rows_whatever_it_asks(
    home: Path, table: str, count: int, condition: str
) -> None:
    expected = 0 if "default" in condition else count
    assert one(home, f"select count(*) from {table}{condition}", "other") == expected
    tenants = ask(home, f"select distinct tenant from {table}", "other").rows
    assert tenants == [["other"]] * bool(count)
    assert ask(home, f"select distinct tenant from {table}", "nobody").rows == []


@pytest.mark.parametrize("table", ["valve_at_event", "valve_state"])
def test_feature_files_of_several_tenants_are_told_apart(home: Path, table: str) -> None:
    mine = {v for [v] in ask(home, f"select valve_count_2d from {table}", "other").rows}
    offsets = {float(o) for [o] in ask(home, 'select "offset" from opening', "other").rows}
    assert mine == offsets
    assert len(mine) == served.LIVE
    assert one(home, f"select count(*) from {table}", "nobody") == 0


# What it refuses


BEYOND = [
    "select * from read_csv('/etc/passwd')",
    "select * from read_text('/etc/passwd')",
    "select * from read_blob('{home}/api-key')",
    "select * from read_parquet('{home}/log/sealed/*.parquet')",
    "select * from '{home}/log/log.db'",
    "select * from glob('/etc/*')",
    "select * from sniff_csv('/etc/passwd')",
    "select * from parquet_metadata('{home}/features/b-1/state/valve/part-0000.parquet')",
    "select * from read_csv('https://example.com/x.csv')",
    "select * from which_secret('x', 's3')",
    "select * from query('copy opening to ''{home}/out.csv''')",
    "select * from enable_logging('QueryLog', storage='file', storage_path='{home}/out')",
    "select * from enable_profiling()",
    "select getenv('HOME')",
    "copy opening to '{home}/out.csv'",
    "copy (select 1) to '{home}/out.csv'",
    "export database '{home}/out'",
    "attach '{home}/out.db' as out",
    "attach '{home}/log/log.db' (type sqlite)",
    "install httpfs",
    "load httpfs",
    "set memory_limit = '64GB'",
    "set enable_external_access = true",
    "reset lock_configuration",
    "pragma database_list",
    "pragma memory_limit='9GB'",
    "create table t as select * from opening",
    "create view t as select 1",
    "create macro m() as 1",
    "drop view opening",
    "insert into opening select * from opening",
    "with w as (insert into opening select * from opening returning 1) select * from w",
    "delete from opening",
    "update opening set litres = 0",
    "call pragma_version()",
    "checkpoint",
    "begin",
    "rollback",
    "prepare p as select 1",
    "explain analyze select 1",
    "use system",
    "vacuum",
    "select 1; select 2",
    "select 1; copy opening to '{home}/out.csv'",
    "rollback; copy opening to '{home}/out.csv'",
    "",
    "-- nothing",
    "not sql",
    "select nothing from opening",
    "select * from openings",
    "select * from py_table",
    "select * from arrow_scan(1, 2, 3)",
    "select * from other.opening",
]


@pytest.mark.parametrize("sql", BEYOND)
def test_anything_but_a_select_over_the_tables_is_refused(home: Path, sql: str) -> None:
    py_table = pa.table({"secret": [1]})
    before = sorted(p.name for p in home.rglob("*"))
    with pytest.raises(RaypipeError) as e:
        ask(home, sql.replace("{home}", str(home)))
    assert isinstance(e.value, UsageError | Forbidden)
    assert e.value.detail
    assert sorted(p.name for p in home.rglob("*")) == before
    assert py_table.num_rows == 1


def test_time_and_memory_end(home: Path) -> None:
    with pytest.raises(StageError, match=r"longer than 0\.2 s"):
        ask(home, "select count(*) from range(1000000000000)", timeout_s=0.2)
    with pytest.raises(StageError, match="more than 64 MB"):
        ask(home, "select list(range) from range(1000000000)", memory_mb=64)


def test_what_memory_cannot_hold_spills_and_is_removed(home: Path) -> None:
    ordered = "select range r, row_number() over (order by hash(range)) n from range(6000000)"
    sql = f"select max(r) from ({ordered}) where n > 5"
    assert ask(home, sql, memory_mb=100).rows[0][0] > 5_999_000
    assert not list(home.glob(".rows-*"))


# The command


def call(home: Path, *arguments: str, code: int = 0) -> Any:
    given = ["--home", str(home), "--set", f"project={served.PROJECT}"]
    result = CliRunner().invoke(app, ["sql", *arguments, *given])
    assert result.exit_code == code, result.output
    return result


def test_every_format_holds_the_same_rows(home: Path) -> None:
    sql = "select event_id, gardener, litres from opening order by event_id limit 3"
    expected = [["o-0", None, 0], ["o-1", "g-1", 37], ["o-10", "g-1", 67]]
    found = json.loads(call(home, sql, "--json").stdout)
    assert found == {
        "columns": ["event_id", "gardener", "litres"],
        "rows": expected,
        "truncated": False,
    }
    assert json.loads(call(home, sql, "--format", "json").stdout) == found
    lines = call(home, sql, "--format", "ndjson").stdout.splitlines()
    assert [list(json.loads(line).values()) for line in lines] == expected
    read = list(csv.reader(io.StringIO(call(home, sql, "--format", "csv").stdout)))
    assert read == [
        ["event_id", "gardener", "litres"],
        ["o-0", "", "0"],
        *([e, g, str(n)] for e, g, n in expected[1:]),
    ]
    table = call(home, sql).stdout.splitlines()
    assert table[:2] == ["event_id  gardener  litres", "o-0       -         0"]


def test_a_cut_is_told_beside_the_rows(home: Path) -> None:
    cut = call(home, "select litres from opening", "--limit", "2", "--format", "csv")
    assert cut.stdout.count("\n") == 3
    assert "first 2 rows" in cut.stderr
    assert json.loads(call(home, "select 1 from flood", "--limit", "1", "--json").stdout)[
        "truncated"
    ]


def test_no_cell_moves_the_cursor(home: Path) -> None:
    shown = call(home, "select chr(27) || '[2J' || chr(10) || repeat('x', 200) as text").stdout
    assert "\x1b" not in shown
    assert len(shown.splitlines()) == 2
    assert max(map(len, shown.splitlines())) <= 60


def test_the_tables_are_listed_without_a_log(tmp_path: Path) -> None:
    found = json.loads(call(tmp_path, "--tables", "--json").stdout)["tables"]
    names = [t["table"] for t in found]
    assert names == [
        "opening", "flood",
        "valve_at_event", "valve_state", "gardener_at_event", "gardener_state",
        "floods_at_event", "floods_state",
        "decisions", "exposures",
    ]  # fmt: skip
    assert found[0]["columns"]["litres"] == "int64"
    assert "  litres " in call(tmp_path, "--tables").stdout
    call(tmp_path, code=2)
    call(tmp_path, "select 1", "--tables", code=2)
    call(tmp_path, "select * from opening", code=1)
