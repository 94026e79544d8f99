"""All tables of a project over one log partition, as the worker keeps them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pyarrow as pa

from raypipe.errors import NotFound, UsageError
from raypipe.events.schema import EventType
from raypipe.log.port import Chunk, merged
from raypipe.tables import snapshot
from raypipe.tables.batch import Group
from raypipe.tables.batch import read as read_batch
from raypipe.tables.rows import OTHER, Window
from raypipe.tables.spec import Table
from raypipe.tables.state import NEVER, TableState, measures_of

TAKEN_ROWS = 4_096
TAKEN_CHUNKS = 128
"""How much waits to be applied together: one by one, rows cost a hundred times as much."""

MOST_READ = 20_000
"""Rows of one answer."""

OTHER_GROUPS = "(other)"


class TableEngine:
    """The state of every table. Not thread-safe.

    Args:
        events: the project's event types; those that no table counts move the watermark too.
    """

    def __init__(self, tables: Sequence[Table], events: Sequence[EventType]) -> None:
        self._events = {e.name: e for e in events}
        self._states = {t.name: TableState(t, self._events) for t in tables}
        self._columns = {
            e.name: {
                name: e.field(name).arrow_type
                for state in self._states.values()
                for name in state.columns(e.name)
            }
            for e in events
        }
        self._taken: list[Chunk] = []
        self._taken_rows = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The tables, in declared order."""
        return tuple(self._states)

    @property
    def empty(self) -> set[str]:
        """The tables that have counted nothing yet."""
        return {name for name, state in self._states.items() if not state.offset}

    @property
    def nbytes(self) -> int:
        """Memory held by all tables, partly estimated."""
        return sum(s.rows.nbytes for s in self._states.values())

    @property
    def stats(self) -> dict[str, float]:
        """Gauges by table: rows and bytes, late events, events without a row of their own."""
        found: dict[str, float] = {}
        for name, state in self._states.items():
            figures = {
                "rows": len(state.rows),
                "bytes": state.rows.nbytes,
                "late": state.late,
                "too_old": state.too_old,
                "other": state.other,
            }
            found |= {f"table_{name}_{n}": float(v) for n, v in figures.items()}
        return found

    def take(self, parts: Iterable[Chunk]) -> None:
        """Events in log order that are applied later, at the latest when they are asked for."""
        if self._states:
            for part in parts:
                self._taken.append(part)
                self._taken_rows += len(part)
            if len(self._taken) >= TAKEN_CHUNKS or self._taken_rows >= TAKEN_ROWS:
                self._flush()

    def _flush(self) -> None:
        taken, rows = self._taken, self._taken_rows
        self._taken, self._taken_rows = [], 0
        self.apply(merged(taken) if rows < TAKEN_ROWS else taken)

    def apply(self, parts: Sequence[Chunk], only: Collection[str] | None = None) -> None:
        """Take a micro-batch in, in offset order over all parts.

        Columns that aren't declared are left, optional ones that are absent count as null; kinds
        that aren't declared are no events.

        Args:
            only: names of the tables that take it in, by default all.
        """
        if not self._states or (only is not None and not only):
            return
        batch = read_batch(parts, self._events, self._columns)
        if batch is None:
            return
        for name, state in self._states.items():
            if only is None or name in only:
                state.apply(batch)

    def read(
        self, tenant: str, table: str, since: int, until: int, now: int
    ) -> list[dict[str, Any]]:
        """A tenant's rows of the windows that overlap [since, until), oldest first; times in ms.

        Each has ``start``, ``end``, ``final``, ``late`` (events that came too late for the whole
        window), the groups and the measures. A window without events has one row of zeros, whose
        groups are null. Windows that begin after ``now`` or are kept no longer have none.

        Raises NotFound for an unknown table, UsageError for more than MOST_READ rows.
        """
        self._flush()
        state = self._states.get(table)
        if state is None:
            raise NotFound(
                f"there is no table {table!r}", hint="There are: " + (", ".join(self.names) or "-")
            )
        span = state.table.span_ms
        watermark = now if state.watermark == NEVER else state.watermark
        first = max(since // span, state.oldest(watermark))
        last = min(-(-until // span) - 1, now // span)
        found: list[dict[str, Any]] = []
        if last - first < MOST_READ:
            for window in range(first, last + 1):
                found += _window(state, window, tenant)
        if last - first >= MOST_READ or len(found) > MOST_READ:
            raise UsageError(
                f"over {MOST_READ:,} rows of {table} from {since} to {until}",
                hint="Ask for a shorter time.",
            )
        return found

    def watermark(self, table: str) -> int | None:
        """The newest ``received_at`` that a table knows, None before the first event."""
        found = self._states[table].watermark
        return None if found == NEVER else found

    def snapshot(self) -> list[pa.Table]:
        """Every table's state in canonical form, named in its metadata."""
        return [self.piece(name) for name in self._states]

    def piece(self, name: str) -> pa.Table:
        """One table's state; it tells what it has counted, so replay may begin before that."""
        self._flush()
        return snapshot.save(self._states[name])

    def restore(self, tables: Iterable[pa.Table]) -> set[str]:
        """Take up states that ``snapshot`` gave; the names of the tables that were taken up.

        What is of no table, or of one that is declared otherwise now, is left.
        """
        return {
            name
            for table in tables
            if (name := snapshot.name_of(table)) in self._states
            and snapshot.restore(self._states[name], table)
        }


def _order(row: tuple[Group | None, int]) -> tuple[bool, list[str]]:
    """Groups by their values, null first; the other ones last."""
    group = row[0]
    return group is OTHER, [] if group is OTHER else ["" if v is None else str(v) for v in group]


def _window(state: TableState, window: int, tenant: str) -> list[dict[str, Any]]:
    table, known = state.table, state.rows.windows.get(window, Window())
    about: dict[str, Any] = {
        "start": window * table.span_ms,
        "end": (window + 1) * table.span_ms,
        "final": state.final(window),
        "late": known.late.get(tenant, 0),
    }
    rows = known.rows.get(tenant)
    if not rows:
        groups: dict[str, Any] = dict.fromkeys(table.group_by)
        return [about | groups | measures_of(table, [0] * len(table.stored))]
    found = []
    for group, place in sorted(rows.items(), key=_order):
        values = (OTHER_GROUPS,) * len(table.group_by) if group is OTHER else group
        groups = dict(zip(table.group_by, values, strict=True))
        found.append(about | groups | measures_of(table, state.rows.measured(place)))
    return found
