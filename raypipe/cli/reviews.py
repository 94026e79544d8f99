"""``raypipe reviews``: the decisions that wait for a person, over HTTP as any client has them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raypipe.cli import _options, _output
from raypipe.cli._options import Config, Home, Json, Set
from raypipe.errors import NotFound, UsageError

if TYPE_CHECKING:
    from raypipe.config import Settings

app = typer.Typer(
    name="reviews",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="List the decisions that wait for a person, take one, and end it with a verdict.",
)
Decision = Annotated[str, typer.Argument(metavar="DECISION", help="A decision's id, dec_...")]
Url = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help="Where decisions are served [what runs here]."),
]
KeyFile = Annotated[
    Path | None,
    typer.Option("--key-file", metavar="FILE", help="File with an API key [HOME/api-key]."),
]
Reviewer = Annotated[
    str | None, typer.Option("--reviewer", metavar="NAME", help="The person [the key alone].")
]


@app.command("list")
def list_(
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, max=200, help="Reviews to show.")
    ] = 20,
    after: Annotated[
        str | None, typer.Option("--after", metavar="PLACE", help="Go on where a list ended.")
    ] = None,
    action: Annotated[
        str | None, typer.Option("--action", metavar="NAME", help="Only after this action.")
    ] = None,
    free: Annotated[bool, typer.Option("--free", help="Only those that nobody works on.")] = False,
    url: Url = None,
    key_file: KeyFile = None,
    json: Json = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """List the decisions that wait for a person, oldest first."""
    settings = _options.settings(home, config, set_)
    asked = {"limit": limit, "after": after, "action": action, "free": "true" if free else None}
    given = {n: v for n, v in asked.items() if v is not None}
    page = _ask(settings, url, key_file, "GET", "/v1/reviews", params=given)
    rows = [
        (
            r["decision_id"],
            r["action"],
            "-" if r["score"] is None else f"{r['score']:.4f}",
            _moment(r["decided_at"]),
            "overdue" if r["overdue"] else _moment(r["deadline"]),
            r["claimed_by"] or "-",
        )
        for r in page["reviews"]
    ]
    header = ("DECISION", "ACTION", "SCORE", "DECIDED", "DUE", "CLAIMED BY")
    text = f"{page['open']:,} open"
    if rows:
        text = _output.table(header, rows) + f"\n{text}"
    if page["next"]:
        text += f"; go on with --after {page['next']}"
    _output.write(page, as_json=json, text=text)
    return 0


@app.command()
def claim(
    decision: Decision,
    lease: Annotated[
        int, typer.Option("--lease", metavar="SECONDS", min=1, help="Until it is free again.")
    ] = 900,
    reviewer: Reviewer = None,
    url: Url = None,
    key_file: KeyFile = None,
    json: Json = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """Take a review to work on; exits with 1 if somebody else has it."""
    settings = _options.settings(home, config, set_)
    body = {"lease_s": lease} | ({"reviewer": reviewer} if reviewer else {})
    found = _ask(settings, url, key_file, "POST", f"/v1/reviews/{decision}:claim", json=body)
    _output.write(found, as_json=json)
    return 0


@app.command()
def verdict(
    decision: Decision,
    truth: Annotated[str, typer.Argument(metavar="fraud|genuine", help="What it turned out.")],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it is kept.")],
    reviewer: Reviewer = None,
    url: Url = None,
    key_file: KeyFile = None,
    json: Json = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """End a review; fraud counts as a label event from then on."""
    if truth not in ("fraud", "genuine"):
        raise UsageError(f"{truth!r} is no verdict", hint="Say fraud or genuine.")
    settings = _options.settings(home, config, set_)
    body = {"verdict": truth, "reason": reason} | ({"reviewer": reviewer} if reviewer else {})
    found = _ask(settings, url, key_file, "POST", f"/v1/reviews/{decision}:verdict", json=body)
    _output.write(found, as_json=json)
    return 0


def _ask(
    settings: Settings, url: str | None, key_file: Path | None, method: str, path: str, **given: Any
) -> Any:
    """The answer of the server; raises what its problem document says."""
    from raypipe.runtime import running
    from raypipe.runtime.asking import ask
    from raypipe.tenancy.keys import LOCAL_KEY_FILE

    file = key_file or settings.home / LOCAL_KEY_FILE
    try:
        key = file.read_text().strip()
    except OSError as e:
        raise NotFound(
            f"no API key can be read from {file}: {e.strerror}", hint="Give --key-file."
        ) from e
    found = running.find(settings.home)
    base = url or (found.http_url if found and found.http_url else settings.http_url)
    return ask(base, key, method, path, **given)


def _moment(ms: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(ms / 1_000, UTC).isoformat("T", "seconds")
