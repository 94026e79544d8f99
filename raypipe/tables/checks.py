"""Whether a table fits the event types that it counts; the refusal says what to write instead."""

from __future__ import annotations

from collections.abc import Mapping

from raypipe.events.schema import EventType
from raypipe.events.schema import Kind as Field
from raypipe.tables.spec import Kind, Measure, Table
from raypipe.windows.checks import check_condition, find_field

TEXTS = {Field.STRING, Field.CHOICE, Field.CURRENCY}
SUMMED = {Field.AMOUNT, Field.INTEGER}


def check_table(table: Table, events: Mapping[str, EventType]) -> None:
    """Raise DeclarationError if a column is unknown, or can't be used as the table uses it.

    Args:
        events: the types that the table counts, by name.
    """
    owner = f"table {table.name!r}"
    for event in events.values():
        for name in table.group_by:
            kind = find_field(owner, event, name, "group_by").kind
            if kind not in {*TEXTS, Field.BOOLEAN}:
                raise table.wrong(
                    f"group_by {event.name}.{name} of kind {kind}",
                    "Group by text, a choice or a boolean with few values.",
                )
    known = {m.name: m for m in table.stored}
    for measure in table.measures:
        for part in measure.parts:
            if part not in known:
                raise table.wrong(
                    f"ratio {measure.name!r} of {part!r}",
                    "It divides two of: " + ", ".join(known),
                )
        for name in table.of(measure) if not measure.parts else ():
            _check(table, measure, events[name])


def _check(table: Table, measure: Measure, event: EventType) -> None:
    owner = f"table {table.name!r}"
    if measure.column:
        kind = find_field(owner, event, measure.column, measure.kind).kind
        fits = SUMMED if measure.kind is Kind.SUM else TEXTS
        if kind not in fits:
            raise table.wrong(
                f"{measure.kind} {measure.name!r} of {event.name}.{measure.column}, kind {kind},",
                f"Use a column of kind {' or '.join(sorted(fits))}.",
            )
    if measure.where:
        check_condition(owner, measure.where, event)
