"""Loading against slow, obvious oracles: Python's sort, Decimal, zoneinfo."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from raypipe.events.convert import convert
from raypipe.events.mapping import Times
from raypipe.events.merge import Staging
from raypipe.events.schema import EventType
from raypipe.events.times import read_time
from tests.unit.events_kit import DISPUTE, PROJECT, SALE, SALES, mapping

T = 1_700_000_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "UTC")

ROWS = st.tuples(
    st.sampled_from([SALE, DISPUTE]),
    st.integers(0, 3),  # received_at
    st.integers(0, 3),  # event_time
    st.sampled_from(["a", "B", "b", "é", "a1", "10", "9"]),
    st.integers(0, 9),  # amount: tells rows apart
)


def batch(event: EventType, rows: list[tuple[Any, ...]]) -> pa.Table:
    values = [
        {
            **dict.fromkeys(event.arrow_schema.names),
            "tenant": "t",
            "event_id": event_id,
            "event_time": T + time,
            "received_at": T + received,
            "card": "c",
            "sale_id": "s",
            "amount": amount,
            "currency": "EUR",
        }
        for _, received, time, event_id, amount in rows
    ]
    return pa.Table.from_pylist(values, schema=event.arrow_schema)


@given(st.lists(st.lists(ROWS, max_size=8), max_size=6))
def test_the_merge_sorts_as_python_does_and_keeps_the_first(
    chunks: list[list[tuple[Any, ...]]],
) -> None:
    added = []
    with tempfile.TemporaryDirectory() as folder:
        staging = Staging(Path(folder), PROJECT.events)
        for chunk in chunks:
            for event in PROJECT.events:
                own = [row for row in chunk if row[0] is event]
                staging.add(event, batch(event, own))
                added += own
        dropped = staging.merge()
        merged = [
            (row["_position"], kind, row["received_at"], row["event_id"], row["amount"])
            for kind, batches in (staging.ordered() if staging.rows else {}).items()
            for part in batches
            for row in part.to_pylist()
        ]
    seen: set[tuple[str, str]] = set()
    expected = []
    for event, received, _, event_id, amount in sorted(
        added, key=lambda r: (r[1], r[2], r[3].encode(), PROJECT.events.index(r[0]))
    ):
        if (event.name, event_id) not in seen:
            seen.add((event.name, event_id))
            expected.append((len(expected), event.name, T + received, event_id, amount))
    assert sorted(merged) == expected
    assert sum(dropped.values()) == len(added) - len(expected)


@given(st.lists(st.integers(-(10**11), 10**11), min_size=1), st.sampled_from([0, 2, 3]))
def test_every_amount_that_a_table_can_write_is_read_to_the_cent(
    minor: list[int], digits: int
) -> None:
    currency = {0: "JPY", 2: "EUR", 3: "KWD"}[digits]
    decimals = [Decimal(m).scaleb(-digits) for m in minor]
    rule = mapping(SALES.replace("EUR", currency)).streams[0]
    for written in (decimals, [str(d) for d in decimals], [float(d) for d in decimals]):
        table = pa.table(
            {"ID": range(len(minor)), "AT": [T] * len(minor), "CARD": ["c"] * len(minor)}
        ).append_column("AMOUNT", pa.array(written))
        done = convert(rule, table, currency)
        assert done.table["amount"].to_pylist() == minor
        assert not done.failures


def instants(wall: datetime, zone: ZoneInfo) -> list[datetime]:
    """The moments at which the zone's clock showed ``wall``: none, one or two, in order."""
    found = {wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1)}
    return sorted(t for t in found if t.astimezone(zone).replace(tzinfo=None) == wall)


@given(
    st.datetimes(datetime(2001, 1, 1), datetime(2037, 1, 1)),  # noqa: DTZ001 - wall clocks
    st.sampled_from(ZONES),
    st.sampled_from(["refuse", "earliest", "latest"]),
    st.booleans(),
)
def test_wall_clock_times_are_those_of_zoneinfo(
    wall: datetime, zone: str, ambiguous: str, typed: bool
) -> None:
    check_wall_clock(wall, zone, ambiguous, typed)


@given(
    st.sampled_from(["2024-03-31", "2024-10-27", "2024-03-10", "2024-11-03", "2024-04-07"]),
    st.integers(0, 5 * 60),
    st.sampled_from(ZONES),
    st.sampled_from(["refuse", "earliest", "latest"]),
    st.booleans(),
)
def test_and_in_the_nights_when_clocks_change(
    day: str, minutes: int, zone: str, ambiguous: str, typed: bool
) -> None:
    wall = datetime.fromisoformat(day) + timedelta(minutes=minutes)
    check_wall_clock(wall, zone, ambiguous, typed)


def check_wall_clock(wall: datetime, zone: str, ambiguous: str, typed: bool) -> None:
    values = pl.Series([wall]) if typed else pl.Series([wall.isoformat()])
    read = read_time(Times("", zone, ambiguous), values)
    possible = instants(wall, ZoneInfo(zone))
    if not possible or (len(possible) == 2 and ambiguous == "refuse"):
        assert read.values.to_pylist() == [None]
        assert read.failed.all()
    else:
        meant = possible[-1 if ambiguous == "latest" else 0]
        assert read.values.to_pylist() == [(meant - EPOCH) // timedelta(milliseconds=1)]
        assert not read.failed.any()


@given(
    st.datetimes(datetime(2001, 1, 1), datetime(2037, 1, 1)),  # noqa: DTZ001
    st.integers(-14 * 60, 14 * 60),
    st.sampled_from(["T", " "]),
)
def test_an_offset_in_the_text_is_that_of_fromisoformat(
    wall: datetime, minutes: int, between: str
) -> None:
    sign, (hours, rest) = "-" if minutes < 0 else "+", divmod(abs(minutes), 60)
    text = f"{wall.isoformat(between)}{sign}{hours:02}:{rest:02}"
    read = read_time(Times("iso8601", "Asia/Tokyo"), pl.Series([text]))
    meant = datetime.fromisoformat(text)
    assert read.values.to_pylist() == [(meant - EPOCH) // timedelta(milliseconds=1)]
