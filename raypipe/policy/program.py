"""A policy checked against a project and compiled: what deciding about a row or columns needs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from raypipe.errors import DeclarationError
from raypipe.policy.names import AWAY, SCORE, Names, Terms, When, features_of, read_condition
from raypipe.policy.policy import Hit, threshold_hit
from raypipe.policy.spec import DEFAULT, PolicySpec
from raypipe.project import Project
from raypipe.vector.expressions import Derived, compile_columns, compile_row


class Phase(NamedTuple):
    """What is in force between two moments: no override begins or ends in it.

    ``hits`` are by rule in order of evaluation, None for a rule that is switched off; ``flags`` by
    segment, those of ``default`` last: thresholds from severe to mild, with what they ask for.
    """

    hits: tuple[Hit | None, ...]
    flags: tuple[tuple[tuple[float, Hit], ...], ...]
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Checked:
    """A policy whose conditions fit a project, by segment and by rule in order of evaluation."""

    spec: PolicySpec
    segments: tuple[When, ...]
    conditions: tuple[When, ...]

    @property
    def features(self) -> tuple[str, ...]:
        """The features that it reads."""
        return features_of((*self.segments, *self.conditions))


def names_of(spec: PolicySpec, project: Project) -> Names:
    """What the conditions of a policy may read."""
    return Names(project.decision_event, project.feature_names, tuple(spec.lists))


def check(spec: PolicySpec, project: Project) -> Checked:
    """Check every condition; raises DeclarationError with the place and the nearest name."""
    names = names_of(spec, project)
    unknown = [f for f in spec.reasons if f not in project.feature_names]
    if unknown:
        spec.fail("reasons", f"reasons of unknown features: {', '.join(unknown)}")
    return Checked(
        spec,
        tuple(condition(spec, f"segments.{s.name}", s.when, names) for s in spec.segments),
        tuple(condition(spec, f"rules.{r.name}.when", r.when, names) for r in spec.ordered),
    )


def condition(spec: PolicySpec, part: str, text: str, names: Names) -> When:
    """The condition at a part of a policy; raises DeclarationError with the place."""
    try:
        return read_condition(text, names)
    except DeclarationError as e:
        kind, _, rest = part.partition(".")
        spec.fail(part, f"{kind[:-1]} {rest.partition('.')[0]!r}: {e.detail}", e.hint)


class Program:
    """The expressions of a policy over one set of inputs, and what is done with their answers."""

    def __init__(self, checked: Checked, features: Sequence[str]) -> None:
        spec = self.spec = checked.spec
        conditions = (*checked.segments, *checked.conditions)
        terms = Terms()
        derived = [
            Derived(f"_holds_{i}", terms.expression(c.tree)) for i, c in enumerate(conditions)
        ]
        self.columns = tuple(sorted({n for c in conditions for n in c.columns}))
        """Event columns that are read as numbers."""
        self.model_features = tuple(features)
        self.features = [(n, features.index(n)) for n in checked.features]
        """Features that are read, each with its place in the model's vector."""
        self.reads_away = any(c.reads_away for c in conditions)
        self.tests = list(terms.tests.items())
        self.lists = [(on, name, f"{on.list}:{on.column}") for on, name in terms.lists.items()]
        inputs = (*self.columns, SCORE, AWAY, *checked.features, *terms.stand_ins)
        self.of_row = compile_row(derived, inputs)
        self.of_columns = compile_columns(derived, inputs)
        cut = len(checked.segments)
        self.segments = [d.name for d in derived[:cut]]
        self.rules = [d.name for d in derived[cut:]]
        self.segment_names = (*(s.name for s in spec.segments), DEFAULT)
        self.independent = tuple(c.independent for c in checked.conditions)
        self.final = tuple(r.final for r in spec.ordered)
        self.moments = sorted({m for o in spec.overrides for m in (o.start_ms, o.until_ms)})
        """When phases but the first begin, ms."""
        self.phases = [self._phase(m) for m in (None, *self.moments)]

    def phase(self, at_ms: int) -> Phase:
        """What is in force at a time."""
        return self.phases[bisect_right(self.moments, at_ms)]

    def _phase(self, start: int | None) -> Phase:
        active = [
            o for o in self.spec.overrides if start is not None and o.start_ms <= start < o.until_ms
        ]
        hits: list[Hit | None] = []
        for rule in self.spec.ordered:
            action = rule.action
            for o in active:  # where two disagree, the later one in the file
                action = o.actions.get(rule.name, action)
            off = any(rule.name in o.disable for o in active)
            hits.append(None if off else Hit(rule.name, action, rule.code, rule.words))
        flags = []
        for segment in self.segment_names:
            mine = self.spec.thresholds_of(segment)
            for o in active:
                mine = o.thresholds.get(segment, mine)
            flags.append(tuple((t, threshold_hit(a)) for a, t in reversed(mine.given)))
        return Phase(tuple(hits), tuple(flags), tuple(o.name for o in active))
