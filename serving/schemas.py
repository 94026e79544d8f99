"""Shapes of the answers. The OpenAPI document is generated from these types."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from raypipe.ledger.record import NOWHERE, DecisionRecord, Exposed, Reason
from raypipe.policy.policy import Action
from raypipe.vector.assemble import FEATURE_VALUE

TimeMs = Annotated[int, Meta(description="milliseconds since 1970-01-01 UTC")]


class _Decision(msgspec.Struct, frozen=True, kw_only=True):
    decision_id: str
    event_id: str
    action: Annotated[str, Meta(extra_json_schema={"enum": [a.value for a in Action]})]
    score: Annotated[float | None, Meta(description="from 0 to 1; null when degraded")]
    reasons: Annotated[
        tuple[Reason, ...],
        Meta(
            description="the rules that fired, in their order, then what raised the score, "
            "strongest first, where it was not approved; code for machines, words for people"
        ),
    ]
    model: Annotated[str, Meta(description="name@version")]
    policy: str
    definition_hash: str
    degraded: Annotated[
        bool,
        Meta(
            description="something was missing: an error occurred and the policy's on_error action "
            "was taken, reasons are absent, or the worker was away"
        ),
    ]
    degraded_by: Annotated[
        tuple[str, ...],
        Meta(
            description="worker_away: decided from the last windows that were written, those "
            "shorter than their age missing; no_windows: and not even these could be read"
        ),
    ]
    event_offset: Annotated[
        int | None,
        Meta(description="the event's place in the log; null before it is there: worker away"),
    ]
    event_time: TimeMs
    received_at: TimeMs
    decided_at: TimeMs


class Decision(_Decision, frozen=True, kw_only=True):
    """A decision. It was stored before this answer left; a retry gets the same one."""

    replayed: Annotated[bool, Meta(description="this event was decided before")]


class DecisionDetail(_Decision, frozen=True, kw_only=True):
    """The full record: what the model saw, and by which versions it was judged."""

    model_sha256: str
    policy_sha256: str
    rule_hits: Annotated[tuple[str, ...], Meta(description="what fired, in order of evaluation")]
    codes: Annotated[tuple[str, ...], Meta(description="reason codes of what fired")]
    segment: Annotated[str, Meta(description="whose thresholds were used")]
    lists: Annotated[str, Meta(description="version of the lists; empty if the policy reads none")]
    list_hits: Annotated[tuple[str, ...], Meta(description="list:column of what was on a list")]
    experiment: Annotated[
        str | None, Meta(description="the salt of the release, while models share the decisions")
    ]
    arm: Annotated[
        str | None, Meta(description="champion, or the challenger that has this key; else null")
    ]
    exposures: Annotated[
        tuple[Exposed, ...],
        Meta(description="the arms of declared experiments that it was made with"),
    ]
    features: Annotated[
        dict[str, float | None] | None,
        Meta(description="by name; null where missing, or as a whole when the model is unknown"),
    ]
    feature_bytes: Annotated[str, Meta(description="base64 of little-endian float32, exact")]
    profile_times: Annotated[
        tuple[int, ...],
        Meta(
            description="by declared profile, the midnight (ms UTC) that its values are of, -1 for "
            "none known; empty when the profiles couldn't be read"
        ),
    ]


class BatchRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one row: its decision, or why there is none."""

    status: Annotated[int, Meta(description="as if the row had come alone")]
    decision: Decision | None = None
    problem: Problem | None = None


class DecidedBatch(msgspec.Struct, frozen=True):
    """The answers to a batch, in the order of its rows."""

    decided: int
    failed: int
    results: list[BatchRow]


class Exceptional(msgspec.Struct, frozen=True, omit_defaults=True):
    """A row that was not taken in."""

    row: Annotated[int, Meta(description="its number in the request, from 0")]
    outcome: Literal["refused", "duplicate"]
    reasons: Annotated[
        tuple[str, ...], Meta(description="JSON pointer: reason; refused rows are in quarantine")
    ] = ()


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a bulk request's rows. The accepted ones are durable and in the windows."""

    accepted: int
    duplicates: Annotated[int, Meta(description="rows whose event_id came lately")]
    refused: int
    first_offset: Annotated[
        int | None,
        Meta(
            description="accepted rows have offsets from here on, in the order of the request; "
            "null where none was accepted, or several workers took them"
        ),
    ]
    exceptions: Annotated[tuple[Exceptional, ...], Meta(description="all rows but the accepted")]


class KeyFeatures(msgspec.Struct, frozen=True, kw_only=True):
    """Windows and profiles of one key, as a decision at that moment would see them."""

    entity: str
    key: str
    as_of: Annotated[int, Meta(description="ms UTC; later if the key has a later event")]
    values: Annotated[
        dict[str, float | None],
        Meta(description="by feature; null where there is none: a mean of no events"),
    ]
    degraded: Annotated[
        bool,
        Meta(
            description="the worker or the store of profiles is away: windows are the online "
            "store's last values, null where they are shorter than their age; profiles are null"
        ),
    ]
    age_ms: Annotated[
        int | None,
        Meta(description="how old the oldest of the last values is; null when they are of now"),
    ]
    definition_hash: str


class TableRows(msgspec.Struct, frozen=True, kw_only=True):
    """What a table counted, window by window, oldest first."""

    table: str
    span_ms: Annotated[int, Meta(description="length of a window")]
    as_of: TimeMs
    watermark: Annotated[
        int | None,
        Meta(description="newest received_at that is counted, ms UTC; null before the first event"),
    ]
    rows: Annotated[
        list[dict[str, str | float | bool | None]],
        Meta(
            description="start and end (ms UTC) of the window; final: whether it changes no more; "
            "late: events that came after that and are in no measure; then groups and measures, "
            "whole numbers but for ratios, which are null where they divide by 0"
        ),
    ]
    definition_hash: str


