"""``raypipe down``: stop what runs on a home folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from raypipe.cli import _options, _output, _stage
from raypipe.cli._options import Address, Config, Home, Json, Set

if TYPE_CHECKING:
    from raypipe.config import Settings


def down(
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", metavar="SECONDS", min=0, help="Seconds to wait for a clean stop."
        ),
    ] = 60.0,
    address: Address = None,
    json: Json = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """Stop what runs and wait for its end.

    Nothing running is fine, too. Exits with 1 if it still runs after the time-out. With --address
    it ends serving on that cluster; the cluster itself stays (`ray down` ends that).
    """
    settings = _options.settings(home, config, set_, ray_address=address)
    if settings.ray_address is not None:
        return _cluster(settings, as_json=json)
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


def _cluster(settings: Settings, *, as_json: bool) -> int:
    with _stage.session():
        offset = _stage.call("serving.run:stop", settings)
    left = "no snapshot" if offset is None else f"window state saved at offset {offset:,}"
    _output.write(
        {"stopped": True, "snapshot_offset": offset, "ray_address": settings.ray_address},
        as_json=as_json,
        text=f"Stopped serving on the cluster: {left}.",
    )
    return 0
