"""The catalogue: what applying a project would change, applying it, listing what is there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from features.store.definitions import DEFINITION_TAG, Definitions, define
from features.store.names import state_view, version_service
from features.store.repo import home_of
from features.store.written import Written
from raypipe.lake import Place
from raypipe.project import Project

if TYPE_CHECKING:
    import feast
    from feast.repo_contents import RepoContents

Versions = Mapping[str, Iterable[int]]
Folders = Mapping[str, Place]


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between a declaration and the registry."""

    action: str
    """create, update or delete"""
    kind: str
    """entity, data source, feature view, feature service or project"""
    name: str
    properties: tuple[str, ...] = ()
    """What differs, for an update."""

    def __str__(self) -> str:
        mark = {"create": "+", "update": "~", "delete": "-"}[self.action]
        what = f" ({', '.join(self.properties)})" if self.properties else ""
        return f"{mark} {self.kind} {self.name}{what}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One registered feature view."""

    name: str
    entities: tuple[str, ...]
    features: tuple[str, ...]
    online: bool
    ttl_seconds: int
    owner: str
    description: str
    tags: Mapping[str, str]
    services: tuple[str, ...]


def plan(
    store: feast.FeatureStore,
    project: Project,
    build: Place,
    versions: Versions | None = None,
    profiles: Folders | None = None,
) -> list[Change]:
    """What :func:`apply` would change; changes nothing."""
    wanted = desired(store, project, build, versions, profiles)
    return [change for change, _ in _differences(store, wanted)]


def apply(
    store: feast.FeatureStore,
    project: Project,
    build: Place,
    versions: Versions | None = None,
    profiles: Folders | None = None,
) -> list[Change]:
    """Make the registry say what the project declares; a second call changes nothing.

    Online rows of a view whose values are defined otherwise now are dropped with it.

    Args:
        build: folder of the build of the features that the views read from now on.
        versions: model name -> versions that this declaration's inputs belong to. A version that
            is registered and not named here keeps its inputs; a model without any gets version 1.
        profiles: folder of the values of each declared profile.

    Returns:
        what was changed.
    """
    wanted = desired(store, project, build, versions, profiles)
    found = _differences(store, wanted)
    void = [d.current_feast_object for _, d in found if _values_changed(d)]
    gone = [d.current_feast_object for c, d in found if c.action == "delete"]
    if void:
        # One call can't do both: what it deletes, it deletes last and by name.
        store.apply([], objects_to_delete=void, partial=False)
    _forget(store, project, [*void, *gone])
    if found:
        new = [d.new_feast_object for c, d in found if c.action != "delete"]
        store.apply(new, objects_to_delete=gone, partial=False)
    # Also where nothing changed: the online store may be new, or the last run was cut off here.
    store.provider.update_infra(
        project=store.project,
        tables_to_delete=[],
        tables_to_keep=wanted.feature_views,
        entities_to_delete=[],
        entities_to_keep=wanted.entities,
        partial=True,
    )
    return [change for change, _ in found]


def registered(store: feast.FeatureStore) -> list[Entry]:
    """All feature views by name, with the services that use each."""
    users: dict[str, list[str]] = {}
    for service in store.list_feature_services():
        for projection in service.feature_view_projections:
            users.setdefault(projection.name, []).append(service.name)
    return [
        Entry(
            v.name,
            tuple(v.entities),
            tuple(f.name for f in v.features),
            v.online,
            int(v.ttl.total_seconds()) if v.ttl else 0,
            v.owner,
            v.description,
            dict(v.tags),
            tuple(sorted(users.get(v.name, []))),
        )
        for v in sorted(store.list_batch_feature_views(), key=lambda v: v.name)
    ]


def desired(
    store: feast.FeatureStore,
    project: Project,
    build: Place,
    versions: Versions | None = None,
    profiles: Folders | None = None,
) -> RepoContents:
    """The whole registry as it should be, in Feast's own form."""
    from feast import Project as FeastProject
    from feast.feature_view import DUMMY_ENTITY
    from feast.repo_contents import RepoContents

    existing = store.list_feature_services()
    named = dict(versions or {})
    for model in project.models:
        has_one = any(_is_version(s, model.name) for s in existing)
        named.setdefault(model.name, () if has_one else (1,))
    found: Definitions = define(project, build, named, profiles)
    declared = {s.name for s in found.services}
    known = {v.name: v for v in store.list_batch_feature_views()}
    for view in found.views:
        if view.name in known:  # what was materialised is no part of a declaration
            view.materialization_intervals = known[view.name].materialization_intervals
    kept = [
        s
        for s in existing
        if s.name not in declared and _is_version(s, str(s.tags.get("model", "")))
    ]
    return RepoContents(
        projects=[
            FeastProject(name=store.project, description=f"features of project {project.name}")
        ],
        data_sources=list(found.sources),
        feature_views=list(found.views),
        on_demand_feature_views=[],
        stream_feature_views=[],
        label_views=[],
        # Feast registers its stand-in for "no entity" itself and would else be told to delete it.
        entities=[*found.entities, DUMMY_ENTITY],
        feature_services=[*found.services, *kept],
        permissions=[],
    )


def _is_version(service: feast.FeatureService, model: str) -> bool:
    number = str(service.name).removeprefix(f"{model}_v")
    return number.isdecimal() and service.name == version_service(model, int(number))


def _differences(store: feast.FeatureStore, wanted: RepoContents) -> list[tuple[Change, Any]]:
    from feast.diff.property_diff import TransitionType
    from feast.feature_view import DUMMY_ENTITY_NAME

    actions = {
        TransitionType.CREATE: "create",
        TransitionType.UPDATE: "update",
        TransitionType.DELETE: "delete",
    }
    diff, _, _ = store.plan(wanted)
    found = []
    for d in diff.feast_object_diffs:
        if d.transition_type in actions and d.name != DUMMY_ENTITY_NAME:
            properties = tuple(sorted(_changed_properties(d)))
            action, kind = actions[d.transition_type], str(d.feast_object_type.value)
            found.append((Change(action, kind, d.name, properties), d))
    return sorted(found, key=lambda f: (f[0].kind, f[0].name))


def _changed_properties(diff: Any) -> list[str]:
    # Feast compares protobufs, in which a data source that was stored differs from a fresh one.
    names = [p.property_name for p in diff.feast_object_property_diffs]
    old, new, unknown = diff.current_feast_object, diff.new_feast_object, object()
    return [n for n in names if getattr(old, n, unknown) != getattr(new, n, None)]


def _values_changed(diff: Any) -> bool:
    old, new = diff.current_feast_object, diff.new_feast_object
    return (
        diff.feast_object_type.value == "feature view"
        and old is not None
        and new is not None
        and old.tags.get(DEFINITION_TAG) != new.tags.get(DEFINITION_TAG)
    )


def _forget(store: feast.FeatureStore, project: Project, objects: list[Any]) -> None:
    names = {state_view(v.name): v.name for v in project.views}
    with Written(home_of(store)) as written:
        for o in objects:
            if o.name in names:
                written.forget(names[o.name])
