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
        key = _field(view, event, view.key, "key")
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
                _check_condition(view, a, event)


def _check_column(view: WindowView, a: Aggregate, events: Sequence[EventType]) -> None:
    fields = [_field(view, e, a.column, a.op.name.lower()) for e in events]
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


def _check_condition(view: WindowView, a: Aggregate, event: EventType) -> None:
    condition = Condition(a.where)
    for name in condition.numbers:
        field = _field(view, event, name, f"condition {a.where!r}")
        if not field.numeric or field.kind is Kind.CHOICE:
            raise DeclarationError(
                f"view {view.name!r}: condition {a.where!r} reads {event.name}.{name}, "
                f"of kind {field.kind}, as a number",
                hint=f"Compare it with quoted text: {name} == '...'.",
            )
    for test in condition.tests:
        field = _field(view, event, test.column, f"condition {a.where!r}")
        if field.kind not in {Kind.STRING, Kind.CHOICE, Kind.CURRENCY}:
            raise DeclarationError(
                f"view {view.name!r}: condition {a.where!r} compares {event.name}.{test.column}, "
                f"of kind {field.kind}, with text",
                hint="Write a number without quotes.",
            )
        if field.choices and test.text not in field.choices:
            raise DeclarationError(
                f"view {view.name!r}: {test.text!r} is no choice of {event.name}.{test.column}",
                hint="Its choices: " + ", ".join(field.choices),
            )


def _field(view: WindowView, event: EventType, name: str, use: str) -> Field:
    if name in event:
        return event.field(name)
    names = [f.name for f in event.all_fields]
    near = difflib.get_close_matches(name, names, 1)
    raise DeclarationError(
        f"view {view.name!r}: {use} of unknown column {event.name}.{name}",
        hint=f"Did you mean {near[0]!r}?" if near else "It has: " + ", ".join(names),
    )
