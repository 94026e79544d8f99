"""What the packed store has to know of a feature view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast.infra.online_stores.helpers import compute_versioned_name
from feast.value_type import ValueType

from features.store.packed.backend import Backend
from features.store.packed.keys import key_prefix, view_prefix
from features.store.packed.layout import Layout, layout
from features.store.packed.order import CREATED, NEWEST_BY
from features.store.packed.protos import kind_of
from features.store.packed.reading import ViewReader

if TYPE_CHECKING:
    from feast import RepoConfig


@dataclass(frozen=True)
class PackedView:
    """A view that can be written and read online."""

    name: str
    prefix: bytes
    """What all of its keys begin with."""
    types: dict[str, ValueType]
    """Feast's type of each column that is kept."""
    layout: Layout
    ttl: int
    """Microseconds; 0 for no end."""
    by_created: bool
    """Whether `created` alone says which row is the newer."""

    @classmethod
    def of(cls, view: Any, config: RepoConfig) -> PackedView:
        """The view of any Feast object that has features.

        An on-demand view that is written online keeps its inputs too.
        """
        fields = list(view.features)
        if getattr(view, "write_to_online_store", False):
            known = {f.name for f in fields}
            fields += [f for f in view.schema if f.name not in known]
        types = {f.name: f.dtype.to_value_type() for f in fields}
        ttl = getattr(view, "ttl", None)
        name = compute_versioned_name(view, config.registry.enable_online_feature_view_versioning)
        return cls(
            name,
            view_prefix(config.project, name),
            types,
            layout(tuple((n, kind_of(t)) for n, t in types.items())),
            round(ttl.total_seconds() * 1_000_000) if ttl else 0,
            view.tags.get(NEWEST_BY) == CREATED,
        )

    def keys_of(self, project: str, join_keys: Sequence[str]) -> bytes:
        """What its keys of these join keys begin with."""
        return key_prefix(project, self.name, join_keys)

    def kinds(self, names: Sequence[str]) -> tuple[str, ...]:
        """Kinds of some features; of one that it doesn't have a kind that no column has."""
        return tuple(kind_of(self.types[n]) if n in self.types else "" for n in names)

    def reader(self, names: Sequence[str], backend: Backend) -> ViewReader:
        """A reader of some of its features."""
        wanted = tuple(zip(names, self.kinds(names), strict=True))
        return ViewReader(wanted, self.ttl, backend.described, self.layout)
