"""Builds of the features in a lake: what has been computed of which events, and by what.

``features/<base>/`` holds the files of one log, one decision event and one number of key ranges;
below it each view has folders of its own for each definition. A view's files come in *segments*:
one pass over a range of offsets, closed by its index, which is written last and never changes. So
what a killed run finished is kept, and what it didn't is not there. ``features/manifest.json``
names the segments that count for readers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import msgspec

from features.store.names import DEFINITION_CHARACTERS, definition_folder
from raypipe.errors import IntegrityError, NotFound
from raypipe.events.schema import canonical_json
from raypipe.lake import Place
from raypipe.windows.spec import WindowView
from raypipe.windows.state import SNAPSHOT_FORMAT

MANIFEST = "manifest.json"
REBUILD = "Run `raypipe features --verify`: it computes again what is missing or changed."

SNAPSHOT = "snapshot"
INDEX = "index"
JOURNAL = "journal"

Kind = Literal["at_event", "state"]

_FORMAT = "raypipe.features/2"
_BASE_CHARACTERS = 16


class Input(msgspec.Struct, frozen=True, array_like=True):
    """A Parquet file of the log: rows of one event type in offset order."""

    path: str
    """In the lake."""
    start: int
    end: int
    """Its first offset, and the one behind its last."""
    rows: int
    last_event_ms: int


class Day(msgspec.Struct, frozen=True, array_like=True):
    """The offsets that arrived on one UTC day, or, the day's name twice, a part of them."""

    day: str
    """As 2026-03-01."""
    start: int
    end: int


class Slice(msgspec.Struct, frozen=True, array_like=True):
    """Offsets whose outputs lie in files of their own: days, or a part of a large one."""

    start: int
    end: int
    first_day: str
    last_day: str

    def holds(self, day: str) -> bool:
        """Whether events of that day are among them."""
        return self.first_day <= day <= self.last_day


class File(msgspec.Struct, frozen=True, array_like=True):
    """A written file, by its path below the base."""

    path: str
    slice_start: int
    """Of the slice that it is of; of a state, the offset before which it holds every event."""
    part: int
    size: int
    sha256: str


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """One segment of one view: what went in, and every file that came out."""

    view: str
    definition: str
    start: int
    end: int
    inputs: dict[str, list[Input]]
    """By event type: the files with its rows from start to end."""
    slices: list[Slice]
    files: list[File]
    """Values before and after events."""
    states: list[File]
    """The state at the end, by key range; of a range without events in the segment, that of an
    earlier one."""

    def encode(self) -> bytes:
        """The bytes of the index file: the same for the same content."""
        return msgspec.json.encode(self)


class Segment(msgspec.Struct, frozen=True, array_like=True):
    """What a manifest tells of a segment."""

    start: int
    end: int
    sha256: str
    """Of its index."""
    files: int
    size: int
    """Bytes of its files."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a build is made of."""

    build: str
    """Its base folder's name."""
    log: str
    definition_hash: str
    tenant: str
    partitions: int
    """Key ranges."""
    end_offset: int
    """It holds every event before this offset."""
    rows: int
    """Decision events."""
    last_event_ms: int
    rate: float
    """Rows times views a second of the last run that computed some; 0 for not known."""
    views: dict[str, str]
    """Definition hash by view."""
    segments: dict[str, list[Segment]]
    """By view, in log order and without gaps."""
    days: list[Day]
    events: dict[str, list[Input]]
    """Exported Parquet files of the log by event type, in log order."""


@dataclass(frozen=True)
class Build:
    """The features as one manifest has them."""

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
        """The base folder of the build's files."""
        return folder(self.lake, self.manifest.build)

    def events(self, kind: str) -> list[Place]:
        """The exported events of one type, in log order."""
        return [self.lake / i.path for i in self.manifest.events.get(kind, ())]

    @cached_property
    def files(self) -> dict[str, str]:
        """sha256 of every file of values, by its path in ``place``."""
        return {f.path: f.sha256 for v in self.manifest.views for f in self._of_view(v)}

    def files_of(self, kind: Kind, view: str) -> dict[str, str]:
        """sha256 of the files with a view's values before (or after) events, by their path."""
        prefix = f"{kind}/{view}/"
        return {f.path: f.sha256 for f in self._of_view(view) if f.path.startswith(prefix)}

    def indexes(self, view: str) -> list[Index]:
        """The segments of a view, in log order; raises IntegrityError if one is not as written."""
        definition = self.manifest.views.get(view, "")
        segments = self.manifest.segments.get(view, ())
        return [read_index(self.place, view, definition, s) for s in segments]

    def _of_view(self, view: str) -> Iterable[File]:
        return (f for index in self.indexes(view) for f in index.files)

    def publish(self) -> None:
        """Make this build the current one."""
        text = msgspec.json.format(msgspec.json.encode(self.manifest), indent=1)
        (self.lake / "features" / MANIFEST).write(text)

    def describe(self) -> dict[str, Any]:
        """Plain data."""
        return {"folder": self.place.url, **msgspec.to_builtins(self.manifest)}


def base_name(log: str, decision: str, partitions: int) -> str:
    """The folder of all that depends on these, and on how this version writes files."""
    told = [_FORMAT, SNAPSHOT_FORMAT, log, decision, partitions]
    return hashlib.sha256(canonical_json(told)).hexdigest()[:_BASE_CHARACTERS]


def folder(lake: Place, name: str) -> Place:
    """Where the files of a build lie."""
    return lake / "features" / name


def index_place(base: Place, view: WindowView, start: int, end: int) -> Place:
    """Where the index of a segment lies."""
    return base / INDEX / definition_folder(view) / index_name(start, end)


def index_name(start: int, end: int) -> str:
    """The name of a segment's index."""
    return f"{start:012d}-{end:012d}.json"


def read_index(base: Place, view: str, definition: str, segment: Segment) -> Index:
    """The index of a segment; raises IntegrityError unless it is what the manifest says."""
    folder_name = f"{view}/{definition[:DEFINITION_CHARACTERS]}"
    place = base / INDEX / folder_name / index_name(segment.start, segment.end)
    try:
        data = place.read()
    except FileNotFoundError as e:
        raise IntegrityError(f"{place.url} is missing", hint=REBUILD) from e
    found = hashlib.sha256(data).hexdigest()
    if found != segment.sha256:
        raise IntegrityError(
            f"{place.url} has sha256 {found[:12]}, its manifest says {segment.sha256[:12]}",
            hint=REBUILD,
        )
    return msgspec.json.decode(data, type=Index)
