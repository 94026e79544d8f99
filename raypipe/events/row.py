"""One event at a time: the live path's check of a decoded JSON object.

The same rules as the columnar ``validate``; a property test feeds both the same rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from raypipe.errors import InputError, Violation
from raypipe.events.schema import (
    AMOUNT_LIMIT,
    EARLIEST_MS,
    FUTURE_TOLERANCE_MS,
    EventType,
    Field,
    Kind,
)

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_NOT_UTF8 = re.compile(r"[\ud800-\udfff]")
_TYPE_NAMES = {
    str: "a string",
    int: "an integer",
    float: "a number with a fraction",
    bool: "a boolean",
    list: "a list",
    dict: "an object",
}


class Refused(ValueError):
    """Why one value breaks its field's declaration."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


Check = Callable[[Any], Any]
"""Gives back the value in its physical type, or raises Refused. Never called with None."""


def field_check(field: Field, currency: str) -> Check:
    """The check of one field's values."""
    match field.kind:
        case Kind.STRING:
            return _string(field.max_length)
        case Kind.CHOICE:
            return _choice(field.choices)
        case Kind.CURRENCY:
            return _currency(currency)
        case Kind.BOOLEAN:
            return _boolean
        case Kind.NUMBER:
            return _number(field)
        case _:
            return _integer(field)


def integer_bounds(field: Field) -> tuple[int, int]:
    """Inclusive limits of an INTEGER, TIME or AMOUNT; all of int64 when none are declared."""
    low, high = INT64_MIN, INT64_MAX
    if field.kind is Kind.AMOUNT:
        low, high = 1 - AMOUNT_LIMIT, AMOUNT_LIMIT - 1
    if field.kind is Kind.TIME and field.minimum is None:
        low = EARLIEST_MS
    if field.minimum is not None and math.isfinite(field.minimum):
        low = max(low, math.ceil(field.minimum))
    if field.maximum is not None and math.isfinite(field.maximum):
        high = min(high, math.floor(field.maximum))
    return low, high


def _mistyped(expected: str, value: object) -> Refused:
    came = _TYPE_NAMES.get(type(value), "a value of another type")
    return Refused("type", f"must be {expected}, not {came}")


def _string(max_length: int) -> Check:
    def check(value: Any) -> Any:
        if type(value) is not str:
            raise _mistyped("a string", value)
        if not value:
            raise Refused("length", "must not be empty")
        if len(value) > max_length:
            raise Refused("length", f"must have at most {max_length} characters")
        if not (value.isascii() and value.isprintable()):
            if _NOT_UTF8.search(value):
                raise Refused("encoding", "must be valid UTF-8")
            if _UNFIT.search(value):
                raise Refused("characters", "must not hold control characters")
        return value

    return check


def _choice(choices: tuple[str, ...]) -> Check:
    allowed = frozenset(choices)
    listed = ", ".join(choices)

    def check(value: Any) -> Any:
        if type(value) is not str:
            raise _mistyped("a string", value)
        if value not in allowed:
            raise Refused("choice", f"must be one of {listed}")
        return value

    return check


def _currency(currency: str) -> Check:
    def check(value: Any) -> Any:
        if type(value) is not str:
            raise _mistyped("a string", value)
        if value != currency:
            raise Refused("currency", f"must be {currency}, the tenant's currency")
        return value

    return check


def _boolean(value: Any) -> Any:
    if type(value) is not bool:
        raise _mistyped("a boolean", value)
    return value


def _integer(field: Field) -> Check:
    low, high = integer_bounds(field)
    early = "must be 2000-01-01 or later, in milliseconds; were seconds sent?"
    below = early if field.kind is Kind.TIME and low == EARLIEST_MS else f"must be at least {low}"
    above = f"must be at most {high}"
    expected = "an integer of milliseconds UTC" if field.kind is Kind.TIME else "an integer"
    if field.kind is Kind.AMOUNT:
        expected = "an integer of minor units"

    def check(value: Any) -> Any:
        if type(value) is not int:
            raise _mistyped(expected, value)
        if value < low:
            raise Refused("range", below)
        if value > high:
            raise Refused("range", above)
        return value

    return check


