"""Pattern files: YAML text becomes patterns, every refusal names the file and the line."""

from __future__ import annotations

from pathlib import Path

import yaml

from raypipe.errors import DeclarationError
from raypipe.patterns.spec import AFTER_MATCH, PARTIALS, SEVERITIES, Pattern, Step
from raypipe.yaml_nodes import Node, Place, documents, nearest, read_text

PATTERN_KEYS = (
    *("name", "version", "description", "severity", "owner", "group_by", "pattern", "within"),
    *("after_match", "strict", "partials", "reason"),
)
STEP_KEYS = ("name", "event", "where", "times", "not")
TIMES_KEYS = ("min", "max")


def read_patterns(path: Path) -> list[Pattern]:
    """The patterns of a file; raises DeclarationError that names the line."""
    return parse_patterns(read_text(path, "pattern"), str(path))


def parse_patterns(text: str, file: str = "pattern") -> list[Pattern]:
    """The patterns of a YAML text: one as a mapping, or several as a list or as documents."""
    found = []
    for document in documents(text, file):
        several = isinstance(document.node, yaml.SequenceNode)
        found += [_pattern(n) for n in (document.items() if several else [document])]
    if not found:
        raise DeclarationError(f"{file} holds no pattern")
    return found


def _pattern(at: Node) -> Pattern:
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


def _keys(at: Node, steps: tuple[Step, ...]) -> tuple[tuple[str, str], ...]:
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


def _step(at: Node, lines: dict[str, int]) -> Step:
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


def _times(at: Node) -> tuple[int, int | None]:
    if not isinstance(at.node, yaml.MappingNode):
        times = at.whole("times")
        return times, times
    raw = at.mapping("times", TIMES_KEYS)
    least = raw["min"].whole("min") if "min" in raw else 1
    return least, raw["max"].whole("max") if "max" in raw else None
