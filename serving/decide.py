"""The path of one decision: body -> event -> windows -> features -> score -> action -> record.

No HTTP and no Ray here: a decision is the same whoever asks for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from raypipe.aborts import reach
from raypipe.clock import Clock
from raypipe.errors import Conflict, EventLost, InputError, Unavailable, Violation
from raypipe.events.body import parse_object
from raypipe.events.schema import EventType, canonical_json
from raypipe.ledger.record import (
    WORKER_AWAY,
    DecisionRecord,
    Exposed,
    OwnerOffsets,
    Reason,
    decision_id,
    decode,
)
from raypipe.policy.lists import EMPTY, Lists
from raypipe.policy.policy import Action, Decides, Verdict, failed
from raypipe.vector.assemble import FEATURE_VALUE
from serving.deadlines import Budget
from serving.presence import Presence

Vector = npt.NDArray[np.float32]

_log = logging.getLogger("raypipe.serving")


class Observation(Protocol):
    """What a worker knows about an event: its place, its window values, its decision if any."""

    @property
    def offset(self) -> int:
        """Place in the log."""

    @property
    def windows(self) -> bytes:
        """Window values before the event counted, little-endian float64."""

    @property
    def own(self) -> bytes:
        """What the worker that has the whole event knows it by when its decision is recorded."""

    @property
    def owner_offsets(self) -> OwnerOffsets:
        """Places of the event in the logs of several workers; unset for one."""

    @property
    def decision(self) -> bytes | None:
        """The encoded decision record when the event was decided before."""

    @property
    def event(self) -> Mapping[str, Any]:
        """The event as it was stored first."""


class Worker(Protocol):
    """Owner of the log and of the window state; raises Conflict, EventLost and Unavailable."""

    async def observe(self, event: dict[str, Any], body_hash: bytes) -> Observation:
        """Append the event and read its windows; the same event id again gives the same answer."""

    async def record(self, record: DecisionRecord, own: bytes) -> DecisionRecord:
        """Store a decision about an event known by ``own`` durably; the stored one: the first
        wins."""

    async def decision(self, tenant: str, decision_id: str) -> DecisionRecord | None:
        """A tenant's stored decision."""

    async def stats(self) -> dict[str, float]:
        """Figures about the worker; of several, their sums, once all have answered."""

    async def figures(self, within_s: float) -> Sequence[Mapping[str, float] | None]:
        """Figures of each worker; None for one that does not answer in time."""


@asynccontextmanager
async def deadline(seconds: float) -> AsyncIterator[None]:
    """Raises Unavailable when what is inside takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise Unavailable(
            f"the worker did not answer within {max(seconds, 0):.3g} s",
            hint="Retry; an event counts once however often its event_id is sent.",
        ) from None


class Validator(Protocol):
    """Checks a client's body against the declared event type."""

    def check(self, body: dict[str, Any], tenant: str, received_at: int) -> dict[str, Any]:
        """The event with every column; raises InputError with all violations."""


class Known(Protocol):
    """Profile values of an event's keys."""

    @property
    def values(self) -> Sequence[float]:
        """In the order of ``Project.profile_names``; NaN where nothing is known."""

    @property
    def times(self) -> tuple[int, ...]:
        """By declared profile: the midnight that its values are of, milliseconds; -1 for none."""


class Profiles(Protocol):
    """The online store of profiles."""

    async def read(self, event: Mapping[str, Any]) -> Known | None:
        """What is known of the event's keys; None when the store doesn't answer."""


class NoProfiles:
    """Of a project that declares none."""

    values = ()
    times = ()

    async def read(self, event: Mapping[str, Any]) -> NoProfiles:
        """Nothing is known, and nothing is missing."""
        return self


class Features(Protocol):
    """Builds the feature vector of the model."""

    def row(self, event: Mapping[str, Any], windows: bytes, profiles: Sequence[float]) -> Vector:
        """float32 [features]."""


