"""The newest values of profiles into the online store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.profiles import made
from features.store.names import CREATED, TIMESTAMP, newest_column
from features.store.state import MOMENT
from raypipe.clock import DAY_MS
from raypipe.lake import Place
from raypipe.profiles import Profile
from raypipe.project import Project

if TYPE_CHECKING:
    import feast


def materialize(store: feast.FeatureStore, project: Project, lake: Place) -> int:
    """Put the last made day of each profile online; returns how many rows were newer there.

    A repeated call writes what is there already, so an emptied store is filled again. A key that
    has no values on that day keeps the older ones until their TTL ends them.
    """
    return sum(_materialize(store, p, lake) for p in project.profiles)


def _materialize(store: feast.FeatureStore, profile: Profile, lake: Place) -> int:
    from features.store.packed.access import packed

    manifest = made.current(lake, profile)
    if manifest is None or manifest.last_day is None:
        return 0
    view = store.get_feature_view(profile.name)
    last_ms = (manifest.last_day + 1) * DAY_MS
    moment = pa.scalar(last_ms * 1_000, pa.int64()).cast(MOMENT)
    written = 0
    names = [profile.key, TIMESTAMP, CREATED, *profile.column_names, newest_column(profile.name)]
    for place in made.values_files(lake, profile, manifest, manifest.segments[-1:]):
        with place.open() as source:
            rows = pq.read_table(source, columns=names)
        rows = rows.filter(pc.equal(rows.column(TIMESTAMP), moment))
        written += packed(store).write_table(store.config, view, rows)
    until = datetime.fromtimestamp(last_ms / 1_000, UTC)
    store.registry.apply_materialization(view, store.project, until - timedelta(days=1), until)
    return written
