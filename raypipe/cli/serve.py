"""``raypipe serve``: answer decisions from what training and features left."""

from __future__ import annotations

from typing import Annotated

import typer

from raypipe.cli import _options, _output, _stage
from raypipe.cli._options import Address, Config, Home, Json, Quiet, Set
from raypipe.cli._signals import wait


def serve(
    host: Annotated[
        str | None,
        typer.Option("--host", metavar="HOST", help="Address to listen on (setting http_host)."),
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", metavar="PORT", help="HTTP port (setting http_port).")
    ] = None,
    address: Address = None,
    json: Json = False,
    quiet: Quiet = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """Serve decisions over HTTP.

    Ends with 0 on Ctrl-C, SIGTERM or `raypipe down`. With --address it ends when the cluster
    serves, which then serves on.
    """
    settings = _options.settings(
        home, config, set_, http_host=host, http_port=port, ray_address=address
    )
    progress = _options.progress(quiet)
    from raypipe.runtime import running

    with running.claim(settings.home, "serve") as claim, _stage.session():
        about = _stage.call("serving.run:serve", settings, progress, announce=claim.announce)
        _output.write(about, as_json=json)
        if settings.ray_address is None:
            wait()
            progress.note("stopping")
            _stage.stop_worker()
    return 0
