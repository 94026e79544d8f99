"""What the pattern engine holds, gives up, refuses and hands out."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from features import commerce, payments
from raypipe.errors import DeclarationError, IntegrityError, UsageError
from raypipe.events.row import RowValidator
from raypipe.ledger.record import LOG_KIND
from raypipe.log.port import Chunk
from raypipe.patterns import kernel
from raypipe.patterns.alerts import ALERT, to_batch
from raypipe.patterns.engine import PatternEngine, compile_patterns
from raypipe.patterns.reading import read_patterns
from raypipe.patterns.spec import Pattern
from raypipe.windows.snapshot import part_bytes
from tests.unit.pattern_stories import NOON, SHIPPED, parts, shipped

EVENTS = payments.project.events
MINUTE = 60_000

PAIR = """
name: pair
group_by: card_id
pattern:
  - {name: one, event: transaction}
  - {name: two, event: transaction, where: amount > one.amount}
within: 1m
reason: "{one.amount} {two.amount}"
"""
LONE = """
name: lone
group_by: card_id
pattern: [{name: one, event: transaction}, {name: none, event: transaction, not: true}]
within: 1m
reason: "nothing after {one.merchant_id}"
"""


def transactions(n: int, seed: int = 1, cards: int = 500) -> pa.RecordBatch:
    """Payments a second apart, of cards drawn from many."""
    rng = np.random.default_rng(seed)
    times = NOON + 1_000 * np.arange(n)
    amounts = rng.choice([100, 400, 1_000, 5_000, 30_000], n)
    columns: dict[str, Any] = {
        "tenant": rng.choice(["t", "u"], n),
        "event_id": [f"e{i}" for i in range(n)],
        "event_time": times - 1_000 * rng.integers(0, 30, n),
        "received_at": times,
        "card_id": [f"c{i}" for i in rng.integers(0, cards, n)],
        "customer_id": ["k"] * n,
        "merchant_id": [f"m{i}" for i in rng.integers(0, 9, n)],
        "amount": amounts,
        "currency": ["EUR"] * n,
        "channel": rng.choice(["pos", "online"], n),
        "country": rng.choice(["DE", "FR"], n),
    }
    schema = EVENTS[0].arrow_schema
    arrays = [
        pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(n, f.type)
        for f in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def cut(batch: pa.RecordBatch, size: int) -> list[list[Chunk]]:
    return [
        [Chunk("transaction", np.arange(at, min(at + size, len(batch))), batch.slice(at, size))]
        for at in range(0, len(batch), size)
    ]


def all_patterns() -> list[Pattern]:
    mine = [Pattern.from_text(PAIR), Pattern.from_text(LONE)]
    return [*read_patterns(SHIPPED / "payments.yaml"), *mine]


def test_a_long_stream_gives_the_same_alerts_in_any_cut_while_arrays_grow() -> None:
    batch = transactions(6_000)
    whole, cuts = PatternEngine(all_patterns(), EVENTS), PatternEngine(all_patterns(), EVENTS)
    expected = whole.apply(cut(batch, len(batch))[0])
    found = [a for piece in cut(batch, 97) for a in cuts.apply(piece)]
    assert found == expected
    assert {a.pattern for a in found} >= {"card_testing", "two_countries", "pair", "lone"}
    assert len({(a.tenant, a.event_id) for a in found}) == len(found)
    assert [*map(part_bytes, cuts.snapshot())] == [*map(part_bytes, whole.snapshot())]


def test_memory_is_bounded_by_what_is_live() -> None:
    """Keys come and go: ten times as many of them take no more room."""
    patterns = [
        Pattern.from_text(PAIR),
        Pattern.from_text(LONE),
        shipped("payments.yaml", "card_velocity"),
    ]
    sizes = []
    for n in (8_000, 80_000):
        engine = PatternEngine(patterns, EVENTS)
        batch = transactions(n, cards=10**9)
        for piece in cut(batch, 5_000):
            engine.apply(piece)
        sizes.append(engine.nbytes)
    assert sizes[1] < 1.5 * sizes[0]


def test_an_expired_partial_match_is_gone_from_a_snapshot() -> None:
    engine = PatternEngine([Pattern.from_text(PAIR)], EVENTS)
    engine.apply(cut(transactions(10), 10)[0])
    assert engine.keys == 10
    engine.advance(NOON + 3 * MINUTE)
    [state] = engine.snapshot()
    assert state.num_rows == engine.keys == 0


def test_partial_matches_over_the_bound_are_counted() -> None:
    text = PAIR.replace("within", "partials: 4\nwithin")
    engine = PatternEngine([Pattern.from_text(text)], EVENTS)
    story = [("transaction", i, {"card_id": "c", "amount": 50 - i}) for i in range(10)]
    assert engine.apply(parts(EVENTS, story)) == []
    assert engine.stats["pair"] == {"matches": 0, "dropped": 6, "partials": 4, "keys": 1}


def test_tenants_share_nothing() -> None:
    engine = PatternEngine([Pattern.from_text(PAIR)], EVENTS)
    story = [
        ("transaction", i, {"card_id": "c", "amount": 1 + i, "tenant": tenant})
        for i, tenant in enumerate(["t", "u", "u", "t"])
    ]
    alerts = engine.apply(parts(EVENTS, story))
    assert [(a.tenant, json.loads(a.events)) for a in alerts] == [
        ("u", ["e1", "e2"]),
        ("t", ["e0", "e3"]),
    ]


def test_other_rows_of_the_log_move_only_the_clock() -> None:
    engine = PatternEngine([Pattern.from_text(LONE)], EVENTS)
    [first] = parts(EVENTS, [("transaction", 0, {"card_id": "c"})])
    assert engine.apply([first]) == []
    decision = pa.RecordBatch.from_pydict({"decision_id": ["d"], "record": [b""]})
    assert engine.apply([Chunk(LOG_KIND, np.array([1]), decision)]) == []
    assert engine.watermark == NOON
    other = pa.RecordBatch.from_pydict({"received_at": [NOON + MINUTE]})
    [alert] = engine.apply([Chunk("chargeback", np.array([2]), other)])
    assert (alert.event_time, alert.received_at) == (NOON + MINUTE, NOON + MINUTE)
    assert engine.advance(NOON) == []
    assert engine.watermark == NOON + MINUTE


def test_rows_without_an_envelope_are_refused() -> None:
    engine = PatternEngine([Pattern.from_text(LONE)], EVENTS)
    [chunk] = cut(transactions(3), 3)[0]
    bare = Chunk(chunk.kind, chunk.offsets, chunk.batch.drop_columns(["event_time"]))
    with pytest.raises(UsageError, match="rows of 'transaction' have no event_time"):
        engine.apply([bare])
    old = Chunk(chunk.kind, chunk.offsets, chunk.batch.drop_columns(["country", "channel"]))
    assert engine.apply([old]) == []


def test_a_late_first_event_is_given_its_time_from_its_arrival() -> None:
    engine = PatternEngine([Pattern.from_text(LONE)], EVENTS)
    late = {"card_id": "c", "received_at": NOON + 60 * MINUTE}
    assert engine.apply(parts(EVENTS, [("transaction", 0, late)])) == []
    assert engine.advance(NOON + 61 * MINUTE - 1) == []
    [alert] = engine.advance(NOON + 61 * MINUTE)
    assert (alert.event_time, alert.received_at) == (NOON + MINUTE, NOON + 61 * MINUTE)


def test_alerts_are_events_of_their_own() -> None:
    engine = PatternEngine(all_patterns(), EVENTS)
    alerts = engine.apply(cut(transactions(3_000), 3_000)[0])
    batch = to_batch(alerts)
    assert batch.schema == ALERT.arrow_schema
    validator = RowValidator(ALERT, "EUR")
    for row, alert in zip(batch.to_pylist(), alerts, strict=True):
        body = {n: v for n, v in row.items() if n not in ("tenant", "received_at")}
        assert validator.check(body, row["tenant"], row["received_at"]) == row
        assert row["key"] == alert.key
    assert to_batch([]).num_rows == 0


def test_a_long_reason_is_cut_and_has_no_control_characters() -> None:
    text = PAIR.replace("{one.amount} {two.amount}", "{key} " * 100)
    engine = PatternEngine([Pattern.from_text(text)], EVENTS)
    story = [("transaction", i, {"card_id": "c\n" * 20, "amount": 1 + i}) for i in range(2)]
    [alert] = engine.apply(parts(EVENTS, story))
    assert len(alert.reason) == 500
    assert alert.reason.startswith("c c c ")
    assert alert.reason.endswith("…")


def test_state_of_another_definition_is_left_out_with_a_reason() -> None:
    old = PatternEngine([Pattern.from_text(PAIR), Pattern.from_text(LONE)], EVENTS)
    old.apply(cut(transactions(50), 50)[0])
    tables = old.snapshot()
    new = PatternEngine([Pattern.from_text(PAIR.replace("1m", "2m"))], EVENTS)
    new.restore([*tables, pa.table({"x": [1]})])
    assert new.keys == 0
    assert new.watermark == old.watermark
    assert [reason.split(":")[0] for reason in new.ignored] == [
        *["pattern 'pair' has another definition now"] * 2,
        *["pattern 'lone' is not declared any more"] * 2,
        "a table is of format None",
    ]
    same = PatternEngine([Pattern.from_text(PAIR), Pattern.from_text(LONE)], EVENTS)
    same.restore(tables)
    with pytest.raises(IntegrityError, match="share a key"):
        same.restore(tables)


def test_a_reload_that_is_refused_changes_nothing() -> None:
    engine = PatternEngine([Pattern.from_text(PAIR)], EVENTS)
    bad = Pattern.from_text(LONE.replace("event: transaction, not", "event: nothing, not"))
    with pytest.raises(DeclarationError, match="unknown event type 'nothing'"):
        engine.replace([bad])
    with pytest.raises(DeclarationError, match="the name is taken"):
        engine.replace([Pattern.from_text(PAIR), Pattern.from_text(PAIR.replace("1m", "2m"))])
    assert [p.name for p in engine.patterns] == ["pair"]
    assert len(engine.apply(cut(transactions(300, cards=3), 300)[0])) > 0


def test_one_compilation_serves_all_patterns() -> None:
    compile_patterns()
    PatternEngine(all_patterns(), EVENTS).apply(cut(transactions(100), 100)[0])
    shop = read_patterns(SHIPPED / "commerce.yaml")
    PatternEngine(shop, commerce.project.events).advance(NOON)
    assert len(kernel.process.signatures) == 1
