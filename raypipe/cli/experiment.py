"""``raypipe experiment``: check, publish, run and end experiments, and see what came of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raypipe.cli import _options, _output, _stage, release
from raypipe.cli._options import Address, Config, Home, Json, Quiet, Set

if TYPE_CHECKING:
    from raypipe.config import Settings
    from raypipe.experiments.spec import Experiment

app = typer.Typer(
    name="experiment",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Check, publish, start and end experiments, and see what came of them.",
)
File = Annotated[Path, typer.Argument(metavar="FILE", help="An experiment (YAML).")]
Reference = Annotated[
    str,
    typer.Argument(metavar="EXPERIMENT", help="name@version, or name for the newest."),
]
Running = Annotated[str, typer.Argument(metavar="EXPERIMENT", help="One that runs.")]


@app.command()
def validate(
    file: File, json: Json = False, home: Home = None, config: Config = None, set_: Set = None
) -> int:
    """Check an experiment against the events of the project."""
    settings = _options.settings(home, config, set_)
    from raypipe.experiments.checks import check
    from raypipe.experiments.reading import read_experiment
    from raypipe.project import load_project

    found = read_experiment(file)
    check(found, load_project(settings.project))
    _output.write(
        {"ok": True, "experiment": found.id, "sha256": found.sha256},
        as_json=json,
        text=f"{_about(found)}\nIt can be published: `raypipe experiment publish {file}`.",
    )
    return 0


@app.command()
def publish(
    file: File, json: Json = False, home: Home = None, config: Config = None, set_: Set = None
) -> int:
    """Put an experiment into the lake as name@version, for good.

    The same experiment again changes nothing; another one under a version that is taken is
    refused.
    """
    settings = _options.settings(home, config, set_)
    from raypipe.clock import SystemClock
    from raypipe.experiments import registry
    from raypipe.experiments.reading import read_experiment
    from raypipe.project import load_project

    found = read_experiment(file)
    manifest, new = registry.publish(
        settings.lake,
        found,
        file.read_bytes(),
        load_project(settings.project),
        SystemClock().now_ms(),
    )
    _output.write(
        {"experiment": found.id, "sha256": manifest.sha256, "new": new},
        as_json=json,
        text=f"{found.id} is published: sha256 {manifest.sha256}"
        if new
        else f"{found.id} was published before, and is the same.",
    )
    return 0


@app.command()
def plan(
    experiment: Annotated[
        str,
        typer.Argument(metavar="EXPERIMENT", help="A file, name@version, or name for the newest."),
    ],
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="Of what history: 28d, a date [the horizon]."),
    ] = None,
    address: Address = None,
    json: Json = False,
    quiet: Quiet = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """Say how many units and days an experiment needs, from who would have been in it.

    Looks at what was decided since then as if all of them had been in the control. The plan is
    kept: `report` sets its intervals by it. Exits with 3 if the horizon is too short for an arm.
    """
    settings = _options.settings(home, config, set_, ray_address=address)
    with _stage.session():
        found = _stage.call(
            "training.experiments.run:plan", settings, _options.progress(quiet), experiment, since
        )
    import msgspec

    header = ("ARM", "UNITS", "DAYS", "ON AVERAGE", "ONE LOOK", "IN THE HORIZON", "FINDS THEN")
    rows = [
        (
            a.arm,
            f"{a.units:,}",
            "?" if a.days is None else a.days,
            f"{a.expected_units:,}",
            f"{a.one_look_units:,}",
            f"{a.units_in_horizon:,}",
            f"{a.detectable:.2%}",
        )
        for a in found.arms
    ]
    about = (
        f"{found.experiment}: {found.minimum_effect:.2%} of {found.metric},"
        f" {found.mean:.6g} a unit, with power {found.power:g} and alpha {found.alpha:g},"
        f" from {found.history_units:,} units of {found.history_days} days"
    )
    _output.write(
        msgspec.to_builtins(found), as_json=json, text=f"{about}\n\n{_output.table(header, rows)}"
    )
    return 3 if any(a.units_in_horizon < a.units for a in found.arms) else 0


@app.command()
def report(
    experiment: Reference,
    address: Address = None,
    json: Json = False,
    quiet: Quiet = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """Analyse an experiment as of now, at any time and as often as you like, into a page.

    Computes the units from the log, writes report.html and report.json into the lake and prints
    the verdict. Exits with 1 if it has to be stopped: a guardrail is broken, or the arms don't have
    the units that their shares say.
    """
    settings = _options.settings(home, config, set_, ray_address=address)
    with _stage.session():
        found, folder = _stage.call(
            "training.experiments.run:report", settings, _options.progress(quiet), experiment
        )
    import msgspec

    verdict, page = found.verdict, (folder / "report.html").url
    _output.write(
        {**msgspec.to_builtins(found), "report": page},
        as_json=json,
        text="\n".join((verdict.headline, *verdict.sentences, page)),
    )
    return 1 if verdict.state in ("invalid", "harmful") else 0


@app.command()
def reallocate(
    experiment: Reference,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where to [NAME@VERSION.yaml, here]."),
    ] = None,
    floor: Annotated[
        float, typer.Option("--floor", metavar="SHARE", help="The least share of an arm, of all.")
    ] = 0.05,
    address: Address = None,
    json: Json = False,
    quiet: Quiet = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """Write the next version of an experiment as a bandit would have it.

    Each arm gets the share of units that is the chance that it is the best one (Thompson), from
    what the units of this version have shown. Publish and start the file to have it so: units keep
    their arms as far as the shares allow.
    """
    settings = _options.settings(home, config, set_, ray_address=address)
    with _stage.session():
        found, shares = _stage.call(
            "training.experiments.run:reallocate",
            settings,
            _options.progress(quiet),
            experiment,
            floor,
        )
    import yaml

    file = out or Path(f"{found.id}.yaml")
    text = yaml.safe_dump(found.describe(), sort_keys=False, allow_unicode=True)
    file.write_text(text, encoding="utf-8")
    arms = {a.name: {"best": shares.best[a.name], "share": a.share} for a in found.arms}
    rows = [(name, f"{a['best']:.1%}", f"{a['share']:g}") for name, a in arms.items()]
    _output.write(
        {"experiment": found.id, "file": str(file), "arms": arms},
        as_json=json,
        text=f"{_output.table(('ARM', 'IS BEST', 'SHARE'), rows)}\n\n"
        f"{found.id} is in {file}: `raypipe experiment publish {file}`.",
    )
    return 0


@app.command("list")
def list_(json: Json = False, home: Home = None, config: Config = None, set_: Set = None) -> int:
    """List the published experiments, and whether they run."""
    settings = _options.settings(home, config, set_)
    from raypipe.experiments.registry import EXPERIMENTS
    from raypipe.policy.spec import iso

    current = _stage.call("serving.releases:Releases", settings.lake).current()
    running = current.release.experiments if current else ()
    found = [(m, m.id in running) for m in EXPERIMENTS.manifests(settings.lake)]
    rows = [
        (m.id, "running" if runs else "-", iso(m.published_ms), m.sha256[:12]) for m, runs in found
    ]
    experiments = [
        {"experiment": m.id, "running": r, "published_ms": m.published_ms, "sha256": m.sha256}
        for m, r in found
    ]
    table = _output.table(("EXPERIMENT", "STATE", "PUBLISHED", "SHA256"), rows)
    _output.write({"experiments": experiments}, as_json=json, text=table if rows else "None.")
    return 0


@app.command()
@release.edits
def start(settings: Settings, experiment: Reference) -> Any:
    """Run a published experiment, as a new release.

    All replicas load every arm first; if one can't, or it can't run beside the others, nothing
    changes. A version of it that runs gives way, and units keep their arms.
    """
    return _stage.call("serving.promotion:started", settings, experiment)


@app.command()
@release.edits
def stop(settings: Settings, experiment: Running) -> Any:
    """Run an experiment no longer: everybody gets what the release serves."""
    return _stage.call("serving.promotion:stopped", experiment)


@app.command()
@release.edits
def promote(
    settings: Settings,
    experiment: Running,
    arm: Annotated[str, typer.Argument(metavar="ARM", help="The arm that everybody shall have.")],
) -> Any:
    """End an experiment and serve an arm's model and policy to everybody, in one release."""
    return _stage.call("serving.promotion:arm_promoted", settings, experiment, arm)


