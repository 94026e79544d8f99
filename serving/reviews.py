"""People in the loop over HTTP: reviews, and what events turned out to be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol, TypeVar

import msgspec
from msgspec import Meta
from starlette.requests import Request

from raypipe.clock import Clock
from raypipe.errors import InputError, InvalidRequest, UsageError, Violation
from raypipe.events.body import parse_object
from raypipe.events.schema import EARLIEST_MS, FUTURE_TOLERANCE_MS
from raypipe.ledger.outcome import REVIEW, Outcome, Truth, outcome_id
from raypipe.project import Project
from raypipe.runtime.worker import protocol
from raypipe.runtime.worker.intake import Bulk
from raypipe.runtime.worker.reviews import Review, Wanted
from raypipe.tenancy.keys import Credential
from serving import schemas
from serving.decide import deadline
from serving.exchange import headers_of, idempotency_key
from serving.face import read_body
from serving.label_events import LabelEvents

BODY_LIMIT = 16_384
ANSWER_S = 5.0
MOST = 200
"""Reviews of a page."""

_KEY_LIMIT = 128
_HINT = "A verdict is a few hundred bytes."

Reviewer = Annotated[
    str,
    Meta(
        pattern=r"^[!-.0-~]{1,64}$",
        description="the person, where one key serves several: printable, without spaces or '/'",
    ),
]
Reason = Annotated[str, Meta(min_length=1, max_length=2_000)]
Said = Literal["fraud", "genuine"]


class ClaimBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who takes a review, and for how long; an empty body is one without fields."""

    lease_s: Annotated[int, Meta(ge=1, le=86_400, description="seconds until it is free again")] = (
        900
    )
    reviewer: Reviewer | None = None


class VerdictBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a review ended."""

    verdict: Said
    reason: Reason
    reviewer: Reviewer | None = None


class OutcomeBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the event of a decision turned out to be."""

    outcome: Said
    source: Annotated[
        str,
        Meta(
            pattern=r"^[a-z][a-z0-9_]{0,31}$",
            description="what it is known from, as chargeback; review is for verdicts alone",
        ),
    ]
    reason: Annotated[str, Meta(max_length=2_000)] = ""
    occurred_at: Annotated[
        int | None,
        Meta(description="when it became known, ms UTC, not before the event; by default now"),
    ] = None
    reviewer: Reviewer | None = None


_Body = TypeVar("_Body", ClaimBody, VerdictBody, OutcomeBody)


class PeopleWorker(Protocol):
    """Knows decisions and who works on them; a raypipe.runtime.worker.client.WorkerClient does."""

    async def event_of(self, tenant: str, decision_id: str) -> dict[str, Any] | None:
        """The event of a decision, None if retention deleted it; raises NotFound."""

    async def reviews(self, tenant: str, wanted: Wanted) -> tuple[list[Review], int]:
        """Decisions that wait for a person, and how many do in all."""

    async def claim_review(
        self, tenant: str, decision_id: str, holder: str, lease_ms: int
    ) -> Review:
        """Have somebody work on one; raises NotFound and Conflict."""

    async def report(self, outcome: Outcome) -> Outcome:
        """Make a statement durable; the first one under its id."""

    async def ingest(self, project: Project, bulk: Bulk) -> protocol.Ingested:
        """Take rows in; returns when they are durable."""


