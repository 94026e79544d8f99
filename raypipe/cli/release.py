"""``raypipe release``: what is served, and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raypipe.cli import _options, _output, _stage
from raypipe.cli._options import Address, Config, Home, Json, Quiet, Set
from raypipe.cli._shared import settled, shaped

if TYPE_CHECKING:
    from raypipe.config import Settings

app = typer.Typer(
    name="release",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Show and change which model versions decide, without a restart.",
)
Model = Annotated[
    str,
    typer.Argument(metavar="MODEL@VERSION", help="A version; MODEL alone is its current one."),
]
Reason = Annotated[
    str, typer.Option("--reason", metavar="TEXT", help="Why; it is kept in the history.")
]
By = Annotated[
    str | None, typer.Option("--by", metavar="NAME", help="Who [this user on this machine].")
]


def edits(verb: Callable[..., Any]) -> Callable[..., int]:
    """A verb that makes an edit of serving.promotion from the settings, as a command that serves
    what it makes of the current release, and tells of it."""

    def command(
        reason: Reason = "",
        by: By = None,
        address: Address = None,
        json: Json = False,
        quiet: Quiet = False,
        home: Home = None,
        config: Config = None,
        set_: Set = None,
        **own: Any,
    ) -> int:
        settings = _options.settings(home, config, set_, ray_address=address)
        edit = verb(settings, **own)
        with _stage.session():
            recorded, serves = _stage.call(
                "serving.promotion:change",
                settings,
                _options.progress(quiet),
                edit,
                reason=reason,
                by=by,
            )
        text = _about(recorded)
        if not serves:
            text += "\nNothing runs here: the next start serves it."
        _output.write({**_plain(recorded), "serves": serves}, as_json=json, text=text)
        return 0

    return shaped(command, verb)


@app.command()
def show(
    address: Address = None,
    json: Json = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """Show the current release, and what the running replicas serve.

    Exits with 1 if a replica serves another one.
    """
    settings = _options.settings(home, config, set_, ray_address=address)
    with _stage.session():
        recorded, served = _stage.call("serving.promotion:show", settings)
    current = recorded.release.describe()
    agree = all(s == current for s in served)
    text = _about(recorded)
    if served:
        numbers = ", ".join(str(s["number"]) for s in served)
        text += f"\nreplicas    {len(served)} run, of release {numbers}"
    else:
        text += "\nreplicas    none runs: the next start serves this release"
    _output.write({**_plain(recorded), "replicas": served, "agree": agree}, as_json=json, text=text)
    return 0 if agree else 1


@app.command()
@settled
def history(settings: Settings, json: Json = False) -> int:
    """List all releases: what changed, who did it, when and why."""
    found = _stage.call("serving.releases:Releases", settings.lake).history()
    rows, before = [], None
    for recorded in found:
        changes = before.changes(recorded.release) if before is not None else ()
        what = "; ".join(changes) or recorded.release.champion
        rows.append((recorded.number, _moment(recorded.at_ms), recorded.by, what, recorded.reason))
        before = recorded.release
    header = ("RELEASE", "TIME", "BY", "CHANGE", "REASON")
    text = _output.table(header, rows) if rows else "Nothing was released yet."
    _output.write({"releases": [_plain(r) for r in found]}, as_json=json, text=text)
    return 0


@app.command()
@edits
def promote(settings: Settings, model: Model) -> Any:
    """Make a model version the champion.

    All replicas load and check it before the first one decides by it; if one can't, the old
    release serves on everywhere.
    """
    return _stage.call("serving.promotion:promoted", settings, model)


@app.command()
@edits
def challenge(
    settings: Settings,
    model: Model,
    share: Annotated[
        float,
        typer.Option(
            "--share", metavar="SHARE", min=0, max=1, help="Of the keys, as 0.1; 0 takes it out."
        ),
    ],
    salt: Annotated[
        str | None,
        typer.Option(
            "--salt", metavar="TEXT", help="Begin another experiment, with other keys [go on]."
        ),
    ] = None,
) -> Any:
    """Have a model version decide about a share of the keys.

    A key keeps its model: the split is a hash of tenant and primary key.
    """
    return _stage.call("serving.promotion:challenged", settings, model, share, salt)


@app.command()
@edits
def shadow(
    settings: Settings,
    model: Model,
    stop: Annotated[bool, typer.Option("--stop", help="No longer.")] = False,
) -> Any:
    """Have a model version judge every decision without deciding; see `compare`."""
    return _stage.call("serving.promotion:shadowed", settings, model, stop=stop)


@app.command()
@edits
def rollback(
    settings: Settings,
    to: Annotated[
        int | None,
        typer.Option("--to", metavar="N", min=1, help="Release to serve again [the one before]."),
    ] = None,
) -> Any:
    """Serve again what an earlier release was, as a new release."""
    return _stage.call("serving.promotion:rolled_back", settings, to)


@app.command()
@settled
def compare(
    settings: Settings,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL@VERSION", help="A shadow [all of them].")
    ] = None,
    since: Annotated[
        str, typer.Option("--since", metavar="DURATION", help="Decisions of the last 1h, 7d.")
    ] = "7d",
    json: Json = False,
) -> int:
    """Compare what shadows would have done with what was decided."""
    import msgspec

    from raypipe.clock import SystemClock
    from raypipe.windows.spec import seconds

    since_ms = SystemClock().now_ms() - 1_000 * seconds(since)
    found = _stage.call("serving.comparison:run", settings, since_ms=since_ms, shadow=model)
    _output.write(
        {"compared": msgspec.to_builtins(found)},
        as_json=json,
        text="\n\n".join(map(_compared, found)),
    )
    return 0


@edits
def use_policy(
    settings: Settings,
    policy: Annotated[
        str,
        typer.Argument(
            metavar="POLICY", help="name@version, name for the newest, or none for thresholds."
        ),
    ],
) -> Any:
    """Decide by a published policy from now on, or by the thresholds of the models.

    A new release with another policy: all replicas load and check it first, as `release promote`.
    """
    wanted = None if policy == "none" else policy
    return _stage.call("serving.promotion:with_policy", settings, wanted)


def _plain(recorded: Any) -> dict[str, Any]:
    return {
        "number": recorded.number,
        "at_ms": recorded.at_ms,
        "by": recorded.by,
        "reason": recorded.reason,
        "previous": recorded.previous,
        "release": recorded.release.describe(),
    }


def _about(recorded: Any) -> str:
    release = recorded.release
    challengers = ", ".join(f"{c.model} ({c.share:.1%})" for c in release.challengers)
    lines = [
        f"release     {recorded.number} of {_moment(recorded.at_ms)} by {recorded.by}",
        f"champion    {release.champion}",
        f"policy      {release.policy or 'thresholds of the model'}",
        f"challengers {challengers or 'none'}",
        f"shadows     {', '.join(release.shadows) or 'none'}",
        f"experiments {', '.join(release.experiments) or 'none'}",
    ]
    if recorded.reason:
        lines.append(f"reason      {recorded.reason}")
    return "\n".join(lines)


def _compared(found: Any) -> str:
    share = found.disagreed / found.decisions
    lines = [
        f"{found.shadow} beside {found.model}: {found.decisions:,} decisions, "
        f"{found.disagreed:,} would differ ({share:.2%}), {found.degraded:,} without a score"
    ]
    columns = sorted({a for by in found.actions.values() for a in by})
    rows = [(taken, *(by.get(c, 0) for c in columns)) for taken, by in found.actions.items()]
    lines.append(_output.table(("DECIDED", *(f"WOULD {c.upper()}" for c in columns)), rows))
    quantiles = [
        (q, *("-" if v is None else f"{v:.4f}" for v in pair))
        for q, pair in found.quantiles.items()
    ]
    lines.append(_output.table(("QUANTILE", "SCORE", "SHADOW"), quantiles))
    if found.ks_distance is not None:
        lines.append(
            f"distance of the distributions (KS) {found.ks_distance:.4f}, "
            f"mean difference {found.mean_difference:+.4f}"
        )
    return "\n".join(lines)


def _moment(ms: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(ms / 1_000, UTC).isoformat("T", "seconds")
