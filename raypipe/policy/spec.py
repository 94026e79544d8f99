"""A rule set declared as data. Nothing here decides; docs/explanation/policies.md has the whole.

Rules are looked at by rank, the highest first, and within a rank in the order of the file. Every
rule that fires is a hit. A ``final`` rule that fires ends the evaluation: what comes after it, the
thresholds too, is not looked at. The action is the severest of the hits. So an allow rule that is
final undoes nothing that stands above it, and ``approve`` without ``final`` only leaves a note.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NoReturn

from raypipe.errors import DeclarationError
from raypipe.policy.lists import Kind
from raypipe.policy.policy import Action
from raypipe.yaml_nodes import Place

DEFAULT = "default"
"""The segment of an event that no declared one takes."""

FLAGS = (Action.STEP_UP, Action.REVIEW, Action.BLOCK)
"""What a threshold may ask for, from mild to severe."""


@dataclass(frozen=True, slots=True)
class Rule:
    """``when`` it holds, ``action`` is asked for."""

    name: str
    when: str
    action: Action
    code: str
    words: str
    final: bool = False
    rank: int = 0

    def describe(self) -> dict[str, Any]:
        """Plain data in the words of a policy file."""
        return {
            "name": self.name,
            "when": self.when,
            "action": self.action.value,
            "code": self.code,
            "reason": self.words,
            "final": self.final,
            "rank": self.rank,
        }


@dataclass(frozen=True, slots=True)
class Segment:
    """A named condition; the first that holds is an event's segment."""

    name: str
    when: str


@dataclass(frozen=True, slots=True)
class Thresholds:
    """A score strictly above one asks for that action; None switches it off."""

    step_up: float | None = None
    review: float | None = None
    block: float | None = None

    def of(self, action: Action) -> float | None:
        """The threshold of an action."""
        found: float | None = getattr(self, action.value)
        return found

    @property
    def given(self) -> list[tuple[Action, float]]:
        """Those that are on, from mild to severe."""
        return [(a, t) for a in FLAGS if (t := self.of(a)) is not None]

    def describe(self) -> dict[str, float]:
        """Plain data in the words of a policy file."""
        return {a.value: t for a, t in self.given}


@dataclass(frozen=True, slots=True)
class Override:
    """A change for a time: from ``start_ms`` until before ``until_ms``, by ``who``, for ``why``.

    Rules are switched off, or ask for another action; thresholds of segments are others.
    """

    name: str
    start_ms: int
    until_ms: int
    who: str
    why: str
    disable: tuple[str, ...] = ()
    actions: Mapping[str, Action] = field(default_factory=dict)
    thresholds: Mapping[str, Thresholds] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Plain data in the words of a policy file."""
        return {
            "name": self.name,
            "from": iso(self.start_ms),
            "until": iso(self.until_ms),
            "who": self.who,
            "why": self.why,
            "disable": list(self.disable),
            "actions": {rule: action.value for rule, action in self.actions.items()},
            "thresholds": {name: t.describe() for name, t in self.thresholds.items()},
        }


@dataclass(frozen=True, slots=True)
class Words:
    """What is said about a feature that raised the score: a code and a sentence."""

    code: str
    words: str


@dataclass(frozen=True)
class PolicySpec:
    """One version of a policy, as it was written. Raises DeclarationError if it is none."""

    name: str
    version: int
    rules: tuple[Rule, ...] = ()
    segments: tuple[Segment, ...] = ()
    thresholds: Mapping[str, Thresholds] = field(default_factory=dict)
    lists: Mapping[str, Kind] = field(default_factory=dict)
    reasons: Mapping[str, Words] = field(default_factory=dict)
    on_error: Action = Action.REVIEW
    overrides: tuple[Override, ...] = ()
    description: str = ""
    owner: str = ""
    place: Place = field(default_factory=Place, compare=False, repr=False)

    @property
    def id(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"

    @cached_property
    def ordered(self) -> tuple[Rule, ...]:
        """The rules in the order in which they are looked at."""
        return tuple(sorted(self.rules, key=lambda r: -r.rank))

    def thresholds_of(self, segment: str) -> Thresholds:
        """Those of a segment, by default those of ``default``, by default none."""
        return self.thresholds.get(segment) or self.thresholds.get(DEFAULT) or Thresholds()

    def fail(self, part: str, what: str, hint: str = "") -> NoReturn:
        """Refuse the policy for what stands at ``part``."""
        raise DeclarationError(f"{self.place.of(part)}policy {self.name!r}: {what}", hint=hint)

    def describe(self) -> dict[str, Any]:
        """Plain data in the words of a policy file; read again it is this policy."""
        return {
            "name": self.name,
            "version": self.version,
            "description": self.description,
            "owner": self.owner,
            "on_error": self.on_error.value,
            "lists": {name: kind.value for name, kind in self.lists.items()},
            "segments": [{"name": s.name, "when": s.when} for s in self.segments],
            "thresholds": {name: t.describe() for name, t in self.thresholds.items()},
            "rules": [r.describe() for r in self.rules],
            "reasons": {f: {"code": w.code, "words": w.words} for f, w in self.reasons.items()},
            "overrides": [o.describe() for o in self.overrides],
        }

    @cached_property
    def text(self) -> str:
        """The canonical form: one line of JSON, which is YAML too."""
        # Not escaped: YAML knows no pairs of surrogates.
        return json.dumps(
            self.describe(), sort_keys=True, ensure_ascii=False, separators=(", ", ": ")
        )

    @cached_property
    def sha256(self) -> str:
        """Of the canonical form."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def iso(ms: int) -> str:
    """A time as a policy file has it.

    >>> iso(1_700_000_000_250)
    '2023-11-14T22:13:20.250Z'
    """
    moment = datetime.fromtimestamp(ms / 1_000, UTC)
    return moment.isoformat("T", "milliseconds").removesuffix("+00:00") + "Z"
