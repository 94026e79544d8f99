"""Snapshots of window state: a folder of Arrow files and a manifest that seals them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping

import pyarrow as pa

from raypipe.errors import IntegrityError, UsageError
from raypipe.lake import Place

MANIFEST = "snapshot.json"


def part_bytes(table: pa.Table) -> pa.Buffer:
    """The file of one view's state, or of one key range of it."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue()


def seal(folder: Place, offset: int, definition_hash: str, files: Mapping[str, str]) -> None:
    """Declare the parts in a folder complete: they hold every event before ``offset``.

    Args:
        files: sha256 of each part, by its path in the folder.
    """
    manifest = {
        "offset": offset,
        "definition_hash": definition_hash,
        "files": dict(sorted(files.items())),
    }
    (folder / MANIFEST).write(json.dumps(manifest, indent=1).encode())


def load(folder: Place, definition_hash: str) -> tuple[int, Iterator[pa.Table]]:
    """The offset of a snapshot and its tables; each is checked when it is taken.

    Raises IntegrityError if a file is missing, changed, or of another definition; then no table
    that was taken counts.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read())
        offset, made_by, files = (manifest[n] for n in ("offset", "definition_hash", "files"))
        parts = [(folder / name, sha256) for name, sha256 in dict(files).items()]
    except (OSError, ValueError, KeyError, TypeError, UsageError) as e:
        raise IntegrityError(f"snapshot {folder.url} has no readable manifest: {e!r}") from e
    if made_by != definition_hash:
        raise IntegrityError(
            f"snapshot {folder.url} was made by another declaration",
            hint="Compute the features again: `raypipe features`.",
        )
    return int(offset), (read_part(place, sha256) for place, sha256 in parts)


def read_part(place: Place, sha256: str) -> pa.Table:
    """One part; raises IntegrityError unless its bytes are those that were written."""
    try:
        data = place.buffer()
    except OSError as e:
        raise IntegrityError(f"snapshot file {place.url} is missing: {e}") from e
    if hashlib.sha256(data).hexdigest() != sha256:
        raise IntegrityError(f"snapshot file {place.url} is missing or was changed")
    return pa.ipc.open_file(pa.BufferReader(data)).read_all()