@app.command()
def status(
    experiment: Reference,
    json: Json = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """Tell what an experiment is, whether it runs, and how many saw each arm so far.

    Counts what is in the log, for the setting tenant; nothing needs to run.
    """
    settings = _options.settings(home, config, set_)
    found = _stage.call("features.experiments.status:run", settings, experiment)
    current = _stage.call("serving.releases:Releases", settings.lake).current()
    runs = current is not None and found.experiment.id in current.release.experiments
    arms = {
        arm.name: found.arms.get(arm.name, {"exposures": 0, "units": 0})
        for arm in found.experiment.arms
    }
    rows = [
        (
            a.name,
            f"{a.share:g}",
            a.model or "-",
            a.policy or "-",
            f"{arms[a.name]['units']:,}",
            f"{arms[a.name]['exposures']:,}",
        )
        for a in found.experiment.arms
    ]
    header = ("ARM", "SHARE", "MODEL", "POLICY", "UNITS", "EXPOSURES")
    state = f"runs in release {current.number}" if runs and current else "does not run"
    _output.write(
        {
            "experiment": found.experiment.id,
            "running": runs,
            "arms": arms,
            "definition": found.experiment.describe(),
        },
        as_json=json,
        text=f"{_about(found.experiment)}\n{state}\n\n{_output.table(header, rows)}",
    )
    return 0


def _about(experiment: Experiment) -> str:
    hours = experiment.horizon_ms / 3_600_000
    layer = f"layer {experiment.layer}" if experiment.layer else "a layer of its own"
    lines = [
        f"{experiment.id}: {experiment.description or 'no description'}",
        f"{len(experiment.arms)} arms by {experiment.unit} in {layer}, for {hours / 24:g} days",
        f"metrics {', '.join(m.name for m in experiment.metrics)}",
    ]
    return "\n".join(lines)
