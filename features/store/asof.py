"""Point-in-time joins: to each row what a view knew of its key at the row's time. By DuckDB's ASOF.

Every row comes back once and in its place. A view's row counts for a time when it is not later,
not older than the TTL and, with ``known_only``, was there by then (its ``created`` is not later).
Of several, the one with the newest time counts, then with the newest ``created``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from features.store.duck import scan
from features.store.names import TIMESTAMP
from features.store.state import MOMENT, quoted
from raypipe.errors import StageError, UsageError
from raypipe.lake import Place

if TYPE_CHECKING:
    import duckdb
    import ray.data

ROWS_PER_TASK = 250_000
"""Rows that one task of a join on Ray holds, with their results."""

_HALF = 2**63
_WHOLE = 2**64
_EVER = 2**61
"""Microseconds: later than any time."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Source:
    """The rows of one view, in Parquet, and what is wanted of them."""

    view: str
    files: tuple[Place, ...]
    keys: tuple[str, ...]
    columns: tuple[str, ...]
    ttl_us: int = 0
    """Microseconds; 0 for no end."""
    created: str | None = None
    """Column of when a row was there."""
    timeless: bool = False
    """Rows are found by key alone, whatever their time is."""


def join(
    rows: pa.Table,
    sources: Sequence[Source],
    *,
    known_only: bool = True,
    few: bool = False,
    spill: Path | None = None,
) -> pa.Table:
    """The rows with the wanted columns of every source, null where nothing is known.

    Args:
        rows: the key columns of all sources and ``event_timestamp`` (timestamp[us, UTC]), which
            may be left out where every source is timeless. Null keys are unknown keys.
        known_only: whether ``created`` must not be later than the row's time; else it only
            decides between rows of one time.
        few: the rows have few of the sources' keys: the others are passed over first.
        spill: local folder for what memory can't hold.

    Returns:
        the rows as they are, then the columns of each source in the types of its files.

    Raises:
        UsageError: a needed column is missing or of another type, or a result's name is taken.
        StageError: a source has no files, or not the wanted columns.
    """
    import duckdb

    _check(rows, sources)
    with duckdb.connect(config={"temp_directory": str(spill)} if spill else {}) as con:
        con.execute("SET enable_progress_bar = false")
        # Every answer is sorted by position: an order before that is work for nothing.
        con.execute("SET preserve_insertion_order = false")
        for source in sources:
            found = _join_one(con, rows, source, known_only, few)
            for name in source.columns:
                rows = rows.append_column(name, found.column(name))
    return rows


def join_on_ray(
    rows: ray.data.Dataset,
    sources: Sequence[Source],
    *,
    known_only: bool = True,
    rows_per_task: int = ROWS_PER_TASK,
) -> ray.data.Dataset:
    """:func:`join` of more rows than memory holds: some at a time, each batch a task.

    A task reads of the sources only the keys of its rows, up to its newest time.
    """
    work = partial(_join_batch, sources=tuple(sources), known_only=known_only)
    return rows.map_batches(
        work, batch_size=rows_per_task, batch_format="pyarrow", zero_copy_batch=True
    )


def _join_batch(rows: pa.Table, sources: Sequence[Source], known_only: bool) -> pa.Table:
    return join(rows, sources, known_only=known_only, few=True)


def _check(rows: pa.Table, sources: Sequence[Source]) -> None:
    wanted = {k: pa.string() for s in sources for k in s.keys}
    if not all(s.timeless for s in sources):
        wanted[TIMESTAMP] = MOMENT
    for name, kind in wanted.items():
        found = rows.schema.field(name).type if name in rows.column_names else None
        if found != kind and not (name != TIMESTAMP and found is not None):
            raise UsageError(
                f"the rows of a point-in-time join need a column {name} of {kind}, not {found}"
            )
    names = [*rows.column_names, *(c for s in sources for c in s.columns)]
    doubled = sorted({n for n in names if names.count(n) > 1})
    if doubled:
        raise UsageError(f"a point-in-time join would have the columns {doubled} twice")
    for source in sources:
        if not source.files:
            raise StageError(
                f"view {source.view!r} has no files", hint="`raypipe features` computes them."
            )


