"""The pattern engine finds what plain loops over lists find, however the log is cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.patterns.alerts import Alert
from raypipe.patterns.engine import PatternEngine
from raypipe.windows.snapshot import part_bytes
from tests.property import pattern_oracle as oracle
from tests.property.pattern_oracle import Event
from tests.property.pattern_streams import EVENTS, Declared, feed, logs, patterns, plain

CUTS = st.lists(st.integers(0, 40), max_size=6)


def engine_of(*declared: Declared) -> PatternEngine:
    return PatternEngine([d.pattern for d in declared], EVENTS)


def pieces(log: list[Event], cuts: list[int]) -> list[list[Event]]:
    marks = sorted({0, len(log), *(min(c, len(log)) for c in cuts)})
    return [log[a:b] for a, b in pairwise(marks)]


@settings(max_examples=400, deadline=None)
@given(patterns(), logs())
def test_alerts_are_those_of_the_oracle(declared: Declared, log: list[Event]) -> None:
    twin, engine = declared.make(), engine_of(declared)
    assert [plain(a) for a in feed(engine, log)] == oracle.run([twin], log)
    assert engine.stats["p"]["dropped"] == twin.dropped


@settings(max_examples=80, deadline=None)
@given(patterns("p"), patterns("q"), logs(), CUTS, st.booleans())
def test_several_patterns_in_any_cut_give_the_same_alerts_in_the_same_order(
    one: Declared, other: Declared, log: list[Event], cuts: list[int], twice: bool
) -> None:
    whole = feed(engine_of(one, other), log, twice)
    assert [plain(a) for a in whole] == oracle.run([one.make(), other.make()], log)
    cut, single = engine_of(one, other), engine_of(one, other)
    assert [a for piece in pieces(log, cuts) for a in feed(cut, piece)] == whole
    assert [a for event in log for a in feed(single, [event])] == whole
    assert len({(a.tenant, a.event_id) for a in whole}) == len(whole)


@settings(max_examples=80, deadline=None)
@given(patterns("p"), patterns("q"), logs(), CUTS)
def test_a_snapshot_goes_on_as_if_nothing_had_happened(
    one: Declared, other: Declared, log: list[Event], cuts: list[int]
) -> None:
    straight = engine_of(one, other)
    expected = feed(straight, log)
    engine, found = engine_of(one, other), list[Alert]()
    for piece in pieces(log, cuts):
        found += feed(engine, piece)
        tables = engine.snapshot()
        engine = engine_of(one, other)
        engine.restore(tables)
        assert engine.ignored == []
    assert found == expected
    # As bytes: missing numbers are NaN, which equals nothing.
    assert [*map(part_bytes, engine.snapshot())] == [*map(part_bytes, straight.snapshot())]


@settings(max_examples=80, deadline=None)
@given(patterns("p"), patterns("q"), patterns("q"), logs(), st.integers(0, 40))
def test_a_reload_keeps_what_did_not_change_and_starts_the_rest_empty(
    kept: Declared, old: Declared, new: Declared, log: list[Event], at: int
) -> None:
    before, after = log[:at], log[at:]
    engine = engine_of(kept, old)
    first = feed(engine, before)
    engine.replace([kept.pattern, new.pattern])
    second = feed(engine, after)
    alone = engine_of(kept)
    mine = [a for piece in (before, after) for a in feed(alone, piece)]
    assert [a for a in first + second if a.pattern == "p"] == mine
    if new.pattern.definition_hash != old.pattern.definition_hash:
        fresh = engine_of(new)
        fresh.advance(max((e["received_at"] for e in before), default=-(2**62)))
        assert [a for a in second if a.pattern == "q"] == feed(fresh, after)


@pytest.mark.parametrize("name", ["p", "q"])
def test_patterns_of_the_streams_do_match(name: str) -> None:
    """The properties above are about something: many random cases have alerts."""
    matches = 0

    @settings(max_examples=200, deadline=None, database=None, derandomize=True)
    @given(patterns(name), logs())
    def count(declared: Declared, log: list[Event]) -> None:
        nonlocal matches
        matches += bool(feed(engine_of(declared), log))

    count()
    assert matches > 20
