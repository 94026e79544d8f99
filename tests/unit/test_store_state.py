"""Newest rows over state files."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from features.store.names import state_folder
from features.store.state import connect, newer_rows
from features.store.written import SCHEMA
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
    folder = Path(state_folder(Place.at(home), VIEW).url)
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
