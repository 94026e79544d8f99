"""Whether a view fits the event types that it counts; the refusal says what to write instead."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from raypipe.errors import DeclarationError
from raypipe.events.schema import AMOUNT_LIMIT, EventType, Field, Kind
from raypipe.windows.conditions import Condition
from raypipe.windows.spec import Aggregate, Op, WindowView


def check_view(view: WindowView, events: Sequence[EventType], decision: EventType) -> None:
    """Raise DeclarationError if a column is unknown, or can't be used as the view uses it.

    Args:
        events: the types that the view counts.
        decision: the type whose events read the view.
    """
    for event in (*events, decision):
        key = find_field(f"view {view.name!r}", event, view.key, "key")
        if key.kind is not Kind.STRING:
            raise DeclarationError(
                f"view {view.name!r}: key {event.name}.{key.name} is not a string "
                f"but of kind {key.kind}"
            )
    for a in view.aggregates:
        mine = [e for e in events if a.of in {"", e.name}]
        if a.column:
            _check_column(view, a, mine)
        if a.where:
            for event in mine:
                check_condition(f"view {view.name!r}", a.where, event)


def _check_column(view: WindowView, a: Aggregate, events: Sequence[EventType]) -> None:
    owner = f"view {view.name!r}"
    fields = [find_field(owner, e, a.column, a.op.name.lower()) for e in events]
    for event, field in zip(events, fields, strict=True):
        name = f"{event.name}.{field.name}"
        if a.op is Op.DISTINCT:
            if field.kind not in {Kind.STRING, Kind.CHOICE, Kind.CURRENCY}:
                raise DeclarationError(
                    f"view {view.name!r}: distinct {name} is not a string but of kind {field.kind}"
                )
        elif not _bounded(field) or not field.required:
            raise DeclarationError(
                f"view {view.name!r} can't aggregate {name}: "
                + (f"it is of kind {field.kind}" if field.required else "it may be missing"),
                hint="It must be a required amount, or an integer with minimum and maximum "
                "within 2**40.",
            )
    if a.op is not Op.DISTINCT and len({f.kind for f in fields}) > 1:
        units = ", ".join(
            f"{e.name}.{f.name} {f.kind}" for e, f in zip(events, fields, strict=True)
        )
        raise DeclarationError(
            f"view {view.name!r} mixes units in {a.stem}: {units}",
            hint="Say which event type counts with of=.",
        )


def _bounded(field: Field) -> bool:
    return field.kind is Kind.AMOUNT or (
        field.kind is Kind.INTEGER
        and field.minimum is not None
        and field.maximum is not None
        and max(-field.minimum, field.maximum) < AMOUNT_LIMIT
    )


def check_condition(owner: str, text: str, event: EventType) -> None:
    """Raise DeclarationError if a condition reads what an event type hasn't got as it reads it.

    Args:
        owner: whose condition it is, as in ``view 'valve'``.
    """
    condition = Condition(text)
    for name in condition.numbers:
        field = find_field(owner, event, name, f"condition {text!r}")
        if not field.numeric or field.kind is Kind.CHOICE:
            raise DeclarationError(
                f"{owner}: condition {text!r} reads {event.name}.{name}, "
                f"of kind {field.kind}, as a number",
                hint=f"Compare it with quoted text: {name} == '...'.",
            )
    for test in condition.tests:
        field = find_field(owner, event, test.column, f"condition {text!r}")
        if field.kind not in {Kind.STRING, Kind.CHOICE, Kind.CURRENCY}:
            raise DeclarationError(
                f"{owner}: condition {text!r} compares {event.name}.{test.column}, "
                f"of kind {field.kind}, with text",
                hint="Write a number without quotes.",
            )
        if field.choices and test.text not in field.choices:
            raise DeclarationError(
                f"{owner}: {test.text!r} is no choice of {event.name}.{test.column}",
                hint="Its choices: " + ", ".join(field.choices),
            )


def find_field(owner: str, event: EventType, name: str, use: str) -> Field:
    """The field of that name; raises DeclarationError with the nearest or the known names."""
    if name in event:
        return event.field(name)
    names = [f.name for f in event.all_fields]
    near = difflib.get_close_matches(name, names, 1)
    raise DeclarationError(
        f"{owner}: {use} of unknown column {event.name}.{name}",
        hint=f"Did you mean {near[0]!r}?" if near else "It has: " + ", ".join(names),
    )
