"""A whole snapshot at once, as a batch leaves it: a worker makes its own in pieces."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from raypipe.lake import Place
from raypipe.windows import snapshot


def save(folder: Place, tables: Iterable[pa.Table], offset: int, definition_hash: str) -> None:
    """Write the tables of some views into a folder that is new."""
    files = {}
    for table in tables:
        name = f"{table.schema.metadata[b'view'].decode()}/part-0000.arrow"
        files[name] = (folder / name).write(snapshot.part_bytes(table))
    snapshot.seal(folder, offset, definition_hash, files)
