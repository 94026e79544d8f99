"""Every feature of a project as plain data: what it is, where it comes from, who uses it.

The command line, the HTML page and parity all read this; nothing here computes a value.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from features.builds import Build, Manifest
from features.profiles import made
from features.store.names import online_service, version_service
from features.store.wording import column_text
from raypipe.clock import DAY_MS
from raypipe.errors import IntegrityError, NotFound
from raypipe.events.schema import Field, Kind
from raypipe.profiles import Profile
from raypipe.project import Project, load_project
from raypipe.windows.aggregates import SINGLE
from raypipe.windows.conditions import Condition
from raypipe.windows.spec import Column, WindowView

if TYPE_CHECKING:
    from raypipe.config import Settings
    from raypipe.lake import Place

AT_REQUEST = "at request"
NOT_BUILT = "not built"


class Feature(msgspec.Struct, frozen=True, kw_only=True):
    """One feature that a model may read."""

    name: str
    kind: str
    """field (of the deciding event), window, profile or derived"""
    definition: str
    """In words, or the expression of a derived one."""
    entity: str
    """What it describes; empty for what belongs to the event alone."""
    view: str
    """The window view or profile that computes it; empty for others."""
    owner: str
    """Who answers for it; of a field or a derived one the owners of the models that read it."""
    sources: tuple[str, ...]
    """Columns of events that it is computed from, as event.column."""
    inputs: tuple[str, ...]
    """Features that it is computed from directly."""
    span: str
    freshness: str
    """``at request``, ``not built``, or of when the stored values are (ISO 8601): the newest event
    of a window, the midnight of a profile. A decision reads windows up to the event before it."""
    models: tuple[str, ...]
    """Models that read it, themselves or through a derived feature."""
    services: tuple[str, ...]
    """Feast's feature services that hold it."""


class Catalogue(msgspec.Struct, frozen=True, kw_only=True):
    """All features of a project, in the order in which they may be used."""

    project: str
    reference: str
    definition_hash: str
    build: str
    """The current build of the features, empty before the first."""
    end_offset: int
    """The build holds every event before this offset."""
    features: tuple[Feature, ...]
    edges: tuple[tuple[str, str], ...]
    """Lineage from what is read to what reads it: columns of events, features, models."""

    def feature(self, name: str) -> Feature:
        """The feature of that name; raises NotFound with the nearest names."""
        for feature in self.features:
            if feature.name == name:
                return feature
        near = difflib.get_close_matches(name, [f.name for f in self.features], 3)
        raise NotFound(
            f"there is no feature {name!r}",
            hint=f"Did you mean {', '.join(near)}?" if near else "`raypipe features --list`",
        )

    def sources(self, name: str) -> tuple[str, ...]:
        """What a name is computed from directly: features and columns of events."""
        return tuple(source for source, target in self.edges if target == name)


def of_settings(settings: Settings) -> Catalogue:
    """The catalogue of the settings' project, with how fresh its current build is."""
    project = load_project(settings.project)
    days = {
        profile.name: manifest.last_day
        for profile in project.profiles
        if (manifest := made.current(settings.lake, profile)) and manifest.last_day is not None
    }
    return describe(project, settings.project, _current(settings.lake), days)


def _current(lake: Place) -> Manifest | None:
    try:
        return Build.current(lake).manifest
    except (NotFound, IntegrityError):
        return None


def describe(
    project: Project,
    reference: str,
    build: Manifest | None = None,
    days: Mapping[str, int] | None = None,
) -> Catalogue:
    """The catalogue of a project.

    Args:
        reference: module:attribute that names the project.
        build: the manifest of the current build of the features, if there is one.
        days: the newest made day of each profile, numbered from 1970-01-01.
    """
    declared = (
        *_fields(project),
        *_windows(project, build),
        *_profiles(project, days or {}),
        *_derived(project),
    )
    users = _users(project)
    features = tuple(
        msgspec.structs.replace(f, models=users.get(f.name, ()), **_more(project, f, users))
        for f in declared
    )
    edges = [(s, f.name) for f in features for s in (*f.inputs, *(() if f.inputs else f.sources))]
    edges += [(name, f"model {m.name}") for m in project.models for name in m.features]
    return Catalogue(
        project=project.name,
        reference=reference,
        definition_hash=project.definition_hash,
        build=build.build if build else "",
        end_offset=build.end_offset if build else 0,
        features=features,
        edges=tuple(edges),
    )


