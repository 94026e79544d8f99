"""``raypipe up``: the whole main job, from nothing to a serving system."""

from __future__ import annotations

from typing import Annotated

import typer

from raypipe.cli import _options, _output, _stage
from raypipe.cli._guard import PARTIAL
from raypipe.cli._options import Address, Config, Home, Json, Quiet, Set
from raypipe.cli._signals import wait


def up(
    once: Annotated[
        bool, typer.Option("--once", help="End after the summary instead of serving on.")
    ] = False,
    events: Annotated[
        int, typer.Option("--events", metavar="N", min=1_000, help="Simulated transactions, about.")
    ] = 200_000,
    days: Annotated[
        int,
        typer.Option("--days", metavar="N", min=20, max=3_650, help="Days of simulated history."),
    ] = 60,
    requests: Annotated[
        int,
        typer.Option(
            "--requests", metavar="N", min=0, help="Live requests to replay before the summary."
        ),
    ] = 5_000,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Drop what an earlier run left and begin again.")
    ] = False,
    trials: Annotated[
        int | None,
        typer.Option("--trials", metavar="N", help="Models tried in the sweep (setting trials)."),
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", metavar="PORT", help="HTTP port (setting http_port).")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="N", help="Seed of the world and the sweep (setting seed)."),
    ] = None,
    address: Address = None,
    json: Json = False,
    quiet: Quiet = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """Go from nothing to a serving system, and keep serving.

    Simulates a world, loads its history, computes features, sweeps and evaluates a model, serves
    it, replays live requests and prints a summary. Exits with 3 if a stage failed, with 0 after
    Ctrl-C, SIGTERM or `raypipe down`. With --address it works on that cluster, from the node that
    holds the event log, and ends with the summary: the cluster serves on.
    """
    settings = _options.settings(
        home, config, set_, http_port=port, trials=trials, seed=seed, ray_address=address
    )
    progress = _options.progress(quiet)
    from raypipe.runtime import running

    with running.claim(settings.home, "up") as claim, _stage.session():
        summary, failed = _stage.call(
            "serving.up:run",
            settings,
            progress,
            events=events,
            days=days,
            requests=requests,
            fresh=fresh,
            announce=claim.announce,
        )
        _output.write(summary, as_json=json)
        if failed:
            progress.note(f"failed: {', '.join(failed)}")
        if settings.ray_address is None:
            if claim.running.state == "serving" and not once:
                wait()
                progress.note("stopping")
            _stage.stop_worker()
    return PARTIAL if failed else 0
