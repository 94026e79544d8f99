"""``raypipe load``: bring any CSV or Parquet table into the event log."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raypipe.cli import _options, _output
from raypipe.cli._guard import PARTIAL
from raypipe.cli._options import Config, Home, Json, Quiet, Set

if TYPE_CHECKING:
    from raypipe.config import Settings
    from raypipe.events.load import LoadReport
    from raypipe.runtime.progress import Progress


def load(
    tables: Annotated[
        list[Path],
        typer.Argument(metavar="TABLE", help="CSV or Parquet files, or folders of one kind."),
    ],
    map_: Annotated[
        Path, typer.Option("--map", metavar="FILE", help="How columns become fields (TOML).")
    ],
    tenant: Annotated[
        str | None, typer.Option("--tenant", metavar="NAME", help="Whose events (setting tenant).")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """Load tables into the event log.

    Rows that break the schema are refused and kept (`raypipe quarantine list`). Loading the same
    tables again changes nothing. Exits with 3 if rows were refused.
    """
    settings = _options.settings(home, config, set_, tenant=tenant)
    report = run(settings, tables, map_, _options.progress(quiet))
    text = _summary(report, settings)
    _output.write({**asdict(report), "tenant": settings.tenant}, as_json=json, text=text)
    return PARTIAL if report.rejected else 0


def run(settings: Settings, tables: list[Path], mapping: Path, progress: Progress) -> LoadReport:
    """Load tables into the log of the settings, alone on its home folder."""
    from raypipe.events.load import load as load_tables
    from raypipe.events.mapping import read_mapping
    from raypipe.events.quarantine import QUARANTINE_FILE, Quarantine
    from raypipe.log.opening import open_log
    from raypipe.ownership.claim import require_one, require_single
    from raypipe.project import load_project
    from raypipe.runtime import running

    require_one(settings.workers, "`raypipe load`")
    project = load_project(settings.project)
    rules = read_mapping(mapping, project)
    with running.claim(settings.home, "load"), progress.stage("load", unit="rows") as stage:
        log = open_log(settings.log_url, settings.log_cache)
        quarantine = Quarantine(
            settings.home / QUARANTINE_FILE, limit_rows=settings.quarantine_limit_rows
        )
        try:
            require_single(log, "`raypipe load`")
            report = load_tables(
                log,
                project,
                tables,
                rules,
                tenant=settings.tenant,
                currency=settings.currency,
                quarantine=quarantine,
                staging_dir=settings.home / "staging",
                progress=lambda read, refused: stage.reach(read),
            )
        finally:
            quarantine.close()
            log.close()
        stage.say("loaded before" if report.already_loaded else f"{report.rejected:,} refused")
    return report


def _summary(report: LoadReport, settings: Settings) -> str:
    place = f"offsets {report.start:,} to {report.end:,} of {settings.log_place}"
    if report.already_loaded:
        return f"These tables are in the log already: {place}"
    lines = [f"accepted    {n:,} {event}" for event, n in report.accepted.items()]
    lines += [f"duplicates  {n:,} {event}" for event, n in report.duplicates.items() if n]
    lines.append(f"refused     {report.rejected:,}")
    lines += [f"            {n:,} {reason}" for reason, n in list(report.reasons.items())[:5]]
    return "\n".join([*lines, f"log         {place}"])
