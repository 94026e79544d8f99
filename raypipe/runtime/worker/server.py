"""The worker's data plane: one thread, its sockets, group commits without a timer.

A Unix socket serves the node; across nodes it is the same frames within TLS (``tls.py``).

Each round reads every waiting frame and works on all; what they ask to be durable is written beside
the next rounds, and answered then. What came during the last commit is the next group, so the group
grows with the load by itself; ``gathering`` says for whom a commit waits shortly. Bulk requests
queue, and a group takes a bounded number of their rows, so that decisions don't wait for them long.
"""

from __future__ import annotations

import logging
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import msgspec
import pyarrow as pa

from raypipe.aborts import reach
from raypipe.errors import DeclarationError, RaypipeError
from raypipe.ledger import record as ledger
from raypipe.log.codec import decode_group
from raypipe.log.port import Group
from raypipe.patterns.spec import Pattern
from raypipe.runtime.worker import protocol
from raypipe.runtime.worker.connection import Connection, Listener
from raypipe.runtime.worker.core import WorkerCore
from raypipe.runtime.worker.gathering import Gathering
from raypipe.runtime.worker.intake import Bulk
from raypipe.tenancy.keys import KeyStore, Presented

_log = logging.getLogger("raypipe.worker")
BULK_ROWS = 8_192
"""Rows of a group from which on it takes no further bulk request."""

BUNCH = 4
"""Answers that leave together: a replica works on the first ones while the next are made."""

_WAKES = 4_096
_STRANGERS = 256
"""Connections that have not proven who they are; with more, the oldest is closed."""

_DURABLE = (
    protocol.Recorded
    | protocol.Told
    | protocol.Found
    | protocol.KeyValues
    | protocol.Ingested
    | protocol.Changed
    | protocol.HeardOne
    | protocol.Heard
    | protocol.DecidedEvent
    | protocol.Exposures
    | protocol.Reviews
    | protocol.Claimed
    | protocol.Reported
)
"""Answers that tell of something that the next commit makes durable."""

Asked = list[tuple[Connection, protocol.Request]]
Answered = list[tuple[Connection, protocol.Reply]]


