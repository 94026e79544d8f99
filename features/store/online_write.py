"""Rows of window values into the online store, column by column."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from features.store.names import CREATED, TIMESTAMP
from features.store.state import MOMENT

if TYPE_CHECKING:
    import feast


def write_rows(
    store: feast.FeatureStore, view: feast.FeatureView, columns: tuple[str, ...], rows: pa.Table
) -> int:
    """Put rows online where they are newer; returns how many were, when the store has them.

    Args:
        view: a registered `*_state` view.
        columns: its features.
        rows: `key`, `time` (int64 microseconds), `offset` (int64), the columns (float64).
    """
    from features.store.packed.access import packed

    table = pa.table(
        {
            view.entity_columns[0].name: rows.column("key"),
            TIMESTAMP: rows.column("time").cast(MOMENT),
            CREATED: rows.column("offset").cast(pa.timestamp("us")),
            **{c: rows.column(c) for c in columns},
        }
    )
    return packed(store).write_table(store.config, view, table)


def is_online(store: feast.FeatureStore, view: feast.FeatureView, key: str) -> bool:
    """Whether the online store has any row of a key, however old."""
    from features.store.packed.access import has

    return has(store, view, key)
