"""One pattern that runs: its state, the texts behind it, and the alerts that come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from raypipe.events.schema import ENVELOPE, EventType
from raypipe.patterns import kernel
from raypipe.patterns.alerts import Alert, AlertMaker
from raypipe.patterns.inputs import Clock, KindRows, PatternRows, no_rows, pattern_rows
from raypipe.patterns.kept import KeptEvents
from raypipe.patterns.plan import compile_pattern
from raypipe.patterns.spec import Pattern
from raypipe.patterns.state import Found, PatternState

Ordered = tuple[tuple[int, ...], Alert]
"""An alert after what orders it among those of a micro-batch: the offset of the row, then what time
has completed by when it was due, then the patterns."""


class Running:
    """One pattern over one log partition. Not thread-safe."""

    def __init__(self, pattern: Pattern, events: Sequence[EventType]) -> None:
        self.pattern = pattern
        self.compilation = compile_pattern(pattern, events)
        self.state = PatternState(self.compilation)
        self._maker = AlertMaker(self.compilation)
        known = {e.name: e for e in events}
        self._kept_columns = {kind: self._texts(known[kind]) for kind in pattern.events}
        self.kept = KeptEvents(self._kept_columns)
        self.matches = 0
        """Since it began to run here."""

    def _texts(self, event: EventType) -> tuple[str, ...]:
        quoted = [c for c in self.compilation.reason.columns if c in event]
        key = self.compilation.key(event.name)
        return tuple(dict.fromkeys(["tenant", "event_id", key, *quoted]))

    def columns(self, event: EventType) -> list[str]:
        """What is read of an event type, its envelope included."""
        found = [*(f.name for f in ENVELOPE), *self._kept_columns[event.name]]
        for kind, _, condition in self.compilation.conditions:
            found += condition.columns if condition is not None and kind == event.name else ()
        return [*found, *(c for c in self.compilation.columns if c in event)]

    def take(self, place: int, batch: Mapping[str, KindRows], clock: Clock) -> list[Ordered]:
        """The alerts of a micro-batch; ``place`` is this pattern's among all that run."""
        seen = pattern_rows(self.compilation, batch)
        rows = no_rows(self.compilation) if seen is None else seen.rows
        found = self.state.process(rows, clock.watermark)
        if seen is not None:
            self._keep(seen, found, batch)
        alerts = self._alerts(place, rows, found, clock) if len(found.records) else []
        self.matches += len(alerts)
        if self.kept.crowded:
            self.thin(clock.watermark)
        return alerts

    def _keep(self, seen: PatternRows, found: Found, batch: Mapping[str, KindRows]) -> None:
        """Hold the rows that went into partial matches."""
        for number, kind in enumerate(seen.kinds):
            at = np.flatnonzero(found.used & (seen.kind_of == number))
            if len(at):
                rows = batch[kind].batch.select(self._kept_columns[kind])
                self.kept.add(kind, seen.rows.offsets[at], rows.take(pa.array(seen.places[at])))

    def _alerts(self, place: int, rows: kernel.Rows, found: Found, clock: Clock) -> list[Ordered]:
        events = self.kept.find(found.offsets(len(self.pattern.positive)))
        alerts: list[Ordered] = []
        records, numbers = found.records.tolist(), found.numbers.tolist()
        for i, (record, remembered) in enumerate(zip(records, numbers, strict=True)):
            row, words = record[0], record[kernel.OUT_WORDS :]
            if row != kernel.NONE:
                order = (int(rows.offsets[row]), 0, 0, place, i)
                received_at = int(rows.at[row])
            else:
                due = words[kernel.R_EXPIRE]
                order = (clock.reached(due), 1, due, place, i)
                received_at = None
            alerts.append((order, self._maker.make(words, remembered, received_at, events)))
        return alerts

    def thin(self, watermark: int) -> None:
        """Let go of what is over."""
        self.state.sweep(watermark)
        self.kept.keep(self.state.offsets())
