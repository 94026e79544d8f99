"""Rows into the online store: the one place that knows how it takes them.

It goes through the provider's ``online_write_batch``, which every Feast online store implements,
so another store behind it needs no change here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pyarrow as pa

from features.store.state import MOMENT

if TYPE_CHECKING:
    import feast


def write_rows(
    store: feast.FeatureStore, view: feast.FeatureView, columns: tuple[str, ...], rows: pa.Table
) -> None:
    """Put one row per key online; returns when the store has them.

    Args:
        view: a registered `*_state` view.
        columns: its features.
        rows: `key`, `time` (int64 microseconds), `offset` (int64), the columns (float64).
    """
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    join_key = view.entity_columns[0].name
    missing = Value()
    values = [
        [missing if v is None or math.isnan(v) else Value(double_val=v) for v in column.to_pylist()]
        for column in (rows.column(c) for c in columns)
    ]
    data = [
        (
            EntityKey(join_keys=[join_key], entity_values=[Value(string_val=key)]),
            dict(zip(columns, row, strict=True)),
            moment,
            created,
        )
        for key, moment, created, row in zip(
            rows.column("key").to_pylist(),
            rows.column("time").cast(MOMENT).to_pylist(),
            rows.column("offset").cast(pa.timestamp("us")).to_pylist(),
            zip(*values, strict=True),
            strict=True,
        )
    ]
    store.provider.online_write_batch(store.config, view, data, None)


def is_online(store: feast.FeatureStore, view: feast.FeatureView, key: str) -> bool:
    """Whether the online store has any row of a key."""
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    wanted = EntityKey(
        join_keys=[view.entity_columns[0].name], entity_values=[Value(string_val=key)]
    )
    ((moment, _),) = store.provider.online_read(store.config, view, [wanted])
    return moment is not None
