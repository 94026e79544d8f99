"""A project's windows and profiles as Feast objects: entities, feature views, feature services.

Each window view becomes two feature views over the Parquet that the batch job writes:

`<view>_at_event`  by event id, the values before the event; training reads it by id, never online
`<view>_state`     by the view's key, the values after each event; goes online

A profile becomes one, of its own name: training joins it as of an event's arrival; goes online.

Importing this module doesn't import Feast; calling it does.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from features.store.duck import glob
from features.store.names import (
    CREATED,
    EVENT_ENTITY,
    EVENT_KEY,
    TIMESTAMP,
    at_event_folder,
    at_event_view,
    newest_column,
    online_service,
    state_folder,
    state_view,
    version_service,
)
from features.store.packed.order import NEWEST_BY
from features.store.wording import column_text, view_text
from raypipe.errors import DeclarationError
from raypipe.lake import Place
from raypipe.profiles import Profile
from raypipe.project import Model, Project
from raypipe.windows.spec import WindowView

if TYPE_CHECKING:
    import feast

DEFINITION_TAG = "definition"
_NEWEST = "newest log offset that these values used; -1 for none"
TENANCY = "one tenant per home: files, registry and online store are never shared"


@dataclass(frozen=True)
class Definitions:
    """Everything that a project registers."""

    entities: tuple[feast.Entity, ...]
    sources: tuple[feast.FileSource, ...]
    views: tuple[feast.FeatureView, ...]
    services: tuple[feast.FeatureService, ...]


def define(
    project: Project,
    build: Place,
    versions: Mapping[str, Iterable[int]] | None = None,
    profiles: Mapping[str, Place] | None = None,
) -> Definitions:
    """The Feast objects of a project.

    Args:
        build: folder of a build of the features, whose files become the sources.
        profiles: folder of the values of each declared profile.
        versions: model name -> versions whose inputs are the declared ones; each gets a service.

    Raises:
        DeclarationError: an entity has the name that belongs to the entity of events.
    """
    entities = _entities(project)
    sources = _sources(project, build, profiles or {})
    at_event = {v.name: _at_event(v, project, entities, sources) for v in project.views}
    state = {v.name: _state(v, project, entities, sources) for v in project.views}
    slow = {p.name: _profile(p, project, entities, sources) for p in project.profiles}
    training, serving = at_event | slow, state | slow
    services: list[feast.FeatureService] = []
    for model in project.models:
        uses = used_columns(project, model)
        if not any(uses.values()):
            continue  # raw fields only: nothing to look up
        for version in (versions or {}).get(model.name, ()):
            name = version_service(model.name, version)
            services.append(_service(name, model, project, uses, training, "inputs for training"))
        name = online_service(model.name)
        services.append(_service(name, model, project, uses, serving, "newest state for serving"))
    return Definitions(
        tuple(entities.values()),
        tuple(sources.values()),
        (*at_event.values(), *state.values(), *slow.values()),
        tuple(services),
    )


def used_columns(project: Project, model: Model) -> dict[str, tuple[str, ...]]:
    """Columns by view and profile that a model reads, itself or through derived features."""
    expressions = {d.name: d.expression for d in project.derived}
    wanted: set[str] = set()
    todo = list(model.features)
    while todo:
        name = todo.pop()
        if name not in wanted:
            wanted.add(name)
            tree = ast.parse(expressions.get(name, "0"), mode="eval")
            todo += [n.id for n in ast.walk(tree) if isinstance(n, ast.Name)]
    return {g.name: tuple(c for c in g.column_names if c in wanted) for g in project.groups}


def key_columns(project: Project) -> dict[str, str]:
    """Entity name -> its key column, for every entity that has a view or a profile.

    Raises:
        DeclarationError: an entity has the name that belongs to the entity of events.
    """
    keys = {g.entity: g.key for g in project.groups}
    if EVENT_ENTITY in keys:
        raise DeclarationError(
            f"entity name {EVENT_ENTITY!r} is taken: it stands for the decided events themselves",
            hint="Name that entity otherwise.",
        )
    return keys


def _entities(project: Project) -> dict[str, feast.Entity]:
    from feast import Entity, ValueType

    decision = project.decision_event
    out = {
        EVENT_ENTITY: Entity(
            name=EVENT_ENTITY,
            join_keys=[EVENT_KEY],
            value_type=ValueType.STRING,
            description=f"a {decision.name} event",
            tags={"event": decision.name, "tenancy": TENANCY},
        )
    }
    for name, key in key_columns(project).items():
        declared = project.entity(name)
        tags = ",".join(sorted(t.value for t in decision.field(key).tags))
        out[name] = Entity(
            name=name,
            join_keys=[key],
            value_type=ValueType.STRING,
            description=declared.description,
            tags={"key_tags": tags, "tenancy": TENANCY},
            owner=declared.owner,
        )
    return out


def _sources(
    project: Project, build: Place, profiles: Mapping[str, Place]
) -> dict[tuple[str, str], feast.FileSource]:
    from feast import FileSource

    out: dict[tuple[str, str], feast.FileSource] = {}
    for view in project.views:
        out["at_event", view.name] = FileSource(
            name=f"at_event_{view.name}",
            path=glob(at_event_folder(build, view)),
            timestamp_field=TIMESTAMP,
            description=f"one row per {project.decision} event: values before it",
            owner=_owner(view, project),
        )
        out["state", view.name] = FileSource(
            name=f"state_{view.name}",
            path=glob(state_folder(build, view)),
            timestamp_field=TIMESTAMP,
            created_timestamp_column=CREATED,
            description=f"one row per {' or '.join(view.events)} event: values after it; "
            f"{CREATED} is its offset",
            owner=_owner(view, project),
        )
    for profile in project.profiles:
        out["profile", profile.name] = FileSource(
            name=f"profile_{profile.name}",
            path=glob(profiles[profile.name]),
            timestamp_field=TIMESTAMP,
            created_timestamp_column=CREATED,
            description=f"one row per {profile.entity} and day, at the midnight that ended it; "
            f"{CREATED} is when it surely was there",
            owner=_owner(profile, project),
        )
    return out


def _at_event(
    view: WindowView,
    project: Project,
    entities: Mapping[str, feast.Entity],
    sources: Mapping[tuple[str, str], feast.FileSource],
) -> feast.FeatureView:
    from feast import FeatureView, Field
    from feast.types import Int64, String

    newest = Field(
        name=newest_column(view.name),
        dtype=Int64,
        description=_NEWEST,
    )
    event_id = Field(name=EVENT_KEY, dtype=String, description=f"id of the {project.decision}")
    return FeatureView(
        name=at_event_view(view.name),
        entities=[entities[EVENT_ENTITY]],
        ttl=timedelta(0),
        schema=[event_id, *_fields(view), newest],
        source=sources["at_event", view.name],
        online=False,
        description=view_text(view, f"before each {project.decision} event"),
        tags=_tags(view),
        owner=_owner(view, project),
    )


def _state(
    view: WindowView,
    project: Project,
    entities: Mapping[str, feast.Entity],
    sources: Mapping[tuple[str, str], feast.FileSource],
) -> feast.FeatureView:
    from feast import FeatureView, Field
    from feast.types import String

    key = project.event(view.event).field(view.key)
    return FeatureView(
        name=state_view(view.name),
        entities=[entities[view.entity]],
        ttl=timedelta(seconds=view.horizon),
        schema=[Field(name=key.name, dtype=String, description=key.description), *_fields(view)],
        source=sources["state", view.name],
        online=True,
        description=view_text(view, f"after each {' or '.join(view.events)} event"),
        tags={**_tags(view), NEWEST_BY: CREATED},
        owner=_owner(view, project),
    )


def _profile(
    profile: Profile,
    project: Project,
    entities: Mapping[str, feast.Entity],
    sources: Mapping[tuple[str, str], feast.FileSource],
) -> feast.FeatureView:
    from feast import FeatureView, Field
    from feast.types import Float64, Int64, String

    key = project.decision_event.field(profile.key)
    values = [
        Field(name=name, dtype=Float64, description=value.description or value.sql)
        for name, value in zip(profile.column_names, profile.values, strict=True)
    ]
    return FeatureView(
        name=profile.name,
        entities=[entities[profile.entity]],
        ttl=timedelta(milliseconds=profile.ttl_ms),
        schema=[
            Field(name=key.name, dtype=String, description=key.description),
            *values,
            Field(name=newest_column(profile.name), dtype=Int64, description=_NEWEST),
        ],
        source=sources["profile", profile.name],
        online=True,
        description=profile.description,
        tags={
            DEFINITION_TAG: profile.definition_hash,
            "event": ",".join(profile.events),
            "lookback": profile.lookback,
            "tenancy": TENANCY,
        },
        owner=_owner(profile, project),
    )


def _fields(view: WindowView) -> list[feast.Field]:
    from feast import Field
    from feast.types import Float64

    return [
        Field(name=c.name, dtype=Float64, description=column_text(view, c)) for c in view.columns
    ]


def _tags(view: WindowView) -> dict[str, str]:
    return {
        **dict(view.tags),
        DEFINITION_TAG: view.definition_hash,
        "event": ",".join(view.events),
        "spans": ",".join(s.label for s in view.spans),
        "tenancy": TENANCY,
    }


def _owner(view: WindowView | Profile, project: Project) -> str:
    return view.owner or project.entity(view.entity).owner


def _service(
    name: str,
    model: Model,
    project: Project,
    uses: Mapping[str, Sequence[str]],
    views: Mapping[str, feast.FeatureView],
    purpose: str,
) -> feast.FeatureService:
    from feast import FeatureService

    return FeatureService(
        name=name,
        features=[views[v][list(columns)] for v, columns in uses.items() if columns],
        description=f"{model.description or model.name}: {purpose}",
        tags={"model": model.name, DEFINITION_TAG: project.definition_hash, "tenancy": TENANCY},
        owner=model.owner,
    )
