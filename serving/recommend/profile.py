"""The visitor's profile from the online store, as decisions read theirs: one packed read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from features.profiles.lookup import Profiles
from raypipe.profiles import Profile

NONE_KNOWN = -1


class Online(Protocol):
    """A serving.profiles.OnlineProfiles is one."""

    async def read(self, event: Mapping[str, Any]) -> Profiles | None:
        """What is known of the event's keys; None when the store doesn't say in time."""

    def close(self) -> None:
        """Let the store go."""


@dataclass(frozen=True, slots=True)
class Read:
    """Values by column, NaN or absent where nothing is known; ``time`` is the midnight (ms UTC)
    that they are of, -1 for none, None where nothing was read. ``missing``: the store didn't say.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    time: int | None = None
    missing: bool = False


class StoredProfile:
    """A declared profile in its online store."""

    def __init__(self, profile: Profile, online: Online) -> None:
        self._profile = profile
        self._online = online

    @property
    def names(self) -> tuple[str, ...]:
        """Columns, in order."""
        return self._profile.column_names

    async def read(self, visitor: str | None, tenant: str, request: str) -> Read:
        """Of a visitor's key, None for one without an account; ``request`` names it in logs."""
        if visitor is None:
            return Read(time=NONE_KNOWN)
        asked = {"tenant": tenant, "event_id": request, self._profile.key: visitor}
        found = await self._online.read(asked)
        if found is None:
            return Read(missing=True)
        return Read(dict(zip(self.names, found.values, strict=True)), found.times[0])

    def close(self) -> None:
        """Let the store go."""
        self._online.close()
