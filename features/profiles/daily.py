"""Bring all profiles of a project up to the last finished day, on disk and online."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from features.profiles import made
from features.profiles.compute import extend
from features.profiles.days import day_name, finished
from features.profiles.made import Manifest
from raypipe.lake import Place
from raypipe.profiles import Profile, check_profile
from raypipe.project import Project


@dataclass(frozen=True, slots=True)
class Update:
    """What happened to one profile."""

    profile: str
    last_day: str | None
    """The newest day that is made, YYYY-MM-DD."""
    rows: int
    """Values that were made now, one row a key and day."""


def check(project: Project) -> None:
    """Refuse a project whose profiles' SQL doesn't run, before anything is computed.

    Raises:
        DeclarationError: what is wrong with it.
    """
    events = {e.name: e for e in project.events}
    for profile in project.profiles:
        check_profile(profile, events)


def update(
    project: Project,
    files: Mapping[str, Sequence[Place]],
    lake: Place,
    *,
    log: str,
    tenant: str,
    end: int,
    today: int,
    parts: int,
) -> list[Update]:
    """Make the days that ended since the last run, for each profile; needs a Ray session.

    A second run on the same day makes nothing. A profile whose definition has changed, or whose
    log or tenant is another one, is made from the beginning; its days before go on counting until
    then.

    Args:
        files: exported events by type.
        log: identity of the log that they come from.
        end: the log's end.
        today: the UTC day of now, numbered from 1970-01-01: it and later ones have not ended.
        parts: key ranges of a profile that is made for the first time; each must fit in the
            memory of one task.
    """
    return [
        _update(p, project, files, lake, _wanted(p, lake, log, tenant, parts), end, today)
        for p in project.profiles
    ]


def _wanted(profile: Profile, lake: Place, log: str, tenant: str, parts: int) -> Manifest:
    found = made.current(lake, profile)
    if found is not None and (found.log, found.tenant) == (log, tenant):
        return found
    return Manifest(definition_hash=profile.definition_hash, log=log, tenant=tenant, parts=parts)


def _update(
    profile: Profile,
    project: Project,
    files: Mapping[str, Sequence[Place]],
    lake: Place,
    wanted: Manifest,
    end: int,
    today: int,
) -> Update:
    mine = {k: v for k, v in files.items() if k in profile.events}
    everything = [f for places in files.values() for f in places]
    days = finished(everything, wanted.end_offset, end, after=wanted.last_day, today=today)
    rows, before = 0, made.read(lake, profile)
    if days is not None:
        new = {k: _between(v, days.begin, days.end) for k, v in mine.items()}
        wanted, rows = extend(profile, project.events, new, lake, before, days, wanted)
    elif wanted != before:
        made.publish(lake, profile, wanted, before)
    last = None if wanted.last_day is None else day_name(wanted.last_day)
    return Update(profile.name, last, rows)


def _between(files: Sequence[Place], begin: int, end: int) -> list[Place]:
    """The files that have rows in a range of offsets."""
    found = []
    for file in files:
        low, high = _range(file)
        if low < end and high >= begin:
            found.append(file)
    return found


def _range(file: Place) -> tuple[int, int]:
    """First and last offset of an exported file, from its footer."""
    import pyarrow.parquet as pq

    with file.open() as source:
        about = pq.read_metadata(source)
    groups = [about.row_group(i).column(0).statistics for i in range(about.num_row_groups)]
    return min(g.min for g in groups), max(g.max for g in groups)