def _more(project: Project, feature: Feature, users: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What follows from the models that read a feature."""
    models = [project.model(name) for name in users.get(feature.name, ())]
    owners = dict.fromkeys(m.owner for m in models if m.owner)
    found: dict[str, Any] = {"owner": feature.owner or ", ".join(owners)}
    if feature.view:  # services hold stored values alone; version 1 is what is registered first
        found["services"] = tuple(
            service
            for m in models
            for service in (online_service(m.name), version_service(m.name, 1))
        )
    return found


def _feature(name: str, kind: str, definition: str, **rest: Any) -> Feature:
    nothing: dict[str, Any] = {
        **dict.fromkeys(("entity", "view", "owner", "span"), ""),
        **dict.fromkeys(("sources", "inputs", "models", "services"), ()),
        "freshness": AT_REQUEST,
    }
    return Feature(name=name, kind=kind, definition=definition, **nothing | rest)


def _fields(project: Project) -> Iterator[Feature]:
    event = project.decision_event
    for name in project.raw_names:
        yield _feature(
            name,
            "field",
            _field_text(event.name, event.field(name)),
            sources=(f"{event.name}.{name}",),
        )


def _field_text(event: str, field: Field) -> str:
    text = field.description or f"{field.kind.value} of the {event}"
    if field.kind is Kind.CHOICE:
        text += "; " + ", ".join(f"{i} = {c}" for i, c in enumerate(field.choices))
    return text


def _windows(project: Project, build: Manifest | None) -> Iterator[Feature]:
    for view in project.views:
        fresh = NOT_BUILT
        if build is not None and build.views.get(view.name) == view.definition_hash:
            fresh = _moment(build.last_event_ms)
        for column in view.columns:
            yield _feature(
                column.name,
                "window",
                column_text(view, column),
                entity=view.entity,
                view=view.name,
                owner=view.owner or project.entity(view.entity).owner,
                sources=_columns(view, column),
                span=_span(view, column),
                freshness=fresh,
            )


def _columns(view: WindowView, column: Column) -> tuple[str, ...]:
    """The columns of events that a window value depends on, beside their time."""
    aggregate = column.aggregate
    names = [view.key, aggregate.column]
    names += Condition(aggregate.where).columns if aggregate.where else ()
    events = (aggregate.of,) if aggregate.of else view.events
    return tuple(f"{event}.{name}" for event in events for name in dict.fromkeys(names) if name)


def _span(view: WindowView, column: Column) -> str:
    if column.op in SINGLE:
        return "any"
    span = view.spans[column.span].label
    return span if column.minus < 0 else f"{span} before {view.spans[column.minus].label}"


def _profiles(project: Project, days: Mapping[str, int]) -> Iterator[Feature]:
    for profile in project.profiles:
        day = days.get(profile.name)
        for name, value in zip(profile.column_names, profile.values, strict=True):
            yield _feature(
                name,
                "profile",
                f"{value.description}: {value.sql}" if value.description else value.sql,
                entity=profile.entity,
                view=profile.name,
                owner=profile.owner or project.entity(profile.entity).owner,
                sources=_facts(project, profile),
                span=profile.lookback,
                freshness=NOT_BUILT if day is None else _moment((day + 1) * DAY_MS),
            )


def _facts(project: Project, profile: Profile) -> tuple[str, ...]:
    """The columns of events that a profile's facts are made of."""
    found: list[str] = []
    for kind in profile.events:
        columns = (profile.key, *profile.fact_columns(project.event(kind)))
        found += [f"{kind}.{name}" for name in dict.fromkeys(columns)]
    return tuple(found)


def _moment(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1_000, UTC).isoformat("T", "seconds")


def _derived(project: Project) -> Iterator[Feature]:
    for derived in project.derived:
        text = f"{derived.description}: " if derived.description else ""
        entities = entities_of(project, derived.name)
        yield _feature(
            derived.name,
            "derived",
            f"{text}{derived.expression}",
            entity=", ".join(entities),
            inputs=inputs_of(project, derived.name),
            sources=_sources_below(project, derived.name),
        )


def _sources_below(project: Project, name: str) -> tuple[str, ...]:
    """Columns of events that a derived feature comes from in the end."""
    event, below = project.decision, set(closure(project, name))
    found = [f"{event}.{n}" for n in project.raw_names if n in below]
    for view in project.views:
        for column in view.columns:
            if column.name in below:
                found += _columns(view, column)
    for profile in project.profiles:
        if below & set(profile.column_names):
            found += _facts(project, profile)
    return tuple(dict.fromkeys(found))


def inputs_of(project: Project, name: str) -> tuple[str, ...]:
    """The features that a derived feature names; nothing for any other."""
    for derived in project.derived:
        if derived.name == name:
            tree = ast.walk(ast.parse(derived.expression, mode="eval"))
            names = dict.fromkeys(n.id for n in tree if isinstance(n, ast.Name))
            return tuple(n for n in names if n in project.feature_names)
    return ()


def closure(project: Project, name: str) -> tuple[str, ...]:
    """A feature and all that it is computed from, the feature first."""
    found: dict[str, None] = {}
    todo = [name]
    while todo:
        name = todo.pop(0)
        if name not in found:
            found[name] = None
            todo += inputs_of(project, name)
    return tuple(found)


def entities_of(project: Project, name: str) -> tuple[str, ...]:
    """The entities whose windows or profiles a feature reads, itself or through others."""
    below = set(closure(project, name))
    groups = (g.entity for g in project.groups if below & set(g.column_names))
    return tuple(dict.fromkeys(groups))


def _users(project: Project) -> dict[str, tuple[str, ...]]:
    """Models by the features that they read, directly or not."""
    found: dict[str, dict[str, None]] = {}
    for model in project.models:
        for feature in model.features:
            for name in closure(project, feature):
                found.setdefault(name, {})[model.name] = None
    return {name: tuple(models) for name, models in found.items()}