def _join_one(
    con: duckdb.DuckDBPyConnection, rows: pa.Table, source: Source, known_only: bool, few: bool
) -> pa.Table:
    import duckdb

    asked = {"_position": pa.array(np.arange(rows.num_rows))}
    asked |= {f"_k{i}": rows.column(k) for i, k in enumerate(source.keys)}
    if source.timeless:
        asked["_t"] = pa.array(np.full(rows.num_rows, _EVER))
    else:
        asked["_t"] = rows.column(TIMESTAMP).cast(pa.int64())
    con.register("asked", pa.table(asked))
    scan(con, source.files).create_view("files", replace=True)
    try:
        known, order = _known(con, source, known_only, few)
        return con.sql(_statement(source, known, order)).to_arrow_table()
    except duckdb.BinderException as e:
        raise StageError(
            f"the files of view {source.view!r} are not of today's declaration: {e}",
            hint="`raypipe features` computes them again.",
        ) from e


def _known(
    con: duckdb.DuckDBPyConnection, source: Source, known_only: bool, few: bool
) -> tuple[str, str]:
    """SQL of the rows that may count, with their time ``at``, and of their order within a key."""
    keys = [f"_k{i}" for i in range(len(source.keys))]
    named = ", ".join(f"{quoted(c)} AS {k}" for c, k in zip(source.keys, keys, strict=True))
    columns = "".join(f", {quoted(c)}" for c in source.columns)
    made = f"epoch_us({quoted(source.created)})" if source.created else "0"
    known = f"SELECT epoch_us({TIMESTAMP}) AS _at, {made} AS _made, {named}{columns} FROM files"  # noqa: S608
    known += " WHERE " + ("true" if source.timeless else _between(con, source))
    if few:
        theirs, ours = ", ".join(map(quoted, source.keys)), ", ".join(keys)
        known += f" AND ({theirs}) IN (SELECT ({ours}) FROM asked)"  # noqa: S608
    if source.created is None or not known_only:
        return known, _order("_at", f"coalesce(_made, {-_EVER})")
    known += " AND _made IS NOT NULL"
    lags = con.sql(f"SELECT min(_made - _at), max(_made - _at) FROM ({known})")  # noqa: S608
    ((least, most),) = lags.fetchall()
    if least is None or most <= 0 or least == most:
        # Who is newer was also there later: one order serves both.
        return known, _order("greatest(_at, _made)", "_made")
    # A row that comes in when a newer one is there already never counts.
    turn = f"PARTITION BY {', '.join(keys)} ORDER BY greatest(_at, _made), _at, _made"
    known = f"""
        SELECT * EXCLUDE (_newer), row_number() OVER ({turn}) AS _turn FROM (
          SELECT *, max(row(_at, _made)) OVER ({turn} ROWS BETWEEN UNBOUNDED PRECEDING
            AND 1 PRECEDING) AS _newer FROM ({known})
        ) WHERE _newer IS NULL OR row(_at, _made) > _newer
    """  # noqa: S608
    return known, _order("greatest(_at, _made)", "_turn")


def _between(con: duckdb.DuckDBPyConnection, source: Source) -> str:
    """Times outside of which no row counts: whole row groups need not be read."""
    ((oldest, newest),) = con.sql("SELECT min(_t), max(_t) FROM asked").fetchall()
    if newest is None:
        return "false"
    found = f"{TIMESTAMP} <= '{_moment(newest)}'::TIMESTAMPTZ"
    if source.ttl_us:
        found += f" AND {TIMESTAMP} >= '{_moment(oldest - source.ttl_us)}'::TIMESTAMPTZ"
    return found


def _moment(microseconds: int) -> str:
    return (_EPOCH + timedelta(microseconds=microseconds)).isoformat()


def _order(first: str, second: str) -> str:
    """One number that orders by two: ASOF compares only one."""
    return f"({first})::HUGEINT * {_WHOLE} + ({second})::HUGEINT + {_HALF}"


def _statement(source: Source, known: str, order: str) -> str:
    same = " AND ".join(f"asked._k{i} = known._k{i}" for i in range(len(source.keys)))
    wanted = [f"known.{quoted(c)}" for c in source.columns]
    if source.ttl_us:
        wanted = [f"CASE WHEN asked._t - known._at <= {source.ttl_us} THEN {c} END" for c in wanted]
    columns = "".join(
        f", {sql} AS {quoted(name)}" for sql, name in zip(wanted, source.columns, strict=True)
    )
    return f"""
        SELECT _position{columns}
        FROM asked ASOF LEFT JOIN (SELECT *, {order} AS _place FROM ({known})) known
          ON {same} AND asked._t::HUGEINT * {_WHOLE} + {_WHOLE - 1} >= known._place
        ORDER BY _position
    """  # noqa: S608 - names come from the registry
