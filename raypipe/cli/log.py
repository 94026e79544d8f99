"""``raypipe log``: upkeep of the embedded event log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raypipe.cli import _options, _output
from raypipe.cli._options import Config, Home, Json, Set
from raypipe.errors import NotFound

if TYPE_CHECKING:
    from raypipe.config import Settings
    from raypipe.log.sqlite import SqliteLog
    from raypipe.log.upkeep import Policy

app = typer.Typer(
    name="log",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Move old rows of the event log into Parquet, delete old events, show what it takes. "
    "All beside a running system.",
)
MB = 1_000_000


@app.command()
def status(json: Json = False, home: Home = None, config: Config = None, set_: Set = None) -> int:
    """Show rows, live and sealed sizes, first and last offset of each partition."""
    from dataclasses import asdict

    settings = _options.settings(home, config, set_)
    with _open(settings) as logs:
        found = [log.usage(partition) for log in logs for partition in log.partitions()]
        file = {"file_bytes": 0, "free_bytes": 0}
        for log in logs:
            file = {name: size + file[name] for name, size in log.file_bytes().items()}
    _output.write(
        {"log": settings.log_directory, "partitions": [asdict(u) for u in found], **file},
        as_json=json,
        text="\n\n".join(
            [
                *(_output.lines(_shown(asdict(u))) for u in found),
                f"database    {file['file_bytes'] / MB:,.1f} MB, "
                f"{file['free_bytes'] / MB:,.1f} of them free",
            ]
        ),
    )
    return 0


@app.command()
def compact(
    keep_rows: Annotated[
        int, typer.Option("--keep-rows", metavar="N", min=0, help="Newest rows that stay live.")
    ] = 100_000,
    keep_minutes: Annotated[
        float,
        typer.Option(
            "--keep-minutes", metavar="MIN", min=0, help="Rows that came so lately stay live."
        ),
    ] = 10.0,
    shrink: Annotated[
        bool, typer.Option("--shrink", help="Give all free pages of the database back.")
    ] = False,
    json: Json = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """Move live rows into sealed Parquet, under the same offsets; readers see no difference.

    A worker does this by itself every `log_compact_minutes`.
    """
    from dataclasses import replace

    settings = _options.settings(home, config, set_)
    rules = replace(
        _policy(settings),
        keep_rows=keep_rows,
        keep_ms=round(keep_minutes * 60_000),
        least_rows=1,
        retention_ms=None,
    )
    return _run(settings, rules, as_json=json, shrink=shrink)


@app.command()
def retain(
    days: Annotated[
        int | None,
        typer.Option("--days", metavar="N", min=1, help="Setting log_retention_days."),
    ] = None,
    json: Json = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """Delete events that are older than `log_retention_days`, in whole sealed ranges.

    Decisions, receipts and other records stay. Nothing goes that the worker's last snapshot needs.
    """
    from dataclasses import replace

    from raypipe.errors import UsageError

    settings = _options.settings(home, config, set_, log_retention_days=days)
    if settings.log_retention_days is None:
        raise UsageError(
            "events are kept for good: log_retention_days is unset", hint="Give --days N."
        )
    # Whatever is live stays live: that is another verb's.
    rules = replace(_policy(settings), keep_rows=2**62)
    return _run(settings, rules, as_json=json)


def _run(settings: Settings, rules: Policy, *, as_json: bool, shrink: bool = False) -> int:
    from dataclasses import asdict

    from raypipe.clock import SystemClock
    from raypipe.log.upkeep import upkeep

    with _open(settings) as logs:
        reports = [upkeep(log, p, rules, SystemClock()) for log in logs for p in log.partitions()]
        shrunk = sum(log.shrink(0, 3_600.0) for log in logs) if shrink else 0
    found = [asdict(r) for r in reports]
    if found:
        found[-1]["shrunk_bytes"] += shrunk
    text = "\n\n".join(_output.lines(_shown(r)) for r in found)
    _output.write({"partitions": found}, as_json=as_json, text=text or "The log has no rows.")
    return 0


def _policy(settings: Settings) -> Policy:
    from raypipe.project import load_project
    from raypipe.runtime.upkeep import rules_of

    return rules_of(settings, load_project(settings.project))


@contextmanager
def _open(settings: Settings) -> Iterator[list[SqliteLog]]:
    """The log of each partition: one of one worker, and then each has its own."""
    from raypipe.log.partitions import folder, partitions
    from raypipe.log.sqlite import SqliteLog

    if not settings.log_directory.is_dir():
        raise NotFound(
            f"there is no event log at {settings.log_directory}",
            hint="Bring events in first: `raypipe load`, or `raypipe up`.",
        )
    directory = settings.log_directory
    logs = [SqliteLog(folder(directory, partition)) for partition in partitions(directory)]
    try:
        yield logs
    finally:
        for log in logs:
            log.close()


def _shown(found: dict[str, Any]) -> dict[str, Any]:
    """For a person: megabytes, a date."""
    from datetime import UTC, datetime

    out: dict[str, Any] = {}
    for name, value in found.items():
        if name.endswith("_bytes"):
            out[name.removesuffix("_bytes")] = f"{value / MB:,.1f} MB"
        elif name == "oldest_event_ms":
            moment = None if value is None else datetime.fromtimestamp(value / 1000, UTC)
            out["oldest_event"] = None if moment is None else moment.isoformat(timespec="seconds")
        else:
            out[name] = value
    return out