class Ways(NamedTuple):
    """How a model is computed here, as the metric names it."""

    scores: str
    reasons: str


class Scorer(Protocol):
    """A loaded model. An object is used by one thread."""

    @property
    def ways(self) -> Ways:
        """By what it scores and finds reasons."""

    def score(self, row: Vector) -> float:
        """A probability."""

    def reasons(self, row: Vector) -> tuple[Reason, ...]:
        """What raised the score most, strongest first."""


class KnownLists(Protocol):
    """The lists of every tenant, as this process knows them."""

    def of(self, tenant: str) -> Lists:
        """A tenant's lists; not read anew for it."""


class NoLists:
    """Of a policy that reads none."""

    def of(self, tenant: str) -> Lists:
        """Nothing is on a list."""
        return EMPTY


NO_LISTS = NoLists()


@dataclass(frozen=True)
class Judge:
    """One immutable set of versions that decides: features, model, policy. Lists may change."""

    features: Features
    scorer: Scorer
    model: str
    model_sha256: str
    policy: Decides
    definition_hash: str
    lists: KnownLists = NO_LISTS

    def judge(
        self,
        seen: Observation,
        profiles: Known | None,
        clock: Clock,
        experiment: str | None = None,
        arm: str | None = None,
        exposed: tuple[Exposed, ...] = (),
        degraded_by: tuple[str, ...] = (),
    ) -> DecisionRecord:
        """Decide about an observed event, as an arm of an experiment if there is one.

        A model that fails, or profiles that can't be read, are never a low score. ``degraded_by``
        is as the record has it.
        """
        row: Vector | None = None
        score: float | None = None
        reasons: tuple[Reason, ...] = ()
        broken = False
        try:
            if profiles is not None:
                row = self.features.row(seen.event, seen.windows, profiles.values)
                score = self.scorer.score(row)
        except Exception:  # noqa: BLE001 - whatever fails in a model, the policy's on_error answers
            _log.exception("model %s failed on event %s", self.model, seen.event["event_id"])
        if score is not None and not math.isfinite(score):
            _log.error("model %s gave %s to %s", self.model, score, seen.event["event_id"])
            score = None
        event = seen.event
        lists = self.lists.of(event["tenant"])
        decided_at = clock.now_ms()
        try:
            away = WORKER_AWAY in degraded_by
            verdict = self.policy.decide(score, event, row, lists, decided_at, away)
        except Exception:  # noqa: BLE001 - whatever fails in a rule, on_error answers
            _log.exception("policy %s failed on event %s", self.policy.id, event["event_id"])
            verdict = failed(self.policy.on_error)
        if row is not None and verdict.action is not Action.APPROVE and not verdict.degraded:
            try:
                reasons = self.scorer.reasons(row)
            except Exception:  # noqa: BLE001 - the action stands; that it is unexplained is recorded
                _log.exception("no reasons from %s for %s", self.model, event["event_id"])
                broken = True
        return DecisionRecord(
            decision_id=decision_id(event["tenant"], event["event_id"]),
            tenant=event["tenant"],
            event_id=event["event_id"],
            event_offset=seen.offset,
            event_time=event["event_time"],
            received_at=event["received_at"],
            decided_at=decided_at,
            model=self.model,
            model_sha256=self.model_sha256,
            policy=self.policy.id,
            policy_sha256=self.policy.sha256,
            definition_hash=self.definition_hash,
            features=b"" if row is None else row.astype(FEATURE_VALUE, copy=False).tobytes(),
            score=score,
            action=verdict.action.value,
            reasons=(*_said(verdict), *map(self.worded, reasons)),
            rule_hits=verdict.rules,
            experiment=experiment,
            degraded=verdict.degraded or broken or bool(degraded_by),
            profile_times=() if profiles is None else profiles.times,
            owner_offsets=seen.owner_offsets,
            codes=verdict.codes,
            segment=verdict.segment,
            lists=lists.version if self.policy.lists else "",
            list_hits=verdict.list_hits,
            degraded_by=degraded_by,
            arm=arm,
            exposures=exposed or msgspec.UNSET,
        )

    def worded(self, reason: Reason) -> Reason:
        """A reason of the model's with the policy's code and words for its feature."""
        code, words = self.policy.words(reason.feature)
        return Reason(code, reason.feature, reason.contribution, words)


