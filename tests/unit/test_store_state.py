"""As-of joins and newest rows over state files, against plain Python."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.store.state import as_of, connect, newer_rows
from features.store.written import SCHEMA
from raypipe.errors import StageError, UsageError
from raypipe.lake import Place
from raypipe.windows.spec import WindowView, count, mean, since_last, spans

VIEW = WindowView(
    "plot", "plot", "reading", "plot_id", (count(), mean("heat"), since_last()), spans("1h/1m")
)
COLUMNS = VIEW.column_names
UTC_US = pa.timestamp("us", tz="UTC")
SECOND = 1_000
HOUR = 3_600 * SECOND
NOW = 1_750_000_000_000

Row = tuple[str | None, int, int]
"""key, milliseconds, offset"""


def values_of(offset: int) -> list[float]:
    return [math.nan if (offset + i) % 5 == 0 else offset * 10.0 + i for i in range(len(COLUMNS))]


def write(home: Path, *parts: list[Row], columns: tuple[str, ...] = COLUMNS) -> None:
    folder = home / "state" / VIEW.name
    folder.mkdir(parents=True)
    for n, rows in enumerate(parts):
        table = {
            "plot_id": pa.array([r[0] for r in rows], pa.string()),
            "event_timestamp": pa.array([r[1] * 1_000 for r in rows], pa.int64()).cast(UTC_US),
            "created": pa.array([r[2] for r in rows], pa.int64()).cast(pa.timestamp("us")),
        }
        for i, name in enumerate(columns):
            table[name] = pa.array([values_of(r[2])[i] for r in rows], pa.float64())
        pq.write_table(pa.table(table), folder / f"part-{n:04d}.parquet")


def ask(keys: list[str | None], times: list[int]) -> pa.Table:
    return pa.table(
        {
            "plot_id": pa.array(keys, pa.string()),
            "event_timestamp": pa.array([t * 1_000 for t in times], pa.int64()).cast(UTC_US),
            "tag": pa.array(range(len(keys)), pa.int32()),
        }
    )


def expected(rows: list[Row], key: str | None, time: int) -> tuple[int, list[float]]:
    seen = [r for r in rows if key is not None and r[0] == key and r[1] <= time]
    newest = max(seen, key=lambda r: (r[1], r[2]), default=None)
    if newest is None or time - newest[1] > HOUR:
        return -1, [math.nan] * len(COLUMNS)
    return newest[2], values_of(newest[2])


def joined(build: Path, asked: pa.Table) -> pa.Table:
    return as_of(Place.at(build), VIEW, asked, build / "spill")


def check(home: Path, rows: list[Row], asked: pa.Table) -> None:
    got = joined(home, asked)
    assert got.column_names == [*asked.column_names, *COLUMNS, "newest_plot"]
    assert got.select(asked.column_names).equals(asked)
    for i, key in enumerate(asked.column("plot_id").to_pylist()):
        time = asked.column("event_timestamp").cast(pa.int64())[i].as_py() // 1_000
        newest, values = expected(rows, key, time)
        assert got.column("newest_plot")[i].as_py() == newest
        np.testing.assert_array_equal([got.column(c)[i].as_py() for c in COLUMNS], values)


def newest(
    home: Path, end: int, written: list[tuple[str, int, int]] | None = None, batch: int = 100
) -> list[tuple[str, int, int]]:
    columns = zip(*written, strict=True) if written else ([], [], [])
    table = pa.table([pa.array(c, t) for c, t in zip(columns, SCHEMA.types, strict=True)], SCHEMA)
    con = connect(Place.at(home), VIEW, home / "spill")
    got = newer_rows(con, VIEW, table, end, batch).read_all()
    con.close()
    assert got.column_names == ["key", "time", "offset", *COLUMNS]
    return list(zip(*(got.column(c).to_pylist() for c in ("key", "time", "offset")), strict=True))


def test_as_of_join_equals_plain_python_on_random_rows_with_ties_and_late_rows(
    tmp_path: Path,
) -> None:
    random = np.random.default_rng(7)
    size = 600
    rows: list[Row] = [
        (f"p{k}", NOW + int(t) * 600 * SECOND, i)
        for i, (k, t) in enumerate(
            zip(random.integers(0, 9, size), random.integers(0, 60, size), strict=True)
        )
    ]
    assert len({r[:2] for r in rows}) < size  # there are ties
    write(tmp_path, rows[:200], rows[200:])
    times = NOW + random.integers(-10, 80, 400) * 300 * SECOND
    keys: list[str | None] = [f"p{k}" for k in random.integers(0, 12, 400)]
    keys[5] = keys[6] = None
    check(tmp_path, rows, ask(keys + keys[:50], [*times.tolist(), *times[:50].tolist()]))


def test_as_of_horizon_is_inclusive_to_the_millisecond(tmp_path: Path) -> None:
    rows: list[Row] = [("a", NOW, 3)]
    write(tmp_path, rows)
    asked = ask(["a"] * 4, [NOW - 1, NOW, NOW + HOUR, NOW + HOUR + 1])
    check(tmp_path, rows, asked)
    assert joined(tmp_path, asked).column("newest_plot").to_pylist() == [-1, 3, 3, -1]


def test_without_files_or_rows_nothing_is_known(tmp_path: Path) -> None:
    asked = ask(["a", None], [NOW, NOW])
    check(tmp_path, [], asked)
    assert newest(tmp_path, NOW) == []
    write(tmp_path, [])
    check(tmp_path, [], asked)
    check(tmp_path, [], asked.slice(0, 0))
    assert newest(tmp_path, NOW) == []


def test_as_of_refuses_rows_that_it_would_read_wrongly(tmp_path: Path) -> None:
    asked = ask(["a"], [NOW])
    naive = asked.column("event_timestamp").cast(pa.timestamp("us"))
    with pytest.raises(UsageError, match="event_timestamp"):
        joined(tmp_path, asked.set_column(1, "event_timestamp", naive))
    with pytest.raises(UsageError, match="plot_id"):
        joined(tmp_path, asked.drop_columns(["plot_id"]))
    with pytest.raises(UsageError, match=COLUMNS[0]):
        joined(tmp_path, asked.append_column(COLUMNS[0], asked.column("tag")))


def test_files_of_another_declaration_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path, [("a", NOW, 0)], columns=COLUMNS[:1])
    with pytest.raises(StageError, match="view 'plot'"):
        joined(tmp_path, ask(["a"], [NOW]))


def test_newest_row_of_a_key_is_by_time_then_offset(tmp_path: Path) -> None:
    write(
        tmp_path,
        [("a", NOW, 1), ("b", NOW - 5, 2), ("a", NOW, 7), (None, NOW, 9)],
        [("a", NOW - 1, 8), ("b", NOW - 5, 3), ("c", NOW + 1, 4)],
    )
    assert newest(tmp_path, NOW) == [("a", NOW * 1_000, 7), ("b", (NOW - 5) * 1_000, 3)]


def test_newest_row_is_left_out_when_it_is_written_or_too_old_to_count(tmp_path: Path) -> None:
    write(tmp_path, [("a", NOW, 1), ("b", NOW, 2), ("c", NOW - HOUR, 3), ("d", NOW - HOUR - 1, 4)])
    us = NOW * 1_000
    assert [k for k, _, _ in newest(tmp_path, NOW)] == ["a", "b", "c"]
    assert [k for k, _, _ in newest(tmp_path, NOW, [("a", us, 1)])] == ["b", "c"]
    assert [k for k, _, _ in newest(tmp_path, NOW, [("a", us, 0), ("b", us + 1, 0)])] == ["a", "c"]
    assert [k for k, _, _ in newest(tmp_path, NOW, [("a", us, 5), ("b", us - 1, 9)])] == ["b", "c"]


def test_newest_rows_come_by_key_in_batches(tmp_path: Path) -> None:
    write(tmp_path, [(f"k{i:03d}", NOW, i) for i in range(250)])
    con = connect(Place.at(tmp_path), VIEW, tmp_path / "spill")
    batches = list(newer_rows(con, VIEW, SCHEMA.empty_table(), NOW, 100))
    con.close()
    keys = [k for b in batches for k in b.column("key").to_pylist()]
    assert keys == [f"k{i:03d}" for i in range(250)]
    assert max(len(b) for b in batches) <= 100
