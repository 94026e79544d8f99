"""``raypipe down``: stop what runs on a home folder."""

from __future__ import annotations

from typing import Annotated

import typer

from raypipe.cli import _options, _output
from raypipe.cli._options import Config, Home, Json, Set


def down(
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", metavar="SECONDS", min=0, help="Seconds to wait for a clean stop."
        ),
    ] = 60.0,
    json: Json = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """Stop what runs and wait for its end.

    Nothing running is fine, too. Exits with 1 if it still runs after the time-out.
    """
    settings = _options.settings(home, config, set_)
    from raypipe.runtime import running

    found = running.find(settings.home)
    if found is None:
        result = {"stopped": False, "running": False, "home": settings.home}
        _output.write(result, as_json=json, text=f"Nothing runs on {settings.home}.")
        return 0
    stopped = running.stop(found, timeout)
    _output.write(
        {"stopped": stopped, "running": not stopped, "pid": found.pid, "home": settings.home},
        as_json=json,
        text=f"Stopped raypipe {found.verb} (pid {found.pid})."
        if stopped
        else f"raypipe {found.verb} (pid {found.pid}) still runs after {timeout:g} s.\n"
        "Call `raypipe down` again to wait longer; "
        f"`kill -9 {found.pid}` ends it at once and loses nothing that was acknowledged.",
    )
    return 0 if stopped else 1
