"""Random declarations that follow each other: what is called allowed reads, on a real log's rows.

The rule is checked against what it promises and not against another rule: every row that the
earlier declaration accepts must, with the columns of the new one, be a row that the new one
accepts; and for what is called breaking there is a row that is not.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from raypipe.errors import IntegrityError
from raypipe.events.evolution import align, compare
from raypipe.events.schema import EventType, Field, Kind
from raypipe.events.validate import validate

NAMES = ("a", "b", "c")
CHOICES = ("x", "y", "z")
NOW = 1_790_000_000_000


@st.composite
def fields(draw: st.DrawFn, name: str) -> Field:
    required = draw(st.booleans())
    match draw(st.sampled_from([Kind.STRING, Kind.INTEGER, Kind.CHOICE])):
        case Kind.STRING:
            return Field(name, Kind.STRING, required, max_length=draw(st.integers(1, 3)))
        case Kind.INTEGER:
            low = draw(st.none() | st.integers(0, 2))
            high = draw(st.none() | st.integers(3, 5))
            return Field(name, Kind.INTEGER, required, minimum=low, maximum=high)
        case _:
            few = draw(st.integers(1, 3))
            choices = tuple(draw(st.permutations(CHOICES))[:few])
            return Field(name, Kind.CHOICE, required, choices=choices)


@st.composite
def events(draw: st.DrawFn) -> EventType:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=3))
    return EventType("it", tuple(draw(fields(n)) for n in names))


def extremes(field: Field) -> list[Any]:
    """Values at the edges of what a field accepts, and null where it may be."""
    found: list[Any] = [] if field.required else [None]
    if field.kind is Kind.STRING:
        return [*found, "s", "s" * field.max_length]
    if field.kind is Kind.CHOICE:
        return [*found, *field.choices]
    low = -(10**6) if field.minimum is None else int(field.minimum)
    high = 10**6 if field.maximum is None else int(field.maximum)
    return [*found, low, high]


def rows(event: EventType) -> pa.RecordBatch:
    """Rows in which each field takes each of its extremes, as the log has them."""
    values = {f.name: extremes(f) for f in event.fields}
    most = max((len(v) for v in values.values()), default=1)
    written = [
        {n: v[i % len(v)] for n, v in values.items()}
        | {"tenant": "t", "event_id": f"e-{i}", "event_time": NOW, "received_at": NOW}
        for i in range(most)
    ]
    return pa.RecordBatch.from_pylist(written, event.arrow_schema)


def accepted(event: EventType, batch: pa.RecordBatch) -> bool:
    """Whether the columnar validator takes every row."""
    given_columns = pa.Table.from_batches([batch]).drop_columns(["tenant", "received_at"])
    found = validate(event, given_columns, tenant="t", currency="EUR", received_at=NOW)
    return found.rejected.num_rows == 0


@given(events(), events())
def test_what_is_allowed_reads_and_what_is_breaking_does_not(
    before: EventType, after: EventType
) -> None:
    batch = rows(before)
    assert accepted(before, batch)
    changes = compare(before, after)
    if not any(c.breaking for c in changes):
        read = align(batch, after, extras=False)
        assert accepted(after, read)
        assert read.schema == after.arrow_schema
        for name in before.arrow_schema.names:
            assert read.column(name).equals(batch.column(name))
        return
    # Numbers of choices and lost columns can't be seen in the rows that are accepted.
    lost = {f.name for f in before.fields} - {f.name for f in after.fields}
    moved = {
        f.name
        for f in before.fields
        if f.name in after and after.field(f.name).choices[: len(f.choices)] != f.choices
    }
    seen = [c for c in changes if c.breaking and c.field not in lost | moved]
    try:
        fits = accepted(after, align(batch, after, extras=False))
    except IntegrityError:
        fits = False
    assert not (seen and fits)


@given(st.lists(events(), min_size=2, max_size=4))
def test_allowed_changes_add_up(chain: list[EventType]) -> None:
    """Comparing with the newest declaration alone is enough for all older rows."""
    reached = [chain[0]]
    for event in chain[1:]:
        if not any(c.breaking for c in compare(reached[-1], event)):
            reached.append(event)
    for older in reached:
        assert not any(c.breaking for c in compare(older, reached[-1]))
