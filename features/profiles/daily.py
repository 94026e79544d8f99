"""Bring all profiles of a project up to the last finished day, on disk and online."""

from __future__ import annotations

from dataclasses import dataclass

from features.builds import Build
from features.intake import day_name
from features.profiles import made
from features.profiles.compute import extend
from features.profiles.days import finished
from features.profiles.made import Manifest
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


def update(project: Project, build: Build, today: int) -> list[Update]:
    """Make the days that ended since the last run, for each profile; needs a Ray session.

    A second run on the same day makes nothing. A profile whose definition has changed, or whose
    log or tenant is another one, is made from the beginning; its days before go on counting until
    then. A new one has as many key ranges as the build, each of which one task must hold.

    Args:
        build: says which events there are, and on which days they arrived.
        today: the UTC day of now, numbered from 1970-01-01: it and later ones have not ended.
    """
    return [_update(p, project, build, today) for p in project.profiles]


def _update(profile: Profile, project: Project, build: Build, today: int) -> Update:
    lake, about = build.lake, build.manifest
    wanted, before = _wanted(profile, build), made.read(lake, profile)
    days = finished(about.days, wanted.end_offset, after=wanted.last_day, today=today)
    rows = 0
    if days is not None:
        new = {
            kind: [lake / i.path for i in found if i.start < days.end and days.begin < i.end]
            for kind, found in about.events.items()
            if kind in profile.events
        }
        wanted, rows = extend(profile, project.events, new, lake, before, days, wanted)
    elif wanted != before:
        made.publish(lake, profile, wanted, before)
    last = None if wanted.last_day is None else day_name(wanted.last_day)
    return Update(profile.name, last, rows)


def _wanted(profile: Profile, build: Build) -> Manifest:
    about = build.manifest
    found = made.current(build.lake, profile)
    if found is not None and (found.log, found.tenant) == (about.log, about.tenant):
        return found
    return Manifest(
        definition_hash=profile.definition_hash,
        log=about.log,
        tenant=about.tenant,
        parts=about.partitions,
    )
