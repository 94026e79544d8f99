"""Snapshots of window state on disk: a folder of Arrow files and a manifest that seals them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from raypipe.errors import IntegrityError

MANIFEST = "snapshot.json"


def write_part(path: Path, table: pa.Table) -> None:
    """Write one view's state (or one key range of it) under its final name or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with pa.OSFile(os.fspath(partial), "wb") as sink:
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.ipc.new_file(sink, table.schema, options=options) as writer:
            writer.write_table(table)
    partial.replace(path)


def seal(directory: Path, offset: int, definition_hash: str) -> None:
    """Declare the parts in a folder complete: they hold every event before ``offset``."""
    files = {
        os.fspath(p.relative_to(directory)): _sha256(p) for p in sorted(directory.rglob("*.arrow"))
    }
    manifest = {"offset": offset, "definition_hash": definition_hash, "files": files}
    partial = directory / f"{MANIFEST}.partial"
    with partial.open("w") as f:
        json.dump(manifest, f, indent=1)
        f.flush()
        os.fsync(f.fileno())
    partial.replace(directory / MANIFEST)


def save(directory: Path, tables: Iterable[pa.Table], offset: int, definition_hash: str) -> None:
    """Write a whole snapshot into a new folder, replacing an older one of that name at the end."""
    building = directory.with_name(directory.name + ".partial")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    for table in tables:
        view = table.schema.metadata[b"view"].decode()
        write_part(building / view / "part-0000.arrow", table)
    seal(building, offset, definition_hash)
    shutil.rmtree(directory, ignore_errors=True)
    building.replace(directory)


def load(directory: Path, definition_hash: str) -> tuple[int, Iterator[pa.Table]]:
    """The offset of a snapshot and its tables.

    Raises IntegrityError if a file is missing, changed, or of another definition.
    """
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        offset, made_by, files = (manifest[n] for n in ("offset", "definition_hash", "files"))
        names = dict(files)
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise IntegrityError(f"snapshot {directory} has no readable manifest: {e!r}") from e
    if made_by != definition_hash:
        raise IntegrityError(
            f"snapshot {directory} was made by another declaration",
            hint="Compute the features again: `raypipe features`.",
        )
    for name, expected in names.items():
        path = directory / name
        if not path.is_file() or _sha256(path) != expected:
            raise IntegrityError(f"snapshot file {path} is missing or was changed")
    return int(offset), (_read(directory / name) for name in names)


def _read(path: Path) -> pa.Table:
    with pa.memory_map(os.fspath(path)) as source:
        return pa.ipc.open_file(source).read_all()


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
