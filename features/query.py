"""Read-only SQL over what one tenant has: one SELECT, in a DuckDB that can reach nothing else.

The connection is in memory and knows the tenant's tables alone. Before the query runs, files,
networks, extensions and its own settings are closed to it and its transaction can't write.
"""

from __future__ import annotations

import datetime
import decimal
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from features.log_files import open_log
from features.store import duck
from features.tables import Table, Tables, declared
from raypipe.errors import Forbidden, RaypipeError, StageError, UsageError
from raypipe.project import load_project

if TYPE_CHECKING:
    import duckdb

    from raypipe.config import Settings

_CLOSED = (
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET allow_community_extensions = false",
    "SET python_enable_replacements = false",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
    "BEGIN TRANSACTION READ ONLY",
)


class Result(msgspec.Struct, frozen=True):
    """Rows of plain data: numbers, text, booleans, None, lists, mappings."""

    columns: tuple[str, ...]
    rows: list[list[Any]]
    truncated: bool
    """There were more rows than the limit."""


def tables(settings: Settings) -> list[dict[str, Any]]:
    """Every table with what it holds and its columns by name."""
    return [
        {
            "table": t.name,
            "about": t.about,
            "columns": {f.name: str(f.type) for f in t.schema},
        }
        for t in declared(load_project(settings.project)).values()
    ]


def run(settings: Settings, sql: str, *, limit: int, timeout_s: float, memory_mb: int) -> Result:
    """The rows of one SELECT over the settings' tenant, at most ``limit``.

    Raises UsageError for what is no single SELECT or names what isn't there, Forbidden for what
    reaches beyond the tables, StageError when time or memory are up.
    """
    project = load_project(settings.project)
    known = declared(project)
    statement = _only_select(sql)
    text = sql.lower()
    with (
        open_log(settings, project) as files,
        duck.connect(memory=f"{memory_mb}MB", spill=files.spill) as con,
    ):
        opened = Tables(project, files, settings.lake)
        for table in known.values():
            if table.name.lower() in text:  # what isn't named isn't read
                con.register(table.name, opened.open(table))
        for closing in _CLOSED:
            con.execute(closing)
        with _within(con, timeout_s, memory_mb, known):
            con.execute(statement)
            columns = tuple(name for name, *_ in con.description or ())
            found = con.fetchmany(limit + 1)
    rows = [[_plain(value) for value in row] for row in found[:limit]]
    return Result(columns, rows, len(found) > limit)


def _only_select(sql: str) -> duckdb.Statement:
    import duckdb

    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as e:
        raise UsageError(str(e), hint="One SELECT is expected.") from e
    if len(statements) != 1:
        raise UsageError(f"{len(statements)} statements were given", hint="One SELECT is expected.")
    kind = statements[0].type
    if kind != duckdb.StatementType.SELECT:
        raise UsageError(f"{kind.name} is not allowed", hint="Only SELECT reads, and nothing else.")
    return statements[0]


@contextmanager
def _within(
    con: duckdb.DuckDBPyConnection, timeout_s: float, memory_mb: int, known: Mapping[str, Table]
) -> Iterator[None]:
    """End the block's query after a time, and say DuckDB's errors in our words."""
    import duckdb

    timer = threading.Timer(timeout_s, con.interrupt)
    timer.start()
    try:
        yield
    except duckdb.InterruptException:
        raise StageError(
            f"the query took longer than {timeout_s:g} s", hint="Ask for less, or --timeout more."
        ) from None
    except duckdb.OutOfMemoryException:
        raise StageError(
            f"the query needs more than {memory_mb} MB", hint="Ask for less, or --memory more."
        ) from None
    except duckdb.PermissionException as e:
        raise Forbidden(f"{e}", hint="SQL sees tables alone: " + ", ".join(known)) from None
    except duckdb.CatalogException as e:
        raise UsageError(f"{e}", hint="`raypipe sql --tables` lists: " + ", ".join(known)) from None
    except duckdb.Error as e:
        raise _own(e) or UsageError(f"{e}") from None
    finally:
        timer.cancel()


def _own(error: BaseException) -> RaypipeError | None:
    """The error of ours that was raised while DuckDB scanned our rows."""
    cause = error.__cause__ or error.__context__
    return cause if isinstance(cause, RaypipeError) else None


def _plain(value: Any) -> Any:
    """A value of DuckDB's as JSON knows it: times in ISO 8601, bytes in hexadecimal."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case decimal.Decimal():
            return float(value)
        case bytes() | bytearray() | memoryview():
            return bytes(value).hex()
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case list() | tuple():
            return [_plain(v) for v in value]
        case dict():
            return {str(k): _plain(v) for k, v in value.items()}
    return str(value)
