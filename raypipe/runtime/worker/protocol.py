"""Frames between replicas and a worker: a length, then one MessagePack message.

Requests carry an id that the reply repeats; replies may overtake each other.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from raypipe.ledger.exposure import Counted
from raypipe.ledger.outcome import Outcome
from raypipe.ledger.record import OwnerOffsets
from raypipe.runtime.worker.reviews import Review, Wanted

FRAME_LIMIT = 128 * 1024 * 1024
"""Above what a bulk request of the largest allowed body becomes."""

SEVERAL_LOGS = -1
"""Instead of a first offset, of rows that lie in several logs."""

_HEAD = struct.Struct("<I")


class Observe(msgspec.Struct, tag="observe", array_like=True, frozen=True):
    """Take an event in, once; a decision event (kind None) also reads its windows."""

    id: int
    event: dict[str, Any]
    body_hash: bytes
    kind: str | None = None


class Record(msgspec.Struct, tag="record", array_like=True, frozen=True):
    """Make a decision durable; ``record`` is ledger.record.encode's bytes.

    ``windows`` are the values that it was made from, as Observed gave them.
    """

    id: int
    record: bytes
    windows: bytes


class Tell(msgspec.Struct, tag="tell", array_like=True, frozen=True):
    """Keep an answer that a client got and that is not the decision about its event.

    ``record`` is ledger.record.encode's bytes, ``event`` JSON, ``reason`` why it is not.
    """

    id: int
    record: bytes
    event: str
    reason: str


class Lookup(msgspec.Struct, tag="lookup", array_like=True, frozen=True):
    """Ask for a stored decision."""

    id: int
    tenant: str
    decision_id: str


class ReadKey(msgspec.Struct, tag="read_key", array_like=True, frozen=True):
    """Ask for the window values of one key of an entity as of ``now``, ms UTC."""

    id: int
    tenant: str
    entity: str
    key: str
    now: int


class ReadTable(msgspec.Struct, tag="read_table", array_like=True, frozen=True):
    """Ask for the rows of a table whose windows overlap [since, until), as of ``now``, ms UTC."""

    id: int
    tenant: str
    table: str
    since: int
    until: int
    now: int


class Ingest(msgspec.Struct, tag="ingest", array_like=True, frozen=True):
    """Take validated rows of a bulk request in.

    ``group`` is log.codec.encode_group's bytes, a part's schema being the number of its event type
    in the project, whose definition hash must be the worker's. ``refused`` are (event type, body,
    reasons) for the quarantine, ``source`` says there where they came from.
    """

    id: int
    definition_hash: str
    tenant: str
    received_at: int
    source: str
    body_hash: bytes
    key: str | None
    refused: list[tuple[str, str, list[str]]]
    group: bytes


class TakeChanges(msgspec.Struct, tag="take_changes", array_like=True, frozen=True):
    """Ask for at most ``limit`` keys that changed; ``written`` says that the last ones are online,
    else they come again."""

    id: int
    limit: int
    written: bool


class UsePatterns(msgspec.Struct, tag="use_patterns", array_like=True, frozen=True):
    """Run these patterns, given by their canonical definitions, instead of the others."""

    id: int
    texts: list[str]


class HearOne(msgspec.Struct, tag="hear_one", array_like=True, frozen=True):
    """Take in the part that concerns this worker of an event that another one has accepted.

    ``primary`` is that worker's partition, ``offset`` the event's place there.
    """

    id: int
    primary: int
    offset: int
    kind: str
    part: dict[str, Any]
    body_hash: bytes


class Hear(msgspec.Struct, tag="hear", array_like=True, frozen=True):
    """Take in all that concerns this worker of the events in [first, end) of another's log.

    ``ones`` are (offset, event type, part, body hash) of events that came alone, ``group`` is
    log.codec.encode_group's bytes of the projections of others, with the numbers of event types as
    Ingest has them.
    """

    id: int
    definition_hash: str
    primary: int
    first: int
    end: int
    ones: list[tuple[int, str, dict[str, Any], bytes]]
    group: bytes


class AskHeard(msgspec.Struct, tag="ask_heard", array_like=True, frozen=True):
    """Ask up to where this worker has heard of another's events."""

    id: int
    primary: int


class EventOf(msgspec.Struct, tag="event_of", array_like=True, frozen=True):
    """Ask for the event that a decision is about."""

    id: int
    tenant: str
    decision_id: str


class AskExposures(msgspec.Struct, tag="ask_exposures", array_like=True, frozen=True):
    """Ask how often each arm of an experiment, ``name@version``, was decided with."""

    id: int
    tenant: str
    experiment: str


class ListReviews(msgspec.Struct, tag="list_reviews", array_like=True, frozen=True):
    """Ask for decisions that wait for a person."""

    id: int
    tenant: str
    wanted: Wanted


class ClaimReview(msgspec.Struct, tag="claim_review", array_like=True, frozen=True):
    """Have somebody work on a decision that waits, for ``lease_ms``."""

    id: int
    tenant: str
    decision_id: str
    holder: str
    lease_ms: int


class Report(msgspec.Struct, tag="report", array_like=True, frozen=True):
    """Make what became known of a decision durable."""

    id: int
    outcome: Outcome


class Stats(msgspec.Struct, tag="stats", array_like=True, frozen=True):
    """Ask for counters and gauges."""

    id: int


class Verify(msgspec.Struct, tag="verify", array_like=True, frozen=True):
    """Ask whose an API key is; ``digest`` is the hash of its text, which itself stays away."""

    id: int
    key_id: str
    digest: bytes


