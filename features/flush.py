"""Changed window states -> online store, without Feast: the same values that materialize writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from features.store.names import state_view
from features.store.packed.codec import Column, encode
from features.store.packed.here import open_here
from features.store.packed.keys import key_prefix, one
from features.store.packed.layout import layout
from raypipe.project import Project

_DOUBLE = "d"


class StateWriter:
    """Writes to the online store of a home. Raises NotFound when it isn't there."""

    def __init__(self, project: Project, home: Path, online_url: str | None) -> None:
        self._backend, feast_project = open_here(home, online_url)
        self._views = {
            v.name: (
                key_prefix(feast_project, state_view(v.name), [v.key]),
                layout(tuple((c, _DOUBLE) for c in v.column_names)),
            )
            for v in project.views
        }

    def write(self, view: str, rows: pa.Table) -> int:
        """Put rows online where their offsets are newer; returns how many were.

        Args:
            rows: as WindowEngine.latest gives them.

        Raises Unavailable when the store doesn't take them.
        """
        prefix, packed = self._views[view]
        times = rows.column("time").to_numpy()
        columns = []
        for name, _ in packed.columns:
            values = rows.column(name).to_numpy()
            columns.append(Column(np.zeros(len(values), np.bool_), values))
        # As for the feature views: `created` is the offset, and it alone says which is newer.
        values = encode(packed, rows.column("offset").to_numpy(), times, times, columns)
        keys = [one(prefix, key) for key in rows.column("key").to_pylist()]
        return self._backend.put(keys, values, packed.schema, packed.described)

    def close(self) -> None:
        """Close the store."""
        self._backend.close()
