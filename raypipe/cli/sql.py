"""``raypipe sql``: ask the tenant's events, features and decisions."""

from __future__ import annotations

import json as json_
import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

from raypipe.cli import _options, _output, _stage
from raypipe.cli._options import Config, Home, Json, Quiet, Set
from raypipe.errors import UsageError

WIDEST = 60
"""Characters of a cell in a table."""


class Format(StrEnum):
    """How rows are written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    NDJSON = "ndjson"


def sql(
    query: Annotated[
        str | None, typer.Argument(metavar="QUERY", help="One SELECT, in DuckDB's SQL.")
    ] = None,
    tables: Annotated[
        bool, typer.Option("--tables", help="Only list the tables and their columns.")
    ] = False,
    format_: Annotated[
        Format,
        typer.Option("--format", metavar="FORMAT", help="table, csv, json (as --json) or ndjson."),
    ] = Format.TABLE,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, help="Most rows; a note tells of more.")
    ] = 1_000,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.1, help="Longest run.")
    ] = 60.0,
    memory: Annotated[
        int, typer.Option("--memory", metavar="MB", min=64, help="Most memory of the query.")
    ] = 1_024,
    json: Json = False,
    quiet: Quiet = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """Answer one SELECT over events, features and decisions.

    Sees the rows of the setting tenant alone, can change nothing and reaches no file. Also while
    the system serves. Times are milliseconds UTC: epoch_ms(event_time) makes a timestamp.
    """
    settings = _options.settings(home, config, set_)
    if tables == (query is not None):
        raise UsageError(
            "give a QUERY, or --tables", hint='raypipe sql "select count(*) from decisions"'
        )
    if query is None:
        _tables(_stage.call("features.query:tables", settings), as_json=json)
        return 0
    found = _stage.call(
        "features.query:run", settings, query, limit=limit, timeout_s=timeout, memory_mb=memory
    )
    _write(found, Format.JSON if json else format_)
    if found.truncated and not (json or quiet):
        sys.stderr.write(f"Only the first {limit:,} rows; --limit gives more.\n")
    return 0


def _tables(found: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    text = "\n\n".join(
        f"{t['table']}  {t['about']}\n"
        + "\n".join("  " + line for line in _output.table(*_columns(t)).splitlines()[1:])
        for t in found
    )
    _output.write({"tables": found}, as_json=as_json, text=text)


def _columns(table: dict[str, Any]) -> tuple[tuple[str, str], list[tuple[str, str]]]:
    return ("COLUMN", "TYPE"), list(table["columns"].items())


def _write(found: Any, format_: Format) -> None:
    match format_:
        case Format.JSON:
            _output.write_json(
                {"columns": found.columns, "rows": found.rows, "truncated": found.truncated}
            )
        case Format.NDJSON:
            for row in found.rows:
                _output.write_json(dict(zip(found.columns, row, strict=True)))
        case Format.CSV:
            _output.write_text(_csv(found))
        case Format.TABLE:
            rows = [[_cell(value) for value in row] for row in found.rows]
            _output.write_text(_output.table(found.columns, rows))


def _csv(found: Any) -> str:
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(found.columns)
    for row in found.rows:
        writer.writerow([_text(value) for value in row])
    return text.getvalue().removesuffix("\n")


def _text(value: Any) -> Any:
    return json_.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _cell(value: Any) -> str:
    text = "-" if value is None else str(_text(value))
    # No text of a row may move a terminal's cursor.
    text = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return text if len(text) <= WIDEST else text[: WIDEST - 1] + "…"
