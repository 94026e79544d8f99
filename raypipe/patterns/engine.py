"""Several patterns over one log partition: micro-batches in, alerts out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter

import numpy as np
import pyarrow as pa

from raypipe.events.schema import EventType, Field, Kind
from raypipe.log.port import Chunk
from raypipe.patterns.alerts import Alert
from raypipe.patterns.inputs import NEVER, Clock, KindRows, read_batch
from raypipe.patterns.running import Ordered, Running
from raypipe.patterns.spec import Pattern, Step
from raypipe.patterns.state import SNAPSHOT_FORMAT

_STATE, _EVENTS = "state", "events"


class PatternEngine:
    """All patterns over one log partition. Not thread-safe.

    What it finds depends on the log alone, not on how it was cut into micro-batches. Raises
    DeclarationError for a pattern that does not fit the event types.
    """

    def __init__(self, patterns: Sequence[Pattern], events: Sequence[EventType]) -> None:
        self._events = {e.name: e for e in events}
        self._running: list[Running] = []
        self.columns: Mapping[str, tuple[str, ...]] = {}
        """What is read of each event type that a pattern names, the envelope included."""
        self._watermark = NEVER
        self.ignored: list[str] = []
        """Why tables of the last ``restore`` were left out."""
        self.replace(patterns)

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """The patterns that run, in order."""
        return tuple(r.pattern for r in self._running)

    @property
    def watermark(self) -> int:
        """The highest ``received_at`` or clock so far."""
        return self._watermark

    @property
    def keys(self) -> int:
        """Keys with a partial match, over all patterns."""
        return sum(r.state.keys for r in self._running)

    @property
    def awaiting(self) -> bool:
        """Whether something may be found by the passing of time alone."""
        return any(r.pattern.awaits_absence and r.state.partials for r in self._running)

    @property
    def nbytes(self) -> int:
        """Memory held by partial matches and the texts of their events."""
        return sum(r.state.nbytes + r.kept.nbytes for r in self._running)

    @property
    def stats(self) -> dict[str, dict[str, int]]:
        """Numbers by pattern since it began to run here: ``matches``, ``dropped`` (partial matches
        given up because their key had too many), ``partials`` and ``keys`` now."""
        return {
            r.pattern.name: {
                "matches": r.matches,
                "dropped": r.state.dropped,
                "partials": r.state.partials,
                "keys": r.state.keys,
            }
            for r in self._running
        }

    def replace(self, patterns: Sequence[Pattern]) -> None:
        """Run other patterns from now on: the same definitions keep their state, others start
        empty. Nothing changes if one of them is refused."""
        names = [p.name for p in patterns]
        for pattern in patterns:
            if names.count(pattern.name) > 1:
                pattern.fail("name", "the name is taken by another pattern", "Choose another.")
        known = {r.pattern.definition_hash: r for r in self._running}
        events = list(self._events.values())
        self._running = [known.get(p.definition_hash) or Running(p, events) for p in patterns]
        columns: dict[str, list[str]] = {}
        for running in self._running:
            for kind in running.pattern.events:
                found = running.columns(self._events[kind])
                columns.setdefault(kind, []).extend(found)
        self.columns = {kind: tuple(dict.fromkeys(c)) for kind, c in columns.items()}

    def apply(self, parts: Sequence[Chunk]) -> list[Alert]:
        """Take a micro-batch in: the alerts that it completes, in log order.

        The parts' offsets may interleave; rows are taken by offset over all parts. Event types that
        no pattern reads move the watermark.
        """
        batch, clock = read_batch(parts, self._events, self.columns, self._watermark)
        self._watermark = clock.watermark
        return self._take(batch, clock)

    def advance(self, now: int) -> list[Alert]:
        """Raise the watermark to a time of the log's clock (ms): the alerts that were due."""
        self._watermark = max(self._watermark, now)
        return self._take({}, Clock([], [], self._watermark))

    def _take(self, batch: Mapping[str, KindRows], clock: Clock) -> list[Alert]:
        found: list[Ordered] = []
        for place, running in enumerate(self._running):
            found += running.take(place, batch, clock)
        return [alert for _, alert in sorted(found, key=itemgetter(0))]

    def snapshot(self) -> list[pa.Table]:
        """The state of every pattern in canonical form: a table of keys, and one for each event
        type with the events that they hold. The metadata name pattern and definition."""
        tables = []
        for running in self._running:
            running.thin(self._watermark)
            tables.append(self._named(running, _STATE, running.state.snapshot(self._watermark)))
            tables += [
                self._named(running, f"{_EVENTS}/{kind}", rows)
                for kind, rows in running.kept.tables().items()
            ]
        return tables

    def _named(self, running: Running, part: str, table: pa.Table) -> pa.Table:
        return table.replace_schema_metadata(
            {
                "format": SNAPSHOT_FORMAT,
                "pattern": running.pattern.name,
                "version": str(running.pattern.version),
                "definition": running.pattern.definition_hash,
                "part": part,
                "watermark": str(self._watermark),
            }
        )

    def restore(self, tables: Iterable[pa.Table]) -> None:
        """Add snapshots. Tables of other definitions are left out; ``ignored`` says why."""
        known = {r.pattern.name: r for r in self._running}
        self.ignored = []
        for table in tables:
            meta = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
            name = meta.get("pattern", "")
            running = known.get(name)
            if meta.get("format") != SNAPSHOT_FORMAT:
                self.ignored.append(f"a table is of format {meta.get('format')!r}")
                continue
            self._watermark = max(self._watermark, int(meta["watermark"]))
            if running is None:
                self.ignored.append(f"pattern {name!r} is not declared any more")
            elif running.pattern.definition_hash != meta["definition"]:
                self.ignored.append(f"pattern {name!r} has another definition now: it starts empty")
            elif meta["part"] == _STATE:
                running.state.restore(table)
            else:
                running.kept.restore(meta["part"].partition("/")[2], table)


def compile_patterns() -> None:
    """Have the kernel ready before the first event: compiling it takes up to half a minute, once
    an installation; loading what was compiled takes milliseconds.

    One made-up pattern serves: the kernel does not depend on patterns.
    """
    event = EventType("warm", (Field("key", Kind.STRING),))
    step = Step("one", ("warm",), least=2, most=2)
    pattern = Pattern("warm", (("warm", "key"),), (step,), 1_000, "{one.count}")
    row = {"tenant": "t", "event_id": "e", "event_time": 0, "received_at": 0, "key": "k"}
    batch = pa.RecordBatch.from_pylist([row], event.arrow_schema)
    engine = PatternEngine([pattern], [event])
    engine.apply([Chunk("warm", np.zeros(1, np.int64), batch)])
    PatternEngine([pattern], [event]).restore(engine.snapshot())
