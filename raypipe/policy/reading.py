"""Policy files: YAML text becomes a policy, every refusal names the file and the line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from raypipe.errors import DeclarationError
from raypipe.policy.lists import Kind
from raypipe.policy.policy import Action
from raypipe.policy.spec import (
    DEFAULT,
    FLAGS,
    Override,
    PolicySpec,
    Rule,
    Segment,
    Thresholds,
    Words,
)
from raypipe.yaml_nodes import Node, Place, documents, nearest, read_text

POLICY_KEYS = (
    *("name", "version", "description", "owner", "on_error", "lists", "segments", "thresholds"),
    *("rules", "reasons", "overrides"),
)
RULE_KEYS = ("name", "when", "action", "code", "reason", "final", "rank")
SEGMENT_KEYS = ("name", "when")
OVERRIDE_KEYS = ("name", "from", "until", "who", "why", "disable", "actions", "thresholds")
WORDS_KEYS = ("code", "words")
HIGHEST_RANK = 1_000
LONGEST_OVERRIDE_MS = 366 * 86_400_000

_ACTIONS = tuple(a.value for a in Action)
_FLAGS = tuple(a.value for a in FLAGS)
_CODE = re.compile(r"[A-Z][A-Z0-9_]{0,62}")


def read_policy(path: Path) -> PolicySpec:
    """The policy of a file; raises DeclarationError that names the line."""
    return parse_policy(read_text(path, "policy"), str(path))


def parse_policy(text: str, file: str = "policy") -> PolicySpec:
    """The policy of a YAML text; raises DeclarationError that names the line."""
    found = documents(text, file)
    if len(found) != 1:
        raise DeclarationError(
            f"{file} holds {len(found)} documents", hint="One policy is expected."
        )
    return _policy(found[0])


def _policy(at: Node) -> PolicySpec:
    raw = at.mapping("a policy", POLICY_KEYS)
    _need(at, raw, "the policy", ("name", "version"))
    lines = {"": at.line, **{name: node.line for name, node in raw.items()}}
    segments = tuple(_segment(n, lines) for n in _items(raw, "segments"))
    rules = tuple(_rule(n, lines) for n in _items(raw, "rules"))
    _unique(raw, "segments", [s.name for s in segments])
    _unique(raw, "rules", [r.name for r in rules])
    known = (DEFAULT, *(s.name for s in segments))
    overrides = tuple(
        _override(n, lines, [r.name for r in rules], known) for n in _items(raw, "overrides")
    )
    _unique(raw, "overrides", [o.name for o in overrides])
    policy = PolicySpec(
        name=raw["name"].name("name"),
        version=raw["version"].whole("version"),
        rules=rules,
        segments=segments,
        thresholds=_by_segment(raw.get("thresholds"), "thresholds", known, lines),
        lists={
            name: Kind(node.one_of(f"list {name!r}", tuple(Kind)))
            for name, node in _mapping(raw, "lists").items()
        },
        reasons={f: _words(n, f) for f, n in _mapping(raw, "reasons").items()},
        on_error=(
            Action(raw["on_error"].one_of("on_error", (Action.REVIEW.value, Action.BLOCK.value)))
            if "on_error" in raw
            else Action.REVIEW
        ),
        overrides=overrides,
        description=raw["description"].text("description") if "description" in raw else "",
        owner=raw["owner"].text("owner") if "owner" in raw else "",
        place=Place(at.file, lines),
    )
    if not (policy.rules or policy.thresholds):
        at.fail("the policy has neither rules nor thresholds", "It could only approve.")
    return policy


def _rule(at: Node, lines: dict[str, int]) -> Rule:
    raw = at.mapping("a rule", RULE_KEYS)
    _need(at, raw, "the rule", ("name", "when", "action", "reason"))
    name = raw["name"].name("the rule's name")
    lines[f"rules.{name}"] = at.line
    lines |= {f"rules.{name}.{key}": node.line for key, node in raw.items()}
    return Rule(
        name=name,
        when=_when(raw["when"]),
        action=Action(raw["action"].one_of("action", _ACTIONS)),
        code=_code(raw["code"]) if "code" in raw else name.upper(),
        words=raw["reason"].text("reason"),
        final=raw["final"].flag("final") if "final" in raw else False,
        rank=_rank(raw["rank"]) if "rank" in raw else 0,
    )


def _segment(at: Node, lines: dict[str, int]) -> Segment:
    raw = at.mapping("a segment", SEGMENT_KEYS)
    _need(at, raw, "the segment", SEGMENT_KEYS)
    name = raw["name"].name("the segment's name")
    if name == DEFAULT:
        raw["name"].fail(f"a segment is called {DEFAULT!r}", "That is what no segment takes.")
    lines[f"segments.{name}"] = at.line
    return Segment(name, _when(raw["when"]))


def _by_segment(
    at: Node | None, part: str, segments: Sequence[str], lines: dict[str, int]
) -> Mapping[str, Thresholds]:
    found = {}
    for name, node in ({} if at is None else at.mapping("thresholds", None)).items():
        if name not in segments:
            node.fail(f"thresholds of unknown segment {name!r}", nearest(name, segments))
        lines[f"{part}.{name}"] = node.line
        found[name] = _thresholds(node, name)
    return found


def _thresholds(at: Node, segment: str) -> Thresholds:
    raw = at.mapping(f"thresholds of {segment!r}", _FLAGS)
    values = {}
    for action, node in raw.items():
        values[action] = node.number(action)
        if not 0.0 <= values[action] <= 1.0:
            node.fail(f"threshold {action} is {values[action]:g}", "A score is from 0 to 1.")
    found = Thresholds(**values)
    for (mild, low), (severe, high) in zip(found.given, found.given[1:], strict=False):
        if high < low:
            raw[severe.value].fail(
                f"threshold {severe} {high:g} of segment {segment!r} is below {mild} {low:g}",
                "What is dealt with more severely is at least as risky.",
            )
    return found


def _override(
    at: Node, lines: dict[str, int], rules: Sequence[str], segments: Sequence[str]
) -> Override:
    raw = at.mapping("an override", OVERRIDE_KEYS)
    _need(at, raw, "the override", ("name", "from", "until", "who", "why"))
    name = raw["name"].name("the override's name")
    lines[f"overrides.{name}"] = at.line
    start, until = raw["from"].moment("from"), raw["until"].moment("until")
    if not start < until <= start + LONGEST_OVERRIDE_MS:
        raw["until"].fail(
            f"override {name!r} lasts from {raw['from'].node.value} to {raw['until'].node.value}",
            "It ends after it began, within 366 days; what is to stay belongs into the rules.",
        )
    who, why = raw["who"].text("who"), raw["why"].text("why")
    if not who.strip() or not why.strip():
        at.fail(f"override {name!r} doesn't say by whom and why", "Write both.")
    disable = tuple(_known(n, n.text("disable"), rules) for n in _items(raw, "disable"))
    actions = {
        _known(n, rule, rules): Action(n.one_of(f"action of {rule!r}", _ACTIONS))
        for rule, n in _mapping(raw, "actions").items()
    }
    thresholds = _by_segment(raw.get("thresholds"), f"overrides.{name}", segments, lines)
    if not (disable or actions or thresholds):
        at.fail(f"override {name!r} changes nothing", "Write disable, actions or thresholds.")
    return Override(name, start, until, who, why, disable, actions, thresholds)


def _known(at: Node, rule: str, rules: Sequence[str]) -> str:
    if rule not in rules:
        at.fail(f"an override names unknown rule {rule!r}", nearest(rule, rules))
    return rule


def _words(at: Node, feature: str) -> Words:
    raw = at.mapping(f"the reason of {feature!r}", WORDS_KEYS)
    _need(at, raw, f"the reason of {feature!r}", ("words",))
    code = _code(raw["code"]) if "code" in raw else feature.upper()
    return Words(code, raw["words"].text("words"))


def _when(at: Node) -> str:
    return " ".join(at.text("when").split())


def _code(at: Node) -> str:
    code = at.text("code")
    if not _CODE.fullmatch(code):
        at.fail(f"code is {code!r}", "Capitals, digits and _, first a letter.")
    return code


def _rank(at: Node) -> int:
    rank = at.number("rank")
    if rank != int(rank) or not 0 <= rank <= HIGHEST_RANK:
        at.fail(f"rank is {rank:g}", f"A whole number from 0 to {HIGHEST_RANK} is expected.")
    return int(rank)


def _need(at: Node, raw: Mapping[str, Node], what: str, names: Sequence[str]) -> None:
    for name in names:
        if name not in raw:
            at.fail(f"{what} lacks {name!r}", "It needs " + ", ".join(names) + ".")


def _items(raw: Mapping[str, Node], name: str) -> list[Node]:
    at = raw.get(name)
    if at is None:
        return []
    if not isinstance(at.node, yaml.SequenceNode):
        at.fail(f"{name} is no list", "Begin each with '- '.")
    return at.items()


def _mapping(raw: Mapping[str, Node], name: str) -> dict[str, Node]:
    at = raw.get(name)
    return {} if at is None else at.mapping(name, None)


def _unique(raw: Mapping[str, Node], part: str, names: list[str]) -> None:
    doubled = sorted({n for n in names if names.count(n) > 1})
    if doubled:
        raw[part].fail(f"{part} have a name twice: {', '.join(doubled)}", "Names are unique.")
