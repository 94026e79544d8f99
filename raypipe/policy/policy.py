"""A policy turns a score into an action. It is data: two policies with one hash decide alike."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple

from raypipe.errors import DeclarationError
from raypipe.events.schema import canonical_json


class Action(StrEnum):
    """What the caller should do with the event, from mild to severe."""

    APPROVE = "approve"
    REVIEW = "review"
    BLOCK = "block"


class Verdict(NamedTuple):
    """An action, the rule that gave it ("" for none), whether it stands in for an error."""

    action: Action
    rule: str
    degraded: bool


@dataclass(frozen=True)
class Policy:
    """Thresholds on a score in [0, 1]; a score flags when it lies strictly above one.

    A threshold of None never flags; 0.0 flags every positive score. ``on_error`` is taken when
    there is no usable score, and is never ``approve``: an error is not a low risk.

    >>> policy = Policy("default", review_threshold=0.5, block_threshold=0.9)
    >>> policy.decide(0.5).action.value, policy.decide(0.51).action.value
    ('approve', 'review')
    >>> policy.decide(None)
    Verdict(action=<Action.REVIEW: 'review'>, rule='on_error', degraded=True)
    """

    id: str
    review_threshold: float | None
    block_threshold: float | None
    on_error: Action = Action.REVIEW

    def __post_init__(self) -> None:
        if not self.id:
            raise DeclarationError("a policy needs an id")
        for name in ("review_threshold", "block_threshold"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0.0 <= value <= 1.0):
                raise DeclarationError(
                    f"policy {self.id!r}: {name} is {value!r}",
                    hint="Give a number from 0 to 1, or none to switch it off.",
                )
        review, block = self.review_threshold, self.block_threshold
        if review is not None and block is not None and block < review:
            raise DeclarationError(
                f"policy {self.id!r}: block_threshold {block} is below review_threshold {review}",
                hint="What is blocked is at least as risky as what is reviewed.",
            )
        if self.on_error not in (Action.REVIEW, Action.BLOCK):
            raise DeclarationError(
                f"policy {self.id!r}: on_error is {self.on_error!r}",
                hint="Use 'review' or 'block'; an error must not be approved.",
            )
        object.__setattr__(self, "on_error", Action(self.on_error))

    def decide(self, score: float | None) -> Verdict:
        """The action for a score; None, NaN and anything outside [0, 1] is an error."""
        if score is None or not 0.0 <= score <= 1.0:
            return Verdict(self.on_error, "on_error", True)
        if self.block_threshold is not None and score > self.block_threshold:
            return Verdict(Action.BLOCK, "block_threshold", False)
        if self.review_threshold is not None and score > self.review_threshold:
            return Verdict(Action.REVIEW, "review_threshold", False)
        return Verdict(Action.APPROVE, "", False)

    def describe(self) -> dict[str, Any]:
        """Plain data for hashes and documents."""
        return asdict(self)

    @cached_property
    def sha256(self) -> str:
        """Hash of the canonical JSON of this policy."""
        return hashlib.sha256(canonical_json(self.describe())).hexdigest()

    @classmethod
    def from_thresholds(
        cls, id: str, thresholds: Mapping[str, float | None], on_error: str = "review"
    ) -> Policy:
        """The default policy of a model: the thresholds of its manifest.

        Raises DeclarationError when neither ``review`` nor ``block`` is among them: a policy that
        can't flag anything is a mistake, not a choice.
        """
        review, block = thresholds.get("review"), thresholds.get("block")
        if review is None and block is None:
            raise DeclarationError(
                f"policy {id!r}: no threshold 'review' or 'block' among {sorted(thresholds)}",
                hint="Train again, so that the manifest carries an operating point.",
            )
        return cls(id, review, block, Action(on_error))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
