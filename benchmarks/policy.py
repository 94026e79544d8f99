"""A policy of some rules: in-line for one event, and over columns, beside Python written by hand.

The peer is the function that a user would write instead: `if` after `if`, over the same values. It
knows neither expiry nor overrides, keeps no hits and no codes, and a missing value is its author's
problem. Its actions must be ours for every event.
"""

from __future__ import annotations

import argparse
import math
import tracemalloc
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.harness import Result, alternate, check, summarise

if TYPE_CHECKING:
    import pyarrow as pa

    from raypipe.policy.lists import Lists
    from raypipe.policy.rules import BoundPolicy

SUITE = "policy"
SEED = 31
NOW = 1_790_000_000_000
LISTED = 100_000


class Case(NamedTuple):
    """Events with what a model said of them."""

    events: list[dict[str, Any]]
    table: pa.Table
    rows: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float64]
    blocked: frozenset[str]
    trusted: frozenset[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes; the defaults are those of committed results."""
    parser.add_argument("--events", type=int, help="events decided about")
    parser.add_argument("--repeats", type=int, default=5)


def run(args: argparse.Namespace) -> Result:
    """Decide about the same events three ways and compare every action."""
    from features.payments import project
    from raypipe.policy.columns import ACTIONS

    size = args.events or (5_000 if args.quick else 100_000)
    policy, lists, entry_bytes = _policy(project)
    features = project.model("fraud").features
    case = _case(project, features, size)
    in_line = _in_line(policy, lists, case)
    columns = [ACTIONS[a].value for a in _columns(policy, lists, case)]
    by_hand = _by_hand(features, case)
    check(in_line == by_hand, "the policy in-line decides as the hand-written function")
    check(columns == by_hand, "the policy over columns decides as the hand-written function")
    samples = alternate(
        {
            "in_line": partial(_in_line, policy, lists, case),
            "columns": partial(_columns, policy, lists, case),
            "by_hand": partial(_by_hand, features, case),
        },
        repeats=args.repeats,
        warmup=1,
    )
    s = {name: summarise(values).median for name, values in samples.items()}
    rules = len(policy.spec.rules)
    return Result(
        SUITE,
        {
            "decision_us": s["in_line"] / size * 1e6,
            "rule_us": s["in_line"] / size / rules * 1e6,
            "by_hand_us": s["by_hand"] / size * 1e6,
            "ratio_vs_by_hand": s["in_line"] / s["by_hand"],
            "columns_decision_us": s["columns"] / size * 1e6,
            "columns_gain": s["in_line"] / s["columns"],
            "list_entry_bytes": entry_bytes,
            "rules": rules,
            "events": size,
        },
        samples,
        (
            "features/policies/payments.yaml: rules, segments, thresholds, lists; one thread",
            f"{LISTED:,} keys on each of two lists; about one event in a hundred is on one",
            "columns are in memory as an Arrow table and a float32 matrix",
        ),
    )


def _policy(project: Any) -> tuple[BoundPolicy, Lists, float]:
    from pathlib import Path

    from features import payments
    from raypipe.policy.lists import Change, Kind, Lists
    from raypipe.policy.reading import read_policy
    from raypipe.policy.rules import RuleSet

    spec = read_policy(Path(payments.__file__).parent / "policies" / "payments.yaml")
    policy = RuleSet(spec, project).bind(project.model("fraud").features)
    keys = {"blocked_cards": "c", "trusted_customers": "u"}
    tracemalloc.start()
    lists = Lists(
        (
            name,
            Change(
                name,
                Kind(spec.lists[name]),
                "add",
                tuple(f"{letter}-{i}" for i in range(LISTED)),
                "benchmark",
                "benchmark",
                0,
            ),
        )
        for name, letter in keys.items()
    )
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return policy, lists, held / LISTED / len(keys)


def _case(project: Any, features: tuple[str, ...], size: int) -> Case:
    import pyarrow as pa

    rng = np.random.default_rng(SEED)
    amounts = rng.lognormal(8, 1.5, size).astype(int)
    channels = rng.choice(["pos", "online", "recurring"], size)
    on = rng.integers(0, 100 * LISTED, (2, size))
    scores = (rng.beta(0.5, 6, size)).astype(np.float32).astype(np.float64)
    rows = np.full((size, len(features)), np.nan, np.float32)
    for name, most in (
        ("device_card_id_distinct_1d", 5),
        ("card_count_1h", 10),
        ("card_risk_count_28d", 2),
    ):
        rows[:, features.index(name)] = rng.integers(0, most, size)
    events = [
        {
            "tenant": "default",
            "event_id": f"e-{i}",
            "event_time": NOW,
            "received_at": NOW,
            "card_id": f"c-{on[0, i]}",
            "customer_id": f"u-{on[1, i]}",
            "merchant_id": "m-1",
            "device_id": "d-1",
            "amount": int(amounts[i]),
            "currency": "EUR",
            "channel": str(channels[i]),
            "category": None,
            "country": None,
        }
        for i in range(size)
    ]
    table = pa.Table.from_pylist(events, project.decision_event.arrow_schema)
    blocked, trusted = (frozenset(f"{x}-{i}" for i in range(LISTED)) for x in "cu")
    return Case(events, table, rows, scores, blocked, trusted)


def _in_line(policy: BoundPolicy, lists: Lists, case: Case) -> list[str]:
    decide = policy.decide
    scores = case.scores.tolist()
    return [
        decide(score, event, row, lists, NOW).action.value
        for score, event, row in zip(scores, case.events, case.rows, strict=True)
    ]


def _columns(policy: BoundPolicy, lists: Lists, case: Case) -> npt.NDArray[np.int8]:
    from raypipe.policy.columns import decide_columns

    at = np.full(len(case.events), NOW, np.int64)
    away = np.zeros(len(case.events), np.bool_)
    return decide_columns(policy, case.scores, case.table, case.rows, lists, at, away).action


def _by_hand(features: tuple[str, ...], case: Case) -> list[str]:
    blocked, trusted = case.blocked, case.trusted
    cards, count, risk = (
        features.index(n)
        for n in ("device_card_id_distinct_1d", "card_count_1h", "card_risk_count_28d")
    )
    severity = {"approve": 0, "step_up": 1, "review": 2, "block": 3}
    out = []
    for score, event, row in zip(case.scores.tolist(), case.events, case.rows, strict=True):
        amount, channel = event["amount"], event["channel"]
        if event["card_id"] in blocked:
            out.append("block")
            continue
        if event["customer_id"] in trusted and amount < 200_000:
            out.append("approve")
            continue
        actions = ["approve"]
        if row[cards] >= 4:
            actions.append("review")
        if row[count] >= 8 and amount >= 5_000:
            actions.append("step_up")
        if row[risk] >= 1 and (amount >= 10_000 or channel in ("online", "recurring")):
            actions.append("review")
        if amount >= 50_000:
            step_up, review, block = 0.2, 0.4, 0.8
        elif channel == "online":
            step_up, review, block = 0.4, 0.6, 0.9
        else:
            step_up, review, block = math.inf, 0.6, 0.95
        if score > block:
            actions.append("block")
        elif score > review:
            actions.append("review")
        elif score > step_up:
            actions.append("step_up")
        out.append(max(actions, key=severity.__getitem__))
    return out
