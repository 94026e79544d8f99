"""What the packed store has to know of a feature view."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from feast.infra.online_stores.helpers import compute_versioned_name
from feast.value_type import ValueType

from features.store.packed.backend import Backend
from features.store.packed.codec import Reading, damaged, reader
from features.store.packed.keys import key_prefix, view_prefix
from features.store.packed.layout import (
    ORDER_BYTES,
    SCHEMA_BYTES,
    Layout,
    layout,
    read_layout,
)
from features.store.packed.order import CREATED, NEVER, NEWEST_BY
from features.store.packed.protos import kind_of

if TYPE_CHECKING:
    from feast import RepoConfig

_SCHEMA = slice(ORDER_BYTES, ORDER_BYTES + SCHEMA_BYTES)


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


@dataclass
class ViewReader:
    """Reads the wanted columns out of values of one view, whatever schema they have."""

    wanted: tuple[tuple[str, str], ...]
    ttl: int
    describe: Callable[[bytes], bytes | None]
    """Gives the stored description of a schema that this process hasn't seen."""
    _readers: dict[bytes, Callable[[bytes], Reading]] = field(default_factory=dict)

    @classmethod
    def of(cls, view: PackedView, names: Sequence[str], backend: Backend) -> ViewReader:
        """A reader of some features of a view."""
        found = cls(tuple(zip(names, view.kinds(names), strict=True)), view.ttl, backend.described)
        found._readers[view.layout.schema] = reader(view.layout, found.wanted)
        return found

    def read(self, values: Sequence[bytes | None], now: int) -> list[Reading | None]:
        """Event time and columns of each value; None where nothing is known that still counts.

        Args:
            now: microseconds since 1970 UTC, by which the age is judged.

        Raises:
            IntegrityError: the bytes, or their schema, are not what was written.
        """
        oldest = now - self.ttl if self.ttl else NEVER
        known, out = self._readers, list[Reading | None]()
        for value in values:
            if value is None:
                out.append(None)
            else:
                found = (known.get(value[_SCHEMA]) or self._reader(value))(value)
                out.append(found if found[0] >= oldest else None)
        return out

    def _reader(self, value: bytes) -> Callable[[bytes], Reading]:
        schema = value[_SCHEMA]
        if len(schema) < SCHEMA_BYTES:
            raise damaged(value)
        known = read_layout(schema, self.describe(schema))
        made = self._readers[schema] = reader(known, self.wanted)
        return made
