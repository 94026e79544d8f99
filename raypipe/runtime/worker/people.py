"""What people do with decisions: claims and outcomes, written with a worker's commits."""

from __future__ import annotations

import secrets

import msgspec

from raypipe.clock import Clock
from raypipe.errors import Conflict, NotFound
from raypipe.ledger.outcome import (
    CLAIM,
    OUTCOME,
    REVIEW,
    Claim,
    Outcome,
    claims_batch,
    outcomes_batch,
    read_outcomes,
)
from raypipe.ledger.record import DecisionRecord
from raypipe.log.port import Appended, EventLog
from raypipe.runtime.worker.reviews import Review, ReviewQueue, Wanted


class People:
    """Not thread-safe. What it was told to keep is written with the worker's next commit.

    Args:
        queue: counts each claim and outcome at once: a commit that fails ends the worker.
        review_ms: how soon a person should have looked at what waits for one.
    """

    def __init__(
        self, log: EventLog, partition: int, queue: ReviewQueue, clock: Clock, review_ms: int
    ) -> None:
        self._log = log
        self._partition = partition
        self._queue = queue
        self._clock = clock
        self._review_ms = review_ms
        self._claims: list[Claim] = []
        self._outcomes: dict[tuple[str, str], Outcome] = {}
        self._flying: dict[tuple[str, str], Outcome] = {}
        """Outcomes that are being written."""

    def page(self, tenant: str, wanted: Wanted) -> tuple[list[Review], int]:
        """A page of the decisions that wait for a person, and how many do."""
        return self._queue.page(tenant, wanted, self._clock.now_ms())

    def claim(self, tenant: str, decision_id: str, holder: str, lease_ms: int) -> Review:
        """Give a review to somebody, or longer to who has it.

        Raises NotFound when it isn't open and Conflict when somebody else has it.
        """
        now = self._clock.now_ms()
        self._queue.require_free(tenant, decision_id, holder, now)
        claim = Claim(
            claim_id=f"{decision_id}/{secrets.token_hex(8)}",
            tenant=tenant,
            decision_id=decision_id,
            holder=holder,
            claimed_at=now,
            held_until=now + lease_ms,
        )
        self._claims.append(claim)
        return self._queue.claimed(claim)

    def report(self, outcome: Outcome, record: DecisionRecord | None) -> Outcome:
        """Keep what became known of a decision; returns what was said first under its id.

        Args:
            record: the decision; None where there is none of that id.

        Raises NotFound without a decision, Conflict for the same id with another statement. A
        reviewer's also needs an open review that nobody else has: NotFound and Conflict.
        """
        key = outcome.tenant, outcome.outcome_id
        known = self._outcomes.get(key) or self._flying.get(key) or self._stored(*key)
        if known is not None:
            if known.said != outcome.said:
                raise Conflict(
                    "the Idempotency-Key came before with another statement",
                    hint="Send the same body to get the stored answer, or another key.",
                )
            return known
        if record is None:
            raise NotFound("there is no decision of that id", hint="Ids start with 'dec_'.")
        if outcome.source == REVIEW:
            now = self._clock.now_ms()
            self._queue.require_free(outcome.tenant, outcome.decision_id, outcome.by, now)
        made = msgspec.structs.replace(
            outcome, event_id=record.event_id, action=record.action, model=record.model
        )
        self._outcomes[key] = made
        self._queue.ended(made)
        return made

    def _stored(self, tenant: str, outcome_id: str) -> Outcome | None:
        found = self._log.find(self._partition, OUTCOME, tenant, outcome_id)
        return None if found is None else read_outcomes(found[1])[0]

    @property
    def dirty(self) -> bool:
        """Whether anything waits for a commit."""
        return bool(self._claims or self._outcomes)

    def take_off(self) -> list[Appended]:
        """What the next commit must append, after the decisions that it is about."""
        found: list[Appended] = []
        if self._claims:
            found.append((CLAIM, claims_batch(self._claims)))
        if self._outcomes:
            found.append((OUTCOME, outcomes_batch(list(self._outcomes.values()))))
        self._claims, self._flying, self._outcomes = [], self._outcomes, {}
        return found

    def land(self) -> None:
        """What ``take_off`` gave is in the log."""
        self._flying = {}

    def stats(self) -> dict[str, float]:
        """Gauges."""
        return self._queue.stats(self._clock.now_ms(), self._review_ms)
