"""``raypipe patterns``: check pattern files, list them, try them over history."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from raypipe.cli import _options, _output, _stage
from raypipe.cli._options import Config, Home, Json, Quiet, Set

app = typer.Typer(
    name="patterns",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Check event patterns, list them, and try them over the history of the log.",
)
Files = Annotated[list[Path], typer.Argument(metavar="FILE", help="Pattern files (YAML).")]
MOST_DAYS = 31
"""Days that a table of alerts shows; --json has all."""


@app.command()
def lint(
    files: Files,
    json: Json = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """Check pattern files against the event types of the project.

    Names the file and the line of each finding, what is wrong and the nearest valid name. Exits
    with 1 if there is one.
    """
    settings = _options.settings(home, config, set_)
    from dataclasses import asdict

    from raypipe.patterns.files import lint as check
    from raypipe.project import load_project

    patterns, findings = check(files, load_project(settings.project).events)
    texts = [f"{f.detail}\n  {f.hint}".rstrip() for f in findings]
    summary = f"Patterns that can run: {len(patterns)}. Findings: {len(findings)}."
    _output.write(
        {
            "ok": not findings,
            "patterns": [p.name for p in patterns],
            "findings": [asdict(f) for f in findings],
        },
        as_json=json,
        text="\n".join([*texts, summary]),
    )
    return 1 if findings else 0


@app.command("list")
def list_(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE", help="Pattern files [those beside the project]."),
    ] = None,
    json: Json = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """List the patterns of the project, or of some files, in words."""
    settings = _options.settings(home, config, set_)
    from raypipe.patterns.files import project_files, runnable
    from raypipe.project import load_project

    found = files or project_files(settings.project)
    patterns = runnable(found, load_project(settings.project))
    rows = [
        (
            p.name,
            p.version,
            p.severity,
            ", ".join(dict.fromkeys(column for _, column in p.keys)),
            " -> ".join(_step(s) for s in p.steps),
            _duration(p.within_ms),
            p.owner or "-",
        )
        for p in patterns
    ]
    header = ("PATTERN", "VERSION", "SEVERITY", "BY", "STEPS", "WITHIN", "OWNER")
    described = [
        p.describe() | {"definition_hash": p.definition_hash, "file": p.place.file}
        for p in patterns
    ]
    text = _output.table(header, rows) if rows else f"{settings.project} has no patterns."
    _output.write({"patterns": described}, as_json=json, text=text)
    return 0


@app.command("test")
def try_(
    files: Files,
    since: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="TIME", help="7d before the newest event, or 2026-03-01 [all]."
        ),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="As --since [the newest event].")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=0, help="Alerts to show, the first ones.")
    ] = 10,
    json: Json = False,
    quiet: Quiet = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """Show what patterns would have found in the history of the log.

    Reads the setting tenant's events, also while the system serves, and writes nothing. Matches
    that began before --since count if they ended after it.
    """
    settings = _options.settings(home, config, set_)
    report = _stage.call(
        "features.dry_run:run",
        settings,
        _options.progress(quiet),
        files,
        since=since,
        until=until,
        limit=limit,
    )
    import msgspec

    _output.write(msgspec.to_builtins(report), as_json=json, text=_text(report))
    return 0


@app.command()
def reload(
    json: Json = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """Have the running worker read its pattern files again.

    The files are those of the setting `patterns`, else those beside the project. Patterns that did
    not change keep their state, the others start empty. Nothing changes if one of them is wrong.
    Works on the machine that the worker runs on.
    """
    settings = _options.settings(home, config, set_)
    from raypipe.patterns.files import pattern_files, runnable
    from raypipe.project import load_project
    from raypipe.runtime.worker import local

    patterns = runnable(pattern_files(settings), load_project(settings.project))
    for partition in range(settings.workers):
        names = local.ask(settings.home, lambda worker: worker.use_patterns(patterns), partition)
    _output.write(
        {"patterns": names},
        as_json=json,
        text=f"{len(names)} patterns run: {', '.join(names)}." if names else "No pattern runs.",
    )
    return 0


def _step(step: Any) -> str:
    often = "" if step.least == 1 else f" x{step.least}"
    return f"{'no ' if step.negated else ''}{step.name}{often}"


def _duration(ms: int) -> str:
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)):
        if ms % size == 0:
            return f"{ms // size}{unit}"
    return f"{ms}ms"


def _text(report: Any) -> str:
    header = ("PATTERN", "SEVERITY", "ALERTS", "KEYS", "DROPPED")
    rows = [(p.pattern, p.severity, f"{p.alerts:,}", p.keys, p.dropped) for p in report.patterns]
    parts = [
        f"{report.events:,} events that arrived from {report.since} to {report.until}",
        _output.table(header, rows),
    ]
    days = sorted({day for p in report.patterns for day in p.days})
    fired = [p for p in report.patterns if p.alerts]
    if days:
        shown = days[-MOST_DAYS:]
        table = _output.table(
            ("DAY", *(p.pattern for p in fired)),
            [(day, *(p.days.get(day, 0) for p in fired)) for day in shown],
        )
        more = f"\n(the last {MOST_DAYS} of {len(days)} days)" if len(days) > MOST_DAYS else ""
        parts.append(table + more)
    if report.alerts:
        parts.append("\n".join(_alert(a) for a in report.alerts))
    return "\n\n".join(parts)


def _alert(alert: dict[str, Any]) -> str:
    from datetime import UTC, datetime

    moment = datetime.fromtimestamp(alert["event_time"] / 1_000, UTC).isoformat("T", "seconds")
    about = f"{alert['key_column']}={alert['key']}"
    return f"{moment} {alert['severity']} {alert['pattern']} {about}\n  {alert['reason']}"
