"""Public tables of plain user-item pairs, without times: the form in which splits are published.

Tables with times go the way of all events: a mapping file, `raypipe load`, and then
``training.recommend.events``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from raypipe.errors import InputError
from raypipe.events.tables import SourceTable
from training.recommend.interactions import Interactions

KIND = ("pair",)


def read_pairs(
    table: Path, user: str = "user", item: str = "item", *, known: Interactions | None = None
) -> Interactions:
    """The two columns of a Parquet or CSV table, or a folder of them; ids become text.

    Raises InputError for a column that is not there and for a row without user or item.
    """
    source = SourceTable.open(table)
    for schema in source.schemas():
        lacking = sorted({user, item} - set(schema.names))
        if lacking:
            raise InputError(
                f"{table} has no column {' and '.join(map(repr, lacking))}",
                hint="Columns: " + ", ".join(schema.names),
            )
    text = pa.schema([(user, pa.string()), (item, pa.string())])
    parts = []
    for chunk in source.chunks([user, item]):
        if chunk.broken:
            raise InputError(f"{table} has a broken line: {chunk.broken[0][0]}")
        parts.append(chunk.rows.select([user, item]).cast(text))
    whole = pa.concat_tables(parts)
    for name in (user, item):
        if whole.column(name).null_count:
            raise InputError(f"{table} has {whole.column(name).null_count} rows without {name!r}")
    return Interactions.of(
        whole.column(user).combine_chunks(),
        whole.column(item).combine_chunks(),
        np.zeros(len(whole), np.uint8),
        KIND,
        np.zeros(len(whole), np.int64),
        known=known,
    )