def _said(verdict: Verdict) -> list[Reason]:
    """The rules that fired and say why; thresholds and on_error have no words of their own."""
    return [Reason(h.code, "", 0.0, h.words) for h in verdict.hits if h.words]


class Chooser(Protocol):
    """Several judges; a serving.panel.Panel is one."""

    def choose(
        self, event: Mapping[str, Any]
    ) -> tuple[Judge, str | None, str | None, tuple[Exposed, ...]]:
        """Who decides about an event: the judge, the salt and the arm while models share the
        decisions, and the arms of declared experiments."""


class Onlookers(Protocol):
    """Whoever judges too and decides nothing; a serving.shadows.Shadows does."""

    def offer(self, record: DecisionRecord, seen: Observation, profiles: Known | None) -> None:
        """Tell of a decision that was just made; returns at once."""


class Decided(NamedTuple):
    """A stored decision and whether it was there before this request."""

    record: DecisionRecord
    replayed: bool


class Away(Protocol):
    """What decides while the worker is away; a serving.fallback.Fallback does."""

    @property
    def presence(self) -> Presence:
        """Whether the worker is there."""

    def patience(self, left_s: float) -> float:
        """How long a request with so much time waits for the worker; 0: not at all."""

    def told(self, event: Mapping[str, Any], body_hash: bytes) -> DecisionRecord | None:
        """What a client was told about an event that the log may not have yet."""

    async def decide(
        self,
        event: dict[str, Any],
        body_hash: bytes,
        judging: Callable[[Observation, Known | None, tuple[str, ...]], DecisionRecord],
        profiles: Profiles,
        mine: DecisionRecord | None,
    ) -> Decided:
        """A decision that is durable on this node; ``mine`` was sent to the worker before."""


@dataclass(slots=True)
class Attempt:
    """What became of a request so far."""

    event: dict[str, Any]
    body_hash: bytes
    mine: DecisionRecord | None = None
    """A decision that was sent to the worker: it may be recorded."""


