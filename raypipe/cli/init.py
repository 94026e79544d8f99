"""``raypipe init``: begin a project of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raypipe.cli import _output
from raypipe.cli._options import Json
from raypipe.errors import Conflict, UsageError

TEMPLATE = "init_project.txt"
CONFIG_FILE = "raypipe.toml"


def init(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Module name: lower case, no dashes.")
    ],
    json: Json = False,
) -> int:
    """Begin a project of your own.

    Writes NAME.py with its declarations and raypipe.toml, which names it, to the working directory;
    does nothing if one of them is there already.
    """
    module, config = Path(f"{name}.py"), Path(CONFIG_FILE)
    _check_name(name)
    for file in (module, config):
        if file.exists():
            raise Conflict(f"{file} exists already", hint="Use another name or an empty folder.")
    from importlib.resources import files
    from string import Template

    template = Template((files("raypipe.cli") / TEMPLATE).read_text("utf-8"))
    module.write_text(template.substitute(name=name), "utf-8")
    config.write_text(
        "# Every setting: docs/reference/settings.md, or `raypipe doctor`.\n"
        f'project = "{name}:project"\n',
        "utf-8",
    )
    _output.write(
        {"module": module.absolute(), "config": config.absolute()},
        as_json=json,
        text=f"{module}  declares events, features and a model: make them yours\n"
        f"{config}  names it\n"
        "Next: `raypipe features --list`, then `raypipe load TABLE --map FILE`.",
    )
    return 0


def _check_name(name: str) -> None:
    from importlib.util import find_spec
    from keyword import iskeyword

    if not name.isidentifier() or iskeyword(name) or name != name.lower() or not name.isascii():
        raise UsageError(f"{name!r} is no module name", hint="As in: shop_orders")
    if find_spec(name) is not None and not Path(f"{name}.py").exists():
        raise UsageError(f"a module {name!r} is installed already", hint="Choose another name.")
