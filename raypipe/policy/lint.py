"""What is wrong with a policy file, and what looks wrong: conflicts, dead rules, leftovers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raypipe.errors import DeclarationError
from raypipe.policy.bounds import Asked, asked
from raypipe.policy.lists import Kind
from raypipe.policy.names import When
from raypipe.policy.policy import Action
from raypipe.policy.program import condition, names_of
from raypipe.policy.reading import read_policy
from raypipe.policy.spec import DEFAULT, PolicySpec, Rule, iso
from raypipe.project import Project


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing: ``detail`` begins with the place. A policy with an error can't be published."""

    level: Literal["error", "warning"]
    code: str
    detail: str
    hint: str = ""


def lint(
    file: Path, project: Project, now_ms: int, kinds: Mapping[str, Kind] | None = None
) -> tuple[PolicySpec | None, list[Finding]]:
    """The policy of a file, None if it can't be read at all, and what was found in it.

    Args:
        kinds: the lists that there are.
    """
    try:
        spec = read_policy(file)
    except DeclarationError as e:
        return None, [Finding("error", "unreadable", e.detail, e.hint)]
    return spec, findings(spec, project, now_ms, kinds)


def findings(
    spec: PolicySpec, project: Project, now_ms: int, kinds: Mapping[str, Kind] | None = None
) -> list[Finding]:
    """Everything that is wrong with a policy, errors first."""
    found = [*_findings(spec, project, now_ms), *_kinds(spec, kinds or {})]
    return sorted(found, key=lambda f: f.level != "error")


def _kinds(spec: PolicySpec, kinds: Mapping[str, Kind]) -> Iterator[Finding]:
    for name, kind in spec.lists.items():
        if kinds.get(name, kind) is not kind:
            what = f"list {name!r} is declared as {kind}, and was made as {kinds[name]}"
            yield _finding(spec, "warning", "list_kind", "lists", what)


def _findings(spec: PolicySpec, project: Project, now_ms: int) -> Iterator[Finding]:
    names = names_of(spec, project)
    read: dict[str, When] = {}
    parts = {f"segments.{s.name}": s.when for s in spec.segments}
    parts |= {f"rules.{r.name}.when": r.when for r in spec.ordered}
    for part, text in parts.items():
        try:
            read[part] = condition(spec, part, text, names)
        except DeclarationError as e:
            yield Finding("error", "condition", e.detail, e.hint)
    for feature in spec.reasons:
        if feature not in project.feature_names:
            yield _finding(spec, "error", "reason", "reasons", f"unknown feature {feature!r}")
    asks = {part: asked(when, names) for part, when in read.items()}
    yield from _segments(spec, asks)
    yield from _rules(spec, asks)
    used = {test.list for when in read.values() for test in when.lists}
    for name in spec.lists:
        if name not in used and len(read) == len(parts):
            yield _finding(spec, "warning", "unused_list", "lists", f"no rule reads list {name!r}")
    for override in spec.overrides:
        if override.until_ms <= now_ms:
            yield _finding(
                spec,
                "warning",
                "expired_override",
                f"overrides.{override.name}",
                f"override {override.name!r} ended at {iso(override.until_ms)}",
                "Remove it in the next version.",
            )


def _segments(spec: PolicySpec, asks: dict[str, Asked]) -> Iterator[Finding]:
    earlier: list[str] = []
    for segment in spec.segments:
        part = f"segments.{segment.name}"
        mine = asks.get(part)
        if mine is None:
            continue
        by = next((e for e in earlier if mine.implies(asks[f"segments.{e}"])), None)
        if mine.impossible:
            why = "its condition can't hold"
        elif by is not None:
            why = f"segment {by!r} takes all of it before"
        else:
            why = ""
        if why:
            yield _finding(
                spec, "warning", "dead_segment", part, f"segment {segment.name!r} is empty: {why}"
            )
        earlier.append(segment.name)
    if spec.segments and spec.thresholds and DEFAULT not in spec.thresholds:
        yield _finding(
            spec,
            "warning",
            "no_default",
            "thresholds",
            f"there are no thresholds {DEFAULT!r}: an event of no other segment can't be flagged "
            "by its score",
        )


def _rules(spec: PolicySpec, asks: dict[str, Asked]) -> Iterator[Finding]:
    earlier: list[tuple[Rule, Asked]] = []
    for rule in spec.ordered:
        part = f"rules.{rule.name}"
        mine = asks.get(f"{part}.when")
        if mine is None:
            continue
        if mine.impossible:
            yield _finding(
                spec,
                "warning",
                "dead_rule",
                part,
                f"rule {rule.name!r} never fires: its condition can't hold",
            )
            continue
        by = next((r for r, a in earlier if r.final and mine.implies(a)), None)
        if by is not None:
            yield _finding(
                spec,
                "warning",
                "dead_rule",
                part,
                f"rule {rule.name!r} never fires: final rule {by.name!r} comes first whenever it "
                "would",
                "Put it before that rule, give it a higher rank, or remove it.",
            )
            continue
        for other, theirs in earlier:
            if _opposed(other, rule) and not mine.both(theirs).impossible:
                yield _finding(
                    spec,
                    "warning",
                    "conflict",
                    part,
                    f"rules {other.name!r} ({other.action}) and {rule.name!r} ({rule.action}) can "
                    f"both fire at rank {rule.rank}; only the order of the file says that "
                    f"{_stronger(other, rule).name!r} wins",
                    "Say which wins by `rank`, or make their conditions exclude each other.",
                )
        earlier.append((rule, mine))


def _opposed(earlier: Rule, later: Rule) -> bool:
    """Whether one of two rules of one rank lets through for good what the other flags."""
    allows = [r.action is Action.APPROVE and r.final for r in (earlier, later)]
    flags = [r.action is not Action.APPROVE for r in (earlier, later)]
    return earlier.rank == later.rank and any(allows) and any(flags)


def _stronger(earlier: Rule, later: Rule) -> Rule:
    """Whose action stands when both would fire."""
    return earlier if earlier.final or earlier.action is not Action.APPROVE else later


def _finding(
    spec: PolicySpec,
    level: Literal["error", "warning"],
    code: str,
    part: str,
    detail: str,
    hint: str = "",
) -> Finding:
    return Finding(level, code, f"{spec.place.of(part)}policy {spec.name!r}: {detail}", hint)
