from __future__ import annotations

import json
import math
from hashlib import sha256

import pytest

from raypipe.errors import DeclarationError
from raypipe.policy.policy import Action, Policy


@pytest.mark.parametrize(
    ("score", "action"),
    [
        (0.0, "approve"),
        (0.5, "approve"),
        (math.nextafter(0.5, 1), "review"),
        (0.9, "review"),
        (math.nextafter(0.9, 1), "block"),
        (1.0, "block"),
    ],
)
def test_a_threshold_flags_strictly_above_it(score: float, action: str) -> None:
    verdict = Policy("p", 0.5, 0.9).decide(score)
    assert (verdict.action, verdict.degraded) == (action, False)


@pytest.mark.parametrize("score", [None, math.nan, math.inf, -math.inf, -0.1, 1.1])
@pytest.mark.parametrize("on_error", [Action.REVIEW, Action.BLOCK])
def test_no_usable_score_takes_on_error_and_is_degraded(
    score: float | None, on_error: Action
) -> None:
    verdict = Policy("p", 0.5, 0.9, on_error).decide(score)
    assert (verdict.action, verdict.rules, verdict.degraded) == (on_error, ("on_error",), True)
    assert verdict.codes == ("NO_SCORE",)


def test_zero_is_a_threshold_and_none_is_not() -> None:
    assert Policy("p", 0.0, None).decide(1e-9).action is Action.REVIEW
    assert Policy("p", 0.0, None).decide(0.0).action is Action.APPROVE
    assert Policy("p", None, 0.0).decide(1e-9).action is Action.BLOCK
    assert Policy("p", 0.0, None).decide(1.0).action is Action.REVIEW


def test_a_verdict_names_the_rule_that_fired() -> None:
    policy = Policy("p", 0.5, 0.9)
    assert [policy.decide(s).rules for s in (0.1, 0.6, 0.95)] == [
        (),
        ("review_threshold",),
        ("block_threshold",),
    ]


def test_actions_are_in_order_of_severity() -> None:
    assert [a.value for a in sorted(Action, key=lambda a: a.severity)] == [
        "approve",
        "step_up",
        "review",
        "block",
    ]


@pytest.mark.parametrize(
    ("kwargs", "word"),
    [
        ({"id": ""}, "id"),
        ({"review_threshold": math.nan}, "review_threshold"),
        ({"review_threshold": -0.1}, "review_threshold"),
        ({"block_threshold": 1.5}, "block_threshold"),
        ({"block_threshold": True}, "block_threshold"),
        ({"review_threshold": 0.8, "block_threshold": 0.7}, "below"),
        ({"on_error": "approve"}, "on_error"),
        ({"on_error": "shrug"}, "on_error"),
    ],
)
def test_an_impossible_policy_is_refused(kwargs: dict[str, object], word: str) -> None:
    given = {"id": "p", "review_threshold": 0.5, "block_threshold": 0.9, **kwargs}
    with pytest.raises(DeclarationError, match=word):
        Policy(**given)  # type: ignore[arg-type]


def test_the_hash_is_of_the_canonical_data_and_changes_with_it() -> None:
    policy = Policy("p", 0.5, 0.9)
    text = json.dumps(
        {"id": "p", "review_threshold": 0.5, "block_threshold": 0.9, "on_error": "review"},
        sort_keys=True,
        separators=(",", ":"),
    )
    assert policy.sha256 == sha256(text.encode()).hexdigest()
    assert policy.sha256 == Policy("p", 0.5, 0.9).sha256
    others = [
        Policy("q", 0.5, 0.9),
        Policy("p", 0.4, 0.9),
        Policy("p", 0.5, None),
        Policy("p", 0.5, 0.9, Action.BLOCK),
    ]
    assert len({policy.sha256, *(p.sha256 for p in others)}) == 5


def test_thresholds_of_a_manifest_make_the_default_policy() -> None:
    made = Policy.from_thresholds("m", {"review": 0.25, "block": 0.75, "other": 0.1}, "block")
    assert made == Policy("m", 0.25, 0.75, Action.BLOCK)
    assert Policy.from_thresholds("m", {"review": 0.0}) == Policy("m", 0.0, None)
    with pytest.raises(DeclarationError, match="threshold"):
        Policy.from_thresholds("m", {"flag": 0.5})
