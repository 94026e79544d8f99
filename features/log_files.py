"""The log's rows as tables on this node, for whoever asks beside the worker that writes them.

Sealed files are read where they lie. Whole steps of live rows are exported once and found again by
later calls; what came after them, less than a step, goes to a folder that ends with the reading.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from raypipe.lake import Place
from raypipe.ledger.exposure import EXPOSURE, EXPOSURE_SCHEMA
from raypipe.ledger.record import LOG_KIND, LOG_SCHEMA
from raypipe.log import opening
from raypipe.log.export import STEP
from raypipe.log.port import OFFSET, EventLog
from raypipe.ownership.claim import begun_for, require_single
from raypipe.project import Project

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

    from raypipe.config import Settings

_OWN = {LOG_KIND: LOG_SCHEMA, EXPOSURE: EXPOSURE_SCHEMA}


class LogFiles:
    """The rows that were in a partition of a log when this was made, of one tenant, by kind.

    Args:
        kept: folder for exported steps, which later readings use again.
        scratch: folder for the rows after them.
        end: of an earlier reading, so that this one has its rows.
    """

    def __init__(
        self,
        log: EventLog,
        project: Project,
        tenant: str,
        kept: Path,
        scratch: Path,
        partition: int = 0,
        end: int | None = None,
    ) -> None:
        self.end = log.end(partition) if end is None else end
        """The next offset then."""
        self.id = log.id
        """The log's."""
        self.tenant = tenant
        self.spill = scratch / "spill"
        """Folder for what a reader's memory can't hold; gone with the reading."""
        self._log = log
        self._partition = partition
        self._project = project
        self._kept = Place.at(kept)
        self._scratch = Place.at(scratch)
        self._found: dict[str, Dataset] = {}

    def table(self, kind: str) -> Dataset:
        """The tenant's rows of one kind: ``offset`` and the columns that are declared today.

        A column that a row was written without is null. Rows of other tenants can't be reached
        through it, whatever a reader asks.
        """
        import pyarrow.dataset as ds

        return self._all(kind).filter(ds.field("tenant") == self.tenant)

    @cached_property
    def alone(self) -> bool:
        """Whether the log has events of no other tenant."""
        import pyarrow.dataset as ds

        others = ds.field("tenant") != self.tenant
        return not any(
            self._all(event.name).filter(others).head(1, columns=["tenant"]).num_rows
            for event in self._project.events
        )

    def _all(self, kind: str) -> Dataset:
        import pyarrow.dataset as ds

        if kind not in self._found:
            partition = self._partition
            first = self._log.first(partition, kind)
            whole = max(first, self.end // STEP * STEP)
            files = [
                *self._log.export(partition, kind, self._kept, first, whole),
                *self._log.export(partition, kind, self._scratch, whole, self.end),
            ]
            schema = _OWN.get(kind) or self._project.event(kind).arrow_schema
            schema = pa.schema(
                [pa.field(OFFSET, pa.int64()), *(f.with_nullable(True) for f in schema)]
            )
            self._found[kind] = ds.dataset([f.url for f in files], schema=schema, format="parquet")
        return self._found[kind]


@contextmanager
def open_log(settings: Settings, project: Project, end: int | None = None) -> Iterator[LogFiles]:
    """The log of a home, with the rows of the settings' tenant; the worker may go on writing.

    ``end``: that of an earlier reading, so that this one has its rows.

    Raises NotFound when there is no log yet, UsageError for one of several workers.
    """
    with _opened(settings) as (log, scratch):
        require_single(log, "this command")
        yield _files(log, settings, project, scratch, 0, end)


@contextmanager
def open_partitions(settings: Settings, project: Project) -> Iterator[tuple[LogFiles, ...]]:
    """As open_log, a partition for each worker, however many there are.

    An event lies whole in one of them, its decision in the same. Offsets are a partition's own.
    """
    with _opened(settings) as (log, scratch):
        yield tuple(
            _files(log, settings, project, scratch, partition)
            for partition in range(begun_for(log))
        )


@contextmanager
def _opened(settings: Settings) -> Iterator[tuple[EventLog, Path]]:
    log = opening.open_log(settings.log_url, settings.log_cache, create=False)
    settings.home.mkdir(parents=True, exist_ok=True)
    try:
        # In the home, where only its owner reads: these are events.
        with tempfile.TemporaryDirectory(prefix=".rows-", dir=settings.home) as scratch:
            yield log, Path(scratch)
    finally:
        log.close()


def _files(
    log: EventLog,
    settings: Settings,
    project: Project,
    scratch: Path,
    partition: int,
    end: int | None = None,
) -> LogFiles:
    kept = settings.home / "export" / log.id
    return LogFiles(log, project, settings.tenant, kept, scratch, partition, end)
