"""Options that verbs have in common, written once: a verb that takes settings becomes a command."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import update_wrapper
from typing import Any, get_type_hints

from raypipe.cli import _options
from raypipe.cli._options import Config, Home, Set

Verb = Callable[..., int]


def settled(verb: Verb) -> Verb:
    """A verb whose first parameter is the settings, with --home, --config and --set instead."""

    def command(home: Home = None, config: Config = None, set_: Set = None, **own: Any) -> int:
        return verb(_options.settings(home, config, set_), **own)

    return shaped(command, verb)


def shaped(command: Verb, verb: Callable[..., Any]) -> Verb:
    """A command with the name and the help of a verb; its parameters are the verb's own, without
    the settings, then those that the command names."""
    # Settings are imported for types alone: pydantic would slow down `--help`.
    hints = get_type_hints(verb, localns={"Settings": object}, include_extras=True)
    own = list(inspect.signature(verb).parameters.values())[1:]
    shared = inspect.signature(command, eval_str=True).parameters.values()
    found = [
        *(p.replace(annotation=hints[p.name]) for p in own),
        *(p for p in shared if p.kind is not p.VAR_KEYWORD),
    ]
    update_wrapper(command, verb, updated=())
    command.__annotations__ = {p.name: p.annotation for p in found}
    vars(command)["__signature__"] = inspect.Signature(
        [p.replace(kind=p.KEYWORD_ONLY) for p in found], return_annotation=int
    )
    return command
