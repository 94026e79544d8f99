"""``raypipe policy lists``: what is on allow, deny and watch lists, and how it came there."""

from __future__ import annotations

import getpass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raypipe.cli import _output
from raypipe.cli._options import Json
from raypipe.cli._shared import settled

if TYPE_CHECKING:
    from raypipe.config import Settings
    from raypipe.policy.list_store import ListStore

app = typer.Typer(
    name="lists",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Put keys on lists, take them off, show lists and their history; of the setting tenant. "
    "Running replicas see a change within seconds.",
)


class Kind(StrEnum):
    """What a list is for."""

    ALLOW = "allow"
    DENY = "deny"
    WATCH = "watch"


Name = Annotated[str, typer.Argument(metavar="NAME", help="The list.")]
Keys = Annotated[list[str] | None, typer.Argument(metavar="KEY", help="One or more keys.")]
KeyFile = Annotated[
    Path | None, typer.Option("--file", metavar="FILE", help="More keys, one a line.")
]
Who = Annotated[
    str | None, typer.Option("--who", metavar="NAME", help="Who wants it [the user's name].")
]
Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="Why; kept for good.")]


@app.command()
@settled
def add(
    settings: Settings,
    name: Name,
    why: Why,
    keys: Keys = None,
    kind: Annotated[
        Kind | None, typer.Option("--kind", help="Needed for a list that is new.")
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            "--until", metavar="TIME", help="As 30d from now, or 2026-12-31T00:00:00Z [removal]."
        ),
    ] = None,
    file: KeyFile = None,
    who: Who = None,
    json: Json = False,
) -> int:
    """Put keys on a list, for a time or until they are removed."""
    from raypipe.errors import UsageError
    from raypipe.policy.lists import Kind as ListKind

    store = _store(settings)
    found = kind.value if kind else store.refresh().kinds.get(name)
    if found is None:
        raise UsageError(f"list {name!r} is new", hint="Say what it is: --kind allow|deny|watch.")
    all_keys = _keys(keys, file)
    lists = store.add(
        name,
        ListKind(found),
        all_keys,
        who=who or getpass.getuser(),
        why=why,
        expires_ms=None if until is None else _until(until),
    )
    _output.write(
        {"list": name, "added": all_keys, "version": lists.version},
        as_json=json,
        text=f"{len(all_keys)} added to {name} ({found}); lists are at version {lists.version}.",
    )
    return 0


@app.command()
@settled
def remove(
    settings: Settings,
    name: Name,
    why: Why,
    keys: Keys = None,
    file: KeyFile = None,
    who: Who = None,
    json: Json = False,
) -> int:
    """Take keys off a list."""
    all_keys = _keys(keys, file)
    lists = _store(settings).remove(name, all_keys, who=who or getpass.getuser(), why=why)
    _output.write(
        {"list": name, "removed": all_keys, "version": lists.version},
        as_json=json,
        text=f"{len(all_keys)} removed from {name}; lists are at version {lists.version}.",
    )
    return 0


@app.command()
@settled
def show(
    settings: Settings,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One list [all].")] = None,
    json: Json = False,
) -> int:
    """Show what is on a list now; without a name, which lists there are."""
    from raypipe.clock import SystemClock
    from raypipe.errors import NotFound
    from raypipe.policy.spec import iso

    lists = _store(settings).refresh()
    now = SystemClock().now_ms()
    if name is None:
        sizes = {n: len(lists.entries(n, now)) for n in lists.kinds}
        rows = [(n, kind, sizes[n]) for n, kind in sorted(lists.kinds.items())]
        described = {n: {"kind": k.value, "entries": sizes[n]} for n, k in lists.kinds.items()}
        text = _output.table(("LIST", "KIND", "ENTRIES"), rows) if rows else "No lists."
        _output.write({"version": lists.version, "lists": described}, as_json=json, text=text)
        return 0
    if name not in lists.kinds:
        raise NotFound(f"there is no list {name!r}", hint=f"Lists: {', '.join(lists.kinds)}.")
    entries = lists.entries(name, now)
    rows_ = [
        (e.key, iso(e.since_ms), "-" if e.expires_ms is None else iso(e.expires_ms), e.who, e.why)
        for e in entries
    ]
    text = _output.table(("KEY", "SINCE", "UNTIL", "WHO", "WHY"), rows_) if rows_ else "Empty."
    _output.write(
        {
            "version": lists.version,
            "list": name,
            "kind": lists.kinds[name].value,
            "entries": [e._asdict() for e in entries],
        },
        as_json=json,
        text=text,
    )
    return 0


@app.command()
@settled
def history(
    settings: Settings,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One list [all].")] = None,
    json: Json = False,
) -> int:
    """Show every change, and the version that decisions recorded after it."""
    import msgspec

    from raypipe.policy.spec import iso

    found = _store(settings).history(name)
    rows = [
        (version, iso(c.at_ms), c.list, c.op, _shown(c.keys), c.who, c.why) for version, c in found
    ]
    header = ("VERSION", "AT", "LIST", "CHANGE", "KEYS", "WHO", "WHY")
    _output.write(
        {"changes": [{"version": v, **msgspec.to_builtins(c)} for v, c in found]},
        as_json=json,
        text=_output.table(header, rows) if rows else "No changes.",
    )
    return 0


def _store(settings: Settings) -> ListStore:
    from raypipe.policy.list_store import ListStore

    return ListStore(settings.lake, settings.tenant)


def _keys(keys: list[str] | None, file: Path | None) -> list[str]:
    lines = [] if file is None else [k.strip() for k in file.read_text("utf-8").splitlines()]
    return list(dict.fromkeys([*(keys or []), *(k for k in lines if k)]))


def _until(text: str) -> int:
    from raypipe.clock import SystemClock
    from raypipe.config import moment
    from raypipe.errors import DeclarationError, UsageError
    from raypipe.windows.spec import seconds

    try:
        return SystemClock().now_ms() + 1_000 * seconds(text)
    except DeclarationError:
        pass
    try:
        return int(str(moment(text)))
    except ValueError as e:
        raise UsageError(
            f"--until {text!r} is neither a duration nor a time: {e}",
            hint="As in 30d or 2026-12-31T00:00:00Z.",
        ) from e


def _shown(keys: tuple[str, ...]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(keys[:3]) + more