class ExperimentArm(msgspec.Struct, frozen=True, kw_only=True):
    """An arm, what its units get, and how often they did so far."""

    name: str
    share: Annotated[float, Meta(description="of the layer")]
    model: Annotated[str | None, Meta(description="name@version; null: what the release serves")]
    policy: Annotated[str | None, Meta(description="name@version; null: what the release serves")]
    exposures: Annotated[int, Meta(description="decisions that were made with the arm")]
    first_exposure: Annotated[int | None, Meta(description="ms UTC; null before it")]
    last_exposure: Annotated[int | None, Meta(description="ms UTC; null before the first")]


class ExperimentState(msgspec.Struct, frozen=True, kw_only=True):
    """An experiment and what came of it so far."""

    experiment: Annotated[str, Meta(description="name@version")]
    state: Annotated[
        Literal["running", "stopped", "published"],
        Meta(description="stopped: it ran for this tenant; published: it has not"),
    ]
    release: Annotated[int | None, Meta(description="number of the release that runs it, or null")]
    unit: Annotated[str, Meta(description="the column that names who has an arm, or event")]
    layer: Annotated[str, Meta(description="empty for a layer of its own")]
    holdout: float
    arms: Annotated[list[ExperimentArm], Meta(description="the control first")]
    metrics: Annotated[list[str], Meta(description="the primary one first")]
    horizon_ms: int
    sha256: str


class OpenReview(msgspec.Struct, frozen=True, kw_only=True):
    """A decision that waits for a person."""

    decision_id: str
    event_id: str
    action: str
    score: float | None
    model: Annotated[str, Meta(description="name@version")]
    decided_at: TimeMs
    deadline: Annotated[int, Meta(description="when somebody should have looked, ms UTC")]
    overdue: bool
    claimed_by: Annotated[str | None, Meta(description="a key's id, and /PERSON; null for nobody")]
    claimed_until: Annotated[int | None, Meta(description="ms UTC")]


class ReviewPage(msgspec.Struct, frozen=True, kw_only=True):
    """Decisions that wait for a person, oldest first."""

    reviews: list[OpenReview]
    open: Annotated[int, Meta(description="how many wait in all, whatever was asked for")]
    next: Annotated[
        str | None, Meta(description="give it as `after` to get what follows; null at the end")
    ]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the event of a decision turned out to be, as somebody said."""

    outcome_id: str
    decision_id: str
    event_id: str
    outcome: Annotated[str, Meta(extra_json_schema={"enum": ["fraud", "genuine"]})]
    source: Annotated[str, Meta(description="what it is known from; review: a verdict")]
    by: Annotated[str, Meta(description="the key's id, and /PERSON where one was named")]
    reason: str
    occurred_at: TimeMs
    recorded_at: TimeMs
    replayed: Annotated[bool, Meta(description="this was said before")]


class ProblemError(msgspec.Struct, frozen=True):
    """One broken rule, with a JSON pointer (RFC 6901) to the place in the body."""

    pointer: str
    detail: str


class Problem(msgspec.Struct, frozen=True):
    """An error (RFC 9457, application/problem+json)."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    hint: str = ""
    errors: tuple[ProblemError, ...] = ()


class Health(msgspec.Struct, frozen=True):
    """The process answers."""

    status: str


class Readiness(msgspec.Struct, frozen=True):
    """Decisions can be made: a model is loaded."""

    status: Annotated[
        Literal["ready", "degraded"], Meta(description="degraded: the worker is away")
    ]
    model: str
    policy: str
    definition_hash: str
    replica: str
    release: Annotated[int, Meta(description="its number in the history; 0 for one not in it")] = 0


def answer(record: DecisionRecord, replayed: bool) -> Decision:
    """What the caller of a decision gets."""
    return Decision(**_common(record), replayed=replayed)


def detail(record: DecisionRecord, names: Sequence[str] | None) -> DecisionDetail:
    """The whole record; ``names`` are the model's features, or None when they aren't known."""
    values = np.frombuffer(record.features, FEATURE_VALUE).tolist()
    named = None
    if names is not None and len(names) == len(values):
        finite = (v if math.isfinite(v) else None for v in values)
        named = dict(zip(names, finite, strict=True))
    return DecisionDetail(
        **_common(record),
        model_sha256=record.model_sha256,
        policy_sha256=record.policy_sha256,
        rule_hits=record.rule_hits,
        codes=record.codes,
        segment=record.segment,
        lists=record.lists,
        list_hits=record.list_hits,
        experiment=record.experiment,
        arm=record.arm,
        exposures=record.exposed,
        features=named,
        feature_bytes=base64.b64encode(record.features).decode(),
        profile_times=record.profile_times,
    )


def _common(record: DecisionRecord) -> dict[str, Any]:
    return {
        "decision_id": record.decision_id,
        "event_id": record.event_id,
        "action": record.action,
        "score": record.score,
        "reasons": record.reasons,
        "model": record.model,
        "policy": record.policy,
        "definition_hash": record.definition_hash,
        "degraded": record.degraded,
        "degraded_by": record.degraded_by,
        "event_offset": None if record.event_offset == NOWHERE else record.event_offset,
        "event_time": record.event_time,
        "received_at": record.received_at,
        "decided_at": record.decided_at,
    }
