"""Declarations that are published: ``<folder>/<name>/<version>/`` in the lake, immutable once
written.

``<noun>.json`` is the canonical form, ``source.yaml`` the file as it was written, and
``manifest.json``, which comes last, makes the version exist.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import msgspec

from raypipe.errors import Conflict, IntegrityError, NotFound, UsageError
from raypipe.lake import Place
from raypipe.yaml_nodes import read_text

SOURCE = "source.yaml"
MANIFEST = "manifest.json"

_RESTORE = "Restore it from a backup, or publish the file under the next version."


class Declared(Protocol):
    """A declaration that has versions."""

    @property
    def name(self) -> str:
        """Whose versions they are."""

    @property
    def version(self) -> int:
        """From 1."""

    @property
    def id(self) -> str:
        """``name@version``."""

    @property
    def text(self) -> str:
        """The canonical form, from which it is read again."""

    @property
    def sha256(self) -> str:
        """Of the canonical form."""


T = TypeVar("T", bound=Declared)


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was published, and when."""

    name: str
    version: int
    sha256: str
    """Of the canonical form; decisions record it."""
    source_sha256: str
    published_ms: int
    project: str

    @property
    def id(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Shelf(Generic[T]):
    """All published declarations of one sort.

    Args:
        folder: in the lake.
        noun: what one is called.
        parse: reads one from its text and the name of the file.
    """

    folder: str
    noun: str
    parse: Callable[[str, str], T]

    @property
    def canonical(self) -> str:
        """The file of the canonical form."""
        return f"{self.noun}.json"

    def publish(
        self, lake: Place, spec: T, source: bytes, project: str, now_ms: int
    ) -> tuple[Manifest, bool]:
        """Write a checked version as a whole or not at all; its manifest, and whether it is new.

        The same declaration again is the same version, whatever its comments and spaces. Raises
        Conflict when this version is another one.
        """
        folder = self._folder(lake, spec.name, spec.version)
        try:
            found = self.read_manifest(folder)
        except NotFound:
            found = None
        if found is not None:
            if found.sha256 == spec.sha256:
                return found, False
            raise Conflict(
                f"{spec.id} was published before with other content",
                hint="A version never changes: write version: "
                f"{self.versions(lake, spec.name)[-1] + 1}.",
            )
        manifest = Manifest(
            spec.name,
            spec.version,
            spec.sha256,
            hashlib.sha256(source).hexdigest(),
            now_ms,
            project,
        )
        (folder / self.canonical).write(spec.text.encode())
        (folder / SOURCE).write(source)
        (folder / MANIFEST).write(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
        return manifest, True

    def versions(self, lake: Place, name: str) -> list[int]:
        """The published versions of a name, lowest first."""
        try:
            folder = lake / self.folder / name
        except UsageError:
            return []
        return sorted(
            int(v) for v in folder.names() if v.isdecimal() and (folder / v / MANIFEST).exists()
        )

    def names(self, lake: Place) -> list[str]:
        """Whatever was published."""
        return (lake / self.folder).names()

    def manifests(self, lake: Place) -> Iterator[Manifest]:
        """Those of every version, by name and version."""
        for name in self.names(lake):
            for version in self.versions(lake, name):
                yield self.read_manifest(self._folder(lake, name, version))

    def resolve(self, lake: Place, reference: str) -> str:
        """``name@version`` of a published one, of the highest by the name alone; raises
        NotFound."""
        name, _, version = reference.partition("@")
        known = self.versions(lake, name)
        if not known:
            published = ", ".join(self.names(lake))
            raise NotFound(
                f"there is no {self.noun} {name!r}",
                hint=f"Published: {published or f'none; `raypipe {self.noun} publish FILE`'}",
            )
        if not version:
            return f"{name}@{known[-1]}"
        if not version.isdecimal() or int(version) not in known:
            raise NotFound(
                f"{self.noun} {name!r} has no version {version!r}",
                hint="It has: " + ", ".join(map(str, known)),
            )
        return f"{name}@{int(version)}"

    def read(self, lake: Place, reference: str) -> T:
        """A published one by ``name@version``, or ``name`` for the highest version.

        Raises:
            NotFound: there is none.
            IntegrityError: its bytes were changed.
        """
        name, _, version = self.resolve(lake, reference).partition("@")
        folder = self._folder(lake, name, int(version))
        manifest = self.read_manifest(folder)
        file = folder / self.canonical
        try:
            data = file.read()
        except FileNotFoundError as e:
            raise IntegrityError(f"{folder.url} lacks {self.canonical}", hint=_RESTORE) from e
        found = hashlib.sha256(data).hexdigest()
        if found != manifest.sha256:
            raise IntegrityError(
                f"{file.url} has sha256 {found[:12]}, its manifest says {manifest.sha256[:12]}",
                hint=_RESTORE,
            )
        spec = self.parse(data.decode(), file.url)
        if spec.id != manifest.id or spec.sha256 != found:
            raise IntegrityError(f"{file.url} is {spec.id}, in another form", hint=_RESTORE)
        return spec

    def find(self, lake: Place, reference: str) -> T:
        """What a person named: a file, or a published one as ``read`` takes it."""
        path = Path(reference)
        if path.suffix in (".yaml", ".yml", ".json") or path.is_file():
            return self.parse(read_text(path, self.noun), str(path))
        return self.read(lake, reference)

    def read_manifest(self, folder: Place) -> Manifest:
        """The manifest of a version's folder; raises NotFound and IntegrityError."""
        file = folder / MANIFEST
        try:
            return msgspec.json.decode(file.read(), type=Manifest)
        except FileNotFoundError as e:
            raise NotFound(f"no {self.noun} at {folder.url}") from e
        except msgspec.DecodeError as e:
            raise IntegrityError(f"{file.url} is no manifest: {e}", hint=_RESTORE) from e

    def _folder(self, lake: Place, name: str, version: int) -> Place:
        return lake / self.folder / name / str(version)
