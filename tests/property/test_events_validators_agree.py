"""The row check and the columnar check give one verdict on every row, however dirty."""

from __future__ import annotations

import json
import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.errors import InputError
from raypipe.events.row import RowValidator
from raypipe.events.schema import AMOUNT_LIMIT, EARLIEST_MS, EventType, Field, Kind
from raypipe.events.validate import validate

NOW = 1_700_000_000_000
EVENT = EventType(
    "order",
    (
        Field("shop", Kind.STRING, max_length=12),
        Field("note", Kind.STRING, required=False),
        Field("items", Kind.INTEGER, minimum=0.5, maximum=100),
        Field("weight", Kind.NUMBER, required=False, minimum=0, maximum=1e6),
        Field("ratio", Kind.NUMBER),
        Field("gift", Kind.BOOLEAN, required=False),
        Field("due", Kind.TIME, required=False),
        Field("born", Kind.TIME, required=False, minimum=-(10**13)),
        Field("paid", Kind.AMOUNT, minimum=0),
        Field("back", Kind.AMOUNT, required=False),
        Field("currency", Kind.CURRENCY),
        Field("channel", Kind.CHOICE, required=False, choices=("pos", "online", "größer")),
    ),
)
NAMES = [f.name for f in EVENT.client_fields]
CLEAN: dict[str, Any] = {
    "event_id": "o-1",
    "event_time": NOW - 5_000,
    "shop": "Café",
    "note": "two words",
    "items": 3,
    "weight": 1.5,
    "ratio": -0.25,
    "gift": True,
    "due": NOW + 10**9,
    "born": -(10**12),
    "paid": 5_716,
    "back": -5,
    "currency": "EUR",
    "channel": "online",
}
VALIDATOR = RowValidator(EVENT, "EUR")

