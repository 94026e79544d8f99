"""``raypipe quarantine``: what was refused and why; send it again, or give it up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from raypipe.cli import _options, _output
from raypipe.cli._guard import PARTIAL
from raypipe.cli._options import Config, Home, Json, Quiet, Set
from raypipe.errors import NotFound, UsageError

if TYPE_CHECKING:
    from raypipe.config import Settings
    from raypipe.events.quarantine import Quarantine, RefusedRow, Selection, Tally
    from raypipe.sources.requeue import Outcome

app = typer.Typer(
    name="quarantine",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Show the rows that were refused, and why; send them again, or give them up.",
)
Tenant = Annotated[
    str | None, typer.Option("--tenant", metavar="NAME", help="Whose rows (setting tenant).")
]
Ids = Annotated[
    list[int] | None, typer.Option("--id", metavar="N", help="This row; may be repeated.")
]
Type = Annotated[
    str | None, typer.Option("--type", metavar="NAME", help="Rows of this event type.")
]
Reason = Annotated[
    str | None, typer.Option("--reason", metavar="TEXT", help="Rows with this in a reason.")
]
Source = Annotated[
    str | None, typer.Option("--source", metavar="TEXT", help="Rows whose source begins so.")
]
All = Annotated[bool, typer.Option("--all", help="All rows of the tenant.")]


@app.command("list")
def list_(
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=0, help="Rows to show, newest first.")
    ] = 10,
    type_: Type = None,
    reason: Reason = None,
    source: Source = None,
    settled: Annotated[
        bool, typer.Option("--settled", help="Also rows that were sent again or dropped.")
    ] = False,
    tenant: Tenant = None,
    json: Json = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """List the rows that were refused, and why."""
    from raypipe.events.quarantine import Selection, Tally

    settings = _options.settings(home, config, set_, tenant=tenant)
    where = Selection(settings.tenant, None, type_, source, reason, settled)
    with _opened(settings) as store:
        counts = {} if store is None else store.counts(where)
        rows = [] if store is None else store.rows(limit, where=where)
        tally = Tally() if store is None else store.tally(settings.tenant)
    if counts:
        text = _output.table(
            ("ROWS", "EVENT", "REASON"),
            [(n, event, reason) for event, by in counts.items() for reason, n in by.items()],
        )
        text = "\n\n".join([text, *map(_row, rows)])
    else:
        such = " like that" if where.event_type or where.reason or where.source else ""
        text = f"Nothing of tenant {settings.tenant}{such} was refused."
    lost = _lost(tally, settings)
    result = {"counts": counts, "rows": [asdict(r) for r in rows], "tally": tally._asdict()}
    _output.write(result, as_json=json, text=text + (f"\n\n{lost}" if lost else ""))
    return 0


@app.command()
def show(
    number: Annotated[int, typer.Argument(metavar="ID", help="The row's number.")],
    tenant: Tenant = None,
    json: Json = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """Show one row: what it says, why it was refused, when it came, and what became of it."""
    settings = _options.settings(home, config, set_, tenant=tenant)
    with _opened(settings) as store:
        where = _selected(settings, ids=[number], settled=True)
        rows = [] if store is None else store.rows(1, where=where)
    if not rows:
        raise NotFound(
            f"tenant {settings.tenant} has no row {number} in {settings.home}",
            hint="`raypipe quarantine list --settled` shows their numbers.",
        )
    (row,) = rows
    about = {
        "row": str(row.id),
        "event type": row.event_type or None,
        "source": row.source,
        "came": _moment(row.at_ms),
        "state": row.state,
        "since": None if row.resolved_at is None else _moment(row.resolved_at),
        "note": row.note or None,
    }
    about = {name: value for name, value in about.items() if value is not None}
    text = _output.lines(about) + f"\n  {row.body}" + "".join(f"\n  {why}" for why in row.reasons)
    _output.write(asdict(row), as_json=json, text=text)
    return 0


@app.command()
def retry(
    ids: Ids = None,
    type_: Type = None,
    reason: Reason = None,
    source: Source = None,
    all_: All = False,
    replace: Annotated[
        list[str] | None,
        typer.Option(
            "--replace",
            metavar="FIELD=VALUE",
            help="Replace a field in all selected rows, as currency=EUR; may be repeated; without "
            "a value the field is taken away.",
        ),
    ] = None,
    tenant: Tenant = None,
    json: Json = False,
    quiet: Quiet = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """Send rows again that are good by now.

    Reads the selected rows by today's declarations and sends the good ones to the running system.
    Those that are taken are settled, the others stay with their reasons of today. A retry that is
    broken off goes on with the next one, and no row counts twice. Rows that the sender itself has
    sent again, corrected, should be dropped instead. Exits with 3 if rows stay.
    """
    settings = _options.settings(home, config, set_, tenant=tenant)
    where = _selected(settings, ids, type_, reason, source, all_=all_)
    with _opened(settings) as store:
        if store is None:
            raise NotFound(f"nothing was ever refused in {settings.home}")
        outcome = _retry(settings, store, where, replace or [], quiet=quiet)
    _output.write(asdict(outcome), as_json=json, text=_summary(outcome))
    return PARTIAL if outcome.stayed else 0


@app.command()
def drop(
    note: Annotated[str, typer.Option("--note", metavar="TEXT", help="Why; it stays with them.")],
    ids: Ids = None,
    type_: Type = None,
    reason: Reason = None,
    source: Source = None,
    all_: All = False,
    tenant: Tenant = None,
    json: Json = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """Give rows up.

    They are kept with the note and no longer listed, except with `list --settled`.
    """
    settings = _options.settings(home, config, set_, tenant=tenant)
    where = _selected(settings, ids, type_, reason, source, all_=all_)
    with _opened(settings) as store:
        dropped = 0 if store is None else store.drop(where, note)
    _output.write({"dropped": dropped}, as_json=json, text=f"dropped  {dropped:,}")
    return 0


@contextmanager
def _opened(settings: Settings) -> Iterator[Quarantine | None]:
    """The quarantine of a home folder, None where nothing was ever refused."""
    from raypipe.events.quarantine import QUARANTINE_FILE, Quarantine

    file = settings.home / QUARANTINE_FILE
    if not file.is_file():
        yield None
        return
    with closing(Quarantine(file, limit_rows=settings.quarantine_limit_rows)) as store:
        yield store


def _selected(
    settings: Settings,
    ids: list[int] | None = None,
    type_: str | None = None,
    reason: str | None = None,
    source: str | None = None,
    *,
    all_: bool = False,
    settled: bool = False,
) -> Selection:
    from raypipe.events.quarantine import Selection

    if not (ids or type_ or reason or source or all_):
        raise UsageError(
            "no rows are named", hint="Use --id, --type, --reason, --source, or --all."
        )
    numbers = None if not ids else tuple(ids)
    return Selection(settings.tenant, numbers, type_, source, reason, settled)


def _retry(
    settings: Settings, store: Quarantine, where: Selection, replace: list[str], *, quiet: bool
) -> Outcome:
    from raypipe.clock import SystemClock
    from raypipe.project import load_project
    from raypipe.runtime.sender import Sender
    from raypipe.sources.requeue import Requeue, changes_of

    project = load_project(settings.project)
    changes = changes_of(replace, project)
    with closing(Sender.of(settings)) as sender:
        requeue = Requeue(
            store, project, settings.tenant, settings.currency, sender.send, SystemClock(), changes
        )
        with _options.progress(quiet).stage("retry", unit="rows") as stage:
            requeue.resume()
            for rows in requeue.run(where):
                stage.advance(rows)
            stage.say(f"{requeue.outcome.stayed:,} stay")
    return requeue.outcome


def _summary(outcome: Outcome) -> str:
    lines = [
        f"accepted    {outcome.accepted:,}",
        f"duplicates  {outcome.duplicates:,}",
        f"refused     {outcome.refused:,}",
    ]
    worst = sorted(outcome.reasons.items(), key=lambda item: -item[1])
    lines += [f"            {n:,} {reason}" for reason, n in worst[:5]]
    if outcome.resumed:
        lines.append(f"resumed     {outcome.resumed:,} of a retry that was broken off")
    if outcome.loads:
        lines += [
            f"of loads    {outcome.loads:,}",
            "  These are columns of tables, not events. Correct them in a table of their own and",
            "  load it with the same mapping by `raypipe load`; `raypipe quarantine drop` these.",
        ]
    return "\n".join(lines)


def _row(row: RefusedRow) -> str:
    state = "" if row.state == "open" else f" ({row.state}: {row.note})"
    text = f"{row.id}  {row.event_type} from {row.source}{state}\n  {row.body}"
    return text + "".join(f"\n  {reason}" for reason in row.reasons)


def _lost(tally: Tally, settings: Settings) -> str:
    lines = []
    if tally.unkept:
        lines.append(
            f"{tally.unkept:,} more rows were refused and not kept: the quarantine has room for "
            f"{settings.quarantine_limit_rows:,} (setting quarantine_limit_rows)."
        )
    if tally.forgotten:
        lines.append(f"{tally.forgotten:,} settled rows were removed to make room for others.")
    return "\n".join(lines)


def _moment(ms: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(ms / 1_000, UTC).isoformat("T", "milliseconds")
