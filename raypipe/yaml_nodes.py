"""YAML that is read by hand: each value knows its line, and every refusal names file and line."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

import yaml

from raypipe.errors import DeclarationError
from raypipe.windows.spec import UNITS

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_DURATION = re.compile(r"([1-9][0-9]{0,12})(ms|[smhd])")
_WORDS = {"str": "text", "int": "a whole number", "bool": "true or false"}
_LARGEST = 1_000_000


@dataclass(frozen=True, slots=True)
class Place:
    """Where a declaration stands: a file and the line of each part, ``steps.big.where``."""

    file: str = ""
    lines: Mapping[str, int] = field(default_factory=dict)

    def of(self, part: str) -> str:
        """``file:line: `` of a part, or of what holds it; empty when no file is known."""
        while part and part not in self.lines:
            part = part.rpartition(".")[0]
        line = self.lines.get(part)
        return f"{self.file}:{line}: " if line else ""


@dataclass(frozen=True, slots=True)
class Node:
    """One value of the file and its place."""

    file: str
    node: yaml.Node

    @property
    def line(self) -> int:
        """Where it begins, from 1."""
        return int(self.node.start_mark.line) + 1

    def fail(self, what: str, hint: str = "") -> NoReturn:
        """Refuse what stands here."""
        raise DeclarationError(f"{self.file}:{self.line}: {what}", hint=hint)

    def mapping(self, what: str, known: tuple[str, ...] | None) -> dict[str, Node]:
        """Values by key; ``known`` None allows any key."""
        if not isinstance(self.node, yaml.MappingNode):
            self.fail(f"{what} is no mapping", "Write it as `key: value` lines.")
        found: dict[str, Node] = {}
        for key_node, value in self.node.value:
            key = Node(self.file, key_node)
            name = key.text(f"a key of {what}")
            if name in found:
                key.fail(f"{what} has {name!r} twice")
            if known is not None and name not in known:
                key.fail(f"{what} has unknown {name!r}", nearest(name, known))
            found[name] = Node(self.file, value)
        return found

    def items(self) -> list[Node]:
        """The members of a list; a single value is a list of one."""
        if isinstance(self.node, yaml.SequenceNode):
            return [Node(self.file, n) for n in self.node.value]
        return [self]

    def _scalar(self, what: str, kind: str) -> str:
        tag = self.node.tag.rpartition(":")[2]
        if not isinstance(self.node, yaml.ScalarNode) or tag != kind:
            came = repr(self.node.value) if isinstance(self.node, yaml.ScalarNode) else "a group"
            hint = "Put quotes around it." if kind == "str" and came != "a group" else ""
            self.fail(f"{what} is {came}, expected {_WORDS[kind]}", hint)
        return str(self.node.value)

    def text(self, what: str) -> str:
        """A text without control characters."""
        text = self._scalar(what, "str")
        if not text.replace("\n", " ").isprintable():
            self.fail(f"{what} holds control characters", "Leave them out.")
        return text

    def name(self, what: str) -> str:
        """A lower-case identifier."""
        name = self.text(what)
        if not _NAME.fullmatch(name):
            self.fail(f"{what} is {name!r}", "Lower-case letters, digits and _, first a letter.")
        return name

    def whole(self, what: str) -> int:
        """A whole number from 1 to a million."""
        text = self._scalar(what, "int")
        if not re.fullmatch(r"[0-9]{1,7}", text) or not 1 <= int(text) <= _LARGEST:
            self.fail(f"{what} is {text}", f"A whole number from 1 to {_LARGEST:,} is expected.")
        return int(text)

    def flag(self, what: str) -> bool:
        """True or false."""
        return self._scalar(what, "bool").lower() in ("true", "yes", "on")

    def one_of(self, what: str, allowed: tuple[str, ...]) -> str:
        """One of some texts."""
        text = self.text(what)
        if text not in allowed:
            self.fail(f"{what} is {text!r}", nearest(text, allowed))
        return text

    def duration(self, what: str) -> int:
        """Milliseconds of a text such as 10m."""
        scalar = isinstance(self.node, yaml.ScalarNode)
        match = _DURATION.fullmatch(self.node.value) if scalar else None
        if not match:
            came = repr(self.node.value) if scalar else "a group"
            self.fail(f"{what} is {came}", "Write a whole number and s, m, h or d: 10m.")
        return int(match[1]) * (1 if match[2] == "ms" else 1_000 * UNITS[match[2]])

    def number(self, what: str) -> float:
        """A finite number."""
        value = math.nan
        if isinstance(self.node, yaml.ScalarNode) and not self.node.style:
            try:
                value = float(self.node.value)
            except ValueError:
                value = math.nan
        if not math.isfinite(value):
            came = repr(self.node.value) if isinstance(self.node, yaml.ScalarNode) else "a group"
            self.fail(f"{what} is {came}, expected a number")
        return value

    def moment(self, what: str) -> int:
        """A time with an offset, as ms UTC."""
        try:
            found = datetime.fromisoformat(str(self.node.value))
        except ValueError:
            found = None
        if found is None or found.tzinfo is None:
            self.fail(f"{what} is {self.node.value!r}", "Write a time like 2026-03-01T08:00:00Z.")
        return round(found.timestamp() * 1_000)


def read_text(path: Path, what: str) -> str:
    """The text of a declaration file; raises DeclarationError."""
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise DeclarationError(f"{what} file {path} can't be read: {e}") from e


def documents(text: str, file: str) -> list[Node]:
    """The documents of a YAML text that aren't empty; raises DeclarationError."""
    try:
        return [Node(file, d) for d in yaml.compose_all(text, yaml.SafeLoader) if d is not None]
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else file
        raise DeclarationError(
            f"{where}: not YAML: {getattr(e, 'problem', None) or e}",
            hint="An expression with ': ' or '#' in it needs quotes.",
        ) from e
    except (ValueError, RecursionError) as e:
        raise DeclarationError(f"{file}: not YAML: {e}") from e


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint: the known name that is most like this one, and all of them."""
    known = list(known)
    near = get_close_matches(name, known, 1)
    meant = f"Did you mean {near[0]!r}? " if near else ""
    return f"{meant}Known: " + ", ".join(known)
