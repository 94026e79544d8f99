"""Hand-made stories for patterns: rows of declared event types with the fields that matter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import features
from raypipe.events.schema import EventType, Kind
from raypipe.log.port import Chunk
from raypipe.patterns.alerts import Alert
from raypipe.patterns.engine import PatternEngine
from raypipe.patterns.reading import read_patterns
from raypipe.patterns.spec import Pattern

SHIPPED = Path(features.__file__).parent / "patterns"
NOON = 1_780_056_000_000
"""2026-05-29 12:00 UTC."""

Told = tuple[str, int, dict[str, Any]]
"""An event type, seconds after noon, fields."""

_DEFAULTS: dict[Kind, Any] = {
    Kind.STRING: "x",
    Kind.INTEGER: 1,
    Kind.NUMBER: 0.0,
    Kind.BOOLEAN: False,
    Kind.AMOUNT: 1_000,
    Kind.CURRENCY: "EUR",
    Kind.TIME: NOON,
}


def shipped(file: str, name: str) -> Pattern:
    """One of the patterns of a shipped file."""
    return next(p for p in read_patterns(SHIPPED / file) if p.name == name)


def row(event: EventType, number: int, seconds: int, fields: dict[str, Any]) -> dict[str, Any]:
    """A whole row; a required field that the story leaves out has a value that says nothing."""
    assert not fields.keys() - {f.name for f in event.all_fields}
    time = NOON + 1_000 * seconds
    given = {"event_id": f"e{number}", "tenant": "t", "event_time": time, "received_at": time}
    given |= fields
    return {
        f.name: given.get(
            f.name, (f.choices[0] if f.choices else _DEFAULTS[f.kind]) if f.required else None
        )
        for f in event.all_fields
    }


def parts(events: Sequence[EventType], story: Sequence[Told]) -> list[Chunk]:
    """The story as one micro-batch."""
    known = {e.name: e for e in events}
    out = []
    for kind in dict.fromkeys(k for k, _, _ in story):
        mine = [(i, s, f) for i, (k, s, f) in enumerate(story) if k == kind]
        rows = [row(known[kind], i, s, f) for i, s, f in mine]
        batch = pa.RecordBatch.from_pylist(rows, known[kind].arrow_schema)
        out.append(Chunk(kind, np.array([i for i, _, _ in mine]), batch))
    return out


def told(pattern: Pattern, events: Sequence[EventType], story: Sequence[Told]) -> list[Alert]:
    """What a pattern finds in a story, and in a long silence after it."""
    engine = PatternEngine([pattern], events)
    found = engine.apply(parts(events, story))
    return found + engine.advance(NOON + 10 * 366 * 86_400_000)
