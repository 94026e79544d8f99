"""State files through DuckDB: the newest row of each key, and as-of joins.

The order of two rows of one key is (event time, log offset).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from features.store.duck import scan
from features.store.names import CREATED, TIMESTAMP, newest_column, state_folder
from raypipe.errors import StageError, UsageError
from raypipe.lake import Place
from raypipe.windows.spec import WindowView

if TYPE_CHECKING:
    import duckdb

MOMENT = pa.timestamp("us", tz="UTC")
"""Type of a time in feature files and of the rows of an as-of join."""


def quoted(name: str) -> str:
    """An SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def connect(build: Place, view: WindowView, spill: Path) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with the view's state files as table `state`; without files, no rows.

    Columns: `key` (text), `time` (int64 microseconds), `"offset"` (int64), the view's columns.

    Args:
        build: folder of a build of the features.
        spill: local folder for what memory can't hold.

    Raises:
        StageError: the files don't have the declared columns.
    """
    import duckdb

    con = duckdb.connect(config={"temp_directory": str(spill)})
    con.execute("SET enable_progress_bar = false")
    files = state_folder(build, view.name).files()
    found = scan(con, files) if files else con.from_arrow(_empty(view))
    values = "".join(f", {quoted(c)}::DOUBLE AS {quoted(c)}" for c in view.column_names)
    try:
        found.project(
            f"{quoted(view.key)} AS key, epoch_us({TIMESTAMP}) AS time,"
            f' epoch_us({CREATED}) AS "offset"{values}'
        ).create_view("state")
    except duckdb.BinderException as e:
        con.close()
        raise StageError(
            f"state files of view {view.name!r} are not of today's declaration: {e}",
            hint="`raypipe features` computes them again.",
        ) from e
    return con


def _empty(view: WindowView) -> pa.Table:
    columns = {view.key: pa.string(), TIMESTAMP: MOMENT, CREATED: pa.timestamp("us")}
    columns |= dict.fromkeys(view.column_names, pa.float64())
    return pa.schema(list(columns.items())).empty_table()


def newer_rows(
    con: duckdb.DuckDBPyConnection, view: WindowView, written: pa.Table, end: int, batch: int
) -> pa.RecordBatchReader:
    """The newest row of each key up to a time, where it is newer than what is written.

    Args:
        con: from :func:`connect`.
        written: key, time (microseconds), offset of what is there already.
        end: milliseconds, inclusive. Rows older than the view's horizon at that time are left out.
        batch: rows per batch.

    Returns:
        batches of key, time, offset and the view's columns, by key.
    """
    con.register("written", written)
    return con.sql(
        """
        WITH newest AS (
          SELECT key, max(row(time, "offset")) AS place FROM state
          WHERE time <= $end GROUP BY key
        )
        SELECT state.* FROM newest
        JOIN state ON state.key = newest.key AND row(state.time, state."offset") = newest.place
        LEFT JOIN written ON written.key = newest.key
        WHERE state.time >= $start AND (
          written.key IS NULL OR newest.place > row(written.time, written."offset")
        )
        ORDER BY state.key
        """,
        params={"end": end * 1_000, "start": (end - view.horizon * 1_000) * 1_000},
    ).to_arrow_reader(batch)


def as_of(build: Place, view: WindowView, rows: pa.Table, spill: Path) -> pa.Table:
    """Each row with the view's newest state at or before its time, if within the horizon.

    The join sees event time only: whoever trains on it must compare ``newest_<view>`` with the
    offset of the row's own event.

    Args:
        build: folder of a build of the features.
        rows: has the view's key column and `event_timestamp` (timestamp[us, UTC]).
        spill: local folder for what memory can't hold.

    Returns:
        the rows in their order, plus the view's columns (float64, NaN where nothing is known) and
        ``newest_<view>`` (int64 log offset of the state, -1 for none).

    Raises:
        UsageError: a needed column is missing or has another type, or a result's name is taken.
        StageError: the state files don't have the declared columns.
    """
    for name, kind in ((view.key, pa.string()), (TIMESTAMP, MOMENT)):
        if name not in rows.column_names or rows.schema.field(name).type != kind:
            raise UsageError(f"as-of join of view {view.name!r} needs a column {name} of {kind}")
    names = (*view.column_names, newest_column(view.name))
    taken = sorted(set(names) & set(rows.column_names))
    if taken:
        raise UsageError(f"as-of join of view {view.name!r} would overwrite columns {taken}")
    asked = pa.table(
        {
            "position": pa.array(range(rows.num_rows), pa.int64()),
            "key": rows.column(view.key),
            "time": rows.column(TIMESTAMP).cast(pa.int64()),
        }
    )
    alive = "asked.time - known.time <= $horizon"
    values = "".join(
        f", CASE WHEN {alive} THEN known.{quoted(c)} ELSE 'nan'::DOUBLE END AS {quoted(c)}"
        for c in view.column_names
    )
    con = connect(build, view, spill)
    con.register("asked", asked)
    joined: pa.Table = con.sql(
        f"""
        WITH known AS (
          SELECT * FROM state QUALIFY
            row_number() OVER (PARTITION BY key, time ORDER BY "offset" DESC) = 1
        )
        SELECT CASE WHEN {alive} THEN known."offset" ELSE -1 END
          AS {quoted(newest_column(view.name))}{values}
        FROM asked ASOF LEFT JOIN known ON asked.key = known.key AND asked.time >= known.time
        ORDER BY asked.position
        """,  # noqa: S608 -- names come from the declaration, values are parameters
        params={"horizon": view.horizon * 1_000_000},
    ).to_arrow_table()
    con.close()
    for name in names:
        rows = rows.append_column(name, joined.column(name))
    return rows
