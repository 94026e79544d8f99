"""``raypipe cluster``: launch files and credentials of a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raypipe.cli import _output
from raypipe.cli._options import Json
from raypipe.errors import Conflict

CLUSTER_FILE = Path("cluster.yaml")

app = typer.Typer(
    name="cluster",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Check the launch files of a cluster, and make its credentials. Nothing is launched.",
)
LaunchFile = Annotated[
    Path,
    typer.Argument(
        metavar="FILE", help="A cluster file for `ray up`, or one with a RayService or RayJob."
    ),
]


@app.command()
def check(file: LaunchFile = CLUSTER_FILE, json: Json = False) -> int:
    """Check a launch file and the files that it brings to the nodes, without a cloud.

    Names the place of each finding, what stands there, what is expected, and the cure. Exits with 1
    if there is one, also if a value is still to be filled in.
    """
    from dataclasses import asdict

    from raypipe.runtime.launch.check import check as findings_of

    findings = findings_of(file)
    open_values = sum(f.kind == "placeholder" for f in findings)
    summary = (
        f"{file}: faults {len(findings) - open_values}, values to fill in {open_values}."
        if findings
        else f"{file}: nothing to correct. It was not launched."
    )
    _output.write(
        {"ok": not findings, "file": file, "findings": [asdict(f) for f in findings]},
        as_json=json,
        text="\n\n".join([*map(str, findings), summary]),
    )
    return 1 if findings else 0


@app.command()
def render(
    region: Annotated[
        str, typer.Option("--region", metavar="REGION", help="Region of AWS, as in eu-west-1.")
    ],
    file: LaunchFile = CLUSTER_FILE,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Where to write it [stdout].")
    ] = None,
    json: Json = False,
) -> int:
    """Write a cluster file for another region.

    Ids of subnets, groups and images, which exist in one region only, become CHANGE-ME. An existing
    output file is not overwritten.
    """
    from raypipe.runtime.launch.files import read
    from raypipe.runtime.launch.render import render as rendered

    text = rendered(read(file), region, str(file))
    if output is not None:
        try:
            with output.open("x", encoding="utf-8") as stream:
                stream.write(text)
        except FileExistsError:
            raise Conflict(
                f"{output} exists already", hint="Use another name, or remove it."
            ) from None
    shown = text.removesuffix("\n") if output is None else f"{output}: the cluster in {region}"
    result = {"region": region, "output": output, "text": text if output is None else None}
    _output.write(result, as_json=json, text=shown)
    return 0


@app.command()
def secrets(
    folder: Annotated[
        Path | None,
        typer.Option("--dir", metavar="DIR", help="Where they lie [~/.raypipe/cluster]."),
    ] = None,
    renew: Annotated[
        bool, typer.Option("--renew", help="Make a new key and certificate of the nodes.")
    ] = False,
    json: Json = False,
) -> int:
    """Make the credentials of a cluster: Ray's token, the online store's password, certificates.

    Makes what is missing, checks what is there, and overwrites nothing that is valid. Exits with 1
    for a file that is wrong, expired or readable by others.
    """
    from raypipe.runtime.launch.credentials import FOLDER, ensure

    made = ensure((folder or Path(FOLDER)).expanduser().absolute(), renew=renew)
    until = made.valid_until.date().isoformat()
    _output.write(
        {"folder": made.folder, "made": made.made, "valid_until": until},
        as_json=json,
        text="\n".join(
            [*(f"made  {made.folder / name}" for name in made.made)]
            or [f"{made.folder}: all there, nothing made"]
        )
        + f"\nThe nodes' certificate is valid until {until}; `--renew` makes the next one.",
    )
    return 0