class Decider:
    """Answers requests for decisions: validates, observes, judges, records.

    Args:
        judge: decides, where there is no ``chooser`` or it chooses this one.
        deadline_s: budget of a request that brings none.
        fallback: what decides while the worker is away; without it such requests are refused.
    """

    def __init__(
        self,
        event: EventType,
        validator: Validator,
        worker: Worker,
        judge: Judge,
        clock: Clock,
        deadline_s: float,
        profiles: Profiles | None = None,
        fallback: Away | None = None,
        chooser: Chooser | None = None,
        onlookers: Onlookers | None = None,
    ) -> None:
        self.judge = judge
        self._fallback = fallback
        self._chooser = chooser
        self._onlookers = onlookers
        self._profiles: Profiles = profiles or NoProfiles()
        self._client_names = tuple(f.name for f in event.client_fields)
        self._validator = validator
        self._worker = worker
        self._clock = clock
        self._deadline_s = deadline_s

    @property
    def alone(self) -> bool:
        """Whether it decides also while the worker is away."""
        return self._fallback is not None

    async def decide(
        self,
        tenant: str,
        body: bytes,
        idempotency_key: str | None,
        budget: Budget | None = None,
    ) -> Decided:
        """The recorded decision about the event in ``body``.

        Args:
            budget: the request's time, of which some may have passed; the deadline by default.

        Raises MalformedBody and InputError (the body is bad), Conflict (its event_id came with
        another body), Unavailable (nothing was answered within the budget; a retry is safe).
        """
        budget = budget or Budget(self._deadline_s)
        received_at = self._clock.now_ms()
        event = self._event(parse_object(body), tenant, received_at, idempotency_key)
        attempt = Attempt(event, self.body_hash(event))
        fallback = self._fallback
        if fallback is None:
            async with deadline(budget.left):
                return await self._ask(attempt)
        patience = fallback.patience(budget.left)
        if patience > 0:
            try:
                async with asyncio.timeout(patience) as limit:
                    with fallback.presence.asking(limit):
                        return await self._ask(attempt)
            except (TimeoutError, Unavailable) as e:
                fallback.presence.in_vain()
                _log.info("deciding without the worker: %s", e or "no answer in time")
        async with deadline(budget.left):
            return await fallback.decide(
                event, attempt.body_hash, self._judged, self._profiles, attempt.mine
            )

    def _judged(
        self, seen: Observation, profiles: Known | None, degraded_by: tuple[str, ...] = ()
    ) -> DecisionRecord:
        if self._chooser is None:
            return self.judge.judge(seen, profiles, self._clock, degraded_by=degraded_by)
        judge, experiment, arm, exposed = self._chooser.choose(seen.event)
        return judge.judge(seen, profiles, self._clock, experiment, arm, exposed, degraded_by)

    async def _ask(self, attempt: Attempt) -> Decided:
        """The decision by way of the worker."""
        while True:
            try:
                return await self._once(attempt)
            except EventLost as e:
                attempt.mine = None  # the worker says that it has not recorded it
                _log.info("again: %s", e.detail)

    async def _once(self, attempt: Attempt) -> Decided:
        reach("serving.before_observe")
        event, fallback = attempt.event, self._fallback
        told = None if fallback is None else fallback.told(event, attempt.body_hash)
        known = asyncio.ensure_future(self._profiles.read(event))
        try:
            seen = await self._observe(event, attempt.body_hash)
            if seen.decision is not None:
                return Decided(decode(seen.decision), True)
            reach("serving.after_observe")
            if told is not None:
                return Decided(await self._worker.record(placed(told, seen), seen.own), True)
            profiles = await known
        finally:
            known.cancel()
        attempt.mine = mine = self._judged(seen, profiles)
        stored = await self._worker.record(mine, seen.own)
        reach("serving.after_record")
        if self._onlookers is not None and stored == mine:
            self._onlookers.offer(stored, seen, profiles)
        return Decided(stored, stored != mine)

    async def _observe(self, event: dict[str, Any], body_hash: bytes) -> Observation:
        try:
            return await self._worker.observe(event, body_hash)
        except Conflict as e:
            raise Conflict(
                e.detail,
                hint="An event_id names one event for good: send the same body to get its "
                "decision, or a new event under a new id.",
            ) from None

    def _event(
        self, body: dict[str, Any], tenant: str, received_at: int, key: str | None
    ) -> dict[str, Any]:
        mismatch: tuple[Violation, ...] = ()
        if key is not None and body.setdefault("event_id", key) != key:
            mismatch = (
                Violation("/event_id", "differs from the Idempotency-Key header", "mismatch"),
            )
        try:
            event = self._validator.check(body, tenant, received_at)
        except InputError as e:
            raise type(e)(e.detail, hint=e.hint, violations=(*e.violations, *mismatch)) from None
        if mismatch:
            raise InputError("the event id is given twice, differently", violations=mismatch)
        return event

    def body_hash(self, event: Mapping[str, Any]) -> bytes:
        """sha256 of what the client said, whatever the order, the spaces and the absent fields.

        Absent fields don't count, so that a field declared later changes no hash of a retry.
        """
        given = {n: event[n] for n in self._client_names if event[n] is not None}
        return hashlib.sha256(canonical_json(given)).digest()


def placed(told: DecisionRecord, seen: Observation) -> DecisionRecord:
    """A decision that was answered before its event was in the log, now that it is."""
    return msgspec.structs.replace(
        told, event_offset=seen.offset, owner_offsets=seen.owner_offsets, spilled=True
    )
