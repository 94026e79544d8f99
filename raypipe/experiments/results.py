"""What an analysis found, as plain data: the report, the command line and HTTP show the same."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from raypipe.experiments.spec import Direction


class State(StrEnum):
    """What is to be done with an experiment."""

    INVALID = "invalid"
    """The arms don't have their units: nothing counts; find the loss."""
    HARMFUL = "harmful"
    """A guardrail is broken: stop."""
    BETTER = "better"
    WORSE = "worse"
    NO_EFFECT = "no_effect"
    """Whatever the effect is, it is smaller than the one that was looked for."""
    UNDECIDED = "undecided"
    """The horizon is over, and the interval still holds both something and nothing."""
    RUNNING = "running"


class Guarding(StrEnum):
    """What is known of a guardrail."""

    BROKEN = "broken"
    KEPT = "kept"
    OPEN = "open"


class Finding(msgspec.Struct, frozen=True):
    """A metric of an arm beside the control, all units or those of a segment.

    ``low`` to ``high`` is the interval of the difference at ``level``, valid at any time; ``lift``
    and its bounds are relative to the control, None where that can't be told from zero.
    ``adjusted`` is the p value among all questions of its kind.
    """

    metric: str
    arm: str
    direction: Direction
    control: float
    treated: float
    control_units: int
    treated_units: int
    difference: float
    low: float
    high: float
    lift: float | None
    lift_low: float | None
    lift_high: float | None
    p: float
    adjusted: float
    level: float
    significant: bool
    segment: str = ""
    value: str | None = None
    """Of the segment's column."""

    @property
    def good(self) -> bool:
        """Whether the difference is in the wanted direction."""
        return (self.difference > 0) == (self.direction is Direction.UP)


class Guard(msgspec.Struct, frozen=True):
    """A metric that may lose no more than ``tolerated``, relative to the control."""

    metric: str
    arm: str
    direction: Direction
    tolerated: float
    lift: float | None
    lift_low: float | None
    lift_high: float | None
    level: float
    state: Guarding


class Counted(msgspec.Struct, frozen=True):
    """What of a metric was counted: units by arm that are mature, those that are not yet, and
    those of which the value was above the cap. ``variance_ratio`` is what CUPED left."""

    metric: str
    units: dict[str, int]
    immature: dict[str, int]
    above_cap: dict[str, int]
    cap: float | None
    variance_ratio: float | None


class Ratio(msgspec.Struct, frozen=True):
    """Units by arm beside their shares; ``p`` holds at any time, ``p_now`` for one look."""

    units: dict[str, int]
    expected: dict[str, float]
    p: float
    p_now: float
    mismatch: bool


class Look(msgspec.Struct, frozen=True):
    """The primary metric as of the units exposed before ``until_ms``, with what is known now."""

    until_ms: int
    arm: str
    units: int
    difference: float
    low: float
    high: float


class Verdict(msgspec.Struct, frozen=True):
    """The answer in words: one line, and the sentences behind it."""

    state: State
    headline: str
    sentences: tuple[str, ...]
    arm: str = ""
    """The one that it is about, if it is about one."""


class Analysis(msgspec.Struct, frozen=True):
    """An experiment at one look. ``findings`` begin with those of the primary metric."""

    experiment: str
    sha256: str
    as_of_ms: int
    first_ms: int | None
    horizon_ms: int
    alpha: float
    minimum_effect: float
    tuned_units: int
    ratio: Ratio
    counted: list[Counted]
    findings: list[Finding]
    guards: list[Guard]
    segments: list[Finding]
    looks: list[Look]
    verdict: Verdict

    @property
    def primary(self) -> str:
        """The name of the primary metric."""
        return self.counted[0].metric

    @property
    def over(self) -> bool:
        """Whether the horizon has passed."""
        return self.first_ms is not None and self.as_of_ms >= self.first_ms + self.horizon_ms
