"""What the server answers, as types. Fields that a later server adds are passed over."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from raypipe.errors import RaypipeError


class Reason(msgspec.Struct, frozen=True):
    """A feature's share in a score, in log-odds, positive speaks for what the model looks for; or
    a rule that fired, which has no feature and no share."""

    code: str
    feature: str
    contribution: float
    words: str = ""
    """For people; "" where nobody wrote any."""


class Exposed(msgspec.Struct, frozen=True):
    """The arm of an experiment, ``name@version``, that a decision was made with."""

    experiment: str
    arm: str
    unit: str
    propensity: float
    """How likely the arm was for a unit of the experiment."""


class _Decision(msgspec.Struct, frozen=True, kw_only=True):
    decision_id: str
    event_id: str
    action: str
    score: float | None
    reasons: tuple[Reason, ...]
    model: str
    policy: str
    definition_hash: str
    degraded: bool
    event_offset: int | None
    """Place in the log; None before it is there."""
    event_time: int
    received_at: int
    decided_at: int
    degraded_by: tuple[str, ...] = ()
    """``worker_away`` and the like; empty where something else is missing."""


class Decision(_Decision, frozen=True, kw_only=True):
    """A recorded decision. Times are ms UTC; ``score`` is None when ``degraded``."""

    replayed: bool
    """Whether the event was decided before."""


class DecisionDetail(_Decision, frozen=True, kw_only=True):
    """The whole record of a decision."""

    model_sha256: str
    policy_sha256: str
    rule_hits: tuple[str, ...]
    codes: tuple[str, ...] = ()
    segment: str = ""
    lists: str = ""
    list_hits: tuple[str, ...] = ()
    experiment: str | None
    arm: str | None = None
    exposures: tuple[Exposed, ...] = ()
    """The arms of experiments that it was made with."""
    features: dict[str, float | None] | None
    """By name; None where missing, or as a whole when the server has not the model any more."""
    feature_bytes: bytes
    """Little-endian float32, exact."""
    profile_times: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one row of a batch: a decision, or the error that it met."""

    decision: Decision | None = None
    error: RaypipeError | None = None

    def get(self) -> Decision:
        """The decision; raises the error where there is none."""
        if self.decision is None:
            raise self.error or RaypipeError("the server gave neither decision nor problem")
        return self.decision


class Exceptional(msgspec.Struct, frozen=True):
    """A sent event that was not taken in; ``row`` counts all events of the call from 0."""

    row: int
    outcome: str
    """``refused`` or ``duplicate``."""
    reasons: tuple[str, ...] = ()


class Sent(msgspec.Struct, frozen=True):
    """What became of the events of a call."""

    accepted: int = 0
    duplicates: int = 0
    refused: int = 0
    exceptions: tuple[Exceptional, ...] = ()


class KeyFeatures(msgspec.Struct, frozen=True, kw_only=True):
    """Windows and profiles of one key; None where there is no value."""

    entity: str
    key: str
    as_of: int
    values: dict[str, float | None]
    degraded: bool
    age_ms: int | None
    definition_hash: str


class TableRows(msgspec.Struct, frozen=True, kw_only=True):
    """What a table counted, window by window, oldest first."""

    table: str
    span_ms: int
    as_of: int
    watermark: int | None
    rows: list[dict[str, str | float | bool | None]]
    definition_hash: str
