"""What Feast's interface doesn't have: whether a key is there, and forgetting an entity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from features.store.packed.keys import KeyValue, key_prefix, part, parts, several
from features.store.packed.store import PackedOnlineStore
from features.store.packed.view import PackedView
from raypipe.errors import ConfigError, UsageError

if TYPE_CHECKING:
    import feast


def packed(store: feast.FeatureStore) -> PackedOnlineStore:
    """The packed store of an open Feast store.

    Raises:
        ConfigError: it has another online store.
    """
    online = store.provider.online_store
    if not isinstance(online, PackedOnlineStore):
        raise ConfigError(
            f"the online store is Feast's {type(online).__name__}",
            hint="features/feature_store.yaml names the packed one.",
        )
    return online


def has(store: feast.FeatureStore, view: feast.FeatureView, key: KeyValue) -> bool:
    """Whether a view of one join key has any row of a key, however old."""
    (name,) = (c.name for c in view.entity_columns)
    prefix = PackedView.of(view, store.config).keys_of(store.project, [name])
    return packed(store).backend(store.config).get([several(prefix, [key])]) != [None]


def erase(store: feast.FeatureStore, entity: Mapping[str, KeyValue]) -> int:
    """Delete every online row of an entity, in all registered views; returns how many there were.

    Views whose join keys are just these are deleted by exact key, and so are precomputed vectors.
    In a view that has more of them, each row with these values is looked for, which takes a pass
    over the view's keys.

    Args:
        entity: join key -> value.

    Raises:
        UsageError: no view that is online has these join keys.
    """
    backend = packed(store).backend(store.config)
    exact: list[bytes] = []
    found = False
    for view in store.list_all_feature_views():
        names = sorted(c.name for c in getattr(view, "entity_columns", ()))
        if not getattr(view, "online", True) or not names or not entity.keys() <= set(names):
            continue
        found = True
        prefix = PackedView.of(view, store.config).keys_of(store.project, names)
        if entity.keys() == set(names):
            exact.append(several(prefix, [entity[n] for n in names]))
        else:
            wanted = {names.index(n): part(v) for n, v in entity.items()}
            for key in backend.scan(prefix):
                values = parts(key, prefix, len(names))
                if all(values[i] == v for i, v in wanted.items()):
                    exact.append(key)
    names = sorted(entity)
    for service in store.list_feature_services():
        if service.precompute_online:  # Feast keeps such a vector as a view of this name
            prefix = key_prefix(store.project, f"__precomputed__{service.name}", names)
            exact.append(several(prefix, [entity[n] for n in names]))
    if not found:
        raise UsageError(f"no online view has the join keys {sorted(entity)}")
    return backend.delete(exact)
