"""Rows of a project's tables, read from the worker that keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from raypipe.clock import Clock
from raypipe.errors import NotFound, UsageError
from raypipe.project import Project
from raypipe.tables.spec import Table
from serving import schemas
from serving.decide import deadline

ANSWER_S = 2.0
"""How long the worker has: it applies what waits, then builds up to some thousand rows."""

SHOWN = 60
"""Windows that are answered when no time is given."""


class LiveTables(Protocol):
    """Owner of the tables; a raypipe.runtime.worker.client.WorkerClient is."""

    async def table(
        self, tenant: str, table: str, since: int, until: int, now: int
    ) -> tuple[list[dict[str, Any]], int | None]:
        """Rows whose windows overlap [since, until), and the watermark."""


class TableReader:
    """Answers for the tables of a project."""

    def __init__(self, project: Project, worker: LiveTables, clock: Clock) -> None:
        self._tables = {t.name: t for t in project.tables}
        self._worker = worker
        self._clock = clock

    async def read(self, tenant: str, name: str, query: Mapping[str, str]) -> schemas.TableRows:
        """A tenant's rows from ``since`` to ``until``, by default the last SHOWN windows.

        Raises NotFound for an unknown table, UsageError for a query that can't be read or asks for
        too much, Unavailable while the worker is away: nobody else has the rows.
        """
        table = self._tables.get(name)
        if table is None:
            known = ", ".join(self._tables) or "none are declared"
            raise NotFound(f"there is no table {name!r}", hint=f"Tables: {known}.")
        now = self._clock.now_ms()
        since, until = _times(query, table, now)
        async with deadline(ANSWER_S):
            rows, watermark = await self._worker.table(tenant, name, since, until, now)
        return schemas.TableRows(
            table=name,
            span_ms=table.span_ms,
            as_of=now,
            watermark=watermark,
            rows=rows,
            definition_hash=table.definition_hash,
        )


def _times(query: Mapping[str, str], table: Table, now: int) -> tuple[int, int]:
    unknown = sorted(set(query) - {"since", "until"})
    if unknown:
        raise UsageError(f"unknown parameter {unknown[0]!r}", hint="There are since and until.")
    until = _time(query, "until", now)
    since = _time(query, "since", until - SHOWN * table.span_ms)
    if since >= until:
        raise UsageError(f"since {since} is not before until {until}", hint="Both are ms UTC.")
    return since, until


def _time(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    # The digits first: int() refuses thousands of them.
    if not (text.isascii() and text.isdecimal() and len(text) <= 15):
        raise UsageError(f"{name}={text[:30]!r} is no time", hint="Milliseconds since 1970 UTC.")
    return int(text)
