"""Arrow rows into the packed store, column by column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt
from feast.feature_view import DUMMY_ENTITY_ID
from feast.type_map import python_values_to_proto_values
from feast.utils import _validate_vector_field_lengths
from feast.value_type import ValueType

from features.store.packed.backend import Backend
from features.store.packed.codec import encode
from features.store.packed.columns import from_arrow, microseconds
from features.store.packed.keys import KeyValue, one, several
from features.store.packed.order import NEVER
from features.store.packed.protos import key_value
from features.store.packed.view import PackedView
from raypipe.errors import UsageError

if TYPE_CHECKING:
    from feast import FeatureView, RepoConfig


def write_table(backend: Backend, config: RepoConfig, table: FeatureView, rows: pa.Table) -> int:
    """Write rows of a view whose columns have the names of its features and join keys.

    Of two rows of one key the newer counts, wherever in the rows they are.

    Returns:
        how many rows were newer than what was there.

    Raises:
        UsageError: a key is missing.
        ValueError: a column or a time is missing, as Feast says it; `created` may be, unless it is
            what the view is ordered by.
    """
    if not rows.num_rows:
        return 0
    _validate_vector_field_lengths(rows, table)
    view = PackedView.of(table, config)
    source: Any = table.batch_source
    times = microseconds(source.timestamp_field, _column(rows, source.timestamp_field))
    created = np.full(rows.num_rows, NEVER)
    if source.created_timestamp_column:
        name = source.created_timestamp_column
        created = microseconds(name, _column(rows, name), None if view.by_created else NEVER)
    elif view.by_created:
        raise UsageError(f"view {view.name!r} is ordered by `created`, its source has none")
    major, minor = (created, times) if view.by_created else (times, created)
    columns = [from_arrow(n, t, _column(rows, n)) for n, t in view.types.items()]
    keys = _keys(view, config, table, rows)
    values = encode(view.layout, major, minor, times, columns)
    return backend.put(keys, values, view.layout.schema, view.layout.described)


def _keys(view: PackedView, config: RepoConfig, table: FeatureView, rows: pa.Table) -> list[bytes]:
    join_keys = {
        c.name: c.dtype.to_value_type() for c in table.entity_columns if c.name != DUMMY_ENTITY_ID
    }
    prefix = view.keys_of(config.project, list(join_keys))
    columns = [_key_values(n, join_keys[n], _column(rows, n)) for n in sorted(join_keys)]
    if not columns:
        return [prefix] * rows.num_rows
    if len(columns) == 1:
        return [one(prefix, v) for v in columns[0]]
    return [several(prefix, values) for values in zip(*columns, strict=True)]


def _key_values(name: str, value_type: ValueType, column: pa.ChunkedArray) -> Sequence[KeyValue]:
    kept = column.type
    text = value_type == ValueType.STRING and (pt.is_string(kept) or pt.is_large_string(kept))
    whole = value_type in (ValueType.INT64, ValueType.INT32) and pt.is_integer(kept)
    if (text or whole) and not column.null_count:
        found: list[KeyValue] = column.to_pylist()
        return found
    array = column.combine_chunks()
    values = python_values_to_proto_values(array.to_numpy(zero_copy_only=False), value_type)
    return [key_value(name, v) for v in values]


def _column(rows: pa.Table, name: str) -> pa.ChunkedArray:
    if name not in rows.column_names:
        raise ValueError(f"Column {name} not found in table")
    return rows.column(name)
