"""How source values of every type become fields."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raypipe.errors import ConfigError
from raypipe.events.convert import Converted, convert
from tests.unit.events_kit import DISPUTES, SALES, mapping

T = 1_700_000_000_000


def converted(extra: str = "", currency: str = "EUR", **columns: Any) -> Converted:
    """Sales of a table; ``extra`` lines replace or join the columns of the mapping."""
    given = {name: c if isinstance(c, pa.Array) else pa.array(c) for name, c in columns.items()}
    rows = len(next(iter(given.values())))
    base = {
        "ID": pa.array(range(rows)),
        "AT": pa.array([T] * rows),
        "CARD": pa.array(["c"] * rows),
        "AMOUNT": pa.array([1] * rows),
    }
    targets = {line.split(" ")[0] for line in extra.splitlines()}
    kept = [line for line in SALES.splitlines() if line.split(" ")[0] not in targets]
    text = "\n".join(kept).replace("EUR", currency) + "\n" + extra
    return convert(mapping(text).streams[0], pa.table({**base, **given}), currency)


def column(done: Converted, name: str) -> list[Any]:
    return list(done.table[name].to_pylist())


def failed(done: Converted) -> dict[str, list[int]]:
    return {reason.split(":")[0]: list(np.flatnonzero(mask)) for reason, mask in done.failures}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([7, None]), ["s7", None]),
        (pa.array([7, None], pa.int8()), ["s7", None]),
        (pa.array([2**64 - 1, None], pa.uint64()), ["s18446744073709551615", None]),
        (pa.array(["007", ""]), ["s007", None]),
        (pa.array(["007", None], pa.dictionary(pa.int8(), pa.large_string())), ["s007", None]),
        (pa.array([b"x", None]), ["sx", None]),
        (pa.array([7.0, float("nan")]), ["s7", None]),
        (pa.array([Decimal("7.00"), None]), ["s7", None]),
        (pa.nulls(2), [None, None]),
    ],
    ids=lambda v: str(v.type) if isinstance(v, pa.Array) else "",
)
def test_ids_are_read_from_text_and_whole_numbers(values: pa.Array, expected: list[str]) -> None:
    done = converted(ID=values)
    assert column(done, "event_id") == expected
    assert not done.failures


def test_a_fraction_is_no_id() -> None:
    done = converted(ID=[1.0, 1.5, 1e300, float("inf")])
    assert failed(done) == {"/event_id": [1, 2, 3]}


@pytest.mark.parametrize(
    "values",
    [
        [57.16, -0.1, 0.07, 1e9 + 0.01, float("nan")],
        ["57.16", " -0.10 ", "0.07", "1000000000.01", ""],
        [Decimal("57.16"), Decimal("-0.10"), Decimal("0.07"), Decimal("1000000000.01"), None],
    ],
    ids=["float", "text", "decimal"],
)
def test_major_units_become_exact_minor_units(values: list[Any]) -> None:
    done = converted(AMOUNT=values)
    assert column(done, "amount") == [5716, -10, 7, 100_000_000_001, None]
    assert not done.failures


@pytest.mark.parametrize(
    ("currency", "minor"), [("EUR", 1200), ("JPY", 12), ("KWD", 12_000), ("CLF", 120_000)]
)
def test_a_major_unit_has_as_many_minor_ones_as_its_currency(currency: str, minor: int) -> None:
    assert column(converted(currency=currency, AMOUNT=[12]), "amount") == [minor]


@pytest.mark.parametrize("text", ["12,50", "1.234,5", "EUR 5", "0x10", "5e", "nan", "inf", "-"])
def test_text_that_is_no_number_fails(text: str) -> None:
    assert failed(converted(AMOUNT=["1.50", text])) == {"/amount": [1]}


def test_a_fraction_of_a_minor_unit_fails_unless_rounded() -> None:
    values = [1.005, 57.163, 0.125, 0.135, 5.0]
    assert failed(converted(AMOUNT=values)) == {"/amount": [0, 1, 2, 3]}
    rounded = 'amount = { from = "AMOUNT", unit = "major", round = true }'
    done = converted(rounded, AMOUNT=[57.163, 0.125, -0.125, 0.375])
    assert column(done, "amount") == [5716, 12, -12, 38]  # halves go to the even side


def test_minor_units_and_scales_stay_exact_over_all_of_int64() -> None:
    minor = 'amount = { from = "AMOUNT", unit = "minor" }'
    exact = [2**53 + 1, 2**63 - 1, -(2**63) + 1]
    assert column(converted(minor, AMOUNT=exact), "amount") == exact
    assert column(converted(minor, AMOUNT=[str(v) for v in exact]), "amount") == exact
    scaled = 'amount = { from = "AMOUNT", scale = 1000 }'
    done = converted(scaled, AMOUNT=[2**53 + 1, 2**62, 5])
    assert column(done, "amount") == [(2**53 + 1) * 1000, None, 5000]
    assert failed(done) == {"/amount": [1]}
    assert failed(converted(minor, AMOUNT=pa.array([2**64 - 1], pa.uint64()))) == {"/amount": [0]}


def test_a_scale_below_one_divides() -> None:
    done = converted('amount = { from = "AMOUNT", scale = 0.1 }', AMOUNT=[57160, 5])
    assert column(done, "amount") == [5716, None]


def test_whole_numbers_written_with_a_point_are_integers() -> None:
    done = converted('items = "N"', N=["5", "5.0", "5.5", "1e3"])
    assert column(done, "items") == [5, 5, None, 1000]
    assert failed(done) == {"/items": [2]}


def test_numbers_are_scaled() -> None:
    done = converted('weight = { from = "G", scale = 0.5 }', G=["3", "x", None])
    assert column(done, "weight") == [1.5, None, None]
    assert failed(done) == {"/weight": [1]}


@pytest.mark.parametrize(
    "values",
    [[True, False, None], [1, 0, None], [1.0, 0.0, None], ["TRUE", " 0", ""]],
    ids=["bool", "int", "float", "text"],
)
def test_booleans_are_read_from_their_usual_forms(values: list[Any]) -> None:
    done = converted('gift = "G"', G=values)
    assert column(done, "gift") == [True, False, None]
    assert not done.failures


@pytest.mark.parametrize("value", [2, "yes", 0.5])
def test_other_values_are_no_booleans(value: object) -> None:
    assert failed(converted('gift = "G"', G=[value])) == {"/gift": [0]}


def test_bytes_that_are_no_utf8_fail_in_every_field_that_reads_them() -> None:
    spoiled = pa.array([b"1", b"\xff"]).view(pa.string())
    done = converted('card = "ID"', ID=spoiled)
    assert failed(done) == {"/event_id": [1], "/card": [1]}


MOMENT = datetime(2024, 7, 1, 12, 0, 0, 123_000, tzinfo=UTC)
MOMENT_MS = 1_719_835_200_123


@pytest.mark.parametrize(
    ("unit", "values"),
    [
        ("ms", pa.array([MOMENT_MS])),
        ("ms", pa.array([str(MOMENT_MS)])),
        ("ms", pa.array([MOMENT_MS + 0.9])),
        ("s", pa.array([MOMENT_MS / 1000])),
        ("s", pa.array(["1719835200.123"])),
        ("us", pa.array([MOMENT_MS * 1000 + 999])),
        ("iso8601", pa.array(["2024-07-01T12:00:00.123Z"])),
        ("iso8601", pa.array([" 2024-07-01 14:00:00.123999+02 "])),
        ("iso8601", pa.array(["2024-07-01T08:30:00.123456789-0330"])),
        ("datetime", pa.array([MOMENT])),
        ("datetime", pa.array([MOMENT], pa.timestamp("ns", "Asia/Tokyo"))),
        ("datetime", pa.array([MOMENT.replace(tzinfo=None)], pa.timestamp("us"))),
    ],
    ids=lambda v: v if isinstance(v, str) else str(v.type),
)
def test_every_unit_gives_milliseconds_utc(unit: str, values: pa.Array) -> None:
    done = converted(f'event_time = {{ from = "AT", time_unit = "{unit}" }}', AT=values)
    assert column(done, "event_time") == [MOMENT_MS]
    guessed = converted(AT=values)
    if unit in ("ms", "iso8601", "datetime") and not (unit == "ms" and values.type == pa.string()):
        assert column(guessed, "event_time") == [MOMENT_MS]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["2024-07-01"], 1_719_784_800_000),
        (["2024-07-01 00:00"], 1_719_784_800_000),
        ([date(2024, 7, 1)], 1_719_784_800_000),
        ([datetime(2024, 1, 1)], 1_704_063_600_000),  # noqa: DTZ001 - wall clock is the point
    ],
)
def test_wall_clock_times_are_read_in_their_zone(values: list[Any], expected: int) -> None:
    berlin = 'event_time = { from = "AT", time_zone = "Europe/Berlin" }'
    assert column(converted(berlin, AT=values), "event_time") == [expected]


SPRING_GAP = "2024-03-31 02:30:00"
AUTUMN_TWICE = "2024-10-27 02:30:00"


@pytest.mark.parametrize(
    ("ambiguous", "expected"),
    [("refuse", None), ("earliest", 1_729_989_000_000), ("latest", 1_729_992_600_000)],
)
@pytest.mark.parametrize("typed", [False, True], ids=["text", "timestamp"])
def test_when_clocks_change(ambiguous: str, expected: int | None, typed: bool) -> None:
    values = pa.array([SPRING_GAP, AUTUMN_TWICE, None])
    if typed:
        values = values.cast(pa.timestamp("ns"))
    zone = f'time_zone = "Europe/Berlin", ambiguous = "{ambiguous}"'
    done = converted(f'event_time = {{ from = "AT", {zone} }}', AT=values)
    assert column(done, "event_time") == [None, expected, None]
    assert failed(done) == {"/event_time": [0] if expected else [0, 1]}
    assert "Europe/Berlin" in done.failures[0][0]


def test_an_offset_in_the_text_settles_an_ambiguous_time() -> None:
    berlin = 'event_time = { from = "AT", time_zone = "Europe/Berlin" }'
    done = converted(berlin, AT=[AUTUMN_TWICE + "+02:00", AUTUMN_TWICE + "+01:00"])
    assert column(done, "event_time") == [1_729_989_000_000, 1_729_992_600_000]


@pytest.mark.parametrize(
    "text",
    ["2024-02-30", "2024-13-01 00:00", "2024-01-01 25:00", "01/02/2024", "yesterday", "2024-1-1"],
)
def test_text_that_is_no_time_fails(text: str) -> None:
    assert failed(converted(AT=[text])) == {"/event_time": [0]}


@pytest.mark.parametrize("value", [float("inf"), 1e300, 2**60])
def test_numbers_that_are_no_time_fail(value: float) -> None:
    assert failed(converted(AT=pa.array([value]))) == {"/event_time": [0]}


def test_a_stream_can_be_some_rows_later_under_derived_ids() -> None:
    table = pa.table(
        {
            "ID": [1, 2, 3],
            "AT": [T] * 3,
            "CARD": ["c"] * 3,
            "AMOUNT": [1] * 3,
            "FRAUD": [0, 1, None],
        }
    )
    done = convert(mapping(DISPUTES).streams[0], table, "EUR")
    assert list(done.selected) == [1]
    assert column(done, "event_id") == ["d2"]
    assert column(done, "sale_id") == ["s2"]
    assert column(done, "event_time") == column(done, "received_at") == [T + 7 * 86_400_000]


def test_a_shift_moves_the_arrival_as_well() -> None:
    text = DISPUTES.replace('event_time = "AT"', 'event_time = "AT"\nreceived_at = "GOT"')
    table = pa.table(
        {"ID": [1], "AT": [T], "GOT": [T + 5], "CARD": ["c"], "AMOUNT": [1], "FRAUD": [1]}
    )
    done = convert(mapping(text).streams[0], table, "EUR")
    assert column(done, "received_at") == [T + 5 + 7 * 86_400_000]


@pytest.mark.parametrize(
    ("literal", "values", "selected"),
    [
        ("1", [0, 1, None], [1]),
        ("1", [0.0, 1.0, None], [1]),
        ("1", ["0", "1", "1.0", "x", None], [1, 2]),
        ("1.5", ["1.5", "1"], [0]),
        ('"a"', ["a", "A", None], [0]),
        ("true", [True, False, None], [0]),
        ("false", ["true", "False", "0"], [1]),
        ("1", pa.nulls(2), []),
    ],
)
def test_where_compares_by_the_columns_type(literal: str, values: Any, selected: list[int]) -> None:
    text = SALES.replace("[stream.columns]", f"where = {{ W = {literal} }}\n[stream.columns]")
    rows = len(values)
    base = {"ID": [1] * rows, "AT": [T] * rows, "CARD": ["c"] * rows, "AMOUNT": [1] * rows}
    done = convert(mapping(text).streams[0], pa.table({**base, "W": values}), "EUR")
    assert list(done.selected) == selected


def test_a_where_that_can_never_hold_is_refused() -> None:
    text = SALES.replace("[stream.columns]", 'where = { W = "1" }\n[stream.columns]')
    base = {"ID": [1], "AT": [T], "CARD": ["c"], "AMOUNT": [1], "W": [1]}
    with pytest.raises(ConfigError, match="of type int64, with '1'"):
        convert(mapping(text).streams[0], pa.table(base), "EUR")


@pytest.mark.parametrize(
    ("extra", "columns", "place"),
    [
        ('card = "CRAD"', {"CARD": ["c"]}, "column 'CRAD'"),
        ('card = "L"', {"L": [[1]]}, "card can't be read from column 'L'"),
        ("", {"AMOUNT": [True]}, "amount can't be read"),
        ("", {"AT": [True]}, "event_time can't be read"),
        ('event_time = { from = "AT", time_unit = "datetime" }', {"AT": ["x"]}, "event_time can't"),
        ('event_time = { from = "AT", time_unit = "iso8601" }', {"AT": [1]}, "event_time can't"),
        ('event_time = { from = "AT", time_unit = "s" }', {"AT": [MOMENT]}, "event_time can't"),
        ('gift = "G"', {"G": [MOMENT]}, "gift can't be read"),
        ('weight = "G"', {"G": [MOMENT]}, "weight can't be read"),
        ('currency = { const = "USD" }', {"CARD": ["c"]}, "the tenant's is 'EUR'"),
    ],
)
def test_a_table_that_the_mapping_does_not_fit_is_refused_even_when_empty(
    extra: str, columns: dict[str, Any], place: str
) -> None:
    empty = {name: pa.array(values)[:0] for name, values in columns.items()}
    for given in (columns, empty):
        with pytest.raises(ConfigError) as e:
            converted(extra, **given)
        assert place in str(e.value)
