"""A rule set that decides about one event at a time, in-line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from raypipe.errors import DeclarationError
from raypipe.policy.lists import Lists
from raypipe.policy.names import AWAY, SCORE
from raypipe.policy.policy import ON_ERROR, ON_ERROR_CODE, SEVERITY, Action, Hit, Verdict
from raypipe.policy.program import Program, check
from raypipe.policy.spec import PolicySpec
from raypipe.project import Project

_MILDEST = Action.APPROVE


class RuleSet:
    """A policy that fits a project; ``bind`` makes it decide about what a model has scored."""

    def __init__(self, spec: PolicySpec, project: Project) -> None:
        self.spec = spec
        self.id, self.sha256 = spec.id, spec.sha256
        self._checked = check(spec, project)

    @property
    def features(self) -> tuple[str, ...]:
        """The features that it reads."""
        return self._checked.features

    @property
    def lists(self) -> tuple[str, ...]:
        """The lists that it reads."""
        checked = (*self._checked.segments, *self._checked.conditions)
        return tuple(dict.fromkeys(test.list for when in checked for test in when.lists))

    def bind(self, features: Sequence[str]) -> BoundPolicy:
        """The policy for a model of these features, in their order.

        Raises DeclarationError when a rule reads one that the model doesn't have: a decision
        record keeps what the model saw, and nothing else.
        """
        lacking = [f for f in self.features if f not in features]
        if lacking:
            raise DeclarationError(
                f"policy {self.id!r} reads features that the model does not have: "
                + ", ".join(lacking),
                hint="Add them to the model's features and train it, or change the rules.",
            )
        return BoundPolicy(Program(self._checked, features))


class BoundPolicy:
    """A policy ready to decide about events that one model has scored; immutable."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.spec = program.spec
        self.id, self.sha256 = self.spec.id, self.spec.sha256
        self.lists = tuple(dict.fromkeys(on.list for on, _, _ in program.lists))
        """The lists that it reads."""
        self.on_error = self.spec.on_error
        self._no_score = Hit(ON_ERROR, self.on_error, ON_ERROR_CODE)
        self._rules = [
            (place, name, program.independent[place], program.final[place])
            for place, name in enumerate(program.rules)
        ]
        self._segments = list(enumerate(program.segments))

    def words(self, feature: str) -> tuple[str, str]:
        """The reason code and the words for a feature that raised the score."""
        found = self.spec.reasons.get(feature)
        return (feature.upper(), "") if found is None else (found.code, found.words)

    def decide(
        self,
        score: float | None,
        event: Mapping[str, Any],
        row: npt.NDArray[np.float32] | None,
        lists: Lists,
        at_ms: int,
        worker_away: bool = False,
    ) -> Verdict:
        """The verdict about one event; arguments as in raypipe.policy.policy.Decides.

        Without a usable score or features only rules that read neither are looked at, and the
        action is the severest of theirs and ``on_error``.
        """
        program = self.program
        phase = program.phase(at_ms)
        usable = score is not None and row is not None and 0.0 <= score <= 1.0
        values: dict[str, float] = {}
        for name in program.columns:
            value = event[name]
            values[name] = math.nan if value is None else float(value)
        if usable:
            values[SCORE] = score  # type: ignore[assignment]
            for name, place in program.features:
                values[name] = row.item(place)  # type: ignore[union-attr]
        else:
            values[SCORE] = math.nan
            for name, _ in program.features:
                values[name] = math.nan
        if program.reads_away:
            values[AWAY] = float(worker_away)
        for test, name in program.tests:
            found = event[test.column]
            values[name] = float(found is not None and (found == test.text) == test.equal)
        listed = []
        for on, name, told in program.lists:
            holds = lists.holds(on.list, event[on.column], at_ms)
            values[name] = float(holds)
            if holds:
                listed.append(told)
        program.of_row(values)
        segment = len(self._segments)
        for place, name in self._segments:
            if values[name]:
                segment = place
                break
        hits = []
        ended = False
        for place, name, independent, final in self._rules:
            if values[name] and (usable or independent):
                fired = phase.hits[place]
                if fired is not None:
                    hits.append(fired)
                    if final:
                        ended = True
                        break
        if not usable:
            hits.append(self._no_score)
        elif not ended:
            for threshold, hit in phase.flags[segment]:
                if score > threshold:  # type: ignore[operator]
                    hits.append(hit)
                    break
        action = max([h.action for h in hits], key=SEVERITY.__getitem__) if hits else _MILDEST
        return Verdict(
            action, tuple(hits), not usable, program.segment_names[segment], tuple(listed)
        )
