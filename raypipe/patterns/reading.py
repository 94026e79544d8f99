"""Pattern files: YAML text becomes patterns, every refusal names the file and the line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

import yaml

from raypipe.errors import DeclarationError
from raypipe.patterns.spec import AFTER_MATCH, PARTIALS, SEVERITIES, Pattern, Place, Step
from raypipe.windows.spec import UNITS

PATTERN_KEYS = (
    *("name", "version", "description", "severity", "owner", "group_by", "pattern", "within"),
    *("after_match", "strict", "partials", "reason"),
)
STEP_KEYS = ("name", "event", "where", "times", "not")
TIMES_KEYS = ("min", "max")

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_DURATION = re.compile(r"([1-9][0-9]{0,12})(ms|[smhd])")
_WORDS = {"str": "text", "int": "a whole number", "bool": "true or false"}
_LARGEST = 1_000_000


def read_patterns(path: Path) -> list[Pattern]:
    """The patterns of a file; raises DeclarationError that names the line."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise DeclarationError(f"pattern file {path} can't be read: {e}") from e
    return parse_patterns(text, str(path))


def parse_patterns(text: str, file: str = "pattern") -> list[Pattern]:
    """The patterns of a YAML text: one as a mapping, or several as a list or as documents."""
    try:
        documents = [d for d in yaml.compose_all(text, yaml.SafeLoader) if d is not None]
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else file
        raise DeclarationError(
            f"{where}: not YAML: {getattr(e, 'problem', None) or e}",
            hint="An expression with ': ' or '#' in it needs quotes.",
        ) from e
    except (ValueError, RecursionError) as e:
        raise DeclarationError(f"{file}: not YAML: {e}") from e
    found = []
    for document in documents:
        if isinstance(document, yaml.SequenceNode):
            found += [_pattern(_Node(file, n)) for n in document.value]
        else:
            found.append(_pattern(_Node(file, document)))
    if not found:
        raise DeclarationError(f"{file} holds no pattern")
    return found


