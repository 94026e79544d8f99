"""Event patterns beside the worker's windows: they see committed events a moment later, in numbers.

A pattern costs about as much for one event as for a thousand, so events wait shortly for others,
and many are looked at in a thread of its own, while the worker goes on. An
alert is a log record of its own; after a crash those that were found again are compared with those
that were logged, so each is there once. Which patterns ran is a log record too: a replay finds what
was found then.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pyarrow as pa

from raypipe.errors import DeclarationError
from raypipe.events.schema import EventType
from raypipe.log.port import Appended, Chunk, merged
from raypipe.patterns.alerts import ALERT, Alert, to_batch
from raypipe.patterns.engine import PatternEngine
from raypipe.patterns.plan import compile_pattern
from raypipe.patterns.spec import Pattern
from raypipe.runtime.worker.ids import PART

PATTERNS = "patterns"
"""Kind of the records that say which patterns run from their offset on."""

CLOCK = "clock"
"""Kind of the records that let time pass for patterns while no events come."""

DELAY_S = 0.25
"""How long an event waits for others."""

ROWS = 4_096
"""So many don't wait."""

_POLL_S = 0.005

CLOCK_S = 5.0

RECORD = pa.schema(
    [
        pa.field("tenant", pa.string(), nullable=False),
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("event_time", pa.int64(), nullable=False),
        pa.field("received_at", pa.int64(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
    ]
)
"""Columns of both kinds; ``text`` is a JSON list of canonical definitions."""

_SET = b"patterns"

_log = logging.getLogger("raypipe.worker")


class Watch:
    """The patterns over one partition. Not thread-safe.

    Args:
        events: all declared event types.
        clock: seconds, for waiting only.
    """

    def __init__(
        self, events: Sequence[EventType], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._events = tuple(events)
        self._clock = clock
        self._engine = PatternEngine((), self._events)
        self._thread = ThreadPoolExecutor(1, "patterns")
        self._looking: Future[list[Alert]] | None = None
        self._copying: Future[Sequence[pa.Table]] | None = None
        self._waiting: list[Chunk] = []
        self._rows = 0
        """Of those that wait."""
        self._since = 0.0
        self._counted = 0
        """Offset up to which a restored state has counted."""
        self._found: list[Alert] = []
        self._logged: set[str] = set()
        self._ticked = clock()
        self.alerts = 0

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """Those that run."""
        return self._engine.patterns

    def use(self, patterns: Sequence[Pattern], now_ms: int) -> list[Appended]:
        """Run these from now on; returns what the log must say of it. What waits must be taken
        before."""
        self._settle_copy()
        if [p.definition_hash for p in patterns] == [p.definition_hash for p in self.patterns]:
            return []
        self._engine.replace(patterns)
        return [(PATTERNS, _record(now_ms, json.dumps([p.text for p in patterns])))]

    def add(self, chunks: Sequence[Chunk]) -> None:
        """Have committed events wait."""
        if self.patterns and chunks:
            if not self._waiting:
                self._since = self._clock()
            self._waiting += chunks
            self._rows += sum(map(len, chunks))

    @property
    def idle_s(self) -> float | None:
        """After how many seconds ``take`` has something to do; None: not by itself."""
        if self._looking is not None:
            return 0.0 if self._looking.done() else _POLL_S
        if self._busy:
            return _POLL_S
        now = self._clock()
        if self._waiting:
            return 0.0 if self._rows >= ROWS else max(0.0, self._since + DELAY_S - now)
        return max(0.0, self._ticked + CLOCK_S - now) if self._engine.awaiting else None

    @property
    def _busy(self) -> bool:
        """Whether the state is being copied for a snapshot."""
        return self._copying is not None and not self._copying.done()

    def take(self, now_ms: int, *, all_: bool = False) -> list[Appended]:
        """Look at what has waited long enough; returns what the log must hold of what was found.

        Many rows are looked at beside, and what they show comes with a later call.

        Args:
            now_ms: the time that a clock record may give to the log.
            all_: look at everything now.
        """
        found: list[Appended] = []
        if self._looking is not None and (all_ or self._looking.done()):
            found = self._alerts(self._looking.result())
            self._looking = None
        if self._looking is not None or (self._busy and not all_):
            return found
        self._settle_copy()
        if self._waiting:
            if not all_ and self.idle_s:
                return found
            waiting, rows = self._waiting, self._rows
            self._waiting, self._rows = [], 0
            self._ticked = self._clock()
            if rows < ROWS:
                return found + self._alerts(self._engine.apply(merged(waiting)))
            if all_:
                return found + self._alerts(self._engine.apply(waiting))
            self._looking = self._thread.submit(self._engine.apply, waiting)
            return found
        if not self._engine.awaiting or self._clock() < self._ticked + CLOCK_S:
            return found
        self._ticked = self._clock()
        due = self._engine.advance(now_ms)
        return [*found, (CLOCK, _record(now_ms, "[]")), *self._alerts(due)]

    def _settle_copy(self) -> None:
        """Nothing may touch the state while it is copied."""
        if self._copying is not None:
            self._copying.exception()
            self._copying = None

    def _alerts(self, found: Sequence[Alert]) -> list[Appended]:
        self.alerts += len(found)
        return [(ALERT.name, to_batch(found))] if found else []

    def replay(self, chunks: Sequence[Chunk]) -> None:
        """Go through logged rows of all kinds, of one read of the log."""
        for name in (c for c in chunks if c.kind == ALERT.name):
            self._logged.update(name.batch.column("event_id").to_pylist())
        marks = sorted(
            (int(offset), c.kind, row)
            for c in chunks
            if c.kind in (PATTERNS, CLOCK)
            for offset, row in zip(c.offsets, c.batch.to_pylist(), strict=True)
            if offset >= self._counted
        )
        begin = self._counted
        for offset, kind, row in marks:
            self._found += self._engine.apply(self._between(chunks, begin, offset))
            begin = offset
            if kind == PATTERNS:
                self._run(json.loads(row["text"]))
            else:
                self._found += self._engine.advance(row["received_at"])
        self._found += self._engine.apply(self._between(chunks, begin, None))

    def _between(self, chunks: Sequence[Chunk], begin: int, end: int | None) -> list[Chunk]:
        kinds = {e.name for e in self._events}
        found = []
        for chunk in chunks:
            if chunk.kind not in kinds:
                continue
            low = int(chunk.offsets.searchsorted(begin))
            high = len(chunk) if end is None else int(chunk.offsets.searchsorted(end))
            if low < high:
                mine = slice(low, high)
                found.append(
                    replace(
                        chunk, offsets=chunk.offsets[mine], batch=chunk.batch.slice(low, high - low)
                    )
                )
        return found

    def _run(self, texts: Sequence[str]) -> None:
        """Run what ran then, as far as today's declarations allow."""
        fitting = []
        for text in texts:
            try:
                pattern = Pattern.from_text(text)
                compile_pattern(pattern, self._events)
            except DeclarationError as e:
                _log.warning("a pattern of the log can't run any more: %s", e.detail)
            else:
                fitting.append(pattern)
        self._engine.replace(fitting)

    def settle(self) -> list[Appended]:
        """The replay is over; returns alerts that were found before a crash and not logged."""
        missing = [a for a in self._found if a.event_id not in self._logged]
        self._found, self._logged, self._counted = [], set(), 0
        return self._alerts(missing)

    def pieces(self, offset: int) -> Callable[[], Sequence[pa.Table]]:
        """The whole state, made beside; what waits must be taken, and what was found logged,
        before. Until it is done events wait."""
        texts = pa.table({"text": pa.array([p.text for p in self.patterns], pa.string())})
        head = texts.replace_schema_metadata({PART: _SET, b"offset": str(offset)})
        self._copying = self._thread.submit(lambda: [head, *self._engine.snapshot()])
        return self._copying.result

    def restore(self, table: pa.Table) -> bool:
        """Take one of these tables over, the first one first; False if it is something else."""
        meta = table.schema.metadata or {}
        if meta.get(PART) == _SET:
            self._run(table.column("text").to_pylist())
            self._counted = int(meta[b"offset"])
            return True
        if b"pattern" in meta:
            self._engine.restore([table])
            return True
        return False

    def stats(self) -> dict[str, float]:
        """Gauges, and counters since the start."""
        found = {
            "patterns": float(len(self.patterns)),
            "pattern_keys": float(self._engine.keys),
            "pattern_bytes": float(self._engine.nbytes),
            "pattern_rows_waiting": float(self._rows),
            "alerts": float(self.alerts),
        }
        for name, numbers in self._engine.stats.items():
            found[f"pattern_{name}_matches"] = float(numbers["matches"])
            found[f"pattern_{name}_dropped"] = float(numbers["dropped"])
        return found


def _record(now_ms: int, text: str) -> pa.RecordBatch:
    row: dict[str, Any] = {
        "tenant": "",
        "event_id": secrets.token_hex(8),
        "event_time": now_ms,
        "received_at": now_ms,
        "text": text,
    }
    return pa.RecordBatch.from_pylist([row], RECORD)
