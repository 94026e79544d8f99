"""Builds of the features in a lake: complete sets of files, of which one is current.

``features/<build>/`` holds what one run computed; ``features/manifest.json``, written last, names
the current build and every file of it. So a build that was killed is never seen, and readers of
the build before go on: it is kept until the next one.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from raypipe.errors import IntegrityError, NotFound
from raypipe.lake import Place

MANIFEST = "manifest.json"
REBUILD = "Run `raypipe features` again."


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a build is made of."""

    build: str
    """Its folder's name."""
    definition_hash: str
    tenant: str
    end_offset: int
    """It holds every event before this offset."""
    rows: int
    """Decision events."""
    last_event_ms: int
    views: dict[str, str]
    """Definition hash by view."""
    events: dict[str, list[str]]
    """Exported Parquet files of the log by event type, as paths in the lake."""
    files: dict[str, str]
    """sha256 of every file, by its path in the build."""


@dataclass(frozen=True)
class Build:
    """The features of one run."""

    lake: Place
    manifest: Manifest

    @classmethod
    def current(cls, lake: Place) -> Build:
        """The published build.

        Raises:
            NotFound: there is none yet.
            IntegrityError: the manifest can't be read.
        """
        place = lake / "features" / MANIFEST
        try:
            manifest = msgspec.json.decode(place.read(), type=Manifest)
        except FileNotFoundError as e:
            raise NotFound(
                f"no features at {place.parent.url}", hint="Run `raypipe features` first."
            ) from e
        except msgspec.DecodeError as e:
            raise IntegrityError(f"{place.url} is not a manifest: {e}", hint=REBUILD) from e
        return cls(lake, manifest)

    @property
    def place(self) -> Place:
        """The folder of the build's files."""
        return folder(self.lake, self.manifest.build)

    def events(self, kind: str) -> list[Place]:
        """The exported events of one type, in log order."""
        return [self.lake / name for name in self.manifest.events.get(kind, ())]

    def publish(self) -> None:
        """Make this build the current one."""
        text = msgspec.json.format(msgspec.json.encode(self.manifest), indent=1)
        (self.lake / "features" / MANIFEST).write(text)

    def describe(self) -> dict[str, Any]:
        """Plain data."""
        return {"folder": self.place.url, **msgspec.to_builtins(self.manifest)}


def new_name(now_ms: int) -> str:
    """A name for a build: UTC time, so that names sort, and chance, so that none comes twice."""
    time = datetime.fromtimestamp(now_ms / 1000, UTC).strftime("%Y%m%dT%H%M%SZ")
    return f"{time}-{secrets.token_hex(4)}"


def folder(lake: Place, name: str) -> Place:
    """Where the files of a build lie."""
    return lake / "features" / name