DIRT: dict[str, list[Any]] = {
    "string": [
        *["", " ", "x", "x" * 12, "x" * 13, "é" * 12, "é" * 13, "😀" * 12, "x" * 10_000],
        *["a\nb", "a\x00", "\x1f", "\x7f", "a\x80", "a\x9fb", "a\xa0b", "\u2028", "\u200b"],
        *["EUR", "USD", "eur", "pos", "POS", "größer"],
    ],
    "integer": [
        *[0, 1, -1, 3, 100, 101, 2**53 + 1, 2**63 - 1, -(2**63)],
        *[AMOUNT_LIMIT, AMOUNT_LIMIT - 1, -AMOUNT_LIMIT, 1 - AMOUNT_LIMIT],
        *[EARLIEST_MS, EARLIEST_MS - 1, NOW, NOW // 1000, NOW * 1000],
        *[NOW + 60_000, NOW + 60_001, -(10**13), -(10**13) - 1],
    ],
    "float": [0.0, -0.0, 5.0, 1e6, 1e6 + 1, 1e300, -1e-9, math.nan, math.inf, -math.inf],
    "boolean": [True, False],
    "list": [[], [1]],
    "object": [{"a": 1}],
}
TYPED: dict[str, st.SearchStrategy[Any]] = {
    "string": st.text(st.characters(codec="utf-8"), max_size=14),
    "integer": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(),
    "boolean": st.booleans(),
    "list": st.lists(st.integers(0, 9), max_size=2),
    "object": st.fixed_dictionaries({"a": st.integers(0, 9)}),
}
for _kind, _values in DIRT.items():
    TYPED[_kind] = st.one_of(st.sampled_from(_values), TYPED[_kind])
FITTING = {
    Kind.STRING: "string",
    Kind.CHOICE: "string",
    Kind.CURRENCY: "string",
    Kind.INTEGER: "integer",
    Kind.TIME: "integer",
    Kind.AMOUNT: "integer",
    Kind.NUMBER: "float",
    Kind.BOOLEAN: "boolean",
}


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows whose columns hold one JSON type each: the fitting one, mostly, or any other."""
    kinds = {
        name: draw(
            st.one_of(st.just(FITTING[EVENT.field(name).kind]), st.sampled_from(list(TYPED)))
            if draw(st.integers(0, 9)) == 0
            else st.just(FITTING[EVENT.field(name).kind])
        )
        for name in NAMES
    }
    rows = []
    for i in range(draw(st.integers(1, 6))):
        row = dict(CLEAN)
        row["event_id"] = draw(st.sampled_from([f"o-{i}", "same"]))
        for name in NAMES:
            if kinds[name] != FITTING[EVENT.field(name).kind]:
                row[name] = draw(st.one_of(TYPED[kinds[name]], st.none()))
        for name in draw(st.lists(st.sampled_from(NAMES), max_size=3, unique=True)):
            row[name] = draw(st.one_of(TYPED[kinds[name]], st.none()))
        rows.append(row)
    return rows


def row_verdicts(rows: list[dict[str, Any]], received_at: int) -> list[Any]:
    """The accepted row, or its reasons; an id that an accepted row has is a duplicate."""
    verdicts: list[Any] = []
    taken: set[str] = set()
    for row in rows:
        try:
            checked = VALIDATOR.check(row, "default", received_at)
        except InputError as e:
            verdicts.append([f"{v.pointer}: {v.reason}" for v in e.violations])
            continue
        repeated = checked["event_id"] in taken
        taken.add(checked["event_id"])
        verdicts.append("duplicate" if repeated else checked)
    return verdicts


def columnar_verdicts(rows: list[dict[str, Any]], received_at: int) -> list[Any]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})
    done = validate(EVENT, table, tenant="default", currency="EUR", received_at=received_at)
    assert done.accepted.schema.equals(EVENT.arrow_schema)
    done.accepted.validate(full=True)
    verdicts: list[Any] = [None] * len(rows)
    for refused in done.rejected.to_pylist():
        reasons = refused["reasons"]
        assert reasons
        json.loads(refused["body"])
        verdicts[refused["row"]] = "duplicate" if "more than once" in reasons[0] else reasons
    accepted = iter(done.accepted.to_pylist())
    return [next(accepted) if v is None else v for v in verdicts]


@given(tables())
def test_both_validators_give_the_same_rows_and_the_same_reasons(
    rows: list[dict[str, Any]],
) -> None:
    assert columnar_verdicts(rows, NOW) == row_verdicts(rows, NOW)


@pytest.mark.parametrize("kind", list(DIRT))
@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_dirt_in_every_field(name: str, kind: str) -> None:
    rows = [{**CLEAN, "event_id": f"o-{i}", name: v} for i, v in enumerate([*DIRT[kind], None])]
    expected = row_verdicts(rows, NOW)
    assert columnar_verdicts(rows, NOW) == expected
    # Alone as well: a clean batch takes shorter ways than one with a bad neighbour.
    for row, verdict in zip(rows, expected, strict=True):
        assert columnar_verdicts([row], NOW) == [verdict] or verdict == "duplicate"


@given(st.sets(st.sampled_from(NAMES), min_size=1))
def test_absent_and_null_are_the_same(names: set[str]) -> None:
    absent = {k: v for k, v in CLEAN.items() if k not in names}
    null = {k: (None if k in names else v) for k, v in CLEAN.items()}
    expected = row_verdicts([null], NOW)
    assert row_verdicts([absent], NOW) == expected
    assert columnar_verdicts([null], NOW) == expected
    if absent:
        assert columnar_verdicts([absent], NOW) == expected


@given(TYPED["integer"])
def test_the_tolerance_for_future_times_holds_at_any_clock(received_at: int) -> None:
    assert columnar_verdicts([CLEAN], received_at) == row_verdicts([CLEAN], received_at)


@pytest.mark.parametrize("name", ["tenant", "received_at", "amuont", "a/b~c", ""])
def test_both_refuse_a_field_that_is_not_declared(name: str) -> None:
    row = {**CLEAN, name: "x"}
    with pytest.raises(InputError) as by_row:
        VALIDATOR.check(row, "default", NOW)
    with pytest.raises(InputError) as by_column:
        columnar_verdicts([row], NOW)
    assert by_row.value.violations == by_column.value.violations
