"""Quarantined rows once more: read again by today's declaration, the good ones sent again.

What is about to be sent is noted first, with its bytes. A retry that was killed anywhere sends
those bytes again under the same key, before anything else, and the running system answers what it
answered then: so no row counts twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raypipe.aborts import reach
from raypipe.clock import Clock
from raypipe.errors import Conflict, InputError, MalformedBody, UsageError
from raypipe.events.body import parse_object
from raypipe.events.load import SOURCE as LOADS
from raypipe.events.quarantine import Quarantine, RefusedRow, Selection, Sending, State
from raypipe.events.row import RowValidator
from raypipe.events.schema import Kind
from raypipe.ingest.lines import TYPE
from raypipe.ingest.media import Media
from raypipe.project import Project
from raypipe.sources.batch import Batch, Send, Taken

BATCH_ROWS = 1_000

_WORDS = (Kind.STRING, Kind.CHOICE, Kind.CURRENCY)


@dataclass
class Outcome:
    """Rows of a retry by what became of them.

    ``resumed`` rows belonged to a retry that was broken off; they are among the others. ``refused``
    ones stay with new reasons. ``loads`` are rows of tables, which stay as they were.
    """

    accepted: int = 0
    duplicates: int = 0
    refused: int = 0
    loads: int = 0
    resumed: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def stayed(self) -> int:
        """Rows that are still open."""
        return self.refused + self.loads

    def refuse(self, why: Sequence[str]) -> None:
        """Count a row that stays."""
        self.refused += 1
        for reason in why:
            self.reasons[reason] = self.reasons.get(reason, 0) + 1


class Requeue:
    """Sends rows of one tenant again.

    Args:
        changes: fields to replace in every row, as ``changes_of`` reads them.
    """

    def __init__(
        self,
        quarantine: Quarantine,
        project: Project,
        tenant: str,
        currency: str,
        send: Send,
        clock: Clock,
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        self._quarantine = quarantine
        self._validators = {e.name: RowValidator(e, currency) for e in project.events}
        # With such a field in an event, no row names its type in it.
        self._typed = not any(TYPE in event for event in project.events)
        self._tenant = tenant
        self._send = send
        self._clock = clock
        self._changes = dict(changes or {})
        self.outcome = Outcome()

    def resume(self) -> None:
        """Finish what an earlier retry had begun."""
        for sending in self._quarantine.unfinished(self._tenant):
            self.outcome.resumed += len(sending.ids)
            self._finish(sending)

    def run(self, where: Selection) -> Iterator[int]:
        """Send the selected rows; gives how many more have been seen, after each batch.

        ``resume`` comes first. Raises what ``send`` raises; the rows that were not sent stay open.
        """
        # What is refused again comes back as a new row: that is for the next retry.
        newest = self._quarantine.rows(1, where=where)
        after, until = 0, newest[0].id if newest else 0
        while rows := self._quarantine.oldest(where, after, BATCH_ROWS, until):
            after = rows[-1].id
            good: dict[str, list[tuple[int, bytes]]] = {}
            bad: dict[int, list[str]] = {}
            for row in rows:
                if row.source.startswith(f"{LOADS} "):
                    self.outcome.loads += 1
                    continue
                try:
                    kind, line = self._read(row)
                except InputError as e:
                    why = [f"{v.pointer}: {v.reason}" for v in e.violations]
                    bad[row.id] = why or [f"/: {e.detail}"]
                    self.outcome.refuse(bad[row.id])
                else:
                    good.setdefault(kind, []).append((row.id, line))
            self._quarantine.explain(bad)
            for kind, lines in good.items():
                self._begin(kind, lines)
            yield len(rows)

    def _read(self, row: RefusedRow) -> tuple[str, bytes]:
        """The event type of a row and its line; raises InputError if it is still not good."""
        try:
            body = parse_object(row.body.encode())
        except MalformedBody as e:
            raise InputError(f"{e.detail}; such text can't be mended here") from None
        changes = dict(self._changes)
        kind: object = row.event_type
        if self._typed:
            kind = changes.pop(TYPE, None) or row.event_type or body.get(TYPE)
            if TYPE in self._changes or body.get(TYPE) == kind:
                body.pop(TYPE, None)
        if not isinstance(kind, str) or kind not in self._validators:
            raise InputError(f"{TYPE} must be one of " + ", ".join(self._validators))
        for name, value in changes.items():
            body[name] = value
            if value is None:
                del body[name]
        self._validators[kind].check(body, self._tenant, self._clock.now_ms())
        return kind, json.dumps(body, separators=(",", ":")).encode()

    def _begin(self, kind: str, lines: Sequence[tuple[int, bytes]]) -> None:
        ids = tuple(number for number, _ in lines)
        body = b"\n".join(line for _, line in lines)
        digest = hashlib.sha256(f"{kind} {ids} ".encode() + body).hexdigest()
        sending = Sending(f"quarantine-{ids[0]}-{digest[:40]}", kind, body, ids)
        if self._quarantine.begin(sending, self._tenant):
            reach("requeue.begun")
            self._finish(sending)

    def _finish(self, sending: Sending) -> None:
        batch = Batch(sending.key, sending.body, Media.LINES, sending.event_type, len(sending.ids))
        try:
            taken = self._send(batch)
        except Conflict as e:
            # The rows went in with a try whose answer can't be given again.
            taken = Taken(accepted=batch.rows)
            settled = dict.fromkeys(sending.ids, (State.RESOLVED, e.detail))
        except InputError as e:
            self._quarantine.end(sending.key, {})
            why = (f"/: {e.detail}",)
            self._quarantine.explain(dict.fromkeys(sending.ids, why))
            for _ in sending.ids:
                self.outcome.refuse(why)
            return
        else:
            settled = {
                number: _settled(place, taken, sending.key)
                for place, number in enumerate(sending.ids)
            }
        reach("requeue.sent")
        self._quarantine.end(sending.key, settled)
        self.outcome.accepted += taken.accepted
        self.outcome.duplicates += len(taken.duplicates)
        for reasons in taken.refused.values():
            self.outcome.refuse(reasons)


def _settled(place: int, taken: Taken, key: str) -> tuple[State, str]:
    if place in taken.refused:
        why = "; ".join(taken.refused[place])
        return State.REPLACED, f"refused again as a new row of request {key}: {why}"
    word = "a duplicate" if place in taken.duplicates else "accepted"
    return State.RESOLVED, f"{word} in request {key}"


def changes_of(assignments: Sequence[str], project: Project) -> dict[str, Any]:
    """Values to replace by field, out of FIELD=VALUE; an empty value takes the field away.

    Text is taken as it stands, other kinds as JSON. ``type`` names the event type, where no event
    has a field of that name. Raises UsageError for a field that no event type has.
    """
    kinds: dict[str, Kind] = {}
    for event in project.events:
        kinds |= {f.name: f.kind for f in event.client_fields}
    kinds.setdefault(TYPE, Kind.STRING)
    changes: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or name not in kinds:
            raise UsageError(
                f"--replace {assignment!r} is no FIELD=VALUE of a declared field",
                hint="Fields: " + ", ".join(sorted(kinds)),
            )
        changes[name] = _value(name, value, kinds[name])
    return changes


def _value(name: str, text: str, kind: Kind) -> Any:
    if not text:
        return None
    if kind in _WORDS:
        return text
    try:
        return json.loads(text)
    except ValueError:
        raise UsageError(
            f"--replace {name}={text}: a {kind.value} is written as in JSON",
            hint=f"For example {name}={'true' if kind is Kind.BOOLEAN else '1200'}.",
        ) from None
