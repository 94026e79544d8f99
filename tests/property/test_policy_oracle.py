"""A policy decides row by row and by columns what a naive oracle says; lists remember."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from raypipe.clock import DAY_MS
from raypipe.policy.bounds import asked
from raypipe.policy.columns import ACTIONS, decide_columns
from raypipe.policy.lists import Change, Kind, Lists, Recorded
from raypipe.policy.names import Names, read_condition
from raypipe.policy.reading import parse_policy
from raypipe.policy.rules import RuleSet
from tests.domains.greenhouse import OPENING, project
from tests.property import policy_oracle as oracle
from tests.property.policy_oracle import FEATURES, LISTS, TEXTS, Cond, Drawn, Env, conditions

NEW_YEAR = 1_767_225_600_000  # 2026-01-01
MODEL = (*FEATURES, "litres")
NAMES = Names(OPENING, project.feature_names, tuple(LISTS))

numbers = st.sampled_from([math.nan, 0.0, 0.25, 0.5, 1.0, 2.0, 3.0, 1e9])
keys = st.sampled_from(["v-1", "v-2", "v-3", "ann", "bob", "drip"])


@st.composite
def events(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "tenant": "t",
        "event_id": "e",
        "event_time": NEW_YEAR,
        "received_at": draw(st.sampled_from([0, 3, 100])),
        "valve": draw(st.sampled_from([*TEXTS["valve"], "v-3"])),
        "gardener": draw(st.sampled_from([*TEXTS["gardener"], "cyd", None])),
        "litres": draw(st.sampled_from([0, 1, 3, 100])),
        "mode": draw(st.sampled_from([*TEXTS["mode"], None])),
    }


@st.composite
def changes(draw: st.DrawFn) -> list[Change]:
    """Each later than the one before, over ten days."""
    out, at = [], NEW_YEAR
    for _ in range(draw(st.integers(0, 6))):
        at += draw(st.integers(1, 2 * DAY_MS))
        name = draw(st.sampled_from(sorted(LISTS)))
        given_keys = tuple(draw(st.lists(keys, min_size=1, max_size=3, unique=True)))
        op = draw(st.sampled_from(["add", "remove"]))
        expires = draw(st.none() | st.integers(1, 3 * DAY_MS)) if op == "add" else None
        end = None if expires is None else at + expires
        out.append(Change(name, Kind(LISTS[name]), op, given_keys, "ann", "why", at, end))
    return out


def on_list(made: list[Change], name: str, key: str, at: int) -> bool:
    """By going through everything that was changed until then."""
    there = False
    for change in made:
        if change.at_ms <= at and change.list == name and key in change.keys:
            over = change.expires_ms is not None and change.expires_ms <= at
            there = change.op == "add" and not over
    return there


decided = st.tuples(
    events(),
    st.tuples(*(numbers for _ in FEATURES)),
    st.sampled_from([None, math.nan, -0.1, 0.0, 0.2, 0.25, 0.5, 0.7, 0.9, 1.0, 1.1]),
    st.integers(-1, 7 * 24) | st.integers(0, 7).map(lambda day: day * 24),
    st.booleans(),
)


@given(drawn=oracle.policies(), made=changes(), rows=st.lists(decided, min_size=1, max_size=6))
def test_rows_and_columns_decide_what_the_oracle_says(
    drawn: Drawn, made: list[Change], rows: list[Any]
) -> None:
    spec = parse_policy(drawn.text)
    assert parse_policy(spec.text) == spec
    policy = RuleSet(spec, project).bind(MODEL)
    lists = Lists((str(i), c) for i, c in enumerate(made))
    vectors, moments, told = [], [], []
    for event, features, score, hour, away in rows:
        at = NEW_YEAR + hour * DAY_MS // 24
        vectors.append(np.array([*features, event["litres"]], np.float32))
        moments.append(at)
        env = Env(
            dict(zip(FEATURES, map(float, np.float32(features)), strict=True))
            | {c: float(event[c]) for c in oracle.COLUMNS}
            | {"score": math.nan if score is None else score, oracle.AWAY: float(away)},
            {c: event[c] for c in TEXTS},
            lambda name, key, at=at: on_list(made, name, key, at),
        )
        expected = oracle.decide(drawn, score, env, hour / 24)
        verdict = policy.decide(score, event, vectors[-1], lists, at, away)
        assert (verdict.action, verdict.rules) == (expected.action, expected.rules)
        assert (verdict.segment, verdict.degraded) == (expected.segment, expected.degraded)
        # What a record keeps is enough to decide again without the lists.
        listed = Recorded(verdict.list_hits, event)
        assert policy.decide(score, event, vectors[-1], listed, at, away) == verdict
        told.append(expected)
    found = decide_columns(
        policy,
        np.array([math.nan if r[2] is None else r[2] for r in rows], np.float64),
        pa.Table.from_pylist([r[0] for r in rows], OPENING.arrow_schema),
        np.array(vectors),
        lists,
        np.array(moments, np.int64),
        np.array([r[4] for r in rows], np.bool_),
    )
    names = [r.name for r in spec.ordered]
    segments = [*(s.name for s in spec.segments), "default"]
    for i, expected in enumerate(told):
        assert ACTIONS[found.action[i]].value == expected.action
        fired = tuple(n for n, hit in zip(names, found.hits[i], strict=True) if hit)
        assert fired == tuple(n for n in expected.rules if n in names)
        assert segments[found.segment[i]] == expected.segment
        assert bool(found.degraded[i]) is expected.degraded


@given(made=changes(), name=st.sampled_from(sorted(LISTS)), key=keys, hour=st.integers(-1, 12 * 24))
def test_a_list_answers_for_any_time_what_held_then(
    made: list[Change], name: str, key: str, hour: int
) -> None:
    lists = Lists((str(i), c) for i, c in enumerate(made))
    times = [NEW_YEAR + hour * DAY_MS // 24, *(c.at_ms for c in made)]
    times += [c.expires_ms for c in made if c.expires_ms is not None]
    expected = [on_list(made, name, key, t) for t in times]
    assert [lists.holds(name, key, t) for t in times] == expected
    column = lists.holds_columns(name, pa.array([key] * len(times)), np.array(times, np.int64))
    assert column.tolist() == expected
    now = times[0]
    entered = {e.key for e in lists.entries(name, now)}
    if now >= max((c.at_ms for c in made), default=0):
        assert entered == {
            k for k in {k for c in made for k in c.keys} if on_list(made, name, k, now)
        }


@given(
    a=conditions,
    b=conditions,
    event=events(),
    features=st.tuples(*(numbers for _ in FEATURES)),
    away=st.booleans(),
)
def test_what_lint_holds_for_impossible_or_implied_is(
    a: Cond, b: Cond, event: dict[str, Any], features: tuple[float, ...], away: bool
) -> None:
    first, second = (asked(read_condition(c.text, NAMES), NAMES) for c in (a, b))
    for score in (0.0, 0.25, 0.5, 1.0):
        env = Env(
            dict(zip(FEATURES, features, strict=True))
            | {c: float(event[c]) for c in oracle.COLUMNS}
            | {"score": score, oracle.AWAY: float(away)},
            {c: event[c] for c in TEXTS},
            lambda name, key: (name, key) == ("bad", "v-1"),
        )
        held, other = a.holds(env), b.holds(env)
        assert not (held and first.impossible)
        assert not (held and other and first.both(second).impossible)
        if first.implies(second) and not first.impossible:
            assert not held or other
