"""A policy turns a score into an action. It is data: two policies with one hash decide alike."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from raypipe.errors import DeclarationError
from raypipe.events.schema import canonical_json
from raypipe.policy.lists import EMPTY, Lists


class Action(StrEnum):
    """What the caller should do with the event, from mild to severe."""

    APPROVE = "approve"
    STEP_UP = "step_up"
    REVIEW = "review"
    BLOCK = "block"

    @property
    def severity(self) -> int:
        """0 for the mildest."""
        return SEVERITY[self]


SEVERITY = {action: place for place, action in enumerate(Action)}
"""0 for the mildest."""


class Hit(NamedTuple):
    """A rule that fired: its name, the action it asks for, why, for machines and for people."""

    rule: str
    action: Action
    code: str
    words: str = ""


class Verdict(NamedTuple):
    """An action and what led to it.

    ``hits`` are in order of evaluation, a threshold or ``on_error`` last. ``degraded``: the action
    stands in for an error. ``list_hits`` are the ``list:column`` that were on a list.
    """

    action: Action
    hits: tuple[Hit, ...] = ()
    degraded: bool = False
    segment: str = ""
    list_hits: tuple[str, ...] = ()

    @property
    def rules(self) -> tuple[str, ...]:
        """The names of what fired."""
        return tuple(h.rule for h in self.hits)

    @property
    def codes(self) -> tuple[str, ...]:
        """The reason codes of what fired, each once."""
        return tuple(dict.fromkeys(h.code for h in self.hits))


class Decides(Protocol):
    """What a decision asks for its action."""

    @property
    def id(self) -> str:
        """``name@version``, as decisions record it."""

    @property
    def sha256(self) -> str:
        """Of everything that decides."""

    @property
    def lists(self) -> tuple[str, ...]:
        """The lists that it reads."""

    @property
    def on_error(self) -> Action:
        """The action where there is no score; never ``approve``."""

    def decide(
        self,
        score: float | None,
        event: Mapping[str, Any],
        row: npt.NDArray[np.float32] | None,
        lists: Lists,
        at_ms: int,
        worker_away: bool = False,
    ) -> Verdict:
        """The action for an event.

        Args:
            score: from 0 to 1; None, NaN and anything else is an error.
            event: a validated decision event.
            row: the model's feature vector, None where it could not be built.
            lists: the tenant's.
            at_ms: when it is decided: lists and overrides expire by it.
            worker_away: it is decided without the worker, by windows that may be old.
        """

    def words(self, feature: str) -> tuple[str, str]:
        """The reason code and the words for a feature that raised the score."""


ON_ERROR = "on_error"
ON_ERROR_CODE = "NO_SCORE"


def threshold_hit(action: Action) -> Hit:
    """The hit of a score above the threshold of an action.

    >>> threshold_hit(Action.BLOCK)[:3]
    ('block_threshold', <Action.BLOCK: 'block'>, 'SCORE_BLOCK')
    """
    return Hit(f"{action.value}_threshold", action, f"SCORE_{action.name}")


def failed(on_error: Action) -> Verdict:
    """The verdict where nothing else can be said."""
    return Verdict(on_error, (Hit(ON_ERROR, on_error, ON_ERROR_CODE),), True)


@dataclass(frozen=True)
class Policy:
    """Thresholds on a score in [0, 1]; a score flags when it lies strictly above one.

    A threshold of None never flags; 0.0 flags every positive score. ``on_error`` is taken when
    there is no usable score, and is never ``approve``: an error is not a low risk.

    >>> policy = Policy("default", review_threshold=0.5, block_threshold=0.9)
    >>> policy.decide(0.5).action.value, policy.decide(0.51).action.value
    ('approve', 'review')
    >>> verdict = policy.decide(None)
    >>> verdict.action.value, verdict.rules, verdict.degraded
    ('review', ('on_error',), True)
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

    @property
    def lists(self) -> tuple[str, ...]:
        """None: a score alone decides."""
        return ()

    def decide(
        self,
        score: float | None,
        event: Mapping[str, Any] | None = None,
        row: npt.NDArray[np.float32] | None = None,
        lists: Lists = EMPTY,
        at_ms: int = 0,
        worker_away: bool = False,
    ) -> Verdict:
        """The action for a score; None, NaN and anything outside [0, 1] is an error."""
        if score is None or not 0.0 <= score <= 1.0:
            return failed(self.on_error)
        if self.block_threshold is not None and score > self.block_threshold:
            return _BLOCK
        if self.review_threshold is not None and score > self.review_threshold:
            return _REVIEW
        return _APPROVE

    def words(self, feature: str) -> tuple[str, str]:
        """The feature's own name as a code, and no words."""
        return feature.upper(), ""

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


_APPROVE = Verdict(Action.APPROVE)
_REVIEW = Verdict(Action.REVIEW, (threshold_hit(Action.REVIEW),))
_BLOCK = Verdict(Action.BLOCK, (threshold_hit(Action.BLOCK),))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
