"""The live path's check of one decoded JSON object."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from raypipe.errors import InputError
from raypipe.events.row import RowValidator
from raypipe.events.schema import EventType, Field, Kind

NOW = 1_700_000_000_000
EVENT = EventType(
    "ping",
    (
        Field("key", Kind.STRING, max_length=5),
        Field("amount", Kind.AMOUNT, minimum=0),
        Field("currency", Kind.CURRENCY),
        Field("level", Kind.INTEGER, required=False, minimum=1, maximum=9),
        Field("share", Kind.NUMBER, required=False, maximum=1),
        Field("test", Kind.BOOLEAN, required=False),
        Field("way", Kind.CHOICE, required=False, choices=("in", "out")),
        Field("born", Kind.TIME, required=False, minimum=-(10**13)),
        Field("due", Kind.TIME, required=False),
    ),
)
CLEAN: dict[str, Any] = {
    "event_id": "p1",
    "event_time": NOW,
    "key": "k",
    "amount": 5,
    "currency": "EUR",
}


def refusal(**changes: object) -> InputError:
    with pytest.raises(InputError) as e:
        RowValidator(EVENT, "EUR").check({**CLEAN, **changes}, "acme", NOW)
    return e.value


def test_a_clean_row_comes_back_in_schema_order_with_absent_fields_none() -> None:
    row = RowValidator(EVENT, "EUR").check(CLEAN, "acme", NOW + 1)
    assert list(row) == EVENT.arrow_schema.names
    assert row["tenant"] == "acme"
    assert row["received_at"] == NOW + 1
    assert row["due"] is None


def test_an_integer_is_a_number_and_becomes_a_float() -> None:
    row = RowValidator(EVENT, "EUR").check({**CLEAN, "share": 1}, "acme", NOW)
    assert type(row["share"]) is float


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("event_id", None, "is required"),
        ("key", None, "is required"),
        ("key", "", "must not be empty"),
        ("key", "x" * 6, "at most 5 characters"),
        ("key", "x" * 10_000, "at most 5 characters"),
        ("key", "a\tb", "control characters"),
        ("key", "a\x9fb", "control characters"),
        ("key", "\ud800", "valid UTF-8"),
        ("key", 5, "must be a string, not an integer"),
        ("key", ["k"], "must be a string, not a list"),
        ("key", {"k": 1}, "must be a string, not an object"),
        ("amount", 5.0, "must be an integer of minor units, not a number with a fraction"),
        ("amount", True, "must be an integer of minor units, not a boolean"),
        ("amount", "5", "must be an integer of minor units, not a string"),
        ("amount", -1, "at least 0"),
        ("amount", 2**40, f"at most {2**40 - 1}"),
        ("amount", 10**400, f"at most {2**40 - 1}"),
        ("amount", math.nan, "must be an integer"),
        ("currency", "USD", "must be EUR, the tenant's currency"),
        ("currency", 978, "must be a string"),
        ("level", 0, "at least 1"),
        ("level", 10, "at most 9"),
        ("level", False, "must be an integer, not a boolean"),
        ("share", math.nan, "finite"),
        ("share", -math.inf, "finite"),
        ("share", 10**400, "finite"),
        ("share", 1.5, "at most 1"),
        ("share", True, "must be a number, not a boolean"),
        ("share", "0.5", "must be a number, not a string"),
        ("test", 1, "must be a boolean, not an integer"),
        ("way", "sideways", "one of in, out"),
        ("way", ["in"], "must be a string"),
        ("event_time", NOW // 1000, "were seconds sent?"),
        ("event_time", NOW * 1000, "60 s after received_at"),
        ("event_time", NOW + 60_001, "60 s after received_at"),
        ("event_time", float(NOW), "must be an integer of milliseconds UTC"),
        ("event_time", "2023-11-14T22:13:20Z", "must be an integer of milliseconds UTC"),
        ("due", 0, "2000-01-01 or later"),
        ("born", -(10**13) - 1, f"at least {-(10**13)}"),
    ],
)
def test_dirt_is_refused_at_its_place(field: str, value: object, reason: str) -> None:
    (violation,) = refusal(**{field: value}).violations
    assert violation.pointer == f"/{field}"
    assert reason in violation.reason


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("key", "é😀ß x"),
        ("amount", 2**40 - 1),
        ("share", -1e308),
        ("event_time", NOW + 60_000),
        ("born", -(10**12)),
        ("way", None),
    ],
)
def test_values_at_the_edge_are_taken(field: str, value: object) -> None:
    row = RowValidator(EVENT, "EUR").check({**CLEAN, field: value}, "acme", NOW)
    assert row[field] == value


def test_every_violation_is_named_at_once() -> None:
    error = refusal(event_id=7, amount=-1, currency="USD", extra=1, **{"a/b~": 2})
    assert [v.pointer for v in error.violations] == [
        "/event_id",
        "/amount",
        "/currency",
        "/extra",
        "/a~1b~0",
    ]
    assert "amount" in error.hint


@pytest.mark.parametrize("name", ["tenant", "received_at"])
def test_what_the_server_sets_is_not_taken_from_a_client(name: str) -> None:
    (violation,) = refusal(**{name: "x"}).violations
    assert violation.code == "unknown"


@pytest.mark.parametrize("body", [None, [], "x", 5, True])
def test_a_body_that_is_no_object_is_refused(body: Any) -> None:
    with pytest.raises(InputError) as e:
        RowValidator(EVENT, "EUR").check(body, "acme", NOW)
    assert "must be an object" in e.value.violations[0].reason


def test_reasons_repeat_nothing_that_came_from_outside() -> None:
    secret = "4111-1111"
    error = refusal(key=secret, amount=secret, currency=secret, way=secret, level=41111111)
    assert len(error.violations) == 5
    assert "4111" not in json.dumps([v.reason for v in error.violations])