Request = (
    Observe
    | Record
    | Tell
    | Lookup
    | ReadKey
    | ReadTable
    | Ingest
    | TakeChanges
    | UsePatterns
    | HearOne
    | Hear
    | AskHeard
    | EventOf
    | AskExposures
    | ListReviews
    | ClaimReview
    | Report
    | Stats
    | Verify
)


class Observed(msgspec.Struct, tag="observed", array_like=True, frozen=True):
    """The event's place in the log and the window values before it.

    For a retry: the stored event, its first values, and its decision if there is one.
    """

    id: int
    offset: int
    windows: bytes
    event: dict[str, Any]
    decision: bytes | None

    @property
    def own(self) -> bytes:
        """What the worker that has the event knows it by when its decision is recorded."""
        return self.windows

    @property
    def owner_offsets(self) -> OwnerOffsets:
        """Of one worker: nothing besides ``offset``."""
        return msgspec.UNSET


class Recorded(msgspec.Struct, tag="recorded", array_like=True, frozen=True):
    """The decision that is stored now: the one that came first; None if that is the one sent."""

    id: int
    record: bytes | None


class Told(msgspec.Struct, tag="told", array_like=True, frozen=True):
    """The answer is kept."""

    id: int


class Found(msgspec.Struct, tag="found", array_like=True, frozen=True):
    """A stored decision, or None."""

    id: int
    record: bytes | None


class KeyValues(msgspec.Struct, tag="key_values", array_like=True, frozen=True):
    """Window values by column; NaN where there is none."""

    id: int
    values: dict[str, float]


class Ingested(msgspec.Struct, tag="ingested", array_like=True, frozen=True):
    """``accepted`` rows took the offsets from ``first_offset`` on; ``duplicates`` are the numbers
    of the others among the rows that came, little-endian int32. ``received_at`` is the request's
    own, or that of the first request with its key."""

    id: int
    received_at: int
    first_offset: int
    accepted: int
    duplicates: bytes


class Changed(msgspec.Struct, tag="changed", array_like=True, frozen=True):
    """Keys of a view after their newest events, as an Arrow IPC stream of WindowEngine.latest's
    table; empty when nothing changed."""

    id: int
    view: str
    rows: bytes


class TableRows(msgspec.Struct, tag="table_rows", array_like=True, frozen=True):
    """Rows of a table, oldest first, and its watermark, None before the first event."""

    id: int
    rows: list[dict[str, Any]]
    watermark: int | None


class PatternsUsed(msgspec.Struct, tag="patterns_used", array_like=True, frozen=True):
    """Names of the patterns that run now."""

    id: int
    names: list[str]


class HeardOne(msgspec.Struct, tag="heard_one", array_like=True, frozen=True):
    """The part's place in this worker's log, and the window values of its keys before it."""

    id: int
    offset: int
    windows: bytes


class Heard(msgspec.Struct, tag="heard", array_like=True, frozen=True):
    """All that concerns this worker of the other's events before ``end`` is durable here."""

    id: int
    end: int


class DecidedEvent(msgspec.Struct, tag="decided_event", array_like=True, frozen=True):
    """The event that a decision is about; None when retention deleted it."""

    id: int
    event: dict[str, Any] | None


class Exposures(msgspec.Struct, tag="exposures", array_like=True, frozen=True):
    """The arms that there were exposures of."""

    id: int
    arms: list[Counted]


class Reviews(msgspec.Struct, tag="reviews", array_like=True, frozen=True):
    """Decisions that wait, oldest first, and how many do in all."""

    id: int
    reviews: list[Review]
    open: int


class Claimed(msgspec.Struct, tag="claimed", array_like=True, frozen=True):
    """The review as its holder has it now."""

    id: int
    review: Review


class Reported(msgspec.Struct, tag="reported", array_like=True, frozen=True):
    """The statement that is stored now: the one that came first under its id."""

    id: int
    outcome: Outcome


class StatsReply(msgspec.Struct, tag="stats_reply", array_like=True, frozen=True):
    """Counters and gauges by name."""

    id: int
    values: dict[str, float]


class Verified(msgspec.Struct, tag="verified", array_like=True, frozen=True):
    """The tenant and the scopes of a key; None for one that is unknown, wrong or revoked."""

    id: int
    tenant: str | None
    scopes: tuple[str, ...] = ()


class Failed(msgspec.Struct, tag="failed", array_like=True, frozen=True):
    """A refusal; ``code`` is the error's code."""

    id: int
    code: str
    detail: str
    hint: str = ""


Reply = (
    Observed
    | Recorded
    | Told
    | Found
    | KeyValues
    | TableRows
    | Ingested
    | Changed
    | PatternsUsed
    | HeardOne
    | Heard
    | DecidedEvent
    | Exposures
    | Reviews
    | Claimed
    | Reported
    | StatsReply
    | Verified
    | Failed
)

encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(Request).decode
decode_reply = msgspec.msgpack.Decoder(Reply).decode


def frame(message: Request | Reply) -> bytes:
    """One message with its length before it."""
    body = encode(message)
    return _HEAD.pack(len(body)) + body


class FrameBuffer:
    """Cuts a byte stream into message bodies; raises ValueError on an absurd length."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Add received bytes; returns the bodies that are complete now."""
        self._data += data
        bodies = []
        at = 0
        while len(self._data) - at >= _HEAD.size:
            (size,) = _HEAD.unpack_from(self._data, at)
            if size > FRAME_LIMIT:
                raise ValueError(f"frame of {size} bytes, limit {FRAME_LIMIT}")
            if len(self._data) - at - _HEAD.size < size:
                break
            at += _HEAD.size
            bodies.append(bytes(self._data[at : at + size]))
            at += size
        del self._data[:at]
        return bodies
