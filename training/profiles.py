"""Profile values as they were known at any times: of decided events when they arrived, of visits
when they began."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features.builds import REBUILD
from features.profiles import made
from features.store.asof import join
from features.store.names import TIMESTAMP, newest_column
from features.store.state import MOMENT
from raypipe.errors import IntegrityError
from raypipe.lake import Place
from raypipe.profiles import Profile
from training.leakage import check_no_leak

Floats = npt.NDArray[np.float64]


def read_profiles(
    profiles: Sequence[Profile],
    lake: Place,
    keys: pa.Table,
    times: npt.NDArray[np.int64],
    offsets: npt.NDArray[np.int64],
) -> dict[str, Floats]:
    """Every profile value of each row, float64 [n], NaN where none was known.

    Args:
        profiles: declared ones.
        lake: has their values.
        keys: the keys of each row [n], by the profiles' names of them.
        times: as of when, ms [n].
        offsets: the rows' places in the log, int64 [n].

    Raises:
        IntegrityError: a profile was not made as it is declared now, or its files are damaged.
        LeakageError: a value used its own event or a later one.
    """
    out: dict[str, Floats] = {}
    for profile in profiles:
        out |= _read(profile, lake, keys, times, offsets)
    return out


def _read(
    profile: Profile,
    lake: Place,
    keys: pa.Table,
    times: npt.NDArray[np.int64],
    offsets: npt.NDArray[np.int64],
) -> dict[str, Floats]:
    manifest = made.current(lake, profile)
    if manifest is None:
        raise IntegrityError(
            f"profile {profile.name!r} was not made as it is declared now", hint=REBUILD
        )
    made.verify(lake, profile, manifest)
    source = made.source(lake, profile, manifest)
    if not source.files:  # no day has ended yet
        return {n: np.full(len(offsets), np.nan) for n in profile.column_names}
    moments = pa.array(times * 1_000, pa.int64()).cast(MOMENT)
    asked = pa.table({profile.key: keys.column(profile.key), TIMESTAMP: moments})
    known = join(asked, [source])
    newest = pc.fill_null(known.column(newest_column(profile.name)), -1).to_numpy()
    check_no_leak(offsets, {f"profile {profile.name!r}": newest})
    return {n: pc.fill_null(known.column(n), float("nan")).to_numpy() for n in profile.column_names}
