"""The history of releases in the lake: numbered documents that never change, and which one counts.

``releases/000012.json`` is a document, ``releases/current`` names the one that a start serves. A
document counts once it was named there; the pointer is one small file, written as a whole.
"""

from __future__ import annotations

import getpass
import os
import secrets
import socket
from typing import TYPE_CHECKING

import msgspec

from raypipe.clock import Clock, SystemClock
from raypipe.durable import sync_directory
from raypipe.errors import Conflict, IntegrityError, NotFound
from raypipe.lake import Place
from serving.release import Release
from training import registry

if TYPE_CHECKING:
    from raypipe.config import Settings

FOLDER = "releases"
CURRENT = "current"
_SUFFIX = ".json"


class Recorded(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One document: a release, who made it the current one, when and why."""

    release: Release
    at_ms: int
    by: str
    reason: str
    previous: int
    """The number of the one that it replaced; 0 for none."""

    @property
    def number(self) -> int:
        """Its place in the history, from 1."""
        return self.release.number


class Releases:
    """The history of one lake. Several processes may use it; one of two that record at once is
    refused."""

    def __init__(self, lake: Place, clock: Clock | None = None) -> None:
        self._folder = lake / FOLDER
        self._clock = clock or SystemClock()

    def current(self) -> Recorded | None:
        """What a start serves; None before the first release."""
        number = self._pointer()
        return None if number == 0 else self.get(number)

    def get(self, number: int) -> Recorded:
        """A release of the history; raises NotFound."""
        place = self._folder / _name(number)
        try:
            found = msgspec.json.decode(place.read(), type=Recorded)
        except FileNotFoundError as e:
            raise NotFound(
                f"there is no release {number}", hint="`raypipe release history` lists them."
            ) from e
        except msgspec.DecodeError as e:
            raise IntegrityError(f"{place.url} is no release: {e}", hint="Restore it.") from e
        if found.number != number:
            raise IntegrityError(f"{place.url} says that it is release {found.number}")
        return found

    def history(self) -> list[Recorded]:
        """All releases that were current once, oldest first."""
        newest = self._pointer()
        found = []
        while newest:
            found.append(self.get(newest))
            newest = found[-1].previous
        return found[::-1]

    def record(self, release: Release, *, by: str, reason: str) -> Recorded:
        """Make a release the current one, durably; with its number.

        Raises Conflict when another process recorded one at the same time.
        """
        previous = self._pointer()
        number = max([previous, *self._numbers()]) + 1
        made = Recorded(
            release=msgspec.structs.replace(release, number=number),
            at_ms=self._clock.now_ms(),
            by=by,
            reason=reason,
            previous=previous,
        )
        self._create(number, msgspec.json.format(msgspec.json.encode(made), indent=2))
        if self._pointer() != previous:
            raise _conflict(number)
        (self._folder / CURRENT).write(f"{number}\n".encode())
        return made

    def _create(self, number: int, data: bytes) -> None:
        place = self._folder / _name(number)
        path = place.local
        if path is None:
            # pyarrow's object stores can't refuse to replace: the last writer is the one.
            place.write(data)
            if place.read() != data:
                raise _conflict(number)
            return
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        Place.at(draft).write(data)
        try:
            path.hardlink_to(draft)  # unlike a rename it refuses to replace
        except FileExistsError:
            raise _conflict(number) from None
        finally:
            draft.unlink()
        sync_directory(path.parent)

    def _numbers(self) -> list[int]:
        names = (n.removesuffix(_SUFFIX) for n in self._folder.names())
        return [int(n) for n in names if n.isdecimal()]

    def _pointer(self) -> int:
        place = self._folder / CURRENT
        try:
            text = place.read().decode("ascii", "replace").strip()
        except FileNotFoundError:
            return 0
        if not text.isdecimal():
            raise IntegrityError(f"{place.url} names no release: {text!r}", hint="Restore it.")
        return int(text)


def first_or_current(settings: Settings, model: str) -> Recorded:
    """What a start serves. The first one records what was served before there were releases: the
    model's current version with the thresholds of its manifest. Raises NotFound without one.
    """
    releases = Releases(settings.lake)
    found = releases.current()
    if found is not None:
        return found
    version = registry.locate(settings.lake / "models", model).name
    return releases.record(
        Release(champion=f"{model}@{version}"),
        by="raypipe",
        reason="the first start: the model's current version",
    )


def somebody() -> str:
    """Who runs this process, as far as the machine knows."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = f"uid {os.getuid()}"
    return f"{name}@{socket.gethostname()}"


def _name(number: int) -> str:
    return f"{number:06d}{_SUFFIX}"


def _conflict(number: int) -> Conflict:
    return Conflict(
        f"release {number} was recorded by another process meanwhile",
        hint="Look at `raypipe release show`, then try again.",
    )
