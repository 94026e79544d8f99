"""State files through DuckDB: the newest row of each key.

The order of two rows of one key is (event time, log offset).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from features.store import duck
from features.store.names import CREATED, TIMESTAMP, state_folder
from raypipe.errors import StageError
from raypipe.lake import Place
from raypipe.windows.spec import WindowView

if TYPE_CHECKING:
    import duckdb

MOMENT = pa.timestamp("us", tz="UTC")
"""Type of a time in feature files and of the rows of a point-in-time join."""


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

    con = duck.connect(spill=spill)
    files = state_folder(build, view).files()
    found = duck.scan(con, files) if files else con.from_arrow(_empty(view))
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
