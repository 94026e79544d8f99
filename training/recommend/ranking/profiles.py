"""The visitor's profile as the ranker sees it: slow features of the midnight before the visit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from features.profiles import made
from raypipe.lake import Place
from raypipe.profiles import Profile
from training.profiles import Floats, read_profiles
from training.recommend.rows import Codes, Integers


@dataclass(frozen=True)
class LoggedProfile:
    """At moments of the past, by the join of every training; see features.VisitorProfile.

    Args:
        profile: of visitors, made in ``lake``.
        lake: has its values.
        users: ids by code.
    """

    profile: Profile
    lake: Place
    users: pa.StringArray

    def of_users(self, user: Codes, time: Integers, offset: Integers) -> dict[str, Floats]:
        """See VisitorProfile. Raises IntegrityError and LeakageError as ``read_profiles``."""
        keys = pa.table({self.profile.key: self.users.take(pa.array(user))})
        return read_profiles((self.profile,), self.lake, keys, time, offset)


@dataclass(frozen=True)
class KnownProfile:
    """As the online store has it, of the only visitor of a request; NaN for what it lacks."""

    names: tuple[str, ...]
    values: Mapping[str, float]

    def of_users(self, user: Codes, time: Integers, offset: Integers) -> dict[str, Floats]:
        """See VisitorProfile."""
        return {n: np.full(len(user), self.values.get(n, np.nan)) for n in self.names}


def is_made(profile: Profile, lake: Place, log_id: str, tenant: str) -> bool:
    """Whether a profile has values of this log and tenant, as it is declared now."""
    found = made.current(lake, profile)
    return (
        found is not None
        and (found.log, found.tenant) == (log_id, tenant)
        and found.last_day is not None
    )
