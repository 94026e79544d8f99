"""Tables against plain SQL: late events, groups beyond the most, any cut of the log, restarts.

DuckDB computes every event's watermark with a window function and groups what is in time; it
shares no code with the engine but the hash-free facts of the declaration below.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raypipe.events.schema import EventType, Field, Kind
from raypipe.log.port import Chunk
from raypipe.tables.engine import TableEngine
from raypipe.tables.spec import Table, count, distinct, ratio, total

START = 1_790_000_000_000
TENANTS = ("one", "two")
OTHER = "(other)"
COUNTRIES = ("AT", "BE", "CY", "DK", None)

VISIT = EventType(
    "visit",
    (
        Field("session", Kind.STRING, required=False),
        Field("country", Kind.STRING, required=False),
    ),
)
ORDER = EventType(
    "order",
    (
        Field("session", Kind.STRING),
        Field("country", Kind.STRING, required=False),
        Field("amount", Kind.AMOUNT),
        Field("paid", Kind.BOOLEAN, required=False),
    ),
)
ALARM = EventType("alarm", (Field("session", Kind.STRING),))
EVENTS = (VISIT, ORDER, ALARM)
MEASURES = (
    count("events"),
    count("orders", of="order"),
    total("revenue", "amount", of="order"),
    total("large", "amount", of="order", where="amount >= 549755813888"),
    count("unpaid", of="order", where="paid == 0"),
    distinct("sessions", "session"),
    ratio("conversion", "orders", "sessions"),
)


def tables(cap: int) -> tuple[Table, ...]:
    times: dict[str, Any] = {"span": "1m", "allowed_lateness": "2m", "keep": "9m"}
    kinds = ("visit", "order")
    return (
        Table("whole", kinds, MEASURES, **times),
        Table("country", kinds, MEASURES, group_by=("country",), groups=cap, **times),
    )


def stream(seed: int, size: int) -> list[dict[str, Any]]:
    """Events in log order; a server's clock may step back, senders may be very late."""
    rng = random.Random(seed)
    now, found = START, []
    for offset in range(size):
        now += rng.choice([0, 1_000, 5_000, 20_000])
        # Whole fives of seconds, so that edges of windows are met exactly.
        now -= 5_000 * rng.randrange(8) if rng.random() < 0.1 else 0
        late = (
            rng.choice([0, 1_000, 50_000, 130_000, 170_000])
            if rng.random() < 0.8
            else rng.randrange(900_000)
        )
        kind = rng.choice(["visit", "visit", "order", "alarm"])
        row: dict[str, Any] = {
            "offset": offset,
            "kind": kind,
            "tenant": rng.choices(TENANTS, (9, 1))[0],
            "event_id": f"e-{offset}",
            "event_time": now - late + rng.randrange(30_000),
            "received_at": now,
            "session": f"s-{rng.randrange(30)}",
        }
        if kind != "alarm":
            row["country"] = rng.choice(COUNTRIES)
        if kind == "visit" and rng.random() < 0.2:
            row["session"] = None
        if kind == "order":
            row["amount"] = rng.choice([1, -7, 2**40 - 1, 2**39, rng.randrange(2**40)])
            row["paid"] = rng.choice([True, False, None])
        found.append(row)
    return found


def chunks(rows: Sequence[dict[str, Any]], rng: random.Random) -> list[Chunk]:
    """A micro-batch: one chunk a type, or rows one by one, or runs; with a foreign column."""
    shape = rng.choice(["kinds", "single", "halves"])
    found = []
    for event in EVENTS:
        mine = [r for r in rows if r["kind"] == event.name]
        parts = {"single": [[r] for r in mine], "halves": [mine[::2], mine[1::2]], "kinds": [mine]}
        for part in parts[shape]:
            if not part:
                continue
            batch = pa.RecordBatch.from_pylist(part, event.arrow_schema)
            if event is VISIT and all(r["country"] is None for r in part):
                batch = batch.drop_columns(["country"])
            batch = batch.append_column("body_hash", pa.array([b"h"] * len(part)))
            found.append(Chunk(event.name, np.array([r["offset"] for r in part]), batch))
    rng.shuffle(found)
    return found


_TIMED = """
create table timed as
select *, event_time // 60000 as win,
    max(received_at) over (order by "offset" rows unbounded preceding) as clock
from events;
create table mine as
select *, (win + 1) * 60000 + 120000 <= clock as late, (clock - 540000) // 60000 as oldest
from timed where kind in ('visit', 'order');
create table intime as select * from mine where not late;
create table firsts as
select *, row_number() over (partition by tenant, win order by place) as n from (
    select tenant, win, country, min("offset") as place from intime group by tenant, win, country
);
"""


