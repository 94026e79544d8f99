"""A table's state as an Arrow table and back."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa

from raypipe.tables.batch import Group
from raypipe.tables.rows import OTHER, Rows, Window
from raypipe.tables.state import NEVER, TableState

FORMAT = "raypipe.tables/1"
COUNTERS = ("watermark", "offset", "late", "too_old", "other")

SCHEMA = pa.schema(
    [
        pa.field("window", pa.int64()),
        pa.field("tenant", pa.string()),
        pa.field("group", pa.string()),
        pa.field("late", pa.int64()),
        pa.field("values", pa.list_(pa.int64())),
        pa.field("sketches", pa.list_(pa.binary())),
    ]
)
"""``group`` is JSON, null for other groups; ``late`` is set in rows that only count late events;
``sketches`` are there while a row is open."""


def save(state: TableState) -> pa.Table:
    """All rows, ordered: equal states give equal tables."""
    texts: dict[Group | None, str | None] = {OTHER: None}
    keys, late = [], []
    for window in sorted(state.rows.windows):
        known = state.rows.windows[window]
        for tenant, groups in sorted(known.rows.items()):
            mine = []
            for group, place in groups.items():
                if group not in texts:
                    texts[group] = json.dumps(group)
                mine.append((texts[group] or "", window, tenant, texts[group], place))
            keys += sorted(mine)
        late += [{"window": window, "tenant": t, "late": n} for t, n in sorted(known.late.items())]
    about = {
        "table": state.table.name,
        "format": FORMAT,
        "definition": state.table.definition_hash,
        "counters": json.dumps({n: getattr(state, n) for n in COUNTERS}),
    }
    tables = [_values(state.rows, keys), pa.Table.from_pylist(late, SCHEMA)]
    return pa.concat_tables(tables).replace_schema_metadata(about)


def _values(rows: Rows, keys: list[tuple[str, int, str, str | None, int]]) -> pa.Table:
    """Rows with their values; in columns, because the worker's thread waits for them."""
    places = np.array([k[4] for k in keys], np.int64)
    values = rows.values[places]
    edges = np.arange(len(keys) + 1, dtype=np.int32) * values.shape[1]
    sketches: list[list[bytes] | None] = [None] * len(keys)
    for i in np.flatnonzero(rows.sketch_of[places] >= 0).tolist():
        at = int(rows.sketch_of[places[i]])
        sketches[i] = [s[at].tobytes() for s in rows.sketches.values()]
    columns = [
        pa.array([k[1] for k in keys], pa.int64()),
        pa.array([k[2] for k in keys], pa.string()),
        pa.array([k[3] for k in keys], pa.string()),
        pa.nulls(len(keys), pa.int64()),
        pa.ListArray.from_arrays(edges, values.reshape(-1)),
        pa.array(sketches, pa.list_(pa.binary())),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def name_of(table: pa.Table) -> str:
    """The table whose state it is; "" if it is something else."""
    name: str = (table.schema.metadata or {}).get(b"table", b"").decode()
    return name


def restore(state: TableState, table: pa.Table) -> bool:
    """Put a saved state into a new one; whether it was of the same declaration."""
    meta = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    if (meta.get("format"), meta.get("definition")) != (FORMAT, state.table.definition_hash):
        return False
    if state.watermark != NEVER:
        raise ValueError(f"table {state.table.name!r} has events already")
    for name, value in json.loads(meta["counters"]).items():
        setattr(state, name, value)
    for row in table.to_pylist():
        if row["late"] is not None:
            window = state.rows.windows.setdefault(row["window"], Window())
            window.late[row["tenant"]] = row["late"]
            continue
        group = OTHER if row["group"] is None else tuple(json.loads(row["group"]))
        is_open = row["sketches"] is not None
        place = state.rows.add(row["window"], row["tenant"], group, is_open=is_open)
        state.rows.values[place] = row["values"]
        for i, data in zip(state.rows.sketches, row["sketches"] or (), strict=is_open):
            state.rows.sketches[i][state.rows.sketch_of[place]] = np.frombuffer(data, np.uint8)
    state.resume()
    return True
