"""``raypipe recommend``: fit, look at and exchange what recommends."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from raypipe.cli import _options, _output, _stage
from raypipe.cli._options import Address, Config, Home, Json, Quiet, Set

app = typer.Typer(
    name="recommend",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Fit recommenders, look at their versions, and change which one answers.",
)
Version = Annotated[
    str, typer.Argument(metavar="VERSION", help="As `raypipe recommend list` names it.")
]


@app.command()
def fit(
    trials: Annotated[
        int | None,
        typer.Option(
            "--trials",
            metavar="N",
            min=1,
            max=10_000,
            help="Tune the ranker: orders tried in a sweep [none].",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Finish an interrupted sweep.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """Fit both stages on everything in the log.

    The newest days say how good they are. The first version is what the next start serves; a later
    one answers once it is promoted. By default the ranker learns by settings that do well; a sweep
    tries others, XGBoost's and LightGBM's.
    """
    settings = _options.settings(home, config, set_)
    with _stage.session():
        found = _stage.call(
            "training.recommend.ranking.job:run",
            settings,
            _options.progress(quiet),
            trials=trials,
            resume=resume,
        )
    text = (
        f"{found['version']}: NDCG@{found['k']} {found['ndcg_two_stage']:.4f}, the retriever alone "
        f"{found['ndcg_retriever']:.4f} (gain {found['ndcg_gain_low']:.4f} to "
        f"{found['ndcg_gain_high']:.4f})"
    )
    if not found["current"]:
        name = found["version"].partition("@")[2]
        text += f"\nAnother version answers: raypipe recommend promote {name}"
    _output.write(found, as_json=json, text=text)
    return 0


@app.command("list")
def list_(json: Json = False, home: Home = None, config: Config = None, set_: Set = None) -> int:
    """List the versions, oldest first."""
    settings = _options.settings(home, config, set_)
    found = _stage.call("serving.recommend.versions:manifests", settings.lake)
    current = _stage.call("serving.recommend.versions:current", settings.lake)
    plain = [_plain(m, current) for m in found]
    rows = [
        (
            "*" if p["current"] else "",
            p["version"],
            datetime.fromtimestamp(p["created_ms"] / 1_000, UTC).isoformat("T", "seconds"),
            f"{p['items']:,}",
            f"{p['interactions']:,}",
        )
        for p in plain
    ]
    header = ("", "VERSION", "MADE", "ITEMS", "INTERACTIONS")
    text = _output.table(header, rows) if rows else "Nothing was fitted yet: raypipe recommend fit"
    _output.write({"versions": plain}, as_json=json, text=text)
    return 0


@app.command()
def show(
    version: Annotated[
        str | None, typer.Argument(metavar="VERSION", help="A version [the current one].")
    ] = None,
    address: Address = None,
    json: Json = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """Show a version: what it was made from, how good it was, and what running replicas serve."""
    settings = _options.settings(home, config, set_, ray_address=address)
    with _stage.session():
        about = _stage.call("serving.recommend.versions:show", settings, version)
    _output.write(about, as_json=json)
    return 0


@app.command()
def promote(
    version: Version,
    address: Address = None,
    json: Json = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """Have a version answer, without a restart; an older one again to roll back.

    All replicas load and check it before the first one answers by it; if one can't, the old
    version answers on everywhere.
    """
    settings = _options.settings(home, config, set_, ray_address=address)
    with _stage.session():
        found = _stage.call("serving.recommend.versions:promote", settings, version)
    text = f"{found['version']} answers from {found['replicas']} replicas"
    if not found["replicas"]:
        text = f"{found['version']} is what the next start serves"
    _output.write(found, as_json=json, text=text)
    return 0


def _plain(manifest: Any, current: str | None) -> dict[str, Any]:
    return {
        "version": manifest.reference,
        "created_ms": manifest.created_ms,
        "current": manifest.reference == current,
        "retriever": manifest.retriever,
        "items": manifest.items,
        "interactions": manifest.training["interactions"],
        "log_end": manifest.log_end,
    }
