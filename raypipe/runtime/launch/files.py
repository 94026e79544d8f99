"""Reads launch files: YAML, TOML and the environment of the nodes."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from raypipe.errors import InputError, UsageError
from raypipe.runtime.launch.node import Node

NODE_ENV = "deploy/node.env"
SETTINGS = "deploy/cluster.toml"
SERVE = "deploy/serve.yaml"
LOCK = "requirements.lock"

LARGEST = 2**20
"""Bytes of a launch file; a larger one is something else."""

_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=([^\s'\"`\\;&|<>()]*)")


class _UniqueKeys(yaml.SafeLoader):
    """YAML takes the last of equal keys in silence; here it is an error."""


def _mapping(loader: _UniqueKeys, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    seen: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} came before", key_node.start_mark
            )
        seen[key] = loader.construct_object(value_node, deep=True)
    return seen


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


@dataclass(frozen=True, slots=True)
class Variable:
    """One line of node.env."""

    name: str
    value: str
    line: int


def root_of(file: Path) -> Path:
    """The checkout that a launch file belongs to: where its deploy/node.env lies.

    Looked for above the file, then above the working directory; raises UsageError.
    """
    for start in (file.absolute().parent, Path.cwd()):
        for folder in (start, *start.parents):
            if (folder / NODE_ENV).is_file():
                return folder
    raise UsageError(
        f"there is no {NODE_ENV} at or above {file.absolute().parent}",
        hint="Work in a checkout of raypipe, from where `ray up` is called too.",
    )


def read(path: Path) -> str:
    """The text of a launch file; raises UsageError when it can't be read."""
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise UsageError(f"{path} can't be read: {e.strerror}", hint="Name a launch file.") from e
    if len(raw) > LARGEST:
        raise InputError(f"{path} has {len(raw):,} bytes; a launch file has at most {LARGEST:,}")
    try:
        return raw.decode()
    except UnicodeDecodeError as e:
        raise InputError(f"{path} is not UTF-8: byte {e.start}") from e


def documents(path: Path, name: str) -> list[Node]:
    """The documents of a YAML file, each a mapping; raises InputError."""
    return parse(read(path), name)


def parse(text: str, name: str) -> list[Node]:
    """``documents`` of a text."""
    try:
        found = [d for d in yaml.load_all(text, Loader=_UniqueKeys) if d is not None]
    except (yaml.YAMLError, RecursionError, TypeError) as e:
        raise InputError(f"{name} is no YAML: {e}", hint="Correct the line that it names.") from e
    if not found or not all(isinstance(d, dict) for d in found):
        raise InputError(f"{name} holds no mapping", hint="The shipped cluster.yaml is an example.")
    return [Node(d, name) for d in found]


def table(path: Path, name: str) -> Node:
    """A TOML file; raises InputError."""
    try:
        return Node(tomllib.loads(read(path)), name)
    except tomllib.TOMLDecodeError as e:
        raise InputError(f"{name} is no TOML: {e}") from e


def variables(path: Path, name: str) -> list[Variable]:
    """The variables of node.env in their order.

    Raises InputError for a line that a shell and a container could read differently.
    """
    found: list[Variable] = []
    for number, line in enumerate(read(path).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _ASSIGNMENT.fullmatch(line)
        if match is None or "$" in match[2].replace("$HOME", ""):
            raise InputError(
                f"{name} line {number}: {line!r}",
                hint="NAME=value without quotes and blanks; of variables only $HOME.",
            )
        if any(v.name == match[1] for v in found):
            raise InputError(f"{name} line {number}: {match[1]} came before")
        found.append(Variable(match[1], match[2], number))
    return found
