"""Random patterns, for the engine and for the oracle, and random logs that come close to them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from raypipe.events.schema import EventType, Field, Kind
from raypipe.log.port import Chunk
from raypipe.patterns.alerts import Alert
from raypipe.patterns.engine import PatternEngine
from raypipe.patterns.spec import Pattern
from tests.property import pattern_oracle as oracle
from tests.property.pattern_oracle import Event, Seen, km, shown

_COMMON = (
    Field("key", Kind.STRING, required=False),
    Field("amount", Kind.AMOUNT, required=False),
    Field("shop", Kind.STRING, required=False),
    Field("flag", Kind.BOOLEAN, required=False),
    Field("x", Kind.NUMBER, required=False),
    Field("y", Kind.NUMBER, required=False),
)
PAY, ASK, OTHER = EventType("pay", _COMMON), EventType("ask", _COMMON), EventType("other", _COMMON)
EVENTS = (PAY, ASK, OTHER)

START = 1_780_000_000_000
SECOND = 1_000


def less(a: Any, b: Any) -> bool:
    return a is not None and b is not None and a < b


def differ(a: Any, b: Any) -> bool:
    return a is not None and b is not None and a != b


def plus(a: Any, b: Any) -> Any:
    return None if a is None or b is None else a + b


ALONE: list[tuple[str, oracle.Test]] = [
    ("", lambda e, _: True),
    ("amount < 5", lambda e, _: less(e["amount"], 5)),
    ("amount >= 5 and shop == 's1'", lambda e, _: less(4, e["amount"]) and e["shop"] == "s1"),
    ("flag", lambda e, _: bool(e["flag"])),
    ("not flag", lambda e, _: not e["flag"]),
    ("flag == 0", lambda e, _: e["flag"] is False),
    ("shop != 's0'", lambda e, _: differ(e["shop"], "s0")),
    (
        "2 <= amount < 9 or flag",
        lambda e, _: (less(1, e["amount"]) and less(e["amount"], 9)) or bool(e["flag"]),
    ),
    (
        "is_missing(amount) or minimum(amount, 4) * 2 > amount - -1",
        lambda e, _: e["amount"] is None or min(e["amount"], 4) * 2 > e["amount"] + 1,
    ),
]


def back(p: str) -> list[tuple[str, oracle.Test]]:
    """Conditions that look back at step ``p``."""
    return [
        (f"amount > {p}.amount_max", lambda e, s: less(s.most(p, "amount"), e["amount"])),
        (f"shop != {p}.shop", lambda e, s: differ(e["shop"], s.last(p, "shop"))),
        (
            f"{p}.shop_first == shop and amount > 1",
            lambda e, s: (
                e["shop"] is not None and e["shop"] == s.first(p, "shop") and less(1, e["amount"])
            ),
        ),
        (
            f"amount > {p}.amount_first + {p}.amount_min",
            lambda e, s: less(plus(s.first(p, "amount"), s.least(p, "amount")), e["amount"]),
        ),
        (
            f"{p}.count >= 2 and amount * 2 > {p}.amount_sum or flag",
            lambda e, s: (
                (
                    s.count(p) >= 2
                    and e["amount"] is not None
                    and less(s.total(p, "amount"), e["amount"] * 2)
                )
                or bool(e["flag"])
            ),
        ),
        (
            f"seconds_since({p}) > 2 and {p}.flag",
            lambda e, s: (
                e["event_time"] - s.last(p, "event_time") > 2_000 and bool(s.last(p, "flag"))
            ),
        ),
        (
            f"distance_km(x, y, {p}.x, {p}.y) > 500",
            lambda e, s: less(500, km(e["x"], e["y"], s.last(p, "x"), s.last(p, "y"))),
        ),
    ]


class Declared(NamedTuple):
    """One pattern twice."""

    pattern: Pattern
    make: Callable[[], oracle.Oracle]


@st.composite
def patterns(draw: st.DrawFn, name: str = "p") -> Declared:
    steps: list[dict[str, Any]] = []
    twins: list[dict[str, Any]] = []
    earlier: list[str] = []
    for i in range(draw(st.integers(1, 4))):
        negated = i > 0 and draw(st.sampled_from([False, False, True]))
        menu = ALONE + (back(draw(st.sampled_from(earlier))) if earlier else [])
        where, test = draw(st.sampled_from(menu))
        kinds = draw(st.sampled_from([["pay"], ["pay"], ["ask"], ["pay", "ask"]]))
        step: dict[str, Any] = {"name": f"s{i}", "event": kinds}
        if where:
            step["where"] = where
        least, most = 1, 1
        if negated:
            step["not"] = True
        else:
            least = draw(st.sampled_from([1, 1, 1, 2, 3]))
            most = draw(st.sampled_from([least, least, least + 1, 10**9]))
            step["times"] = {"min": least} | ({"max": most} if most < 10**9 else {})
            earlier.append(f"s{i}")
        steps.append(step)
        twins.append(
            {
                "name": f"s{i}",
                "kinds": tuple(kinds),
                "test": test,
                "least": least,
                "most": most,
                "negated": negated,
            }
        )
    first, last = earlier[0], earlier[-1]
    within = draw(st.sampled_from([3, 10, 60]))
    options: dict[str, Any] = {
        "past_last": draw(st.booleans()),
        "strict": draw(st.sampled_from([False, False, True])),
        "most": draw(st.sampled_from([1, 2, 3, 16])),
    }
    text = json.dumps(
        {
            "name": name,
            "group_by": "key",
            "pattern": steps,
            "within": f"{within}s",
            "after_match": "skip_past_last" if options["past_last"] else "skip_to_next",
            "strict": options["strict"],
            "partials": options["most"],
            "reason": f"{{key}}: {{{first}.count}} {{{first}.shop}} {{{last}.amount_max}} "
            f"{{{last}.count}} {{{first}.shop_first}} {{{last}.amount}} {{{last}.amount_sum}}",
        }
    )

    def reason(seen: Seen, key: str) -> str:
        values = [
            *(seen.count(first), seen.last(first, "shop"), seen.most(last, "amount")),
            *(seen.count(last), seen.first(first, "shop"), seen.last(last, "amount")),
            seen.total(last, "amount"),
        ]
        return f"{key}: " + " ".join(shown(v) for v in values)

    def make() -> oracle.Oracle:
        mine = [oracle.Step(**twin) for twin in twins]
        return oracle.Oracle(name, mine, within * SECOND, reason, **options)

    return Declared(Pattern.from_text(text), make)


STEPS = st.sampled_from(
    [0, 0, 1, 999, 1_000, 1_001, 2_000, 3_000, -1, -1_000, -2_500, 10_000, -9_000, 60_001]
)
DELAYS = st.sampled_from([0, 0, 0, 5, 1_000, 4_000, 70_000])


@st.composite
def logs(draw: st.DrawFn, most: int = 40) -> list[Event]:
    """Events in log order: ties, late ones, gaps in the offsets, two tenants, clocks between."""
    at, offset = START, draw(st.integers(0, 3))
    log: list[Event] = []
    tenants = draw(st.sampled_from([["t"], ["t"], ["t", "u"]]))
    keys = draw(st.sampled_from([["a"], ["a", "b"], ["a", "b", None]]))
    for i in range(draw(st.integers(0, most))):
        time = at + draw(STEPS)
        at = max(at, time)
        offset += draw(st.sampled_from([1, 1, 3]))
        kind = draw(st.sampled_from(["pay", "pay", "pay", "ask", "ask", "other", "clock"]))
        log.append(
            {
                "kind": kind,
                "offset": offset,
                "tenant": draw(st.sampled_from(tenants)),
                "event_id": f"e{i}",
                "event_time": time,
                "received_at": time + draw(DELAYS),
                "key": draw(st.sampled_from(keys)),
                "amount": draw(st.sampled_from([None, 0, 1, 3, 4, 6, 8, 20])),
                "shop": draw(st.sampled_from(["s0", "s1", "s2", None])),
                "flag": draw(st.sampled_from([True, False, None])),
                "x": draw(st.sampled_from([0.0, 1.0, 50.0, None])),
                "y": draw(st.sampled_from([0.0, 1.0, 179.0])),
            }
        )
    return log


def chunks(events: Sequence[Event], twice: bool = False) -> list[Chunk]:
    """A micro-batch: a part for each kind, or two of each whose offsets interleave."""
    parts = []
    for event_type in reversed(EVENTS):
        mine = [e for e in events if e["kind"] == event_type.name]
        for some in (mine[::2], mine[1::2]) if twice else (mine,):
            if some:
                rows = [{f.name: e[f.name] for f in event_type.all_fields} for e in some]
                batch = pa.RecordBatch.from_pylist(rows, event_type.arrow_schema)
                if all(r["shop"] is None for r in rows):
                    batch = batch.drop_columns(["shop"])  # as if written before it was declared
                parts.append(Chunk(event_type.name, np.array([e["offset"] for e in some]), batch))
    return parts


def feed(engine: PatternEngine, events: Sequence[Event], twice: bool = False) -> list[Alert]:
    """Micro-batches between the clocks."""
    out: list[Alert] = []
    batch: list[Event] = []
    for event in events:
        if event["kind"] == "clock":
            out += engine.apply(chunks(batch, twice)) + engine.advance(event["received_at"])
            batch = []
        else:
            batch.append(event)
    return out + engine.apply(chunks(batch, twice))


def plain(alert: Alert) -> tuple[Any, ...]:
    """An alert as the oracle tells it."""
    return (
        *(alert.pattern, alert.tenant, alert.key, alert.event_time, alert.received_at),
        *(alert.first_time, alert.reason, json.loads(alert.events)),
    )