def _number(field: Field) -> Check:
    low = -math.inf if field.minimum is None else float(field.minimum)
    high = math.inf if field.maximum is None else float(field.maximum)

    def check(value: Any) -> Any:
        if type(value) is int:
            try:
                value = float(value)
            except OverflowError:
                value = math.inf
        elif type(value) is not float:
            raise _mistyped("a number", value)
        if not math.isfinite(value):
            raise Refused("range", "must be finite")
        if value < low:
            raise Refused("range", f"must be at least {field.minimum}")
        if value > high:
            raise Refused("range", f"must be at most {field.maximum}")
        return value

    return check


AHEAD = Violation(
    "/event_time",
    f"must not be more than {FUTURE_TOLERANCE_MS // 1000} s after received_at;"
    " is the sender's clock right, and are these milliseconds?",
    "range",
)


def pointer(name: str) -> str:
    """JSON pointer (RFC 6901) to a top-level member."""
    return "/" + name.replace("~", "~0").replace("/", "~1")


class RowValidator:
    """Checks decoded JSON objects of one event type. Build once, use for every request."""

    def __init__(self, event: EventType, currency: str) -> None:
        self.event = event
        self._fields = [
            (f.name, f.required, field_check(f, currency))
            for f in event.client_fields
            if f.name not in ("event_id", "event_time")
        ]
        self._id_check = field_check(event.field("event_id"), currency)
        self._time_check = field_check(event.field("event_time"), currency)
        self._known = frozenset(f.name for f in event.client_fields)

    def check(self, body: dict[str, Any], tenant: str, received_at: int) -> dict[str, Any]:
        """The event with all columns of ``arrow_schema``, in order; absent optional ones are None.

        Raises InputError with every violation, not just the first.
        """
        if type(body) is not dict:
            raise self._error(body, received_at)
        try:
            time = self._time_check(body["event_time"])
            row = {
                "tenant": tenant,
                "event_id": self._id_check(body["event_id"]),
                "event_time": time,
                "received_at": received_at,
            }
            for name, required, check in self._fields:
                value = body.get(name)
                if value is not None:
                    value = check(value)
                elif required:
                    raise self._error(body, received_at)
                row[name] = value
        except (Refused, KeyError):
            raise self._error(body, received_at) from None
        if not body.keys() <= self._known or time - FUTURE_TOLERANCE_MS > received_at:
            raise self._error(body, received_at)
        return row

    def _error(self, body: object, received_at: int) -> InputError:
        found = self.violations(body, received_at)
        which = ", ".join(v.pointer for v in found[:5]) + (", ..." if len(found) > 5 else "")
        return InputError(
            f"{self.event.name}: {len(found)} violation(s) at {which or 'the top'}",
            hint="Fields: " + ", ".join(f.name for f in self.event.client_fields),
            violations=found,
        )

    def violations(self, body: object, received_at: int) -> tuple[Violation, ...]:
        """Everything that is wrong with an object, in declared order; empty when nothing is."""
        if not isinstance(body, dict):
            came = _TYPE_NAMES.get(type(body), "null")
            return (Violation("", f"must be an object, not {came}", "type"),)
        found = []
        checks = [
            ("event_id", True, self._id_check),
            ("event_time", True, self._time_check),
            *self._fields,
        ]
        for name, required, check in checks:
            violation = field_violation(name, required, check, body.get(name))
            if violation:
                found.append(violation)
            elif name == "event_time" and body[name] - FUTURE_TOLERANCE_MS > received_at:
                found.append(AHEAD)
        found += [
            Violation(pointer(str(name)), "is not a field of this event", "unknown")
            for name in body
            if name not in self._known
        ]
        return tuple(found)


def field_violation(name: str, required: bool, check: Check, value: object) -> Violation | None:
    """What is wrong with one value; None when nothing is."""
    if value is None:
        return Violation(pointer(name), "is required", "missing") if required else None
    try:
        check(value)
    except Refused as e:
        return Violation(pointer(name), e.reason, e.code)
    return None
