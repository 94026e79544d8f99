"""The versions of a model in the lake, and which of them is current.

``models/<name>/<version>/`` holds a version, ``models/<name>/current`` names the one in use.
"""

from __future__ import annotations

from raypipe.errors import IntegrityError, NotFound, UsageError
from raypipe.lake import Place
from training.artefact import MANIFEST, Manifest, read_manifest

CURRENT = "current"


def versions(models: Place, name: str) -> list[str]:
    """Complete versions of a model, oldest first."""
    folder = models / name
    return [v for v in folder.names() if v != CURRENT and (folder / v / MANIFEST).exists()]


def manifests(models: Place, name: str) -> list[Manifest]:
    """The checked manifests of all versions, oldest first."""
    return [read_manifest(models / name / v) for v in versions(models, name)]


def promote(models: Place, name: str, version: str) -> None:
    """Make a version the current one: all readers see the old or the new one, never neither.

    Raises NotFound when there is no such version.
    """
    existing(models, name, version)
    (models / name / CURRENT).write(f"{version}\n".encode())


def current(models: Place, name: str) -> str | None:
    """The current version, None before the first promotion."""
    try:
        return (models / name / CURRENT).read().decode().strip()
    except FileNotFoundError:
        return None


def locate(models: Place, name: str, version: str | None = None) -> Place:
    """The folder of a version, by default of the current one."""
    if version is not None:
        return existing(models, name, version)
    version = current(models, name)
    if version is None:
        raise NotFound(
            f"model {name!r} has no current version",
            hint=f"`raypipe train {name}` makes one.",
        )
    try:
        return existing(models, name, version)
    except NotFound as e:
        raise IntegrityError(
            f"the current version {version!r} of model {name!r} is missing",
            hint="Promote another one: " + ", ".join(versions(models, name)),
        ) from e


def existing(models: Place, name: str, version: str, *, noun: str = "model") -> Place:
    """The folder of a version; raises NotFound, which calls the thing by ``noun``."""
    try:
        place = models / name / version
    except UsageError:  # no version is called like that
        place = None
    if place is None or not (place / MANIFEST).exists():
        raise NotFound(
            f"{noun} {name!r} has no version {version!r}",
            hint="It has: " + (", ".join(versions(models, name)) or "none"),
        )
    return place
