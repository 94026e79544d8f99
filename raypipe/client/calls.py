"""Requests without a connection: what is sent for a call, and how its answer is read."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import msgspec

from raypipe.client.answers import (
    Decision,
    DecisionDetail,
    KeyFeatures,
    Outcome,
    Sent,
    TableRows,
)
from raypipe.client.refusals import Problem, error
from raypipe.errors import InputError, UsageError

Event = Mapping[str, Any]
A = TypeVar("A")

BATCH_ROWS = 500
EVENT_ROWS = 5_000
CHUNK_BYTES = 2 * 2**20
"""Bodies of several rows have at most so many bytes, or one row."""

DEADLINE = "X-Deadline-Ms"
SERVERS_SHARE = 0.9
"""Of the time that is left: the ways there and back take some."""

_LINES = {"Content-Type": "application/x-ndjson"}
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Call(Generic[A]):
    """A request that may be sent again, and a reader of what comes back."""

    method: str
    path: str
    read: Callable[[bytes], A]
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    hurries: bool = False
    """Whether the server is told of the time that is left: it may answer with less."""

    def headers_within(self, left_s: float) -> Mapping[str, str]:
        """The headers of a try that may take so long."""
        if not self.hurries:
            return self.headers
        return {**self.headers, DEADLINE: str(max(1, int(1_000 * SERVERS_SHARE * left_s)))}


def decide(event: Event, explain: bool) -> Call[Decision]:
    """An event without ``event_id`` gets one here, so that every try has the same."""
    return Call(
        "POST",
        "/v1/decisions",
        msgspec.json.Decoder(Decision).decode,
        _explained(explain),
        {"Content-Type": "application/json"},
        _encode(_known(event)),
        hurries=True,
    )


def decide_batch(
    events: Iterable[Event], explain: bool, rows: int
) -> Iterator[Call[list[Outcome]]]:
    """One call for every ``rows`` events."""
    for lines in _chunks(map(_known, events), rows):
        yield Call(
            "POST",
            "/v1/decisions:batch",
            _outcomes,
            _explained(explain),
            _LINES,
            b"\n".join(lines),
            hurries=True,
        )


def send_events(
    events: Iterable[Event], kind: str | None, rows: int, key: str | None
) -> Iterator[tuple[int, Call[Sent]]]:
    """Number of its first event and call, for every ``rows`` events.

    Chunk n of the call has the idempotency key ``key``-n; by default one that is drawn here.
    """
    key, first = key or uuid.uuid4().hex, 0
    for number, lines in enumerate(_chunks(events, rows)):
        yield (
            first,
            Call(
                "POST",
                "/v1/events",
                msgspec.json.Decoder(Sent).decode,
                {} if kind is None else {"type": kind},
                _LINES | {"Idempotency-Key": f"{key}-{number}"},
                b"\n".join(lines),
            ),
        )
        first += len(lines)


def add(total: Sent, chunk: Sent, first: int) -> Sent:
    """Both together; the chunk's rows are counted from ``first``."""
    moved = (msgspec.structs.replace(e, row=e.row + first) for e in chunk.exceptions)
    return Sent(
        total.accepted + chunk.accepted,
        total.duplicates + chunk.duplicates,
        total.refused + chunk.refused,
        (*total.exceptions, *moved),
    )


def decision(decision_id: str, explain: bool) -> Call[DecisionDetail]:
    """A recorded decision."""
    return Call(
        "GET",
        f"/v1/decisions/{_segment(decision_id)}",
        msgspec.json.Decoder(DecisionDetail).decode,
        _explained(explain),
    )


def features(entity: str, key: str) -> Call[KeyFeatures]:
    """Windows and profiles of a key."""
    return Call(
        "GET",
        f"/v1/features/{_segment(entity)}/{_segment(key)}",
        msgspec.json.Decoder(KeyFeatures).decode,
    )


def table(name: str, since: int | None, until: int | None) -> Call[TableRows]:
    """Rows of a table; times are ms UTC."""
    given = {"since": since, "until": until}
    return Call(
        "GET",
        f"/v1/tables/{_segment(name)}",
        msgspec.json.Decoder(TableRows).decode,
        {name: str(value) for name, value in given.items() if value is not None},
    )


def _explained(explain: bool) -> dict[str, str]:
    return {"explain": "true"} if explain else {}


def _known(event: Event) -> Event:
    return event if "event_id" in event else {**event, "event_id": uuid.uuid4().hex}


def _segment(text: str) -> str:
    if not text:
        raise UsageError("an empty name or id was asked for")
    return quote(text, safe="")


def _chunks(events: Iterable[Event], rows: int) -> Iterator[list[bytes]]:
    if rows < 1:
        raise UsageError(f"chunks of {rows} rows", hint="At least one.")
    lines: list[bytes] = []
    size = 0
    for event in events:
        line = _encode(event)
        if lines and (len(lines) == rows or size + len(line) > CHUNK_BYTES):
            yield lines
            lines, size = [], 0
        lines.append(line)
        size += len(line) + 1
    if lines:
        yield lines


class _Row(msgspec.Struct):
    status: int
    decision: Decision | None = None
    problem: Problem | None = None


class _Batch(msgspec.Struct):
    results: list[_Row]


_batch = msgspec.json.Decoder(_Batch)


def _outcomes(body: bytes) -> list[Outcome]:
    return [
        Outcome(row.decision, None if row.problem is None else error(row.problem, row.status))
        for row in _batch.decode(body).results
    ]


def read(call: Call[A], body: bytes) -> A:
    """The answer; raises InputError when it is none of raypipe's."""
    try:
        return call.read(body)
    except msgspec.DecodeError as e:
        raise InputError(
            f"{call.method} {call.path} was answered by something that is no raypipe: {e}",
            hint="Check the URL.",
        ) from e