@dataclass(frozen=True, slots=True)
class _Node:
    """One value of the file and its place."""

    file: str
    node: yaml.Node

    @property
    def line(self) -> int:
        return int(self.node.start_mark.line) + 1

    def fail(self, what: str, hint: str = "") -> NoReturn:
        raise DeclarationError(f"{self.file}:{self.line}: {what}", hint=hint)

    def mapping(self, what: str, known: tuple[str, ...] | None) -> dict[str, _Node]:
        """Values by key; ``known`` None allows any key."""
        if not isinstance(self.node, yaml.MappingNode):
            self.fail(f"{what} is no mapping", "Write it as `key: value` lines.")
        found: dict[str, _Node] = {}
        for key_node, value in self.node.value:
            key = _Node(self.file, key_node)
            name = key.text(f"a key of {what}")
            if name in found:
                key.fail(f"{what} has {name!r} twice")
            if known is not None and name not in known:
                key.fail(f"{what} has unknown {name!r}", nearest(name, known))
            found[name] = _Node(self.file, value)
        return found

    def items(self) -> list[_Node]:
        """The members of a list; a single value is a list of one."""
        if isinstance(self.node, yaml.SequenceNode):
            return [_Node(self.file, n) for n in self.node.value]
        return [self]

    def _scalar(self, what: str, kind: str) -> str:
        tag = self.node.tag.rpartition(":")[2]
        if not isinstance(self.node, yaml.ScalarNode) or tag != kind:
            came = repr(self.node.value) if isinstance(self.node, yaml.ScalarNode) else "a group"
            hint = "Put quotes around it." if kind == "str" and came != "a group" else ""
            self.fail(f"{what} is {came}, expected {_WORDS[kind]}", hint)
        return str(self.node.value)

    def text(self, what: str) -> str:
        text = self._scalar(what, "str")
        if not text.replace("\n", " ").isprintable():
            self.fail(f"{what} holds control characters", "Leave them out.")
        return text

    def name(self, what: str) -> str:
        name = self.text(what)
        if not _NAME.fullmatch(name):
            self.fail(f"{what} is {name!r}", "Lower-case letters, digits and _, first a letter.")
        return name

    def whole(self, what: str) -> int:
        text = self._scalar(what, "int")
        if not re.fullmatch(r"[0-9]{1,7}", text) or not 1 <= int(text) <= _LARGEST:
            self.fail(f"{what} is {text}", f"A whole number from 1 to {_LARGEST:,} is expected.")
        return int(text)

    def flag(self, what: str) -> bool:
        return self._scalar(what, "bool").lower() in ("true", "yes", "on")

    def one_of(self, what: str, allowed: tuple[str, ...]) -> str:
        text = self.text(what)
        if text not in allowed:
            self.fail(f"{what} is {text!r}", nearest(text, allowed))
        return text

    def duration(self, what: str) -> int:
        scalar = isinstance(self.node, yaml.ScalarNode)
        match = _DURATION.fullmatch(self.node.value) if scalar else None
        if not match:
            came = repr(self.node.value) if scalar else "a group"
            self.fail(f"{what} is {came}", "Write a whole number and s, m, h or d: 10m.")
        return int(match[1]) * (1 if match[2] == "ms" else 1_000 * UNITS[match[2]])


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint: the known name that is most like this one, and all of them."""
    known = list(known)
    near = get_close_matches(name, known, 1)
    meant = f"Did you mean {near[0]!r}? " if near else ""
    return f"{meant}Known: " + ", ".join(known)


def _pattern(at: _Node) -> Pattern:
    raw = at.mapping("a pattern", PATTERN_KEYS)
    for name in ("name", "group_by", "pattern", "within", "reason"):
        if name not in raw:
            at.fail(f"the pattern lacks {name!r}", "Every pattern has it.")
    lines = {"": at.line, **{name: node.line for name, node in raw.items()}}
    lines["steps"] = lines["pattern"]
    steps = tuple(_step(node, lines) for node in raw["pattern"].items())
    text = {k: raw[k].text(k) for k in ("description", "owner") if k in raw}
    return Pattern(
        name=raw["name"].name("name"),
        keys=_keys(raw["group_by"], steps),
        steps=steps,
        within_ms=raw["within"].duration("within"),
        reason=raw["reason"].text("reason"),
        version=raw["version"].whole("version") if "version" in raw else 1,
        description=text.get("description", ""),
        severity=raw["severity"].one_of("severity", SEVERITIES) if "severity" in raw else "medium",
        owner=text.get("owner", ""),
        after_match=(
            raw["after_match"].one_of("after_match", AFTER_MATCH)
            if "after_match" in raw
            else AFTER_MATCH[0]
        ),
        strict=raw["strict"].flag("strict") if "strict" in raw else False,
        partials=raw["partials"].whole("partials") if "partials" in raw else PARTIALS,
        place=Place(at.file, lines),
    )


def _keys(at: _Node, steps: tuple[Step, ...]) -> tuple[tuple[str, str], ...]:
    events = sorted({e for s in steps for e in s.events})
    if isinstance(at.node, yaml.ScalarNode):
        column = at.text("group_by")
        return tuple((event, column) for event in events)
    found = {k: v.text(f"group_by of {k}") for k, v in at.mapping("group_by", None).items()}
    for event in (e for e in found if e not in events):
        at.fail(f"group_by names event type {event!r}, which no step reads", nearest(event, events))
    for event in (e for e in events if e not in found):
        at.fail(f"group_by lacks event type {event!r}", f"Write {event}: COLUMN.")
    return tuple((event, found[event]) for event in events)


def _step(at: _Node, lines: dict[str, int]) -> Step:
    raw = at.mapping("a step", STEP_KEYS)
    for needed in ("name", "event"):
        if needed not in raw:
            at.fail(f"the step lacks {needed!r}", "Write {name: small, event: payment}.")
    name = raw["name"].name("the step's name")
    lines[f"steps.{name}"] = at.line
    lines |= {f"steps.{name}.{key}": node.line for key, node in raw.items()}
    least, most = _times(raw["times"]) if "times" in raw else (1, 1)
    return Step(
        name,
        tuple(dict.fromkeys(n.text("event") for n in raw["event"].items())),
        " ".join(raw["where"].text("where").split()) if "where" in raw else "",
        least,
        most,
        raw["not"].flag("not") if "not" in raw else False,
    )


def _times(at: _Node) -> tuple[int, int | None]:
    if not isinstance(at.node, yaml.MappingNode):
        times = at.whole("times")
        return times, times
    raw = at.mapping("times", TIMES_KEYS)
    least = raw["min"].whole("min") if "min" in raw else 1
    return least, raw["max"].whole("max") if "max" in raw else None
