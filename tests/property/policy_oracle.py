"""Policies drawn at random, and what they decide, said again as plainly as can be.

Shares no code with the engine: a condition is a text for it and a Python function for the oracle.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from hypothesis import strategies as st

SEVERITY = {"approve": 0, "step_up": 1, "review": 2, "block": 3}
COLUMNS = ("litres", "received_at")
AWAY = "worker_away"
KNOWN = (*COLUMNS, AWAY)
"""Numbers that are there without the model."""
FEATURES = ("thirst", "valve_count_2d", "alone")
TEXTS = {"valve": ("v-1", "v-2"), "gardener": ("ann", "bob"), "mode": ("drip", "spray")}
LISTS = {"good": "allow", "bad": "deny"}
T0 = 1_790_000_000_000


class Env(NamedTuple):
    """What a condition may ask."""

    numbers: dict[str, float]
    texts: dict[str, str | None]
    listed: Callable[[str, str], bool]


@dataclass(frozen=True)
class Cond:
    """A condition: its text, what it means, whether it needs the model."""

    text: str
    holds: Callable[[Env], bool]
    needs_model: bool


def _compare(name: str, op: str, value: float) -> Cond:
    def holds(env: Env) -> bool:
        x = env.numbers[name]
        if math.isnan(x):
            return False
        return {
            "<": x < value,
            "<=": x <= value,
            ">": x > value,
            ">=": x >= value,
            "==": x == value,
            "!=": x != value,
        }[op]

    return Cond(f"{name} {op} {value!r}", holds, name not in KNOWN)


def _band(name: str, low: float, high: float) -> Cond:
    def holds(env: Env) -> bool:
        return low <= env.numbers[name] < high

    return Cond(f"{low!r} <= {name} < {high!r}", holds, name not in KNOWN)


def _sum(a: str, b: str, least: float) -> Cond:
    def holds(env: Env) -> bool:
        return env.numbers[a] + env.numbers[b] > least

    needs = a not in KNOWN or b not in KNOWN
    return Cond(f"{a} + {b} > {least!r}", holds, needs)


def _missing(name: str) -> Cond:
    def holds(env: Env) -> bool:
        return math.isnan(env.numbers[name])

    return Cond(f"is_missing({name})", holds, name not in KNOWN)


def _text(column: str, equal: bool, text: str) -> Cond:
    def holds(env: Env) -> bool:
        found = env.texts[column]
        return found is not None and (found == text) is equal

    return Cond(f"{column} {'==' if equal else '!='} '{text}'", holds, False)


def _one_of(column: str, inside: bool) -> Cond:
    texts = TEXTS[column]

    def holds(env: Env) -> bool:
        found = env.texts[column]
        return found is not None and (found in texts) is inside

    return Cond(f"{column} {'in' if inside else 'not in'} {texts!r}", holds, False)


def _listed(name: str, column: str) -> Cond:
    def holds(env: Env) -> bool:
        return env.texts[column] is not None and env.listed(name, str(env.texts[column]))

    return Cond(f'in_list("{name}", {column})', holds, False)


_numbers = st.sampled_from([*KNOWN, *FEATURES, "score"])
_values = st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0, 100.0])
_leaves = st.one_of(
    st.builds(_compare, _numbers, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), _values),
    st.builds(_band, _numbers, _values, _values),
    st.builds(_sum, _numbers, _numbers, _values),
    st.builds(_missing, _numbers),
    st.sampled_from(sorted(TEXTS)).flatmap(
        lambda c: st.builds(_text, st.just(c), st.booleans(), st.sampled_from(TEXTS[c]))
    ),
    st.builds(_one_of, st.sampled_from(sorted(TEXTS)), st.booleans()),
    st.builds(_listed, st.sampled_from(sorted(LISTS)), st.sampled_from(sorted(TEXTS))),
    st.just(Cond(AWAY, lambda env: env.numbers[AWAY] == 1, False)),
)


def _joined(word: str, a: Cond, b: Cond) -> Cond:
    def holds(env: Env) -> bool:
        found = (a.holds(env), b.holds(env))
        return all(found) if word == "and" else any(found)

    return Cond(f"({a.text} {word} {b.text})", holds, a.needs_model or b.needs_model)


def _not(a: Cond) -> Cond:
    return Cond(f"(not {a.text})", lambda env: not a.holds(env), a.needs_model)


conditions = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.builds(_joined, st.sampled_from(["and", "or"]), inner, inner), st.builds(_not, inner)
    ),
    max_leaves=4,
)
_thresholds = st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]), min_size=3, max_size=3).map(
    lambda values: dict(zip(("step_up", "review", "block"), sorted(values), strict=True))
)
_given = st.sets(st.sampled_from(["step_up", "review", "block"]), min_size=1)
thresholds = st.builds(lambda t, names: {n: t[n] for n in t if n in names}, _thresholds, _given)
_actions = st.sampled_from(sorted(SEVERITY))


@dataclass(frozen=True)
class Drawn:
    """A policy as it is written, and its conditions by the name of segment or rule."""

    written: dict[str, Any]
    meant: dict[str, Cond]

    @property
    def text(self) -> str:
        return json.dumps(self.written)


@st.composite
def policies(draw: st.DrawFn) -> Drawn:
    rules, segments, meant = [], [], {}
    for i in range(draw(st.integers(0, 2))):
        meant[f"s{i}"] = draw(conditions)
        segments.append({"name": f"s{i}", "when": meant[f"s{i}"].text})
    for i in range(draw(st.integers(0, 5))):
        meant[f"r{i}"] = draw(conditions)
        rule = {
            "name": f"r{i}",
            "when": meant[f"r{i}"].text,
            "action": draw(_actions),
            "reason": f"rule {i}",
            "final": draw(st.booleans()),
            "rank": draw(st.integers(0, 2)),
        }
        rules.append(rule)
    names = ["default", *(s["name"] for s in segments)]
    overrides = []
    for i in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, 3))
        override: dict[str, Any] = {
            "name": f"o{i}",
            "from": f"2026-01-0{start + 1}T00:00:00Z",
            "until": f"2026-01-0{start + 1 + draw(st.integers(1, 3))}T00:00:00Z",
            "who": "ann",
            "why": "test",
            "thresholds": {draw(st.sampled_from(names)): draw(thresholds)},
        }
        if rules:
            picked = st.sampled_from([r["name"] for r in rules])
            override["disable"] = draw(st.lists(picked, max_size=1))
            override["actions"] = draw(st.dictionaries(picked, _actions, max_size=1))
        overrides.append(override)
    written = {
        "name": "drawn",
        "version": 1,
        "on_error": draw(st.sampled_from(["review", "block"])),
        "lists": LISTS,
        "segments": segments,
        "thresholds": {"default": draw(thresholds)}
        | {n: draw(thresholds) for n in names[1:] if draw(st.booleans())},
        "rules": rules,
        "overrides": overrides,
    }
    return Drawn(written, meant)


class Told(NamedTuple):
    """What the oracle decides."""

    action: str
    rules: tuple[str, ...]
    segment: str
    degraded: bool


def decide(drawn: Drawn, score: float | None, env: Env, day: float) -> Told:
    """The verdict; ``day`` counts from 2026-01-01, so 0 is the first."""
    policy = drawn.written
    usable = score is not None and 0 <= score <= 1
    if not usable:
        hidden = dict.fromkeys((*FEATURES, "score"), math.nan)
        env = env._replace(numbers=env.numbers | hidden)
    segment = next((s["name"] for s in policy["segments"] if _holds(drawn, s, env)), "default")
    limits = policy["thresholds"].get(segment, policy["thresholds"]["default"])
    actions = {r["name"]: r["action"] for r in policy["rules"]}
    off: set[str] = set()
    for o in policy["overrides"]:
        first, last = (int(o[k][8:10]) - 1 for k in ("from", "until"))
        if first <= day < last:
            off |= set(o.get("disable", []))
            actions |= o.get("actions", {})
            limits = o["thresholds"].get(segment, limits)
    fired, asked, ended = [], ["approve"], False
    for rank in (2, 1, 0):
        for rule in policy["rules"]:
            name = rule["name"]
            if ended or rule["rank"] != rank or name in off or not _holds(drawn, rule, env):
                continue
            if not usable and drawn.meant[name].needs_model:
                continue
            fired.append(name)
            asked.append(actions[name])
            ended = rule["final"]
    if not usable:
        fired.append("on_error")
        asked.append(policy["on_error"])
    elif not ended:
        over = [a for a, t in limits.items() if score is not None and score > t]
        if over:
            worst = max(over, key=SEVERITY.__getitem__)
            fired.append(f"{worst}_threshold")
            asked.append(worst)
    return Told(max(asked, key=SEVERITY.__getitem__), tuple(fired), segment, not usable)


def _holds(drawn: Drawn, item: dict[str, Any], env: Env) -> bool:
    return drawn.meant[item["name"]].holds(env)