def truth(rows: Sequence[dict[str, Any]], cap: int) -> dict[str, Any]:
    """By table: (tenant, window, group) -> facts; and what came late."""
    schema = pa.schema([("offset", pa.int64()), ("kind", pa.string()), *ORDER.arrow_schema])
    schema = pa.schema([f.with_nullable(True) for f in schema])
    events = pa.Table.from_pylist([{n: r.get(n) for n in schema.names} for r in rows], schema)
    with duckdb.connect(config={"threads": 1}) as con:
        con.register("events", events)
        con.execute(_TIMED)
        facts = """
            count(*), count(*) filter (kind = 'order'), coalesce(sum(amount), 0)::hugeint,
            coalesce(sum(amount) filter (amount >= 549755813888), 0)::hugeint,
            count(*) filter (kind = 'order' and paid = false), count(distinct session)
        """
        whole = con.execute(
            f"select tenant, win, {facts} from intime group by tenant, win"
        ).fetchall()
        grouped = con.execute(
            f"""
            select tenant, win, n > {cap}, case when n > {cap} then null else country end as g,
                {facts}
            from intime, (select tenant as a, win as b, country as c, n from firsts)
            where tenant = a and win = b and country is not distinct from c
            group by tenant, win, n > {cap}, g
            """
        ).fetchall()
        late = con.execute(
            "select tenant, win, count(*) from mine where late and win >= oldest group by all"
        ).fetchall()
        counters = con.execute(
            "select count(*) filter (late), count(*) filter (late and win < oldest) from mine"
        ).fetchone()
        newest = con.execute("select max(received_at) from events").fetchone()
    return {
        "whole": {(t, w): f for t, w, *f in whole},
        "country": {(t, w, OTHER if other else g): f for t, w, other, g, *f in grouped},
        "late": {(t, w): n for t, w, n in late},
        "counters": counters,
        "watermark": newest[0] if newest else None,
    }


def check(engine: TableEngine, rows: Sequence[dict[str, Any]], cap: int) -> None:
    true = truth(rows, cap)
    newest = true["watermark"]
    oldest, now = (newest - 540_000) // 60_000, newest + 70_000
    for tenant in TENANTS:
        for name in ("whole", "country"):
            read = engine.read(tenant, name, 0, now + 600_000, now)
            starts = sorted({r["start"] // 60_000 for r in read})
            assert starts == list(range(oldest, now // 60_000 + 1))
            for row in read:
                window = row["start"] // 60_000
                assert row["end"] == row["start"] + 60_000
                assert row["final"] == (row["end"] + 120_000 <= newest)
                assert row["late"] == true["late"].get((tenant, window), 0)
                key = (tenant, window) if name == "whole" else (tenant, window, row["country"])
                compare(row, true[name].get(key, [0] * 6))
            found = sum(r["events"] for r in read)
            kept = [f[0] for (t, w, *_), f in true[name].items() if t == tenant and w >= oldest]
            assert found == sum(kept)
    stats = engine.stats
    for name in ("whole", "country"):
        assert (stats[f"table_{name}_late"], stats[f"table_{name}_too_old"]) == true["counters"]
    others = [f[0] for (*_, g), f in true["country"].items() if g == OTHER]
    assert stats["table_country_other"] == sum(others)


def compare(row: dict[str, Any], facts: list[int]) -> None:
    names = ("events", "orders", "revenue", "large", "unpaid")
    assert [row[n] for n in names] == [int(f) for f in facts[:5]]
    assert abs(row["sessions"] - facts[5]) <= 1 + 0.1 * facts[5]
    if row["sessions"]:
        assert row["conversion"] == row["orders"] / row["sessions"]
    else:
        assert row["conversion"] is None


@given(st.integers(0, 2**32), st.integers(1, 160), st.integers(1, 4), st.lists(st.integers(0, 159)))
@example(107704162, 2, 1, [])
@settings(max_examples=60, deadline=None)
def test_any_cut_of_any_stream_gives_what_sql_says(
    seed: int, size: int, cap: int, cuts: list[int]
) -> None:
    rows, rng = stream(seed, size), random.Random(seed)
    once = TableEngine(tables(cap), EVENTS)
    once.apply(chunks(rows, rng))
    check(once, rows, cap)
    engine = TableEngine(tables(cap), EVENTS)
    edges = sorted({0, size, *(c for c in cuts if c < size)})
    for start, end in pairwise(edges):
        again = rng.choice([0, 0, 3, 50])  # a replay may begin before the snapshot's offset
        engine.apply(chunks(rows[max(0, start - again) : end], rng))
        if rng.random() < 0.3:  # a restart
            saved = engine.snapshot()
            engine = TableEngine(tables(cap), EVENTS)
            assert engine.restore(saved) == {"whole", "country"}
    for mine, theirs in zip(engine.snapshot(), once.snapshot(), strict=True):
        assert mine.equals(theirs, check_metadata=True)
    check(engine, rows, cap)
