"""State files -> online store: the newest row of each key, and only where it is newer.

Feast's own ``materialize`` passes over rows that arrive late and starts over after a crash. This
writes the same rows into the same store without that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from features.store.definitions import DEFINITION_TAG
from features.store.names import state_view
from features.store.online_write import is_online, write_rows
from features.store.repo import open_store, spill_folder
from features.store.state import connect, newer_rows
from features.store.written import SCHEMA, Written
from raypipe.errors import StageError
from raypipe.lake import Place
from raypipe.project import Project
from raypipe.windows.spec import WindowView

if TYPE_CHECKING:
    import feast

BATCH_ROWS = 4_000
"""Rows per online transaction: an fsync each, and what a crash may have to write again."""


@dataclass(frozen=True, slots=True)
class ViewReport:
    """What happened to one view."""

    view: str
    rows: int
    seconds: float

    @property
    def rows_per_second(self) -> float:
        """Written rows over all of the time, reading included; 0 when nothing was new."""
        return self.rows / self.seconds if self.rows else 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """What one run wrote."""

    end: int
    views: tuple[ViewReport, ...]

    @property
    def rows(self) -> int:
        """Rows written, over all views."""
        return sum(v.rows for v in self.views)

    @property
    def seconds(self) -> float:
        """Time spent, over all views."""
        return sum(v.seconds for v in self.views)

    def __str__(self) -> str:
        rate = self.rows / self.seconds if self.rows else 0.0
        return f"{self.rows:,} rows of {len(self.views)} views online ({rate:,.0f} rows/s)"


def materialize(
    home: Path,
    project: Project,
    build: Place,
    end: int,
    *,
    store: feast.FeatureStore | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> Report:
    """Bring every `*_state` view online as of a time.

    A later run writes what is newer than the rows written before; a run that was ended goes on
    where it was. Rows older than a view's longest span are left out: nothing of them counts.

    Args:
        build: folder of a build of the features.
        end: milliseconds UTC, inclusive.
        store: the home's open store; opened when None.
        progress: called with a view and its rows so far, after each batch.

    Raises:
        StageError: a view isn't registered as it is declared, or its state files are of another
            declaration.
    """
    store = store or open_store(home)
    with Written(home) as written:
        views = tuple(_view(store, home, build, v, end, written, progress) for v in project.views)
    return Report(end, views)


def _view(
    store: feast.FeatureStore,
    home: Path,
    build: Place,
    view: WindowView,
    end: int,
    written: Written,
    progress: Callable[[str, int], None] | None,
) -> ViewReport:
    begin = time.perf_counter()
    feature_view = _registered(store, view)
    probe = written.some_key(view.name)
    if probe is not None and not is_online(store, feature_view, probe):
        written.forget(view.name)  # someone emptied the online store
    known = written.rows(view.name, view.definition_hash)
    rows = 0
    with connect(build, view, spill_folder(home)) as con:
        for batch in newer_rows(con, view, known, end, BATCH_ROWS):
            table = pa.Table.from_batches([batch])
            write_rows(store, feature_view, view.column_names, table)
            written.add(view.name, view.definition_hash, table.select(SCHEMA.names))
            rows += table.num_rows
            if progress is not None:
                progress(view.name, rows)
    if rows:
        until = datetime.fromtimestamp(end / 1_000, UTC)
        since = feature_view.most_recent_end_time or until - timedelta(seconds=view.horizon)
        store.registry.apply_materialization(feature_view, store.project, min(since, until), until)
    return ViewReport(view.name, rows, time.perf_counter() - begin)


def _registered(store: feast.FeatureStore, view: WindowView) -> feast.FeatureView:
    from feast.errors import FeatureViewNotFoundException

    try:
        found = store.get_feature_view(state_view(view.name))
    except FeatureViewNotFoundException:
        found = None
    if found is None or found.tags.get(DEFINITION_TAG) != view.definition_hash:
        raise StageError(
            f"view {view.name!r} is not registered as it is declared",
            hint="Apply the project to the registry first.",
        )
    return found