class Reviews:
    """Answers requests about reviews and outcomes.

    Args:
        review_ms: how soon after a decision a person should have looked at it.
    """

    def __init__(
        self, project: Project, worker: PeopleWorker, clock: Clock, review_ms: int
    ) -> None:
        self._project = project
        self._worker = worker
        self._clock = clock
        self._review_ms = review_ms
        self._labels = LabelEvents(project)

    async def page(self, tenant: str, query: Mapping[str, str]) -> schemas.ReviewPage:
        """A page of open reviews, oldest first. Raises UsageError for a wrong query."""
        wanted = _wanted(query)
        now = self._clock.now_ms()
        async with deadline(ANSWER_S):
            found, number = await self._worker.reviews(tenant, wanted)
        last = found[-1] if len(found) == wanted.limit else None
        return schemas.ReviewPage(
            reviews=[self._shown(r, now) for r in found],
            open=number,
            next=f"{last.decided_at}:{last.decision_id}" if last else None,
        )

    async def claim(
        self, request: Request, who: Credential, decision_id: str
    ) -> schemas.OpenReview:
        """Give a review to whoever asks. Raises InputError, NotFound, Conflict."""
        body = await _body(request, ClaimBody)
        async with deadline(ANSWER_S):
            review = await self._worker.claim_review(
                who.tenant, decision_id, _by(who, body.reviewer), body.lease_s * 1_000
            )
        return self._shown(review, self._clock.now_ms())

    async def verdict(self, request: Request, who: Credential, decision_id: str) -> schemas.Outcome:
        """End a review. Raises InputError, NotFound, Conflict."""
        key, body = _key(request), await _body(request, VerdictBody)
        by = _by(who, body.reviewer)
        return await self._report(
            who.tenant, decision_id, body.verdict, REVIEW, by, body.reason, None, key
        )

    async def outcome(self, request: Request, who: Credential, decision_id: str) -> schemas.Outcome:
        """Take in what the event of a decision turned out to be. Raises InputError, NotFound."""
        key, body = _key(request), await _body(request, OutcomeBody)
        if body.source == REVIEW:
            raise _invalid("/source", f"{REVIEW!r} is for POST /v1/reviews/{{id}}:verdict")
        by = _by(who, body.reviewer)
        return await self._report(
            who.tenant, decision_id, body.outcome, body.source, by, body.reason,
            body.occurred_at, key,
        )  # fmt: skip

    async def _report(
        self,
        tenant: str,
        decision_id: str,
        truth: str,
        source: str,
        by: str,
        reason: str,
        occurred_at: int | None,
        key: str | None,
    ) -> schemas.Outcome:
        now = self._clock.now_ms()
        said = [truth, source, by, reason, "" if occurred_at is None else str(occurred_at)]
        made = Outcome(
            outcome_id=outcome_id(tenant, decision_id, said, key),
            tenant=tenant,
            decision_id=decision_id,
            event_id="",
            outcome=truth,
            source=source,
            by=by,
            reason=reason,
            occurred_at=now if occurred_at is None else occurred_at,
            recorded_at=now,
            action="",
            model="",
        )
        async with deadline(ANSWER_S):
            event = await self._worker.event_of(tenant, decision_id)
            _check_time(made.occurred_at, now, event)
            stored = await self._worker.report(made)
            if truth == Truth.FRAUD and event is not None:
                bulk = self._labels.of(event, decision_id, stored.occurred_at, stored.recorded_at)
                if bulk is not None:
                    await self._worker.ingest(self._project, bulk)
        return schemas.Outcome(
            outcome_id=stored.outcome_id,
            decision_id=decision_id,
            event_id=stored.event_id,
            outcome=stored.outcome,
            source=stored.source,
            by=stored.by,
            reason=stored.reason,
            occurred_at=stored.occurred_at,
            recorded_at=stored.recorded_at,
            replayed=stored.recorded_at != now,
        )

    def _shown(self, review: Review, now: int) -> schemas.OpenReview:
        held, due = review.held(now), review.decided_at + self._review_ms
        return schemas.OpenReview(
            decision_id=review.decision_id,
            event_id=review.event_id,
            action=review.action,
            score=review.score,
            model=review.model,
            decided_at=review.decided_at,
            deadline=due,
            overdue=now > due,
            claimed_by=review.holder if held else None,
            claimed_until=review.held_until if held else None,
        )


def _wanted(query: Mapping[str, str]) -> Wanted:
    unknown = sorted(set(query) - {"limit", "after", "action", "claimed_by", "free"})
    if unknown:
        raise UsageError(
            f"unknown parameter {unknown[0]!r}",
            hint="There are limit, after, action, claimed_by and free.",
        )
    limit, free = query.get("limit", "50"), query.get("free", "false")
    if not (limit.isascii() and limit.isdecimal() and 1 <= int(limit[:9]) <= MOST):
        raise UsageError(f"limit={limit[:30]!r}", hint=f"Give a number from 1 to {MOST}.")
    if free not in ("true", "false"):
        raise UsageError(f"free={free[:30]!r}", hint="Give true or false.")
    after = query.get("after", "0:")
    time, colon, decision_id = after.partition(":")
    if not (colon and time.isascii() and time.isdecimal() and len(time) <= 15):
        raise UsageError(f"after={after[:60]!r}", hint="Give back what a page told as its next.")
    action, holder = query.get("action"), query.get("claimed_by")
    return Wanted(int(limit), (int(time), decision_id), action, holder, free == "true")


async def _body(request: Request, kind: type[_Body]) -> _Body:
    """A request's body as the type says; no body is an empty object."""
    data = await read_body(request, BODY_LIMIT, _HINT)
    value = parse_object(data) if data.strip() else {}
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as e:
        reason, _, place = str(e).partition(" - at `$")
        raise _invalid(place.rstrip("`").replace(".", "/"), reason) from None


def _invalid(pointer: str, reason: str) -> InputError:
    return InvalidRequest(
        "the request breaks its schema; `errors` names the place",
        violations=(Violation(pointer, reason),),
    )


def _check_time(occurred_at: int, now: int, event: Mapping[str, Any] | None) -> None:
    earliest = EARLIEST_MS if event is None else event["event_time"]
    if not earliest <= occurred_at <= now + FUTURE_TOLERANCE_MS:
        raise _invalid(
            "/occurred_at", f"{occurred_at} is not from {earliest}, the event's time, to now"
        )


def _key(request: Request) -> str | None:
    key = idempotency_key(headers_of(request.scope))
    if key is not None and not (0 < len(key) <= _KEY_LIMIT and key.isascii() and key.isprintable()):
        raise InputError(
            "the Idempotency-Key is unfit", hint=f"Use 1 to {_KEY_LIMIT} printable characters."
        )
    return key


def _by(who: Credential, reviewer: str | None) -> str:
    return who.key_id if reviewer is None else f"{who.key_id}/{reviewer}"
