"""Profile values of one event's keys from the online store, as a replica reads them.

What Feast's API gives, without importing Feast: its registry is not asked, because the declaration
says what the registry was told.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from features.store.packed.backend import Backend
from features.store.packed.here import open_here
from features.store.packed.keys import key_prefix, one
from features.store.packed.reading import ViewReader
from features.store.packed.sqlite import SqliteBackend
from raypipe.profiles import Profile

_DOUBLE = "d"


class Profiles(NamedTuple):
    """What is known of an event's keys."""

    values: tuple[float, ...]
    """Of one profile after the other, as declared; NaN where nothing is known."""
    times: tuple[int, ...]
    """By profile: the midnight that its values are of, milliseconds; -1 for none."""


class ProfileReader:
    """Reads profiles in one round trip. Calls are safe from all threads.

    ``embedded`` says that it reads a file, in microseconds, and asks no server. ``unknown`` is what
    is known of keys that nobody has seen.
    """

    def __init__(self, profiles: Sequence[Profile], home: Path, online_url: str | None) -> None:
        """Open the online store of a home.

        Args:
            profiles: declared ones, in the order of what is read.
            home: has the embedded store.
            online_url: setting `online_url`; the embedded store of the home when None.

        Raises:
            NotFound: the embedded store is not there, as on a node that isn't the one it lies on.
        """
        self._backend, feast_project = open_here(home, online_url)
        self.embedded = isinstance(self._backend, SqliteBackend)
        self._profiles = [_Lookup(p, feast_project, self._backend) for p in profiles]
        self.unknown = Profiles(
            tuple(math.nan for p in profiles for _ in p.column_names), tuple(-1 for _ in profiles)
        )

    def read(self, event: Mapping[str, Any], now_ms: int | None = None) -> Profiles:
        """The newest values of the keys that an event carries.

        Args:
            now_ms: milliseconds UTC, by which age is judged; the machine's clock when None.

        Raises:
            Unavailable, IntegrityError: see Backend.
        """
        now = time.time_ns() // 1_000 if now_ms is None else now_ms * 1_000
        keys = [(p, event[p.key]) for p in self._profiles]
        asked = [one(p.prefix, key) for p, key in keys if key is not None]
        found = iter(self._backend.get(asked) if asked else ())
        values: list[float] = []
        times: list[int] = []
        for lookup, key in keys:
            (known,) = lookup.reader.read([next(found) if key is not None else None], now)
            if known is None:
                values += lookup.missing
                times.append(-1)
            else:
                values += [math.nan if v is None else float(v) for v in known[1]]
                times.append(known[0] // 1_000)
        return Profiles(tuple(values), tuple(times))

    def close(self) -> None:
        """Let go of connections and files."""
        self._backend.close()


class _Lookup:
    def __init__(self, profile: Profile, project: str, backend: Backend) -> None:
        wanted = tuple((name, _DOUBLE) for name in profile.column_names)
        self.key = profile.key
        self.prefix = key_prefix(project, profile.name, [profile.key])
        self.reader = ViewReader(wanted, profile.ttl_ms * 1_000, backend.described)
        self.missing = [math.nan] * len(wanted)
