"""Options that every verb understands, and the settings that come out of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raypipe.errors import UsageError

if TYPE_CHECKING:
    from raypipe.config import Settings
    from raypipe.runtime.progress import Progress


def _remember(ctx: typer.Context, value: bool) -> bool:
    """An error has to know, too."""
    ctx.ensure_object(dict)["json"] = value
    return value


Json = Annotated[
    bool,
    typer.Option(
        "--json",
        callback=_remember,
        help="Write one JSON object to stdout and nothing else; progress goes to stderr.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Home = Annotated[
    Path | None,
    typer.Option("--home", metavar="DIR", help="Where raypipe keeps everything [.raypipe]."),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings file [raypipe.toml, if there is one]."),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        help="Ray cluster to work on, or auto (setting ray_address).",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any setting; may be repeated."),
]


def settings(
    home: Path | None, config: Path | None, assignments: list[str] | None, **flags: object
) -> Settings:
    """The settings of this call; raises ConfigError or UsageError."""
    from raypipe.config import load_settings

    return load_settings(collect(home, assignments, **flags), config)


def collect(home: Path | None, assignments: list[str] | None, **flags: object) -> dict[str, object]:
    """The settings that were given as flags; flags of their own win over --set."""
    _find_user_code()
    given: dict[str, object] = {}
    for assignment in assignments or []:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {assignment!r} lacks a value", hint="--set max_replicas=4")
        given[name.strip()] = value.strip() or None
    return given | {k: v for k, v in {"home": home, **flags}.items() if v is not None}


def progress(quiet: bool) -> Progress:
    """The reporter for this terminal."""
    from raypipe.runtime.progress import reporter

    return reporter(quiet=quiet)


def _find_user_code() -> None:
    """A user's project module lies in the working directory; so do Ray's workers look there."""
    here = os.getcwd()  # noqa: PTH109 - sys.path holds strings
    if here not in sys.path:
        sys.path.insert(0, here)
