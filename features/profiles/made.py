"""What has been made of a profile: segments of days, each complete, listed in a manifest.

``profiles/<name>/<set>/facts`` and ``.../values`` hold Parquet, one file per key range and segment;
``profiles/<name>/manifest.json``, written last, says which of them count. A run that was killed
leaves files that the next one writes again. Another definition, log or tenant has a set of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from features.store.asof import Source
from features.store.names import CREATED, newest_column
from raypipe.errors import IntegrityError, NotFound
from raypipe.lake import Place
from raypipe.profiles import Profile
from raypipe.project import Project

MANIFEST = "manifest.json"
_AGAIN = "Remove the profile's folder and run `raypipe features`: all days are made again."


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """Days that were made together."""

    first_day: int
    last_day: int
    begin_offset: int
    end_offset: int
    files: dict[str, str]
    """sha256 of every file, by its path in the set."""

    @property
    def label(self) -> str:
        """Part of its files' names."""
        return f"{self.first_day:06d}-{self.last_day:06d}"


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """All that counts of one profile."""

    definition_hash: str
    log: str
    tenant: str
    parts: int
    """Key ranges, the same in every segment."""
    segments: tuple[Segment, ...] = ()

    @property
    def set_name(self) -> str:
        """The folder of its files."""
        made_of = f"{self.definition_hash}:{self.log}:{self.tenant}:{self.parts}"
        return hashlib.sha256(made_of.encode()).hexdigest()[:16]

    @property
    def last_day(self) -> int | None:
        """The newest day that was made, numbered from 1970-01-01."""
        return self.segments[-1].last_day if self.segments else None

    @property
    def end_offset(self) -> int:
        """Every event before it is in a made day."""
        return self.segments[-1].end_offset if self.segments else 0


def folder(lake: Place, profile: Profile) -> Place:
    """Where all of a profile lies."""
    return lake / "profiles" / profile.name


def read(lake: Place, profile: Profile) -> Manifest | None:
    """The published manifest, of whatever definition it is; None when there is none.

    Raises:
        IntegrityError: it can't be read.
    """
    place = folder(lake, profile) / MANIFEST
    try:
        return msgspec.json.decode(place.read(), type=Manifest)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as e:
        raise IntegrityError(f"{place.url} is not a manifest: {e}", hint=_AGAIN) from e


def current(lake: Place, profile: Profile) -> Manifest | None:
    """The published manifest, if it is of today's definition."""
    found = read(lake, profile)
    mine = found is not None and found.definition_hash == profile.definition_hash
    return found if mine else None


def publish(lake: Place, profile: Profile, manifest: Manifest, keep: Manifest | None) -> None:
    """Make a manifest count; sets other than its own and that of ``keep`` are removed."""
    place = folder(lake, profile)
    (place / MANIFEST).write(msgspec.json.format(msgspec.json.encode(manifest), indent=1))
    place.prune({manifest.set_name, *([keep.set_name] if keep else [])})


def values_folders(lake: Place, project: Project) -> dict[str, Place]:
    """Where the values of each profile lie, in files called part-*.

    Raises:
        NotFound: one was never made, or only by another definition.
    """
    found = {}
    for profile in project.profiles:
        manifest = current(lake, profile)
        if manifest is None:
            raise NotFound(
                f"no values of profile {profile.name!r} in {folder(lake, profile).url}",
                hint="`raypipe features` makes them.",
            )
        found[profile.name] = folder(lake, profile) / manifest.set_name / "values"
    return found


def values_files(
    lake: Place, profile: Profile, manifest: Manifest, segments: Sequence[Segment] | None = None
) -> list[Place]:
    """The files of all values that count, or of those of some segments, oldest days first."""
    place = folder(lake, profile) / manifest.set_name
    wanted = manifest.segments if segments is None else segments
    return [place / n for s in wanted for n in s.files if n.startswith("values/")]


def source(lake: Place, profile: Profile, manifest: Manifest) -> Source:
    """The values that count, for point-in-time joins by arrival."""
    return Source(
        view=profile.name,
        files=tuple(values_files(lake, profile, manifest)),
        keys=(profile.key,),
        columns=(*profile.column_names, newest_column(profile.name)),
        ttl_us=profile.ttl_ms * 1_000,
        created=CREATED,
    )


def verify(lake: Place, profile: Profile, manifest: Manifest) -> None:
    """Refuse files that are not what the manifest says.

    Raises:
        IntegrityError: one is missing or has other bytes.
    """
    place = folder(lake, profile) / manifest.set_name
    for name, sha256 in ((n, h) for s in manifest.segments for n, h in s.files.items()):
        try:
            found = (place / name).sha256()
        except FileNotFoundError as e:
            raise IntegrityError(f"{(place / name).url} is missing", hint=_AGAIN) from e
        if found != sha256:
            raise IntegrityError(
                f"{(place / name).url} has sha256 {found[:12]}, its manifest says {sha256[:12]}",
                hint=_AGAIN,
            )
