"""Follows the log from a version's place on, so that an acknowledged event is in the next answer.

The log is read beside the worker that writes it, as its other readers do; the worker may be away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from raypipe.errors import IntegrityError
from raypipe.log.port import OFFSET, Chunk, EventLog
from raypipe.project import Project
from serving.recommend.live_windows import LiveWindows
from serving.recommend.shelf import Shelf
from serving.recommend.visitors import Event, Histories
from training.recommend.events import TIME, Source

PARTITION = 0
STEP = 20_000
"""Rows that are read at once."""

TENANT = "tenant"
LISTING = "listing"


class ItemCodes(Protocol):
    """Codes of items by id; a dict is one."""

    def get(self, item: str) -> int | None:
        """None for an item that is not of the version."""


class Follower:
    """Hands the log's events to what keeps account of them. Not thread-safe.

    Args:
        log: an open log.
        project: declares the events.
        sources: which events are interactions.
        tenant: whose events count.
        codes: of the version's items.
        histories, windows, shelf: what is fed.
        log_id: of the log that the version was made from.
        offset: the first one to follow.

    Raises IntegrityError for another log, or one that has lost rows since.
    """

    def __init__(
        self,
        log: EventLog,
        project: Project,
        sources: Sequence[Source],
        tenant: str,
        codes: ItemCodes,
        histories: Histories,
        windows: LiveWindows,
        shelf: Shelf,
        *,
        log_id: str,
        offset: int,
    ) -> None:
        if log.id != log_id or log.end(PARTITION) < offset:
            raise IntegrityError(
                f"the version was made from log {log_id[:12]} up to {offset}, this is log "
                f"{log.id[:12]} and ends at {log.end(PARTITION)}",
                hint="Fit a new version on this log: `raypipe recommend fit`.",
            )
        self._log = log
        self._tenant = tenant
        self._codes = codes
        self._histories, self._windows, self._shelf = histories, windows, shelf
        self._sources = {s.event: (number, s) for number, s in enumerate(sources)}
        kinds = {*self._sources, *windows.kinds, LISTING}
        self._schemas = {kind: project.event(kind).arrow_schema for kind in kinds}
        self.offset = offset
        """The next one; everything before it counts."""

    def catch_up(self) -> int:
        """Follow everything that is in the log by now; how many rows that were.

        Raises Expired when retention deleted rows that were not followed yet, Unavailable and
        IntegrityError as the log does.
        """
        followed = 0
        while self._log.end(PARTITION) > self.offset:
            chunks = list(self._log.read(PARTITION, self.offset, STEP))
            rows = sum(map(len, chunks))
            if not rows:
                break
            mine = [t for c in chunks if c.kind in self._schemas and (t := self._table(c)).num_rows]
            self._windows.feed((kind_of(t), t) for t in mine)
            self._interactions(mine)
            self._listings(mine)
            self.offset += rows
            followed += rows
        return followed

    def _table(self, chunk: Chunk) -> pa.RecordBatch:
        """The tenant's rows of a chunk under today's declaration, with their offsets."""
        batch, schema = chunk.batch, self._schemas[chunk.kind]
        names = set(batch.schema.names)
        columns = [
            batch.column(f.name) if f.name in names else pa.nulls(len(batch), f.type)
            for f in schema
        ]
        fields = [pa.field(OFFSET, pa.int64()), *(f.with_nullable(True) for f in schema)]
        table = pa.RecordBatch.from_arrays(
            [pa.array(chunk.offsets), *columns],
            schema=pa.schema(fields, metadata={"kind": chunk.kind}),
        )
        mine = pc.equal(table.column(TENANT), self._tenant)
        return table if pc.all(mine).as_py() else table.filter(mine)

    def _interactions(self, tables: Sequence[pa.RecordBatch]) -> None:
        """In log order over all types: who logged in when decides whose an event is."""
        rows: list[tuple[int, int, str | None, str | None, str, int]] = []
        for batch in tables:
            found = self._sources.get(kind_of(batch))
            if found is None:
                continue
            number, source = found
            kept = batch.column(source.item).is_valid()
            for column, value in source.where:
                kept = pc.and_(kept, pc.equal(batch.column(column), value))
            table = batch.filter(kept)
            session = source.session
            rows += zip(
                table.column(OFFSET).to_pylist(),
                [number] * len(table),
                table.column(source.user).to_pylist(),
                [None] * len(table) if session is None else table.column(session).to_pylist(),
                table.column(source.item).to_pylist(),
                table.column(TIME).to_pylist(),
                strict=True,
            )
        for offset, kind, user, session, item, time in sorted(rows, key=lambda row: row[0]):
            code = self._codes.get(item)
            event = None if code is None else Event(code, kind, time, offset)
            self._histories.add(user, session, event, offset)

    def _listings(self, tables: Sequence[pa.RecordBatch]) -> None:
        for table in tables:
            if kind_of(table) != LISTING:
                continue
            for row in table.to_pylist():
                code = self._codes.get(row["item_id"])
                if code is not None:
                    self._shelf.listed(code, row, row[TIME])


def kind_of(table: pa.RecordBatch) -> str:
    """The event type of a followed batch."""
    return str((table.schema.metadata or {})[b"kind"].decode())
