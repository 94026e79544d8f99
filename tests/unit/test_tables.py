"""Tables: what a declaration may say, where windows end exactly, and what a reader is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from features.commerce import project as commerce
from features.payments import project as payments
from raypipe.clock import DAY_MS, MINUTE_MS
from raypipe.errors import DeclarationError, NotFound, UsageError
from raypipe.events.schema import EventType, Field, Kind
from raypipe.log.port import Chunk
from raypipe.project import Project
from raypipe.tables.engine import MOST_READ, TableEngine
from raypipe.tables.sketch import estimate, raise_registers
from raypipe.tables.spec import Table, count, distinct, ratio, total
from raypipe.windows.hashing import xxh64
from tests.domains.greenhouse import project as greenhouse
from tests.unit.serving_kit import NOW, Service, body, train

SALE = EventType(
    "sale",
    (
        Field("country", Kind.STRING, required=False),
        Field("gift", Kind.BOOLEAN, required=False),
        Field("amount", Kind.AMOUNT),
        Field("weight", Kind.NUMBER),
    ),
)
OTHER_EVENT = EventType("visit", (Field("page", Kind.STRING),))
START = 1_790_000_040_000
"""A whole minute."""

PLAIN = Table("plain", ("sale",), (count("sales"), total("money", "amount")))
GROUPED = replace(PLAIN, name="grouped", group_by=("country", "gift"), groups=2, keep="30m")


def sale(offset: int, at: int, arrived: int | None = None, **fields: Any) -> dict[str, Any]:
    return {
        "offset": offset,
        "tenant": "t",
        "event_id": f"e-{offset}",
        "event_time": at,
        "received_at": at if arrived is None else arrived,
        "country": None,
        "gift": None,
        "amount": 5,
        "weight": 1.0,
    } | fields


def chunk(*rows: dict[str, Any], event: EventType = SALE) -> Chunk:
    batch = pa.RecordBatch.from_pylist(list(rows), event.arrow_schema)
    return Chunk(event.name, np.array([r["offset"] for r in rows]), batch)


def engine(*tables: Table) -> TableEngine:
    return TableEngine(tables or (PLAIN, GROUPED), (SALE, OTHER_EVENT))


def at(rows: list[dict[str, Any]], start: int) -> dict[str, Any]:
    (found,) = (r for r in rows if r["start"] == start)
    return found


# Where windows end


def test_a_window_is_final_to_the_millisecond() -> None:
    one = engine()
    final_at = START + MINUTE_MS + 5 * MINUTE_MS
    one.apply([chunk(sale(0, START), sale(1, START + MINUTE_MS - 1), sale(2, START + MINUTE_MS))])
    one.apply([chunk(sale(3, START, final_at - 1))])
    row = at(one.read("t", "plain", START, final_at, final_at), START)
    assert (row["sales"], row["money"], row["final"], row["late"]) == (3, 15, False, 0)
    one.apply([chunk(sale(4, START, final_at))])
    row = at(one.read("t", "plain", START, final_at, final_at), START)
    assert (row["sales"], row["money"], row["final"], row["late"]) == (3, 15, True, 1)
    assert at(one.read("t", "plain", START, final_at, final_at), START + MINUTE_MS)["sales"] == 1
    assert one.read("u", "plain", START, START + 1, final_at)[0]["late"] == 0


def test_events_that_no_table_counts_move_the_watermark() -> None:
    one = engine()
    one.apply([chunk(sale(0, START))])
    visit = sale(1, START + 6 * MINUTE_MS) | {"page": "/"}
    one.apply([chunk(visit, event=OTHER_EVENT)])
    assert one.read("t", "plain", START, START + 1, START + 9 * MINUTE_MS)[0]["final"]
    assert one.watermark("plain") == START + 6 * MINUTE_MS


def test_a_kind_that_is_not_declared_is_no_event() -> None:
    one = engine()
    one.apply([chunk(sale(0, START), event=replace(SALE, name="ghost"))])
    assert one.watermark("plain") is None
    assert one.read("t", "plain", START, START + 1, START)[0]["sales"] == 0


def test_windows_that_are_kept_no_longer_are_gone_and_what_comes_for_them_is_counted() -> None:
    one = engine(GROUPED)
    one.apply([chunk(*(sale(i, START + i * MINUTE_MS) for i in range(40)))])
    end = START + 39 * MINUTE_MS
    rows = one.read("t", "grouped", 0, end + 1, end)
    assert rows[0]["end"] > end - 30 * MINUTE_MS >= rows[0]["start"]
    assert one.stats["table_grouped_rows"] == len(rows) == 31
    one.apply([chunk(sale(50, START, end), sale(51, end - 10 * MINUTE_MS, end))])
    assert (one.stats["table_grouped_late"], one.stats["table_grouped_too_old"]) == (2, 1)


# Groups


def test_groups_beyond_the_most_share_a_row_in_log_order() -> None:
    one = engine(GROUPED)
    rows = [
        sale(0, START, country="(other)", gift=True),
        sale(1, START),
        sale(2, START, country="BE"),
        sale(3, START, country="CY"),
        sale(4, START),
        sale(5, START + MINUTE_MS, country="CY"),
    ]
    one.apply([chunk(*rows[1::2]), chunk(*rows[::2])])
    found = one.read("t", "grouped", START, START + 2 * MINUTE_MS, START + MINUTE_MS)
    shown = {(r["start"], r["country"], r["gift"]): r["sales"] for r in found}
    assert shown == {
        (START, "(other)", True): 1,  # a country may be called that
        (START, None, None): 2,
        (START, "(other)", "(other)"): 2,
        (START + MINUTE_MS, "CY", None): 1,
    }
    assert one.stats["table_grouped_other"] == 2


def test_an_empty_window_of_a_grouped_table_says_so() -> None:
    (row,) = engine().read("t", "grouped", START, START + 1, START)
    assert row == {
        "start": START, "end": START + MINUTE_MS, "final": False, "late": 0,
        "country": None, "gift": None, "sales": 0, "money": 0,
    }  # fmt: skip


# Reading


def test_sums_are_exact_where_float64_is_not() -> None:
    big = 2**40 - 1
    rows = [sale(i, START + (i % 2) * MINUTE_MS, START, amount=big - i) for i in range(20_000)]
    one = engine(PLAIN)
    one.apply([chunk(*rows)])
    found = one.read("t", "plain", START, START + 2 * MINUTE_MS, START + MINUTE_MS)
    assert [r["money"] for r in found] == [
        sum(r["amount"] for r in rows[first::2]) for first in (0, 1)
    ]
    assert found[0]["money"] > 2**53


def test_taken_events_are_applied_when_they_are_asked_for() -> None:
    one, all_at_once = engine(), engine()
    rows = [sale(i, START + i * 100) for i in range(700)]
    for row in rows:
        one.take([chunk(row)])
    all_at_once.apply([chunk(*rows)])
    assert one.read("t", "plain", START, START + 1, START + MINUTE_MS)[0]["sales"] == 600
    for mine, theirs in zip(one.snapshot(), all_at_once.snapshot(), strict=True):
        assert mine.equals(theirs, check_metadata=True)


def test_a_state_of_another_declaration_is_not_taken_up() -> None:
    one = engine()
    one.apply([chunk(sale(0, START))])
    other = engine(replace(PLAIN, keep="8d"), GROUPED)
    assert other.restore(one.snapshot()) == {"grouped"}
    assert other.watermark("plain") is None
    other.apply([chunk(sale(0, START))], only={"plain"})
    assert other.read("t", "grouped", START, START + 1, START)[0]["sales"] == 1


def test_too_many_rows_and_unknown_tables_are_refused() -> None:
    one = engine()
    assert len(one.read("t", "plain", 0, START, START)) == PLAIN.rows
    one.apply([chunk(sale(0, START - 8 * DAY_MS))])  # and nothing since then
    with pytest.raises(UsageError, match="rows of plain"):
        one.read("t", "plain", 0, START, START)
    assert len(one.read("t", "plain", START - 60 * MINUTE_MS, START, START)) == 60
    assert one.read("t", "plain", START + MINUTE_MS, START + 2 * MINUTE_MS, START) == []
    with pytest.raises(NotFound, match="'ghost'") as e:
        one.read("t", "ghost", 0, 1, 1)
    assert "plain, grouped" in e.value.hint
    assert PLAIN.rows < MOST_READ


@pytest.mark.parametrize("registers", [64, 4_096])
@pytest.mark.parametrize("different", [0, 1, 30, 5_000, 200_000])
def test_distinct_is_within_four_times_its_stated_error(registers: int, different: int) -> None:
    names = [xxh64(f"n-{i}".encode()) for i in range(different)] * 2
    hashes = np.array(names, np.uint64).view(np.int64)
    sketch = np.zeros((2, registers), np.uint8)
    raise_registers(sketch, np.ones(len(hashes), np.int64), hashes)
    found = estimate(sketch[1])
    assert abs(found - different) <= 4 * 1.04 / registers**0.5 * different + 0.5
    assert not sketch[0].any()


# Declarations


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "Sales"}, "its name"),
        ({"events": ()}, "its event types"),
        ({"events": ("sale", "sale")}, "its event types"),
        ({"keep": "5m"}, "keep 5m"),
        ({"span": "7m", "keep": "1d"}, "keep 1d"),
        ({"group_by": ("country",), "groups": 1_000}, "rows of a tenant"),
        ({"groups": 0}, "rows of a tenant"),
        ({"measures": ()}, "its measures"),
        ({"measures": (count("late"),)}, "its measures"),
        ({"measures": (count("n"), count("n"))}, "its measures"),
        ({"group_by": ("sales",)}, "its measures"),
        ({"measures": (count("N"),)}, "measure 'N'"),
        ({"measures": (count("n", of="ghost"),)}, "measure 'n'"),
        ({"measures": (ratio("r", "a", "b"), count("a"), count("b"))}, "ratio 'r'"),
        ({"measures": (distinct("d", "country", registers=100),)}, "100 registers"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DeclarationError, match=words) as e:
        replace(PLAIN, **changes)
    assert e.value.hint


def with_table(**changes: Any) -> Project:
    table = replace(Table("water", ("opening",), (count("n"),)), **changes)
    return replace(greenhouse, tables=(table,))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"events": ("ghost",)}, "unknown event type 'ghost'"),
        ({"group_by": ("valvo",)}, "group_by of unknown column opening.valvo"),
        ({"group_by": ("litres",)}, "group_by opening.litres of kind integer"),
        ({"measures": (total("s", "valve"),)}, "kind string"),
        ({"measures": (distinct("d", "litres"),)}, "kind integer"),
        ({"measures": (count("n", where="ghost > 1"),)}, "unknown column opening.ghost"),
        ({"measures": (count("n", where="mode > 1"),)}, "as a number"),
        ({"measures": (count("n", where="mode == 'hose'"),)}, "'hose' is no choice"),
    ],
)
def test_a_table_that_does_not_fit_its_events_is_refused(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(DeclarationError, match=words):
        with_table(**changes)
    with pytest.raises(DeclarationError, match="table names must be unique"):
        replace(greenhouse, tables=(PLAIN, PLAIN))


def test_tables_change_no_feature() -> None:
    """A further table must not make every feature be computed again."""
    assert with_table().definition_hash == greenhouse.definition_hash


def test_the_projects_that_are_shipped_have_tables() -> None:
    assert [t.name for t in commerce.tables] == ["business", "countries"]
    assert [t.name for t in payments.tables] == ["trade"]
    assert {m.name for m in commerce.tables[0].measures} >= {"orders", "conversion", "fraud_rate"}


# The route


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    train(folder)
    return folder


@pytest.fixture
def service(home: Path, tmp_path: Path) -> Service:
    return Service(home, tmp_path / "keys.db")


def test_a_table_is_read_over_http(service: Service) -> None:
    for n, cost in enumerate((100, 250)):
        assert service.post(body(event_id=f"r-{n}", cost=cost)).status_code == 200
    answer = service.get("/v1/tables/heat")
    assert answer.status_code == 200
    found = answer.json()
    assert (found["table"], found["span_ms"], found["as_of"]) == ("heat", MINUTE_MS, NOW)
    assert found["watermark"] == NOW
    assert len(found["rows"]) == 61  # the windows that the last 60 spans overlap
    last = found["rows"][-1]
    assert (last["readings"], last["cost"], last["final"], last["late"]) == (2, 350, False, 0)
    assert last["start"] <= NOW < last["end"]
    one = service.get(f"/v1/tables/heat?since={NOW}&until={NOW + 1}").json()["rows"]
    assert one == [last]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("since=yesterday", "since='yesterday' is no time"),
        ("until=-5", "until='-5' is no time"),
        ("since=5&until=5", "not before until"),
        ("from=5", "unknown parameter 'from'"),
        (f"since={'9' * 5_000}", "is no time"),
    ],
)
def test_a_query_that_can_not_be_read_is_refused(service: Service, query: str, words: str) -> None:
    answer = service.get(f"/v1/tables/heat?{query}")
    assert answer.status_code == 400
    assert words in answer.json()["detail"]


def test_who_may_not_read_and_what_is_not_there(service: Service) -> None:
    assert service.get("/v1/tables/heat", key=None).status_code == 401
    writer = service.keys.create("default", ["decisions:write"])
    assert service.get("/v1/tables/heat", key=writer).status_code == 403
    unknown = service.get("/v1/tables/ghost")
    assert unknown.status_code == 404
    assert "heat" in unknown.json()["hint"]
    other = service.keys.create("other", ["features:read"])
    assert service.post(body(event_id="r-9")).status_code == 200
    assert sum(r["readings"] for r in service.get("/v1/tables/heat", other).json()["rows"]) == 0
