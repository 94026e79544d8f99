"""Patterns over the history of the log: what they would have found. Nothing is written."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from features.log_files import LogFiles, open_log
from features.moments import iso, point
from raypipe.events.schema import FUTURE_TOLERANCE_MS
from raypipe.log.port import OFFSET, Chunk
from raypipe.patterns.alerts import Alert
from raypipe.patterns.engine import PatternEngine
from raypipe.patterns.files import runnable
from raypipe.project import Project, load_project

if TYPE_CHECKING:
    from raypipe.config import Settings
    from raypipe.runtime.progress import Progress

RECEIVED = "received_at"
BATCH_ROWS = 65_536


class Found(msgspec.Struct, frozen=True):
    """What one pattern would have found."""

    pattern: str
    version: int
    severity: str
    alerts: int
    keys: int
    dropped: int
    """Partial matches given up because their key had too many."""
    days: dict[str, int]
    """Alerts by UTC day of their event time; days without one are left out."""


class Report(msgspec.Struct, frozen=True):
    """A dry run over the events that arrived from ``since`` until before ``until`` (ISO 8601)."""

    events: int
    since: str
    until: str
    patterns: list[Found]
    alerts: list[dict[str, Any]]
    """The first ones, in log order."""


class _Sources:
    """The log's rows of all event types, in micro-batches whose parts cover the same offsets."""

    def __init__(
        self, rows: LogFiles, project: Project, columns: Mapping[str, Sequence[str]]
    ) -> None:
        self._tables = {e.name: rows.table(e.name) for e in project.events}
        # The other event types move the watermark.
        self._columns = {
            kind: list(dict.fromkeys((OFFSET, RECEIVED, *columns.get(kind, ()))))
            for kind in self._tables
        }

    def span(self) -> tuple[int, int]:
        """The first and the last time at which an event arrived, ms; (0, -1) without events."""
        import pyarrow.compute as pc

        found = []
        for table in self._tables.values():
            for batch in table.to_batches(columns=[RECEIVED]):
                if batch.num_rows:
                    found.append(pc.min_max(batch.column(0)).as_py())
        if not found:
            return 0, -1
        return min(f["min"] for f in found), max(f["max"] for f in found)

    def batches(self, start: int, end: int) -> Iterator[list[Chunk]]:
        """Rows that arrived from ``start`` until before ``end``."""
        streams = {kind: self._stream(kind, start, end) for kind in self._tables}
        waiting = {kind: next(stream, None) for kind, stream in streams.items()}
        while any(waiting.values()):
            # No row of any event type that comes later has an offset up to here.
            limit = min(int(c.offsets[-1]) for c in waiting.values() if c)
            parts = []
            for kind, chunk in waiting.items():
                if chunk is None:
                    continue
                n = int(np.searchsorted(chunk.offsets, limit, "right"))
                if n:
                    parts.append(Chunk(kind, chunk.offsets[:n], chunk.batch.slice(0, n)))
                rest = Chunk(kind, chunk.offsets[n:], chunk.batch.slice(n))
                waiting[kind] = rest if len(rest) else next(streams[kind], None)
            yield parts

    def _stream(self, kind: str, start: int, end: int) -> Iterator[Chunk]:
        import pyarrow.dataset as ds

        inside = (ds.field(RECEIVED) >= start) & (ds.field(RECEIVED) < end)
        batches = self._tables[kind].to_batches(
            columns=self._columns[kind], filter=inside, batch_size=BATCH_ROWS
        )
        for batch in batches:
            if batch.num_rows:
                yield Chunk(kind, batch.column(OFFSET).to_numpy(), batch.drop_columns([OFFSET]))


class _Tally:
    """Counts alerts, and keeps the first of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.total = 0
        self.alerts: Counter[str] = Counter()
        self.keys: defaultdict[str, set[str]] = defaultdict(set)
        self.days: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.first: list[dict[str, Any]] = []

    def add(self, alerts: Iterable[Alert]) -> None:
        """Count some, in log order."""
        for alert in alerts:
            self.total += 1
            self.alerts[alert.pattern] += 1
            self.keys[alert.pattern].add(alert.key)
            self.days[alert.pattern][iso(alert.event_time)[:10]] += 1
            if len(self.first) < self._limit:
                self.first.append(alert._asdict() | {"events": json.loads(alert.events)})


def run(
    settings: Settings,
    progress: Progress,
    files: Sequence[Path],
    *,
    since: str | None,
    until: str | None,
    limit: int,
) -> Report:
    """Run the patterns of some files over the settings tenant's part of the log.

    ``since`` and ``until`` are dates, times or durations before the newest event. Matches may have
    begun before ``since``: events are read from as long before as the longest pattern lasts.
    """
    project = load_project(settings.project)
    patterns = runnable(files, project)
    engine, tally, count = PatternEngine(patterns, project.events), _Tally(limit), 0
    before = max(p.within_ms for p in patterns) + FUTURE_TOLERANCE_MS
    with open_log(settings, project) as rows, progress.stage("patterns", unit="events") as stage:
        sources = _Sources(rows, project, engine.columns)
        oldest, newest = sources.span()
        start = oldest if since is None else point("--since", since, newest)
        end = newest + 1 if until is None else point("--until", until, newest)
        for parts in sources.batches(start - before, end):
            tally.add(a for a in engine.apply(parts) if a.received_at >= start)
            for part in parts:
                stage.advance(len(part))
                count += int((part.batch.column(RECEIVED).to_numpy() >= start).sum())
        tally.add(a for a in engine.advance(end - 1) if a.received_at >= start)
        stage.say(f"{tally.total:,} alerts")
    found = [
        Found(
            pattern=p.name,
            version=p.version,
            severity=p.severity,
            alerts=tally.alerts[p.name],
            keys=len(tally.keys[p.name]),
            dropped=engine.stats[p.name]["dropped"],
            days=dict(sorted(tally.days[p.name].items())),
        )
        for p in patterns
    ]
    return Report(count, iso(start), iso(end), found, tally.first)
