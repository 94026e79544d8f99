"""Published policies in the lake: ``policies/<name>/<version>/``, immutable once written.

``policy.json`` is the canonical form, ``source.yaml`` the file as it was written, and
``manifest.json``, which comes last, makes the version exist.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from raypipe.errors import Conflict, IntegrityError, NotFound, UsageError
from raypipe.lake import Place
from raypipe.policy.reading import parse_policy, read_policy
from raypipe.policy.rules import RuleSet
from raypipe.policy.spec import PolicySpec
from raypipe.project import Project

FOLDER = "policies"
CANONICAL = "policy.json"
SOURCE = "source.yaml"
MANIFEST = "manifest.json"

_RESTORE = "Restore it from a backup, or publish the file under the next version."


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was published, and when."""

    name: str
    version: int
    sha256: str
    """Of the canonical form; decisions record it."""
    source_sha256: str
    published_ms: int
    project: str


def publish(
    lake: Place, spec: PolicySpec, source: bytes, project: Project, now_ms: int
) -> tuple[Manifest, bool]:
    """Write a version as a whole or not at all; its manifest, and whether it is new.

    The same policy again is the same version, whatever its comments and spaces.

    Raises:
        DeclarationError: it does not fit the project.
        Conflict: this version is another policy.
    """
    RuleSet(spec, project)
    folder = lake / FOLDER / spec.name / str(spec.version)
    try:
        found = read_manifest(folder)
    except NotFound:
        found = None
    if found is not None:
        if found.sha256 == spec.sha256:
            return found, False
        raise Conflict(
            f"{spec.id} was published before with other content",
            hint=f"A version never changes: write version: {_newest(lake, spec.name) + 1}.",
        )
    manifest = Manifest(
        spec.name,
        spec.version,
        spec.sha256,
        hashlib.sha256(source).hexdigest(),
        now_ms,
        project.name,
    )
    (folder / CANONICAL).write(spec.text.encode())
    (folder / SOURCE).write(source)
    (folder / MANIFEST).write(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
    return manifest, True


def versions(lake: Place, name: str) -> list[int]:
    """The published versions of a policy, lowest first."""
    try:
        folder = lake / FOLDER / name
    except UsageError:
        return []
    return sorted(int(v) for v in folder.names() if v.isdecimal() and _is_there(folder / v))


def names(lake: Place) -> list[str]:
    """The published policies."""
    return (lake / FOLDER).names()


def read_spec(lake: Place, reference: str) -> PolicySpec:
    """A published policy by ``name@version``, or ``name`` for the highest version.

    Raises:
        NotFound: there is none.
        IntegrityError: its bytes were changed.
    """
    folder = lake / FOLDER / resolve(lake, reference).replace("@", "/")
    manifest = read_manifest(folder)
    file = folder / CANONICAL
    try:
        data = file.read()
    except FileNotFoundError as e:
        raise IntegrityError(f"{folder.url} lacks {CANONICAL}", hint=_RESTORE) from e
    found = hashlib.sha256(data).hexdigest()
    if found != manifest.sha256:
        raise IntegrityError(
            f"{file.url} has sha256 {found[:12]}, its manifest says {manifest.sha256[:12]}",
            hint=_RESTORE,
        )
    spec = parse_policy(data.decode(), file.url)
    if spec.id != f"{manifest.name}@{manifest.version}" or spec.sha256 != found:
        raise IntegrityError(f"{file.url} is {spec.id}, in another form", hint=_RESTORE)
    return spec


def find_spec(lake: Place, reference: str) -> PolicySpec:
    """A policy that a person named: a file, or a published one as ``read_spec`` takes it."""
    path = Path(reference)
    if path.suffix in (".yaml", ".yml", ".json") or path.is_file():
        return read_policy(path)
    return read_spec(lake, reference)


def load_policy(lake: Place, reference: str, project: Project) -> RuleSet:
    """A published policy, checked and compiled: ``.bind(features)`` it to a model's features.

    Args:
        reference: ``name@version``, or ``name`` for the highest version.

    Raises:
        NotFound: there is none.
        IntegrityError: its bytes were changed.
        DeclarationError: it does not fit the project.
    """
    return RuleSet(read_spec(lake, reference), project)


def resolve(lake: Place, reference: str) -> str:
    """``name@version`` of a published policy; raises NotFound."""
    name, _, version = reference.partition("@")
    known = versions(lake, name)
    if not known:
        hint = "Published: " + (", ".join(names(lake)) or "none; `raypipe policy publish FILE`")
        raise NotFound(f"there is no policy {name!r}", hint=hint)
    if not version:
        return f"{name}@{known[-1]}"
    if not version.isdecimal() or int(version) not in known:
        raise NotFound(
            f"policy {name!r} has no version {version!r}",
            hint="It has: " + ", ".join(map(str, known)),
        )
    return f"{name}@{int(version)}"


def read_manifest(folder: Place) -> Manifest:
    """The manifest of a version's folder; raises NotFound and IntegrityError."""
    file = folder / MANIFEST
    try:
        return msgspec.json.decode(file.read(), type=Manifest)
    except FileNotFoundError as e:
        raise NotFound(f"no policy at {folder.url}") from e
    except msgspec.DecodeError as e:
        raise IntegrityError(f"{file.url} is no manifest: {e}", hint=_RESTORE) from e


def _is_there(folder: Place) -> bool:
    return (folder / MANIFEST).exists()


def _newest(lake: Place, name: str) -> int:
    return versions(lake, name)[-1]
