"""Test cases of a policy, in YAML beside it: what is given, and what must come out.

``payments.yaml`` has its cases in ``payments.cases.yaml``. A case says what matters to it; event
columns and features that it leaves out are missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from raypipe.errors import DeclarationError, NotFound
from raypipe.events.schema import Kind as ColumnKind
from raypipe.policy.lists import Change, Kind, Lists
from raypipe.policy.policy import Action, Verdict
from raypipe.policy.rules import RuleSet
from raypipe.policy.spec import PolicySpec, iso
from raypipe.project import Project
from raypipe.yaml_nodes import Node, documents, nearest, read_text

CASE_KEYS = ("name", "event", "features", "score", "worker_away", "lists", "at", "expect")
EXPECT_KEYS = ("action", "codes", "segment", "degraded")

_TEXT = (ColumnKind.STRING, ColumnKind.CHOICE, ColumnKind.CURRENCY)


class Expected(NamedTuple):
    """What must come out; None where anything may."""

    action: Action
    codes: tuple[str, ...] | None
    segment: str | None
    degraded: bool | None


@dataclass(frozen=True)
class Case:
    """One case; ``lists`` are keys by list, ``at_ms`` when it is decided."""

    name: str
    line: int
    event: Mapping[str, Any]
    features: Mapping[str, float]
    score: float | None
    lists: Mapping[str, tuple[str, ...]]
    at_ms: int
    worker_away: bool
    expected: Expected


class Result(NamedTuple):
    """What came out of a case; ``wrong`` is empty if it is what was expected."""

    case: Case
    verdict: Verdict
    wrong: tuple[str, ...]


def cases_file(policy: Path) -> Path:
    """Where the cases of a policy file are.

    >>> cases_file(Path("policies/payments.yaml")).name
    'payments.cases.yaml'
    """
    return policy.with_suffix(f".cases{policy.suffix}")


def read_cases(file: Path, spec: PolicySpec, project: Project, now_ms: int) -> list[Case]:
    """The cases of a file, in order.

    Raises:
        NotFound: there is no such file.
        DeclarationError: a case can't be read or names what is not there; with the line.
    """
    if not file.is_file():
        raise NotFound(f"there are no cases at {file}", hint="Write them beside the policy.")
    found: list[Case] = []
    for document in documents(read_text(file, "case"), str(file)):
        for node in document.items():
            found.append(_case(node, spec, project, now_ms))
    if not found:
        raise DeclarationError(f"{file} holds no case")
    return found


def run(policy: RuleSet, cases: list[Case]) -> list[Result]:
    """Decide each case and compare."""
    bound = policy.bind(policy.features)
    return [_run(bound.decide(*_given(policy, c)), c) for c in cases]


def _given(policy: RuleSet, case: Case) -> tuple[Any, ...]:
    row = np.array([case.features.get(f, np.nan) for f in policy.features], np.float32)
    changes = [
        (name, Change(name, policy.spec.lists.get(name, Kind.WATCH), "add", keys, "", "", 0))
        for name, keys in case.lists.items()
    ]
    return case.score, case.event, row, Lists(changes), case.at_ms, case.worker_away


def _run(verdict: Verdict, case: Case) -> Result:
    wrong = []
    expected = case.expected
    if verdict.action is not expected.action:
        wrong.append(f"action {verdict.action}, expected {expected.action}")
    if expected.codes is not None and set(verdict.codes) != set(expected.codes):
        came, wanted = ", ".join(verdict.codes), ", ".join(expected.codes)
        wrong.append(f"codes {came or 'none'}, expected {wanted or 'none'}")
    if expected.segment is not None and verdict.segment != expected.segment:
        wrong.append(f"segment {verdict.segment}, expected {expected.segment}")
    if expected.degraded is not None and verdict.degraded is not expected.degraded:
        wrong.append(f"degraded {verdict.degraded}, expected {expected.degraded}")
    return Result(case, verdict, tuple(wrong))


def _case(at: Node, spec: PolicySpec, project: Project, now_ms: int) -> Case:
    raw = at.mapping("a case", CASE_KEYS)
    for name in ("name", "expect"):
        if name not in raw:
            at.fail(f"the case lacks {name!r}", "It needs name and expect.")
    event = project.decision_event
    values: dict[str, Any] = {f.name: None for f in event.all_fields}
    columns = {f.name: f for f in event.all_fields}
    for name, node in _mapping(raw, "event").items():
        if name not in columns:
            node.fail(f"unknown column {name!r}", nearest(name, columns))
        values[name] = _value(node, name, columns[name].kind)
    features = {}
    for name, node in _mapping(raw, "features").items():
        if name not in project.feature_names:
            node.fail(f"unknown feature {name!r}", "`raypipe features --list` shows them.")
        features[name] = node.number(name)
    lists = {}
    for name, node in _mapping(raw, "lists").items():
        if name not in spec.lists:
            node.fail(f"undeclared list {name!r}", nearest(name, spec.lists))
        lists[name] = tuple(n.text("a key") for n in node.items())
    moment = raw["at"].moment("at") if "at" in raw else now_ms
    return Case(
        name=raw["name"].text("name"),
        line=at.line,
        event=values,
        features=features,
        score=_score(raw["score"]) if "score" in raw else 0.0,
        lists=lists,
        at_ms=moment,
        worker_away=raw["worker_away"].flag("worker_away") if "worker_away" in raw else False,
        expected=_expected(raw["expect"], spec),
    )


def _expected(at: Node, spec: PolicySpec) -> Expected:
    raw = at.mapping("expect", EXPECT_KEYS)
    if "action" not in raw:
        at.fail("expect lacks 'action'", "It needs one.")
    codes = None
    if "codes" in raw:
        codes = tuple(n.text("a code") for n in raw["codes"].items())
    return Expected(
        Action(raw["action"].one_of("action", tuple(a.value for a in Action))),
        codes,
        raw["segment"].text("segment") if "segment" in raw else None,
        raw["degraded"].flag("degraded") if "degraded" in raw else None,
    )


def _score(at: Node) -> float | None:
    if isinstance(at.node, yaml.ScalarNode) and at.node.tag.endswith(":null"):
        return None
    return at.number("score")


def _value(at: Node, name: str, kind: ColumnKind) -> Any:
    if kind in _TEXT:
        return at.text(name)
    if kind is ColumnKind.BOOLEAN:
        return at.flag(name)
    if kind is ColumnKind.TIME and not str(at.node.value).lstrip("-").isdigit():
        return at.moment(name)
    return at.number(name)


def _mapping(raw: Mapping[str, Node], name: str) -> dict[str, Node]:
    return raw[name].mapping(name, None) if name in raw else {}


def told(result: Result, file: Path) -> str:
    """A case that came out wrong, in words."""
    case = result.case
    return f"{file}:{case.line}: {case.name}: {'; '.join(result.wrong)} (at {iso(case.at_ms)})"
