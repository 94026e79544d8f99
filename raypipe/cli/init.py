"""``raypipe init``: begin a project of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raypipe.cli import _output
from raypipe.cli._options import Json
from raypipe.errors import Conflict, UsageError

FILES = {
    "{name}.py": "project.txt",
    "raypipe.toml": "settings.txt",
    "serving.yaml": "serving.txt",
    "policy.yaml": "policy.txt",
    "policy.cases.yaml": "cases.txt",
    "mapping.toml": "mapping.txt",
    "test_{name}.py": "test.txt",
    "README.md": "readme.txt",
    ".gitignore": "gitignore.txt",
}
"""What is written, out of which template."""


def init(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Module name: lower case, no dashes.")
    ],
    json: Json = False,
) -> int:
    """Begin a project of your own, in a new folder NAME.

    Writes declarations (events, windows, a model), a mapping file with made-up tables for it,
    settings, a policy with its cases, a test and a README. All of it works as it comes. Refuses a
    folder that is there already.
    """
    _check_name(name)
    folder = Path(name)
    try:
        folder.mkdir()
    except FileExistsError:
        raise Conflict(
            f"{folder} exists already", hint="Use another name or another folder."
        ) from None
    from importlib.resources import files
    from string import Template

    from raypipe.cli import _sample

    written = []
    for target, source in FILES.items():
        template = Template((files("raypipe.cli") / "scaffold" / source).read_text("utf-8"))
        file = folder / target.format(name=name)
        file.write_text(template.substitute(name=name), "utf-8")
        written.append(file.name)
    (folder / "data").mkdir()
    _sample.write(folder / "data")
    _output.write(
        {"folder": folder.absolute(), "files": [*written, "data/orders.csv", "data/refunds.csv"]},
        as_json=json,
        text=f"{folder}/{name}.py declares events, features and a model: make them yours\n"
        f"{folder}/README.md  has the commands; all of them work on the sample in data/\n"
        f"Next: cd {folder} && raypipe features --list",
    )
    return 0


def _check_name(name: str) -> None:
    from importlib.util import find_spec
    from keyword import iskeyword

    if not name.isidentifier() or iskeyword(name) or name != name.lower() or not name.isascii():
        raise UsageError(f"{name!r} is no module name", hint="As in: shop_orders")
    # A folder of that name here looks like a package; what is in the way is told further on.
    found = find_spec(name)
    if found is not None and found.origin is not None:
        raise UsageError(f"a module {name!r} is installed already", hint="Choose another name.")
