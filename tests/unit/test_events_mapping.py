"""Mapping files: what they may say, and how each mistake is answered."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from features.payments import project as payments
from raypipe.errors import ConfigError
from raypipe.events.mapping import (
    AMBIGUOUS,
    AMOUNT_UNITS,
    COLUMN_OPTIONS,
    STREAM_KEYS,
    TIME_UNITS,
    Times,
    parse_mapping,
    read_mapping,
)
from tests.unit.events_kit import PROJECT

GOOD = """
[[stream]]
event = "sale"
table = "tx"
where = { KIND = "sale", OK = true }
time_zone = "Europe/Berlin"
time_unit = "iso8601"
ambiguous = "earliest"
[stream.columns]
event_id = { from = "ID", prefix = "t" }
event_time = "AT"
received_at = { from = "GOT", time_unit = "s", time_zone = "UTC" }
card = "CARD"
amount = { from = "AMOUNT", unit = "major", round = true }
currency = { const = "EUR" }

[[stream]]
event = "dispute"
where = { FRAUD = 1 }
shift = "7d"
[stream.columns]
event_id = { from = "ID", prefix = "cb" }
sale_id = { from = "ID", prefix = "t" }
event_time = "AT"
card = "CARD"
amount = { from = "AMOUNT", scale = 100 }
currency = { const = "EUR" }
"""


def test_a_file_is_read_into_rules() -> None:
    sales, disputes = parse_mapping(GOOD, PROJECT).streams
    assert (sales.event.name, sales.table, sales.shift_ms) == ("sale", "tx", 0)
    assert sales.where == (("KIND", "sale"), ("OK", True))
    columns = {c.field.name: c for c in sales.columns}
    assert columns["event_id"].prefix == "t"
    assert columns["event_time"].times == Times("iso8601", "Europe/Berlin", "earliest")
    assert columns["received_at"].times == Times("s", "UTC", "earliest")
    assert columns["amount"].round
    assert columns["currency"].const == "EUR"
    assert disputes.shift_ms == 7 * 86_400_000
    assert disputes.table is None
    assert set(disputes.sources) == {"ID", "AT", "CARD", "AMOUNT", "FRAUD"}


def test_layout_and_comments_are_not_part_of_what_a_mapping_is() -> None:
    rewritten = "# a comment\n" + GOOD.replace('card = "CARD"', 'card = { from = "CARD" }')
    described = [s.describe() for s in parse_mapping(GOOD, PROJECT).streams]
    assert [s.describe() for s in parse_mapping(rewritten, PROJECT).streams] == described


@pytest.mark.parametrize(
    ("found", "instead", "place", "hint"),
    [
        ("[[stream]]", "steam = 1\n[[stream]]", "mapping.steam is unknown", "'stream'"),
        ('event = "sale"', "", "stream[0] names no `event`", "dispute"),
        ('event = "sale"', 'event = "payment"', "stream[0].event", "sale, dispute"),
        ('table = "tx"', "table = 1", "stream[0].table is 1", "string"),
        ('table = "tx"', 'tabel = "tx"', "stream[0].tabel is unknown", "'table'"),
        ("OK = true", "OK = [1]", "stream[0].where.OK", "equality"),
        ("OK = true", "OK = nan", "stream[0].where.OK", "equality"),
        ('"Europe/Berlin"', '"Berlin"', "stream[0].time_zone is 'Berlin'", "Europe/Berlin"),
        ('"Europe/Berlin"', '"../../etc/passwd"', "stream[0].time_zone", "IANA"),
        ('"iso8601"', '"seconds"', "stream[0].time_unit is 'seconds'", "ms, s, us, iso8601"),
        ('"earliest"', '"first"', "stream[0].ambiguous is 'first'", "refuse, earliest, latest"),
        ('"7d"', '"a week"', "stream[1].shift is 'a week'", "30m"),
        ('"7d"', '"-7d"', "stream[1].shift is '-7d'", "whole number"),
        ('card = "CARD"\n', "", "stream[0].columns lacks 'card'", "const"),
        ("card =", "cart =", "stream[0].columns.cart is unknown", "'card'"),
        ("card =", 'tenant = "T"\ncard =', "columns.tenant is unknown", "event_id"),
        ('"CARD"', "5", "columns.card is 5", "SOURCE"),
        ('"CARD"', "{ form = 'CARD' }", "columns.card.form is unknown", "from, const, prefix"),
        ('"CARD"', "{ from = 'CARD', scale = 2 }", "card.scale is unknown", "prefix"),
        ('"CARD"', "{ from = 'C', const = 'D' }", "needs either `from` or `const`", ""),
        ('"CARD"', "{ prefix = 'c' }", "needs either `from` or `const`", ""),
        ('"CARD"', "{ const = 'c', prefix = 'c' }", "goes with nothing else", ""),
        ('"CARD"', "{ const = 5 }", "card.const is 5: must be a string", ""),
        ('"CARD"', "{ from = 5 }", "card.from is 5", "string"),
        ('{ from = "ID", prefix = "t" }', '{ const = "t" }', "event_id can't be constant", ""),
        ('unit = "major"', 'unit = "cents"', "amount.unit is 'cents'", "major, minor"),
        ('unit = "major", ', "", "amount needs either `unit` or `scale`", "57.16"),
        ('unit = "major"', 'unit = "major", scale = 2', "needs either `unit` or `scale`", ""),
        ("round = true", 'round = "yes"', "amount.round is 'yes'", "boolean"),
        ("scale = 100", "scale = 0", "amount.scale is 0", "above 0"),
        ("scale = 100", "scale = nan", "amount.scale is nan", "above 0"),
        ("scale = 100", 'scale = "100"', "amount.scale is '100'", "above 0"),
        ('time_unit = "s"', 'time_unit = "h"', "received_at.time_unit is 'h'", "ms, s"),
        ('= "tx"', "= ", "is not TOML", ""),
    ],
)
def test_a_mistake_is_named_with_its_place_and_what_is_known(
    found: str, instead: str, place: str, hint: str
) -> None:
    assert found in GOOD
    with pytest.raises(ConfigError) as e:
        parse_mapping(GOOD.replace(found, instead, 1), PROJECT)
    assert place in e.value.detail
    assert hint in e.value.hint


@pytest.mark.parametrize("text", ["", "stream = []", "stream = 'x'", "stream = [1]"])
def test_a_file_without_streams_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_mapping(text, PROJECT)


def test_a_file_that_is_absent_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        read_mapping(tmp_path / "none.toml", PROJECT)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="can't be read"):
        read_mapping(tmp_path / "bytes.toml", PROJECT)


DOCUMENT = Path(__file__).parents[2] / "docs/reference/mapping-files.md"


def test_the_documented_examples_are_mappings_of_the_project_that_comes_along() -> None:
    examples = re.findall(r"```toml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert examples
    for example in examples:
        parse_mapping(example, payments)


def test_every_key_and_value_is_documented() -> None:
    text = DOCUMENT.read_text()
    known = [*STREAM_KEYS, *(o for options in COLUMN_OPTIONS.values() for o in options)]
    assert [key for key in known if f"`{key}" not in text] == []
    values = [*TIME_UNITS, *AMBIGUOUS, *AMOUNT_UNITS]
    assert [value for value in values if f'"{value}"' not in text] == []
