"""Bring the accepted rows of a load into log order, however many there are.

Rows are staged as Parquet, one file per event type, and sorted once by DuckDB, which spills to
disk over a memory limit. A row's place in the sorted file is its place in the load.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raypipe.errors import Unavailable
from raypipe.events.schema import EventType
from raypipe.log.port import POSITION

_BATCH_ROWS = 65_536


class Staging:
    """Collects rows of several event types in a folder, then gives them back in log order.

    Log order is received_at, event_time, event_id, then the order of ``events``, then the order
    of adding. Of several rows with one event type and event_id the first in log order stays.
    """

    def __init__(
        self, directory: Path, events: tuple[EventType, ...], *, memory_limit: str = "1GB"
    ) -> None:
        self._directory = directory
        self._events = events
        self._memory_limit = memory_limit
        self._writers: dict[int, pq.ParquetWriter] = {}
        self._added = 0
        self.rows = 0
        self._sorted = directory / "sorted.parquet"

    def add(self, event: EventType, accepted: pa.Table) -> None:
        """Stage validated rows of one type."""
        rows = accepted.num_rows
        if not rows:
            return
        kind = self._events.index(event)
        seq = np.arange(self._added, self._added + rows, dtype=np.int64)
        table = pa.table(
            [pa.repeat(pa.scalar(kind, pa.int32()), rows), pa.array(seq), *accepted.columns],
            names=["kind", "seq", *_staged_names(event)],
        )
        with self._staging_errors(OSError):
            if kind not in self._writers:
                self._writers[kind] = pq.ParquetWriter(self._staged(kind), table.schema)
            self._writers[kind].write_table(table)
        self._added += rows

    def merge(self) -> dict[str, int]:
        """Sort what was added and drop repeated ids; returns how many were dropped by type.

        ``rows`` is the number of rows that are left.
        """
        import duckdb

        with self._staging_errors(OSError):
            self.close()
        if not self._writers:
            return {}
        settings: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": self._memory_limit,
            "temp_directory": str(self._directory / "spill"),
            "autoinstall_known_extensions": False,
        }
        with self._staging_errors(duckdb.Error), closing(duckdb.connect(config=settings)) as db:
            db.execute("SET enable_progress_bar = false")
            files = [str(self._staged(kind)) for kind in self._writers]
            db.read_parquet(files, union_by_name=True).create_view("staged")
            db.execute(_DROPPED)
            dropped = db.execute("SELECT kind, count(*) FROM dropped GROUP BY kind").fetchall()
            db.execute(_SORT, [str(self._sorted)])
        for kind in self._writers:
            self._staged(kind).unlink()
        self.rows = self._added - sum(rows for _, rows in dropped)
        return {self._events[kind].name: rows for kind, rows in dropped}

    def ordered(self) -> dict[str, Iterator[pa.RecordBatch]]:
        """For each event type its rows in log order, led by ``_position`` from 0 to rows - 1."""
        return {self._events[kind].name: self._read(kind) for kind in sorted(self._writers)}

    def _read(self, kind: int) -> Iterator[pa.RecordBatch]:
        event = self._events[kind]
        schema = pa.schema([pa.field(POSITION, pa.int64(), nullable=False), *event.arrow_schema])
        first = 0
        with pq.ParquetFile(self._sorted) as f:
            for batch in f.iter_batches(_BATCH_ROWS, columns=["kind", *_staged_names(event)]):
                of_kind = np.flatnonzero(batch.column("kind").to_numpy() == kind)
                if len(of_kind):
                    own = batch.select(_staged_names(event)).take(pa.array(of_kind))
                    yield pa.RecordBatch.from_arrays(
                        [pa.array(first + of_kind), *own.columns], schema=schema
                    )
                first += len(batch)

    def close(self) -> None:
        """Close the staged files."""
        for writer in self._writers.values():
            writer.close()

    @contextmanager
    def _staging_errors(self, kind: type[Exception]) -> Iterator[None]:
        try:
            yield
        except kind as e:
            raise Unavailable(
                f"the rows of a load can't be staged in {self._directory}: {e}",
                hint="It takes about three times the disk space of the rows; then load again.",
            ) from e

    def _staged(self, kind: int) -> Path:
        return self._directory / f"staged-{kind}.parquet"


def _staged_names(event: EventType) -> list[str]:
    """Column names that carry their type, so that types of events may differ in a column."""
    return [f"{f.name}:{f.arrow_type}" for f in event.all_fields]


_ORDER = '"received_at:int64", "event_time:int64", "event_id:string"'

_DROPPED = f"""
CREATE TEMP TABLE dropped AS
SELECT kind, seq FROM (
    SELECT kind, seq,
        row_number() OVER (PARTITION BY kind, "event_id:string" ORDER BY {_ORDER}, seq) AS place
    FROM staged SEMI JOIN (
        SELECT kind, "event_id:string" FROM staged GROUP BY ALL HAVING count(*) > 1
    ) USING (kind, "event_id:string")
) WHERE place > 1
"""  # noqa: S608 - no outside text in it

_SORT = f"""
COPY (
    SELECT * EXCLUDE (seq) FROM staged ANTI JOIN dropped USING (kind, seq)
    ORDER BY {_ORDER}, kind, seq
) TO $1 (FORMAT parquet, COMPRESSION snappy, ROW_GROUP_SIZE 131072)
"""  # noqa: S608
