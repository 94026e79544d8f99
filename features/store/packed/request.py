"""The fast path of ``get_online_features``: what a request asks for, compiled once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feast.value_type import ValueType

from features.store.packed.backend import Backend
from features.store.packed.codec import Reading
from features.store.packed.keys import KeyValue, one, several
from features.store.packed.protos import kind_of
from features.store.packed.reading import ViewReader
from features.store.packed.response import Answer, Form, PackedResponse
from features.store.packed.view import PackedView

if TYPE_CHECKING:
    from feast import RepoConfig

_KEY_TYPES: dict[ValueType, type] = {
    ValueType.STRING: str,
    ValueType.INT64: int,
    ValueType.BYTES: bytes,
}
"""Types of keys that need no conversion."""

_INT64 = range(-(2**63), 2**63)

Rows = Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Group:
    """The features of one view."""

    view: str
    prefix: bytes
    keys: tuple[str, ...]
    """Request names of its join keys, in the order of the sorted join keys."""
    form: Form
    reader: ViewReader
    missing: tuple[None, ...]
    """The values of a row that is not known."""


@dataclass(frozen=True)
class Plan:
    """How to answer one set of features."""

    context: tuple[Any, ...]
    """Feast's resolution that it was made of; another one makes it void."""
    key_types: dict[str, ValueType]
    groups: tuple[Group, ...]

    @classmethod
    def of(
        cls, context: tuple[Any, ...], full_names: bool, config: RepoConfig, backend: Backend
    ) -> Plan | None:
        """The plan of a request; None where Feast's own path has to answer it."""
        _, on_demand, entities, types, _, grouped, _, request_data, without_entity = context
        if on_demand or request_data or without_entity or not grouped:
            return None
        groups = []
        key_types: dict[str, ValueType] = {}
        for view, wanted in grouped:
            projection: Any = view.projection
            if projection.version_tag is not None:
                return None
            join_keys = sorted(entities[name] for name in view.entities)
            keys = tuple(projection.join_key_map.get(k, k) for k in join_keys)
            for k in keys:
                key_types[k] = types.get(k, ValueType.UNKNOWN)
            before = f"{projection.name_to_use()}__" if full_names else ""
            packed = PackedView.of(view, config)
            groups.append(
                Group(
                    packed.name,
                    packed.keys_of(config.project, join_keys),
                    keys,
                    Form(tuple(f"{before}{n}" for n in wanted), packed.kinds(wanted)),
                    packed.reader(wanted, backend),
                    (None,) * len(wanted),
                )
            )
        if not all(t in _KEY_TYPES for t in key_types.values()):
            return None
        return cls(context, key_types, tuple(groups))

    def answer(self, rows: Rows, backend: Backend, now: int) -> PackedResponse | None:
        """The response to entity rows; None where Feast's own path has to look at them.

        Args:
            now: microseconds since 1970 UTC, for the age of values.
        """
        columns = self.columns(rows)
        if columns is None:
            return None
        answers = []
        for group, readings in zip(self.groups, self.read(columns, backend, now), strict=True):
            times = [None if r is None else r[0] for r in readings]
            known = [group.missing if r is None else r[1] for r in readings]
            answers.append(Answer(group.form, tuple(zip(*known, strict=True)), times))
        kinds = tuple(kind_of(self.key_types[k]) for k in columns)
        keys = Answer(Form(tuple(columns), kinds), list(map(_wires, columns.values())), None)
        return PackedResponse([keys, *answers])

    def read(
        self, columns: Mapping[str, Sequence[KeyValue]], backend: Backend, now: int
    ) -> list[list[Reading | None]]:
        """What is known of each row, by group, in one round trip."""
        wanted: list[bytes] = []
        for group in self.groups:
            if len(group.keys) == 1:
                wanted += [one(group.prefix, v) for v in columns[group.keys[0]]]
            else:
                together = zip(*(columns[k] for k in group.keys), strict=True)
                wanted += [several(group.prefix, values) for values in together]
        found = backend.get(wanted)
        n = len(found) // len(self.groups)
        return [
            group.reader.read(found[g * n : (g + 1) * n], now)
            for g, group in enumerate(self.groups)
        ]

    def columns(self, rows: Rows) -> dict[str, Sequence[KeyValue]] | None:
        """Key values by name, if they are just what is needed, in the types that are needed."""
        if isinstance(rows, Mapping):
            columns = dict(rows)
            if columns.keys() != self.key_types.keys():
                return None
        else:
            if not rows or any(row.keys() != self.key_types.keys() for row in rows):
                return None
            columns = {k: [row[k] for row in rows] for k in rows[0]}
        size = None
        for name, values in columns.items():
            kind = _KEY_TYPES[self.key_types[name]]
            if not isinstance(values, list) or size not in (None, len(values)) or not values:
                return None
            size = len(values)
            if any(type(v) is not kind for v in values):
                return None
            if kind is int and any(v not in _INT64 for v in values):
                return None
        return columns


def _wires(values: Sequence[KeyValue]) -> list[Any]:
    return [v.encode() if isinstance(v, str) else v for v in values]
