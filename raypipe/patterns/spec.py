"""Patterns declared as data: the steps that one key's events go through. Nothing here computes.

Semantics, in log order. Every event that matches the first step begins a partial match of its own;
``within`` runs in event time from that first event. The next event that matches the following step
moves a partial match on (skip till next match); others leave it alone, or end it under ``strict``.
A step with ``times`` counts its events in any order of their times; between steps an event that is
older than the step before does not count. A first step that needs several events slides: its
newest ``least`` events by time count. docs/explanation/patterns.md has the whole.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn

from raypipe.errors import DeclarationError
from raypipe.yaml_nodes import Place

SEVERITIES = ("low", "medium", "high")
AFTER_MATCH = ("skip_past_last", "skip_to_next")
PARTIALS = 16
"""Partial matches that a key may have in one pattern, unless the pattern says another number."""

MOST_PARTIALS = 64
MOST_EVENTS = 64
"""Largest sum of ``least`` over the steps: so many events of a match are known by their ids."""

MOST_STEPS = 16
LONGEST_MS = 400 * 86_400_000


@dataclass(frozen=True, slots=True)
class Step:
    """One step: which events match it, and how many of them it takes (``most`` None: any more).

    A negated step matches nothing: between its neighbours no such event may come. As the last step
    it asks for absence until ``within`` is over.
    """

    name: str
    events: tuple[str, ...]
    where: str = ""
    least: int = 1
    most: int | None = 1
    negated: bool = False

    def describe(self) -> dict[str, Any]:
        """Plain data in the words of a pattern file."""
        times = {"min": self.least} | ({} if self.most is None else {"max": self.most})
        return {
            "name": self.name,
            "event": list(self.events),
            **({"where": self.where} if self.where else {}),
            **({} if (self.least, self.most) == (1, 1) else {"times": times}),
            **({"not": True} if self.negated else {}),
        }


@dataclass(frozen=True)
class Pattern:
    """One event pattern. Raises DeclarationError if it contradicts itself.

    ``keys`` names for each event type the column that groups its events. ``reason`` is a template
    with the values of expressions in braces: ``{small.count} small payments, then {big.amount}``.
    """

    name: str
    keys: tuple[tuple[str, str], ...]
    steps: tuple[Step, ...]
    within_ms: int
    reason: str
    version: int = 1
    description: str = ""
    severity: str = "medium"
    owner: str = ""
    after_match: str = "skip_past_last"
    strict: bool = False
    partials: int = PARTIALS
    place: Place = field(default_factory=Place, compare=False, repr=False)

    def __post_init__(self) -> None:
        names = [s.name for s in self.steps]
        for name in names:
            if names.count(name) > 1:
                self.fail("steps", f"step {name!r} is declared twice", "Steps need own names.")
        if not self.steps or len(self.steps) > MOST_STEPS:
            self.fail("steps", f"{len(self.steps)} steps", f"1 to {MOST_STEPS} are possible.")
        if self.steps[0].negated:
            self.fail(
                f"steps.{names[0]}",
                "the first step is negated",
                "A match begins with an event: put a step before it.",
            )
        for step in self.steps:
            self._check_step(step)
        if sum(s.least for s in self.positive) > MOST_EVENTS:
            self.fail("steps", f"the steps need over {MOST_EVENTS} events", "Ask for fewer.")
        if not 0 < self.within_ms <= LONGEST_MS:
            self.fail("within", f"within is {self.within_ms} ms", "Up to 400d is possible.")
        if not 1 <= self.partials <= MOST_PARTIALS:
            self.fail(
                "partials", f"partials is {self.partials}", f"1 to {MOST_PARTIALS} are possible."
            )

    def _check_step(self, step: Step) -> None:
        at = f"steps.{step.name}"
        if not step.events:
            self.fail(at, f"step {step.name!r} names no event type", "Write event: payment.")
        if step.least < 1 or (step.most is not None and step.most < step.least):
            self.fail(
                f"{at}.times",
                f"step {step.name!r} takes {step.least} to {step.most} events",
                "min is at least 1, max at least min.",
            )
        if step.negated and (step.least, step.most) != (1, 1):
            self.fail(f"{at}.times", f"negated step {step.name!r} has times", "Leave one out.")

    @property
    def positive(self) -> tuple[Step, ...]:
        """The steps that take events, in order."""
        return tuple(s for s in self.steps if not s.negated)

    @property
    def awaits_absence(self) -> bool:
        """Whether a match is complete only when time is up."""
        return self.steps[-1].negated

    @cached_property
    def events(self) -> tuple[str, ...]:
        """The event types that any step reads."""
        return tuple(dict.fromkeys(e for s in self.steps for e in s.events))

    def step(self, name: str) -> Step | None:
        """The step of that name, if there is one."""
        return next((s for s in self.steps if s.name == name), None)

    def fail(self, part: str, what: str, hint: str = "") -> NoReturn:
        """Refuse the pattern for what stands at ``part``."""
        raise DeclarationError(f"{self.place.of(part)}pattern {self.name!r}: {what}", hint=hint)

    def describe(self) -> dict[str, Any]:
        """Plain data in the words of a pattern file; ``from_text`` of it as JSON is this again."""
        return {
            "name": self.name,
            "version": self.version,
            "description": self.description,
            "severity": self.severity,
            "owner": self.owner,
            "group_by": dict(self.keys),
            "pattern": [s.describe() for s in self.steps],
            "within": f"{self.within_ms}ms",
            "after_match": self.after_match,
            "strict": self.strict,
            "partials": self.partials,
            "reason": self.reason,
        }

    @property
    def text(self) -> str:
        """The canonical definition: one line of JSON, which is YAML too."""
        # Not escaped: YAML knows no pairs of surrogates.
        return json.dumps(self.describe(), sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_text(cls, text: str) -> Pattern:
        """The one pattern that a text defines; raises DeclarationError."""
        from raypipe.patterns.reading import parse_patterns

        found = parse_patterns(text)
        if len(found) != 1:
            raise DeclarationError(f"{len(found)} patterns were given, expected one")
        return found[0]

    @cached_property
    def definition_hash(self) -> str:
        """sha256 of the canonical definition."""
        return hashlib.sha256(self.text.encode()).hexdigest()
