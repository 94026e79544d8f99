"""Writes docs/reference/cli.md and settings.md out of the code: ``python -m raypipe.cli._docs``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CLI = Path("docs/reference/cli.md")
SETTINGS = Path("docs/reference/settings.md")

_CLI_HEAD = """\
# Command line

Made from the code by `python -m raypipe.cli._docs`; a test compares.

`raypipe VERB --help` says the same. `python -m raypipe` is `raypipe`.

- **Results** go to stdout, progress and errors to stderr. With `--json` stdout holds one JSON
  object and nothing else; after an error it is `{"error": {"code", "headline", "detail", "hint",
  "violations"}}`.
- **Progress** is a live line on a terminal, and elsewhere one plain line when a stage begins, every
  ten seconds, and when it ends.
- **Exit codes**: 0 done, 1 failed, 2 wrong usage, 3 done in part (rows refused, a stage failed,
  interrupted). Wrong usage that shows in the arguments themselves writes to stderr alone.
- **Ctrl-C and SIGTERM** stop in good order.
- **`RAYPIPE_DEBUG=1`** shows tracebacks and Ray's log.
- `up`, `serve`, `load` and `features` own a home folder while they run; a second one is refused.

Options of many verbs:

| | |
|---|---|
"""
_COMMON = ("json", "quiet", "home", "config", "set_")

_SETTINGS_HEAD = """\
# Settings

Made from the code by `python -m raypipe.cli._docs`; a test compares.

One frozen value, from four sources; a later one wins: defaults, `raypipe.toml`, environment, flags.

- **File**: `raypipe.toml` in the working directory, or the one that `--config` or `RAYPIPE_CONFIG`
  names. Flat names: `http_port = 8080`.
- **Environment**: `RAYPIPE_` and the name in capitals: `RAYPIPE_HTTP_PORT=8080`. Empty means unset.
- **Flags**: some verbs have their own (`--port`); all take `--set http_port=8080`.

An unknown name is refused, with the nearest known one, in each of them. `raypipe doctor` shows
every value with where it came from. Not settings: `RAYPIPE_CONFIG`, `RAYPIPE_DEBUG`,
`RAYPIPE_API_KEY`, `RAYPIPE_ONLINE_PASSWORD`, `RAYPIPE_ONLINE_PASSWORD_FILE`, and
`RAYPIPE_ABORT_AT`, `RAYPIPE_ABORT_ONCE` for recovery tests.

| setting | default | allowed | meaning |
|---|---|---|---|
"""


def settings_page() -> str:
    """docs/reference/settings.md."""
    from raypipe.config import Settings

    schema = Settings.model_json_schema()["properties"]
    rows = []
    for name, field in Settings.model_fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        default = extra.get("default_text", "unset" if field.default is None else field.default)
        allowed = extra.get("allowed") or _allowed(schema[name])
        rows.append(f"| `{name}` | `{default}` | {allowed} | {field.description} |")
    return _SETTINGS_HEAD + "\n".join(rows) + "\n"


def cli_page() -> str:
    """docs/reference/cli.md."""
    from typer.main import get_command

    from raypipe.cli._app import app

    root: Any = get_command(app)
    # `load` takes them all.
    common = [p for p in root.commands["load"].params if p.name in _COMMON]
    head = _CLI_HEAD + "".join(f"| {_names(p)} | {p.help} |\n" for p in common)
    return "\n".join([head, *(_verb(name, c) for name, c in _verbs(root))])


def _verbs(group: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Every verb with its whole name; a group of verbs is its members."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _verbs(command, f"{above}{name} ")
        else:
            yield f"{above}{name}", command


def _verb(name: str, command: Any) -> str:
    own = [p for p in command.params if p.name not in _COMMON]
    arguments = [p for p in own if p.param_type_name == "argument"]
    usage = " ".join(["raypipe", name, *(_placeholder(a) for a in arguments), "[OPTIONS]"])
    lines = [f"## {name}", "", inspect.cleandoc(command.help), "", "```", usage, "```", ""]
    if own:
        lines += ["| | default | |", "|---|---|---|"]
        lines += [f"| {_names(p)} | {_default(p)} | {p.help} |" for p in own]
        lines.append("")
    common = [_names(p) for p in command.params if p.name in _COMMON]
    return "\n".join([*lines, f"Also: {', '.join(common)}.", ""])


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar}`"
    value = f" {parameter.metavar}" if parameter.metavar else ""
    return ", ".join(f"`{name}{value}`" for name in parameter.opts)


def _placeholder(argument: Any) -> str:
    text = f"{argument.metavar}{'...' if argument.nargs == -1 else ''}"
    return text if argument.required else f"[{text}]"


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if parameter.default in (None, False, ()):
        return ""
    return f"`{parameter.default}`"


def _allowed(schema: dict[str, Any]) -> str:
    """The values that JSON Schema allows, in words."""
    choices = schema.get("anyOf", [schema])
    kinds = []
    for kind in choices:
        if "enum" in kind:
            kinds.append(" or ".join(f"`{value}`" for value in kind["enum"]))
        elif kind["type"] in ("integer", "number"):
            kinds.append(_range(kind))
        elif kind["type"] == "boolean":
            kinds.append("`true` or `false`")
        elif kind["type"] == "string":
            kinds.append("path" if kind.get("format") == "path" else "text")
    return ", or ".join(kinds)


def _range(kind: dict[str, Any]) -> str:
    word = "whole number" if kind["type"] == "integer" else "number"
    low, above = kind.get("minimum"), kind.get("exclusiveMinimum")
    high, below = kind.get("maximum"), kind.get("exclusiveMaximum")
    bounds = [f"from {low:,}"] if low is not None else []
    bounds += [f"above {above:,}"] if above is not None else []
    bounds += [f"to {high:,}"] if high is not None else []
    bounds += [f"below {below:,}"] if below is not None else []
    return " ".join([word, *bounds])


def main() -> None:
    """Write both pages below the working directory, the root of a checkout."""
    for path, text in ((CLI, cli_page()), (SETTINGS, settings_page())):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