class WorkerServer:
    """Serves one WorkerCore, and the API keys that lie beside it, to whoever ``listeners`` let in.

    ``run`` returns after ``stop``; it raises when a commit failed, and the process must end then.

    Args:
        figures: what ``Stats`` tells besides the core's own.
    """

    def __init__(
        self,
        core: WorkerCore,
        keys: KeyStore,
        listeners: Sequence[Listener],
        figures: Callable[[], dict[str, float]] = dict,
    ) -> None:
        self._core = core
        self._project = core.project
        self._event_schemas = [event.arrow_schema for event in core.project.events]
        self._keys = keys
        self._listeners = listeners
        self._figures = figures
        self._strangers: dict[Connection, None] = {}
        self._wake_in, self._wake_out = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for listener in listeners:
            self._selector.register(listener.sock, selectors.EVENT_READ, listener)
        self._selector.register(self._wake_in, selectors.EVENT_READ)
        self._bulk: deque[tuple[Connection, protocol.Ingest | protocol.Hear]] = deque()
        self._gathering = Gathering()
        self._durable: Answered = []
        """Answers that wait for the next commit."""
        self._flying: Answered | None = None
        """Those that wait for the one that is under way."""
        self._commit_at: float | None = None
        self._stopping = False

    def stop(self) -> None:
        """Ask ``run`` to finish its round and return; from any thread."""
        self._stopping = True
        self._wake()

    def _wake(self) -> None:
        self._wake_out.send(b"x")

    def run(self) -> None:
        """Serve until stopped, and answer what waits then."""
        while not self._stopping or self._durable or self._flying is not None:
            asked: Asked = []
            for key, mask in self._selector.select(self._idle_s()):
                if isinstance(key.data, Connection):
                    self._serve(key.data, mask, asked)
                elif key.fileobj is self._wake_in:
                    self._wake_in.recv(_WAKES)
                else:
                    self._accept(key.data)
            self._round(asked)
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, Connection):
                self._close(key.data)
        self._selector.close()
        for listener in self._listeners:
            listener.sock.close()

    def _idle_s(self) -> float | None:
        if self._flying is not None:
            return None  # its end wakes
        if self._bulk:
            return 0.0
        if self._commit_at is None:
            return self._core.idle_s
        return max(0.0, self._commit_at - time.monotonic())

    def _accept(self, listener: Listener) -> None:
        try:
            connection = listener.accept()
        except OSError as e:
            _log.warning("a connection ended before it began: %s", e)
            return
        if connection is None:
            return
        self._selector.register(connection.sock, selectors.EVENT_READ, connection)
        if not connection.known:
            self._strangers[connection] = None
            if len(self._strangers) > _STRANGERS:
                self._close(next(iter(self._strangers)))

    def _serve(self, connection: Connection, mask: int, asked: Asked) -> None:
        if connection.sock.fileno() < 0:
            return  # closed in this round
        try:
            if not connection.known:
                wanted = connection.greet()
                self._selector.modify(connection.sock, wanted or selectors.EVENT_READ, connection)
                if wanted:
                    return
                del self._strangers[connection]
            elif mask & selectors.EVENT_WRITE:
                self._send(connection)
                if not mask & selectors.EVENT_READ:
                    return
            data = connection.receive()
            if not data:
                self._close(connection)
                return
            asked += [
                (connection, protocol.decode_request(body)) for body in connection.frames.feed(data)
            ]
        except BlockingIOError:
            return
        except (OSError, ValueError) as e:
            _log.warning("closing a connection: %s", e)
            self._close(connection)

    def _round(self, asked: Asked) -> None:
        self._work_on(asked)
        if self._core.flying:
            return
        if self._flying is not None:
            flown, self._flying = self._flying, None
            self._core.land()
            self._send_durable(flown)
        self._core.tick()
        durable = self._durable
        self._commit_at = self._gathering.until(
            dirty=self._core.dirty,
            asked=bool(durable),
            patient=not self._stopping
            and all(isinstance(reply, protocol.Recorded) for _, reply in durable),
        )
        if time.monotonic() < self._commit_at:
            return
        self._durable, self._commit_at = [], None
        self._gathering.committed()
        if self._lone(durable):
            self._core.commit()
        elif self._core.take_off(self._wake):
            self._flying = durable
            return
        self._send_durable(durable)

    def _lone(self, durable: Answered) -> bool:
        """Whether one decision is all there is: nothing could be done beside its commit."""
        if len(durable) != 1 or self._bulk or self._gathering.expecting:
            return False
        return isinstance(durable[0][1], protocol.Recorded)

    def _work_on(self, asked: Asked) -> None:
        """Do what is asked; what need not be durable is answered."""
        now: Answered = []
        for connection, request in self._due(asked):
            reply = self._answer(request)
            waits = isinstance(reply, _DURABLE) or (
                isinstance(reply, protocol.Observed) and reply.decision is not None
            )
            (self._durable if waits else now).append((connection, reply))
            if len(now) == BUNCH:
                self._send_all(now)
                now = []
        self._send_all(now)

    def _send_durable(self, answers: Answered) -> None:
        self._send_all(answers)
        if answers:
            reach("worker.after_reply")

    def _due(self, asked: Asked) -> Iterator[tuple[Connection, protocol.Request]]:
        """What this round works on: all that is small, then as much of the bulk as the next group
        may take.

        Parts of other workers' events come after this one's own, so that the log gets each kind at
        once: a row alone costs the commit three times as much.
        """
        parts: Asked = []
        for connection, request in asked:
            if isinstance(request, protocol.Ingest | protocol.Hear):
                self._bulk.append((connection, request))
            elif isinstance(request, protocol.HearOne):
                parts.append((connection, request))
            else:
                yield connection, request
        yield from parts
        while self._bulk and self._core.pending < BULK_ROWS:
            yield self._bulk.popleft()

    def _answer(self, request: protocol.Request) -> protocol.Reply:
        try:
            match request:
                case protocol.Observe(id=number, event=event, body_hash=body_hash, kind=kind):
                    entry, decision = self._core.observe(event, body_hash, kind)
                    if decision is None and kind is None:
                        self._gathering.observed((event["tenant"], event["event_id"]))
                    return protocol.Observed(
                        number, entry.offset, entry.windows, entry.event, decision
                    )
                case protocol.Record(id=number, record=data, windows=windows):
                    record = ledger.decode(data)
                    self._gathering.decided((record.tenant, record.event_id))
                    stored = self._core.record(record, windows)
                    return protocol.Recorded(
                        number, None if stored is record else ledger.encode(stored)
                    )
                case protocol.Tell(id=number, record=data, event=event, reason=reason):
                    self._core.tell(ledger.decode(data), event, reason)
                    return protocol.Told(number)
                case protocol.Lookup(id=number, tenant=tenant, decision_id=decision_id):
                    found = self._core.decision(tenant, decision_id)
                    return protocol.Found(number, None if found is None else ledger.encode(found))
                case protocol.Verify(id=number, key_id=key_id, digest=digest):
                    credential = self._keys.verify(Presented(key_id, digest))
                    if credential is None:
                        return protocol.Verified(number, None)
                    scopes = tuple(sorted(credential.scopes))
                    return protocol.Verified(number, credential.tenant, scopes)
                case protocol.ReadKey(id=number, tenant=tenant, entity=entity, key=key, now=now):
                    return protocol.KeyValues(number, self._core.read(tenant, entity, key, now))
                case protocol.ReadTable():
                    asked = (
                        request.tenant,
                        request.table,
                        request.since,
                        request.until,
                        request.now,
                    )
                    return protocol.TableRows(request.id, *self._core.table(*asked))
                case protocol.Ingest(id=number):
                    receipt = self._core.ingest(self._read_bulk(request))
                    return protocol.Ingested(
                        number,
                        receipt.received_at,
                        receipt.first_offset,
                        receipt.accepted,
                        receipt.duplicates,
                    )
                case protocol.HearOne(id=number):
                    heard = self._core.hear_one(
                        request.primary,
                        request.offset,
                        request.kind,
                        request.part,
                        request.body_hash,
                    )
                    return protocol.HeardOne(number, heard.offset, heard.windows)
                case protocol.Hear(id=number, primary=primary, first=first, end=end, ones=ones):
                    group = self._read_group(request.definition_hash, request.group)
                    return protocol.Heard(number, self._core.hear(primary, first, end, ones, group))
                case protocol.AskHeard(id=number, primary=primary):
                    return protocol.Heard(number, self._core.heard(primary))
                case protocol.EventOf(id=number, tenant=tenant, decision_id=decision_id):
                    about = self._core.event_of(tenant, decision_id)
                    return protocol.DecidedEvent(number, None if about is None else dict(about))
                case protocol.AskExposures(id=number, tenant=tenant, experiment=experiment):
                    return protocol.Exposures(number, self._core.exposures(tenant, experiment))
                case protocol.ListReviews(id=number, tenant=tenant, wanted=wanted):
                    return protocol.Reviews(number, *self._core.people.page(tenant, wanted))
                case protocol.ClaimReview(id=number, tenant=tenant, decision_id=decision_id):
                    review = self._core.people.claim(
                        tenant, decision_id, request.holder, request.lease_ms
                    )
                    return protocol.Claimed(number, review)
                case protocol.Report(id=number, outcome=outcome):
                    decided = self._core.decision(outcome.tenant, outcome.decision_id)
                    return protocol.Reported(number, self._core.people.report(outcome, decided))
                case protocol.TakeChanges(id=number, limit=limit, written=written):
                    return _changed(number, self._core.changed(limit, written=written))
                case protocol.UsePatterns(id=number, texts=texts):
                    patterns = [Pattern.from_text(text) for text in texts]
                    self._core.use_patterns(patterns)
                    return protocol.PatternsUsed(number, [p.name for p in patterns])
                case protocol.Stats(id=number):
                    return protocol.StatsReply(number, self._core.stats() | self._figures())
        except RaypipeError as e:
            return protocol.Failed(request.id, e.code, e.detail, e.hint)
        except msgspec.MsgspecError as e:
            return protocol.Failed(request.id, RaypipeError.code, f"unreadable record: {e}")

    def _read_bulk(self, request: protocol.Ingest) -> Bulk:
        self._require_same(request.definition_hash)
        return Bulk(
            request.tenant,
            decode_group(request.group, self._event_schemas.__getitem__),
            request.received_at,
            request.source,
            request.body_hash,
            request.key,
            request.refused,
        )

    def _read_group(self, definition_hash: str, data: bytes) -> Group:
        self._require_same(definition_hash)
        return decode_group(data, self._core.part_schemas.__getitem__)

    def _require_same(self, definition_hash: str) -> None:
        if definition_hash != self._project.definition_hash:
            raise DeclarationError(
                "the worker runs with other declarations than the process that validated the rows",
                hint="Start both again with the same version of the project.",
            )

    def _send_all(self, answers: Answered) -> None:
        """Send to each replica all that is for it at once: it reads it at once, too."""
        for connection, reply in answers:
            connection.out += protocol.frame(reply)
        for connection in dict.fromkeys(connection for connection, _ in answers):
            self._send(connection)

    def _send(self, connection: Connection) -> None:
        if connection.sock.fileno() < 0:
            return
        try:
            connection.send()
        except OSError as e:
            _log.warning("a replica went away: %s", e)
            self._close(connection)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.out else 0)
        self._selector.modify(connection.sock, wanted, connection)

    def _close(self, connection: Connection) -> None:
        self._strangers.pop(connection, None)
        if connection.sock.fileno() >= 0:
            self._selector.unregister(connection.sock)
            connection.sock.close()


def _changed(number: int, found: tuple[str, pa.Table] | None) -> protocol.Changed:
    if found is None:
        return protocol.Changed(number, "", b"")
    view, table = found
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return protocol.Changed(number, view, sink.getvalue().to_pybytes())
