"""The decisions that wait for a person: a projection of decisions, claims and outcomes."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.clock import DAY_MS
from raypipe.errors import Conflict, NotFound
from raypipe.ledger import record as ledger
from raypipe.ledger.outcome import (
    CLAIM,
    OUTCOME,
    Claim,
    Outcome,
    read_claims,
    read_outcomes,
)
from raypipe.log.port import DECISION, Chunk
from raypipe.runtime.worker.ids import PART

WAITING = ("review", "step_up")
"""Actions after which somebody has to look at the event."""

LAPSE_MS = 90 * DAY_MS
"""A decision leaves the queue without a verdict when another is made so long after it."""

_REVIEWS = b"reviews"
_OFFSET = b"offset"

Place = tuple[int, str]
"""When a decision was made, and its id: the order of the queue."""


class Review(msgspec.Struct, frozen=True, array_like=True):
    """A decision that waits; ``holder`` has it until ``held_until`` (ms UTC), 0 for nobody."""

    decision_id: str
    event_id: str
    action: str
    score: float | None
    model: str
    decided_at: int
    holder: str = ""
    held_until: int = 0

    @property
    def place(self) -> Place:
        """Its place in the queue."""
        return self.decided_at, self.decision_id

    def held(self, now_ms: int) -> bool:
        """Whether somebody has it now."""
        return now_ms < self.held_until


class Wanted(msgspec.Struct, frozen=True, array_like=True):
    """Which reviews to list: after a place in the queue, by action, by holder, free ones alone."""

    limit: int
    after: Place = (0, "")
    action: str | None = None
    holder: str | None = None
    free: bool = False


class ReviewQueue:
    """Of one partition. Not thread-safe.

    All that changes it is in the log, in order, and a record that comes twice changes nothing, so
    that a replay leaves the same queue.
    """

    def __init__(self) -> None:
        self._open: defaultdict[str, dict[str, Review]] = defaultdict(dict)
        self._order: defaultdict[str, list[Place]] = defaultdict(list)
        self._counts: Counter[tuple[str, str]] = Counter()
        self._newest = 0
        self.lapsed = 0
        self.counted = -1
        """Offset before which a restored state has counted all; -1 for none restored."""

    def decided(self, record: ledger.DecisionRecord) -> None:
        """A decision was made."""
        if record.action in WAITING:
            self._add(
                record.tenant,
                Review(
                    record.decision_id,
                    record.event_id,
                    record.action,
                    record.score,
                    record.model,
                    record.decided_at,
                ),
            )

    def claimed(self, claim: Claim) -> Review:
        """Somebody works on a decision that waits; raises KeyError if it doesn't."""
        review = msgspec.structs.replace(
            self._open[claim.tenant][claim.decision_id],
            holder=claim.holder,
            held_until=claim.held_until,
        )
        self._open[claim.tenant][claim.decision_id] = review
        return review

    def ended(self, outcome: Outcome) -> None:
        """It is known what the event was."""
        self._counts[outcome.action, outcome.outcome] += 1
        self._remove(outcome.tenant, outcome.decision_id)

    def find(self, tenant: str, decision_id: str) -> Review | None:
        """A decision that waits."""
        return self._open[tenant].get(decision_id)

    def require_free(self, tenant: str, decision_id: str, by: str, now_ms: int) -> Review:
        """A decision that waits and that nobody but ``by`` has; raises NotFound and Conflict."""
        review = self.find(tenant, decision_id)
        if review is None:
            raise NotFound(
                "no review of that id is open",
                hint="It was never one, somebody gave a verdict, or it lapsed.",
            )
        if review.held(now_ms) and review.holder != by:
            raise Conflict(
                f"{review.holder} works on it until {review.held_until}",
                hint="Take another one, or wait until the claim ends.",
            )
        return review

    def page(self, tenant: str, wanted: Wanted, now_ms: int) -> tuple[list[Review], int]:
        """Reviews that are wanted, oldest first, and how many are open in all."""
        order, known = self._order[tenant], self._open[tenant]
        found = []
        for place in order[bisect_right(order, wanted.after) :]:
            review = known[place[1]]
            if wanted.action not in (None, review.action):
                continue
            held = review.held(now_ms)
            if (wanted.free and held) or (
                wanted.holder is not None and not (held and review.holder == wanted.holder)
            ):
                continue
            found.append(review)
            if len(found) == wanted.limit:
                break
        return found, len(order)

    def replay(self, chunks: Sequence[Chunk]) -> None:
        """Logged rows of any kind, of one read; what a restored state has counted is left out."""
        for decisions in self._rows(chunks, DECISION):
            waits = pc.is_in(decisions.column("action"), pa.array(WAITING))
            for data in decisions.filter(waits).column("record").to_pylist():
                self.decided(ledger.decode(data))
        # Chunks of one read may interleave; a decision comes before its claims and its outcome.
        for claims in self._rows(chunks, CLAIM):
            for claim in read_claims(claims):
                if self.find(claim.tenant, claim.decision_id) is not None:
                    self.claimed(claim)
        for outcomes in self._rows(chunks, OUTCOME):
            for outcome in read_outcomes(outcomes):
                self.ended(outcome)

    def _rows(self, chunks: Sequence[Chunk], kind: str) -> Iterator[pa.RecordBatch]:
        for chunk in (c for c in chunks if c.kind == kind):
            yield chunk.batch.filter(pa.array(chunk.offsets >= self.counted))

    def _add(self, tenant: str, review: Review) -> None:
        if review.decision_id in self._open[tenant]:
            return
        self._open[tenant][review.decision_id] = review
        insort(self._order[tenant], review.place)
        self._newest = max(self._newest, review.decided_at)
        for other, order in self._order.items():
            while order and order[0][0] < self._newest - LAPSE_MS:
                self._remove(other, order[0][1])
                self.lapsed += 1

    def _remove(self, tenant: str, decision_id: str) -> None:
        review = self._open[tenant].pop(decision_id, None)
        if review is not None:
            order = self._order[tenant]
            del order[bisect_left(order, review.place)]

    def snapshot(self, offset: int) -> pa.Table:
        """All of it, for ``restore``, as of an offset."""
        rows = [(t, r) for t, of in self._open.items() for r in of.values()]
        counts = [[*key, n] for key, n in self._counts.items()]
        head = msgspec.json.encode([self._newest, self.lapsed, counts])
        table = pa.table(
            {
                "tenant": pa.array([t for t, _ in rows], pa.string()),
                "review": pa.array([msgspec.msgpack.encode(r) for _, r in rows], pa.binary()),
            }
        )
        return table.replace_schema_metadata(
            {PART: _REVIEWS, _OFFSET: str(offset).encode(), b"head": head}
        )

    def restore(self, table: pa.Table) -> bool:
        """Take over a snapshot; False if the table is something else."""
        metadata = table.schema.metadata or {}
        if metadata.get(PART) != _REVIEWS:
            return False
        newest, lapsed, counts = msgspec.json.decode(metadata[b"head"])
        for tenant, data in zip(*(c.to_pylist() for c in table.columns), strict=True):
            self._add(tenant, msgspec.msgpack.decode(data, type=Review))
        self._newest, self.lapsed = newest, lapsed
        self._counts = Counter({(action, outcome): n for action, outcome, n in counts})
        self.counted = int(metadata[_OFFSET])
        return True

    def stats(self, now_ms: int, deadline_ms: int) -> dict[str, float]:
        """Gauges: what is open, what is over its deadline, outcomes by action and truth."""
        overdue = sum(
            bisect_left(order, (now_ms - deadline_ms, "")) for order in self._order.values()
        )
        return {
            "reviews_open": float(sum(map(len, self._order.values()))),
            "reviews_overdue": float(overdue),
            "reviews_lapsed": float(self.lapsed),
            **{f"outcomes_{a}_{o}": float(n) for (a, o), n in self._counts.items()},
        }
