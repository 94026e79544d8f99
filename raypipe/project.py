"""A project: the one declaration that batch, stream, training and serving all execute."""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from raypipe.errors import DeclarationError
from raypipe.events.schema import EventType, Kind, canonical_json
from raypipe.log.port import OWN_KINDS
from raypipe.profiles import Profile
from raypipe.tables.checks import check_table
from raypipe.tables.spec import Table
from raypipe.vector.expressions import Derived, compile_columns
from raypipe.windows.checks import check_view
from raypipe.windows.spec import WindowView


@dataclass(frozen=True, slots=True)
class Entity:
    """What features describe: an account, a device, a sensor."""

    name: str
    description: str = ""
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Label:
    """How the truth about a decided event becomes known.

    A decided event is positive when an event of type ``event`` names its event_id in the column
    ``reference`` with an event time within ``horizon_ms`` of it. Younger events have no label yet.
    """

    event: str
    reference: str
    horizon_ms: int


@dataclass(frozen=True, slots=True)
class Model:
    """A model's inputs, in order. ``owner`` answers for it."""

    name: str
    features: tuple[str, ...]
    description: str = ""
    owner: str = ""


@dataclass(frozen=True)
class Project:
    """Everything that raypipe must know about a domain, as data.

    ``decision`` names the event type that asks for a decision; its window values are those of
    every view whose key it carries, read before the event itself counts.
    """

    name: str
    events: tuple[EventType, ...]
    entities: tuple[Entity, ...]
    views: tuple[WindowView, ...]
    derived: tuple[Derived, ...]
    decision: str
    label: Label
    models: tuple[Model, ...]
    profiles: tuple[Profile, ...] = ()
    tables: tuple[Table, ...] = ()

    def __post_init__(self) -> None:
        _unique("event", [e.name for e in self.events])
        for name in OWN_KINDS & {e.name for e in self.events}:
            raise DeclarationError(
                f"event name {name!r} is taken by the log's own records", hint="Use another name."
            )
        _unique("entity", [e.name for e in self.entities])
        _unique("view", [g.name for g in self.groups])
        _unique("model", [m.name for m in self.models])
        for view in self.views:
            if view.entity not in {e.name for e in self.entities}:
                raise DeclarationError(f"view {view.name!r} is of unknown entity {view.entity!r}")
            check_view(view, [self.event(kind) for kind in view.events], self.decision_event)
        for profile in self.profiles:
            self.entity(profile.entity)
            for kind in (*profile.events, self.decision):
                self.event(kind).field(profile.key)
        _unique("table", [t.name for t in self.tables])
        for table in self.tables:
            check_table(table, {kind: self.event(kind) for kind in table.events})
        for entity in self.entities:
            keys = {g.key for g in self.groups if g.entity == entity.name}
            if len(keys) > 1:
                raise DeclarationError(f"entity {entity.name!r} has several keys: {sorted(keys)}")
        if Kind.STRING is not self.event(self.label.event).field(self.label.reference).kind:
            raise DeclarationError(f"label reference {self.label.reference!r} is not a string")
        _unique("feature", list(self.feature_names))
        compile_columns(self.derived, self.input_names)
        for model in self.models:
            unknown = [f for f in model.features if f not in self.feature_names]
            if unknown or not model.features:
                raise DeclarationError(
                    f"model {model.name!r} uses unknown features {unknown}"
                    if unknown
                    else f"model {model.name!r} has no features",
                    hint="`raypipe features --list` shows the declared ones.",
                )

    def event(self, name: str) -> EventType:
        """The event type of that name."""
        for e in self.events:
            if e.name == name:
                return e
        raise DeclarationError(
            f"unknown event type {name!r}",
            hint="Declared: " + ", ".join(e.name for e in self.events),
        )

    def entity(self, name: str) -> Entity:
        """The entity of that name."""
        for e in self.entities:
            if e.name == name:
                return e
        raise DeclarationError(f"unknown entity {name!r}")

    def model(self, name: str) -> Model:
        """The model of that name."""
        for m in self.models:
            if m.name == name:
                return m
        raise DeclarationError(
            f"unknown model {name!r}", hint="Declared: " + ", ".join(m.name for m in self.models)
        )

    @property
    def decision_event(self) -> EventType:
        """The event type that asks for a decision."""
        return self.event(self.decision)

    @property
    def groups(self) -> tuple[WindowView | Profile, ...]:
        """Views and profiles: all that has values by entity."""
        return (*self.views, *self.profiles)

    @cached_property
    def raw_names(self) -> tuple[str, ...]:
        """Numeric fields of the decision event, as an expression sees them."""
        return tuple(f.name for f in self.decision_event.client_fields if f.numeric)

    @cached_property
    def window_names(self) -> tuple[str, ...]:
        """Window values of a decision in the order in which they are stored."""
        return tuple(n for v in self.views for n in v.column_names)

    @cached_property
    def profile_names(self) -> tuple[str, ...]:
        """Profile values of a decision in the order in which they are read."""
        return tuple(n for p in self.profiles for n in p.column_names)

    @cached_property
    def input_names(self) -> tuple[str, ...]:
        """What derived features are made of: raw fields, window values, profile values."""
        return (*self.raw_names, *self.window_names, *self.profile_names)

    @cached_property
    def feature_names(self) -> tuple[str, ...]:
        """All that a model may use: the inputs and the derived features."""
        return (*self.input_names, *(d.name for d in self.derived))

    def describe(self) -> dict[str, Any]:
        """Plain data of what determines feature values, for hashes and documents."""
        return {
            "name": self.name,
            "events": [e.describe() for e in self.events],
            "views": [v.describe() for v in self.views],
            "derived": [[d.name, d.expression] for d in self.derived],
            "decision": self.decision,
            "label": [self.label.event, self.label.reference, self.label.horizon_ms],
            "profiles": [p.describe() for p in self.profiles],
        }

    @cached_property
    def definition_hash(self) -> str:
        """sha256 of what determines every feature value."""
        return hashlib.sha256(canonical_json(self.describe())).hexdigest()


def _unique(what: str, names: list[str]) -> None:
    doubled = sorted({n for n in names if names.count(n) > 1})
    if doubled:
        raise DeclarationError(f"{what} names must be unique; twice: {', '.join(doubled)}")


def load_project(reference: str) -> Project:
    """Import ``module:attribute``; raises DeclarationError when that is no Project."""
    module, _, attribute = reference.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as e:
        raise DeclarationError(
            f"project {reference!r} can't be imported: {e}",
            hint="Set `project` to module:attribute, as in 'features.payments:project'.",
        ) from e
    if not isinstance(found, Project):
        raise DeclarationError(f"{reference!r} is a {type(found).__name__}, not a Project")
    return found
