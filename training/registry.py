"""The versions of a model in a home folder, and which of them is current.

``models/<name>/<version>/`` holds a version, ``models/<name>/current`` names the one in use.
"""

from __future__ import annotations

import os
from pathlib import Path

from raypipe.errors import IntegrityError, NotFound
from training.artefact import MANIFEST, Manifest, read_manifest, sync_directory

CURRENT = "current"


def versions(models: Path, name: str) -> list[str]:
    """Complete versions of a model, oldest first."""
    folder = models / name
    if not folder.is_dir():
        return []
    return sorted(
        p.name for p in folder.iterdir() if not p.name.startswith(".") and (p / MANIFEST).is_file()
    )


def manifests(models: Path, name: str) -> list[Manifest]:
    """The checked manifests of all versions, oldest first."""
    return [read_manifest(models / name / v) for v in versions(models, name)]


def promote(models: Path, name: str, version: str) -> None:
    """Make a version the current one: all readers see the old or the new one, never neither.

    Raises NotFound when there is no such version.
    """
    folder = models / name
    if version not in versions(models, name):
        raise NotFound(
            f"model {name!r} has no version {version!r}",
            hint="It has: " + (", ".join(versions(models, name)) or "none"),
        )
    staging = folder / f".{CURRENT}.tmp"
    with staging.open("w") as f:
        f.write(version + "\n")
        f.flush()
        os.fsync(f.fileno())
    staging.replace(folder / CURRENT)
    sync_directory(folder)


def current(models: Path, name: str) -> str | None:
    """The current version, None before the first promotion."""
    try:
        return (models / name / CURRENT).read_text().strip()
    except FileNotFoundError:
        return None


def locate(models: Path, name: str, version: str | None = None) -> Path:
    """The directory of a version, by default of the current one."""
    if version is None:
        version = current(models, name)
        if version is None:
            raise NotFound(
                f"model {name!r} has no current version",
                hint=f"`raypipe train {name}` makes one.",
            )
        if version not in versions(models, name):
            raise IntegrityError(
                f"the current version {version!r} of model {name!r} is missing",
                hint="Promote another one: " + ", ".join(versions(models, name)),
            )
    path = models / name / version
    if not (path / MANIFEST).is_file():
        raise NotFound(
            f"model {name!r} has no version {version!r}",
            hint="It has: " + (", ".join(versions(models, name)) or "none"),
        )
    return path
