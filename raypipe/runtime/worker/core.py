"""What a worker does, without sockets: take events in once, read windows, record decisions.

One thread calls it: any number of ``observe`` and ``record`` calls, then one ``commit`` that makes
them durable together. Whatever a ``record`` returned may be told to a client only after that
commit; an ``observe`` may be answered before it, because its decision commits later still.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from raypipe.clock import DAY_MS, Clock, SystemClock
from raypipe.errors import (
    Conflict,
    EventLost,
    IntegrityError,
    NotFound,
    Unavailable,
    UsageError,
)
from raypipe.events.declarations import declare
from raypipe.events.evolution import align
from raypipe.events.quarantine import Quarantine
from raypipe.events.rows import batch_of
from raypipe.lake import Place
from raypipe.ledger import record as ledger
from raypipe.ledger.exposure import EXPOSURE, Counted, exposures_batch
from raypipe.log.port import (
    DECISION,
    Appended,
    Chunk,
    EventLog,
    Group,
)
from raypipe.ownership.checks import check_patterns
from raypipe.ownership.claim import claim
from raypipe.ownership.parts import kinds_of_parts
from raypipe.ownership.routes import Ownership, projected, projected_id
from raypipe.patterns.spec import Pattern
from raypipe.project import Project
from raypipe.runtime.worker.flight import Flights, Load
from raypipe.runtime.worker.ids import KnownIds
from raypipe.runtime.worker.intake import DEDUP, Bulk, Dedup, Intake, came_in_bulk
from raypipe.runtime.worker.people import People
from raypipe.runtime.worker.receipts import Receipt
from raypipe.runtime.worker.snapshots import Snapshots
from raypipe.runtime.worker.state import WorkerState
from raypipe.tenancy.keys import LOCAL_TENANT
from raypipe.windows import snapshot

_log = logging.getLogger("raypipe.worker")

GROUP = "windows"
"""Consumer group whose committed offset and state reference a worker starts from."""

RECENT = 100_000
"""Observed events that a retry finds without asking the log."""

REPLAY_ROWS = 131_072

Told = tuple[int, str, Mapping[str, Any], bytes]
"""Of an event of another worker: its offset there, its type, its part, and its body's hash."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A live event: its place, what it saw, and the hash of the body that came first."""

    offset: int
    event: dict[str, Any]
    windows: bytes
    body_hash: bytes


def live_schema(project: Project, kind: str) -> pa.Schema:
    """Columns of live events in the log: the event's own, and for decisions what they saw."""
    schema = project.event(kind).arrow_schema.append(pa.field("body_hash", pa.binary(32)))
    return schema.append(pa.field("windows", pa.binary())) if kind == project.decision else schema


class WorkerCore:
    """State and log of one partition. Not thread-safe.

    A commit is written by a thread of its own: ``take_off`` begins one and ``land`` ends it; what
    comes in between belongs to the next one. ``commit`` is both.

    Starting takes a new epoch, which fences off an older worker of the partition, restores the
    committed snapshot and replays the log from there.

    Args:
        ownership: who owns which key among several workers; None: this one owns all.
        review_ms: how soon a person should have looked at what waits for one.
    """

    def __init__(
        self,
        project: Project,
        log: EventLog,
        partition: int = 0,
        *,
        quarantine: Quarantine | None = None,
        dedup: Dedup = DEDUP,
        snapshots: Snapshots | None = None,
        tenant: str = LOCAL_TENANT,
        patterns: Sequence[Pattern] = (),
        clock: Clock | None = None,
        ownership: Ownership | None = None,
        review_ms: int = DAY_MS,
    ) -> None:
        started = time.monotonic()
        self.project = project
        self._log = log
        self._partition = partition
        self._dedup = dedup
        self._tenant = tenant
        self._clock = clock or SystemClock()
        self._snapshots = snapshots
        self._ownership = ownership
        self._parts = {} if ownership is None else kinds_of_parts(ownership)
        self._schemas = {e.name: live_schema(project, e.name) for e in project.events}
        self._recent: OrderedDict[tuple[str, str, str], Entry] = OrderedDict()
        self._events: list[tuple[str, Entry] | Group] = []
        self._unapplied: list[Chunk] = []
        self._decisions: dict[tuple[str, str], ledger.DecisionRecord] = {}
        self._told: dict[tuple[str, str], pa.RecordBatch] = {}
        self._found: list[Appended] = []
        self._epoch = log.begin_epoch(partition)
        claim(log, partition, self._epoch, ownership)
        declare(log, project, partition, self._epoch)
        self._state, offset = self._restored()
        if quarantine is not None:
            quarantine.settle()
        self._intake = Intake(log, partition, quarantine, self._state.ids)
        self._flights = Flights(log, partition, self._epoch, self._intake)
        self.people = People(log, partition, self._state.reviews, self._clock, review_ms)
        self._snapshot_offset = offset
        self._fill_tables(offset)
        self._fill_projections(offset)
        self._next = self._committed = self._replay(offset)
        self._counters = {
            "start_seconds": time.monotonic() - started,
            "events": 0.0,
            "retries": 0.0,
            "conflicts": 0.0,
            "decisions": 0.0,
            "told": 0.0,
        }
        if ownership is not None:
            self._counters["parts"] = 0.0
        self.use_patterns(patterns)
        self.commit()

    def _replay(self, offset: int) -> int:
        end = self._log.end(self._partition)
        if offset > end:
            raise IntegrityError(
                f"the window state is at offset {offset}, the log ends at {end}",
                hint="The log lost rows that were acknowledged, or the state is of another log.",
            )
        while offset < end:
            chunks = list(self._log.read(self._partition, offset, REPLAY_ROWS))
            others = [
                c for c in chunks if c.kind not in self._schemas and c.kind not in self._parts
            ]
            self._state.replay(self._events_of(chunks), others, self._parts_of(chunks))
            offset += sum(map(len, chunks))
        self._state.settle()
        self._found += self._state.watch.settle()
        return offset

    def _events_of(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        """Logged events of declared types, with the columns that are declared now."""
        declared = {e.name: e for e in self.project.events}
        return [
            replace(c, batch=align(c.batch, declared[c.kind])) for c in chunks if c.kind in declared
        ]

    def _parts_of(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        """Projections of other workers' events, with the columns that are read now."""
        return [
            replace(c, kind=part.kind, batch=part.align(c.batch))
            for c in chunks
            if (part := self._parts.get(c.kind)) is not None
        ]

    def _fill_tables(self, end: int) -> None:
        """Count what tables lack that the snapshot was without: a batch left it, or they are
        declared anew."""
        empty, offset = self._state.tables.empty, self._log.first(self._partition)
        while empty and offset < end:
            chunks = list(self._log.read(self._partition, offset, min(REPLAY_ROWS, end - offset)))
            self._state.tables.apply(self._events_of(chunks), empty)
            offset += sum(map(len, chunks))

    def _fill_projections(self, end: int) -> None:
        """Find the open reviews and the exposures that the snapshot was without: a batch left it,
        or an older version."""
        state, kinds = self._state, self._log.kinds(self._partition)
        lacking = [
            projection
            for projection, kind in ((state.reviews, DECISION), (state.exposures, EXPOSURE))
            if projection.counted < 0 and kind in kinds
        ]
        offset = self._log.first(self._partition)
        while lacking and offset < end:
            chunks = list(self._log.read(self._partition, offset, min(REPLAY_ROWS, end - offset)))
            for projection in lacking:
                projection.replay(chunks)
            offset += sum(map(len, chunks))

    def _restored(self) -> tuple[WorkerState, int]:
        """The state of the newest snapshot that can be used, and its offset; at worst nothing and
        the log's first: what retention deleted has left every window."""
        first = self._log.first(self._partition)
        committed = self._log.committed(GROUP, self._partition)
        places = [] if committed is None else [Place.at(committed[1])]
        if committed is not None and self._snapshots is not None:
            places += self._snapshots.others(committed[1])
        for place in places:
            state = self._empty_state()
            try:
                offset, tables = snapshot.load(place, self.project.definition_hash)
                if offset < first:
                    raise IntegrityError(
                        f"snapshot {place.url} is of offset {offset}, the log begins at {first}"
                    )
                for table in tables:
                    state.restore(table)
            except (IntegrityError, Unavailable) as e:
                _log.warning("a snapshot is no use: %s", e)
            else:
                return state, offset
        if places:
            _log.warning("replaying the whole log")
        return self._empty_state(), first

    def _empty_state(self) -> WorkerState:
        ids = KnownIds(self._log.id, self._dedup.ids, self._dedup.horizon_ms)
        mine = None if self._ownership is None else self._ownership.buckets(self._partition)
        return WorkerState(self.project, ids, self._tenant, mine)

    def observe(
        self, event: dict[str, Any], body_hash: bytes, kind: str | None = None
    ) -> tuple[Entry, bytes | None]:
        """Take an event in once; a decision event (the default kind) also reads its windows.

        A known id gets what it got first. Returns the entry and, for a retry, the encoded decision
        if there is one. Raises Conflict when the id is taken by another body or, for a decision,
        by an event that came in bulk.
        """
        kind = kind or self.project.decision
        key = (kind, event["tenant"], event["event_id"])
        entry = self._recent.get(key) or self._stored(*key)
        if entry is None:
            self._claim(kind, event)
            self._apply()
            windows = self._state.observe(kind, event, self._next)
            entry = Entry(self._next, event, windows, body_hash)
            self._next += 1
            self._events.append((kind, entry))
            self._remember(key, entry)
            self._counters["events"] += 1
            return entry, None
        if entry.body_hash != body_hash:
            self._counters["conflicts"] += 1
            raise Conflict(
                f"event_id {key[2]!r} came before with another body",
                hint="Send a new event_id, or the same body to get the stored answer.",
            )
        self._counters["retries"] += 1
        if kind != self.project.decision:
            return entry, None
        decided = self.decision(key[1], ledger.decision_id(*key[1:]))
        return entry, None if decided is None else ledger.encode(decided)

    def hear_one(
        self, primary: int, offset: int, kind: str, part: Mapping[str, Any], body_hash: bytes
    ) -> Entry:
        """Take in, once, the part that concerns this worker of an event that the owner of its
        primary key has accepted at an offset of its own; a decision event's also reads its windows.

        What it returns may be told after the next commit.
        """
        if self._ownership is None:
            raise UsageError("this worker is the only one: it owns all keys")
        row = self._ownership.whole(kind, part, primary, offset)
        row["event_id"] = projected_id(part["event_id"], body_hash)
        name = projected(kind)
        key = (name, row["tenant"], row["event_id"])
        entry = self._recent.get(key) or self._stored(*key)
        if entry is None:
            self._apply()
            windows = self._state.observe(kind, row, self._next)
            entry = Entry(self._next, row, windows, body_hash)
            self._next += 1
            self._events.append((name, entry))
            self._remember(key, entry)
            self._counters["parts"] += 1
        return entry

    def hear(self, primary: int, first: int, end: int, ones: Sequence[Told], group: Group) -> int:
        """Take in what concerns this worker of the events in [first, end) of another's log.

        Args:
            ones: events that came one by one.
            group: projections of rows that came in bulk, as Ownership.projection makes them.

        Returns up to where all is here, after the next commit. Raises Conflict for a gap.
        """
        new = self._state.heard.unheard(primary, first, group)
        for one in ones:
            self.hear_one(primary, *one)
        if new.parts:
            self._events.append(new)
            for part in new.parts:
                offsets = part.positions.astype(np.int64) + self._next
                self._unapplied.append(Chunk(self._parts[part.kind].kind, offsets, part.batch))
            self._next += len(new)
            self._counters["parts"] += len(new)
        self._state.heard.hear(primary, end)
        return self.heard(primary)

    @property
    def part_schemas(self) -> list[pa.Schema]:
        """Columns of projections by the number of their event type in the project."""
        return [part.schema for part in self._parts.values()]

    def heard(self, primary: int) -> int:
        """The offset of another worker's log up to which this one has heard of its events."""
        return self._state.heard.end(primary)

    def _claim(self, kind: str, event: dict[str, Any]) -> None:
        try:
            self._intake.claim(kind, event)
        except Conflict:
            self._counters["conflicts"] += 1
            raise

    def ingest(self, bulk: Bulk) -> Receipt:
        """Take validated rows in; returns what may be told to a client after the next commit.

        Rows whose ids came lately are duplicates and are not taken; a request whose key came
        before gets its first answer. Raises Conflict for a known key with another body.
        """
        receipt, group = self._intake.take(bulk, self._next)
        if group.parts:
            self._events.append(group)
            for part in group.parts:
                offsets = part.positions.astype(np.int64) + self._next
                self._unapplied.append(Chunk(part.kind, offsets, part.batch))
            self._next += len(group)
            self._counters["events"] += len(group)
        return receipt

    def _apply(self) -> None:
        """Count the bulk rows that were taken in since the last time, all at once."""
        if self._unapplied:
            self._state.apply(self._unapplied)
            self._unapplied.clear()

    def _remember(self, key: tuple[str, str, str], entry: Entry) -> None:
        self._recent[key] = entry
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)

    def _stored(self, kind: str, tenant: str, event_id: str) -> Entry | None:
        found = self._log.find(self._partition, kind, tenant, event_id)
        if found is None:
            return None
        offset, batch = found
        part = self._parts.get(kind)
        aligned = align(batch, self.project.event(kind)) if part is None else part.align(batch)
        row = aligned.to_pylist()[0]
        windows, body_hash = row.pop("windows", None), row.pop("body_hash", None)
        if body_hash is None:
            self._counters["conflicts"] += 1
            raise came_in_bulk(event_id)
        entry = Entry(offset, row, windows or b"", body_hash)
        self._remember((kind, tenant, event_id), entry)
        return entry

    def record(self, record: ledger.DecisionRecord, windows: bytes) -> ledger.DecisionRecord:
        """Queue a decision for the next commit; returns the one that came first.

        Raises EventLost for a decision about an event that this worker never took in, or not like
        this: after a restart the event of an unfinished request may be gone, or another try of it
        may have come to the same offset with other ``windows``. The request starts again then.
        A spilled decision keeps the ``received_at`` that its client was told.
        """
        stored = self.decision(record.tenant, record.decision_id)
        if stored is not None:
            return stored
        key = (self.project.decision, record.tenant, record.event_id)
        entry = self._recent.get(key) or self._stored(*key)
        if (
            entry is None
            or (entry.offset, entry.windows) != (record.event_offset, windows)
            or not (record.spilled or entry.event["received_at"] == record.received_at)
        ):
            raise EventLost(
                f"event {record.event_id!r} is not what was seen at offset {record.event_offset}",
                hint="Observe the event again.",
            )
        self._decisions[record.tenant, record.decision_id] = record
        self._state.reviews.decided(record)
        self._state.exposures.decided(record)
        self._counters["decisions"] += 1
        return record

    def tell(self, record: ledger.DecisionRecord, event: str, reason: str) -> None:
        """Keep, once, an answer that a client got and that is not the decision about its event.

        Args:
            event: the event as JSON.
            reason: why it is not.
        """
        key = record.tenant, ledger.told_id(record)
        flown = self._flights.load
        if (
            key in self._told
            or (flown is not None and key in flown.told)
            or self._log.find(self._partition, ledger.TOLD_KIND, *key)
        ):
            return
        self._told[key] = ledger.told_batch(record, event, reason)
        self._counters["told"] += 1

    def decision(self, tenant: str, decision_id: str) -> ledger.DecisionRecord | None:
        """A tenant's decision, stored or waiting for the next commit."""
        waiting = self._decisions.get((tenant, decision_id))
        if waiting is None and self._flights.load is not None:
            waiting = self._flights.load.decisions.get((tenant, decision_id))
        if waiting is not None:
            return waiting
        found = self._log.find(self._partition, ledger.LOG_KIND, tenant, decision_id)
        return ledger.decode(found[1].column("record")[0].as_py()) if found else None

    def read(self, tenant: str, entity: str, key: str, now: int) -> dict[str, float]:
        """Window values of one key as of ``now``, with every event so far; changes nothing."""
        self._apply()
        return self._state.windows.read(tenant, entity, key, now)

    def changed(self, limit: int, *, written: bool) -> tuple[str, pa.Table] | None:
        """See WorkerState.take_changes; they may be told only after the next commit."""
        self._apply()
        return self._state.take_changes(limit, written=written)

    def table(
        self, tenant: str, table: str, since: int, until: int, now: int
    ) -> tuple[list[dict[str, Any]], int | None]:
        """Rows of a table (TableEngine.read) with every committed event, and its watermark."""
        rows = self._state.tables.read(tenant, table, since, until, now)
        return rows, self._state.tables.watermark(table)

    def exposures(self, tenant: str, experiment: str) -> list[Counted]:
        """How often each arm of an experiment, ``name@version``, was decided with; those that wait
        for the next commit too."""
        return self._state.exposures.of(tenant, experiment)

    def event_of(self, tenant: str, decision_id: str) -> Mapping[str, Any] | None:
        """The event that a decision is about, None if retention deleted it; raises NotFound."""
        record = self.decision(tenant, decision_id)
        if record is None:
            raise NotFound("there is no decision of that id", hint="Ids start with 'dec_'.")
        key = (self.project.decision, tenant, record.event_id)
        entry = self._recent.get(key) or self._stored(*key)
        return None if entry is None else entry.event

    def use_patterns(self, patterns: Sequence[Pattern]) -> None:
        """Run these patterns for all events after the next commit; the same ones keep their state.

        Raises DeclarationError, and changes nothing, when one of them doesn't fit the events, or
        can't run on several workers.
        """
        if self._ownership is not None:
            check_patterns(self._ownership, patterns)
        self._commit_all()
        self._found += self._state.watch.use(patterns, self._clock.now_ms())

    def _look(self, *, all_: bool = False) -> None:
        """Have the patterns look at committed events that have waited long enough; what they find
        waits for the next commit."""
        self._found += self._state.watch.take(self._clock.now_ms(), all_=all_)

    def _commit_all(self) -> None:
        """Commit what waits, and what the patterns find in it."""
        self.commit()
        self._look(all_=True)
        self.commit()

    @property
    def next_offset(self) -> int:
        """The offset that the next event takes."""
        return self._next

    @property
    def dirty(self) -> bool:
        """Whether anything waits for a commit."""
        waiting = self._events or self._decisions or self._told or self._found
        return bool(waiting or self._intake.dirty or self.people.dirty)

    @property
    def pending(self) -> int:
        """Rows that wait for the next commit."""
        return self._next - self._committed

    def commit(self) -> None:
        """Make everything since the last commit durable, in one transaction.

        Any error here, as in ``land``, is the end of this worker: its state counts events that the
        log may lack.
        """
        self.land()
        if self.take_off():
            self.land()

    def take_off(self, landing: Callable[[], object] | None = None) -> bool:
        """Begin to make everything since the last commit durable; the one before has landed.

        False when there is nothing. ``landing`` is called, by another thread, when ``land`` would
        no longer wait; without it nothing is left to wait for.
        """
        if not self.dirty:
            return False
        refusals, records = self._intake.take_off()
        batches = self._waiting_batches(records)
        load = Load(batches, refusals, self._decisions, self._told, self._committed)
        self._flights.take_off(load, landing)
        self._next = self._committed = self._committed + load.rows
        self._events, self._decisions, self._told, self._found = [], {}, {}, []
        self._apply()
        return True

    @property
    def flying(self) -> bool:
        """Whether ``land`` would wait."""
        return self._flights.waits

    def land(self) -> None:
        """Wait until what ``take_off`` began is durable; raises what prevents it."""
        chunks = self._flights.land()
        self.people.land()
        self._state.committed([chunk for chunk in chunks if chunk.kind in self._schemas])

    def _waiting_batches(self, records: Sequence[Appended]) -> list[Appended]:
        """All that waits, as the log takes it; ``records`` belong to the events."""
        batches = [*self._event_batches(), *records]
        if self._decisions:
            made = list(self._decisions.values())
            batches.append((ledger.LOG_KIND, ledger.to_batch(made)))
            if (exposures := exposures_batch(made)) is not None:
                batches.append((EXPOSURE, exposures))
        batches += [(ledger.TOLD_KIND, batch) for batch in self._told.values()]
        return [*batches, *self.people.take_off(), *self._found]

    def _event_batches(self) -> Iterator[Appended]:
        """The waiting events in order: runs of single ones by kind, and groups as they came."""
        for kind, run in groupby(
            self._events, key=lambda e: None if isinstance(e, Group) else e[0]
        ):
            if kind is None:
                yield from (e for e in run if isinstance(e, Group))
            else:
                yield kind, self._batch(kind, [e[1] for e in run if not isinstance(e, Group)])

    def _batch(self, kind: str, entries: list[Entry]) -> pa.RecordBatch:
        rows = [
            entry.event | {"windows": entry.windows, "body_hash": entry.body_hash}
            for entry in entries
        ]
        part = self._parts.get(kind)
        return batch_of(rows, self._schemas[kind] if part is None else part.schema)

    def save(self) -> int:
        """Write a snapshot and commit to it; returns its offset. Raises what prevents it."""
        if self._snapshots is None:
            raise UsageError("this worker has no place for snapshots")
        self._commit_all()
        self._rely_on(*self._snapshots.finish(self._next, self._epoch, self._state.pieces))
        self._snapshots.prune().result()
        return self._next

    def tick(self) -> None:
        """Do what can wait: patterns, snapshots; call it when nothing flies."""
        self._look()
        if self._snapshots is None or not self._snapshots.due(self._next):
            return
        if self._snapshots.wants_last:
            self._commit_all()
        else:
            self.commit()
        done = self._snapshots.tick(self._next, self._epoch, self._state.pieces)
        if done is not None:
            self._rely_on(*done)
            self._snapshots.prune()

    def _rely_on(self, offset: int, reference: str) -> None:
        """Have the next start begin with this snapshot."""
        self._log.commit(GROUP, self._partition, offset, reference)
        self._snapshot_offset = offset

    @property
    def idle_s(self) -> float | None:
        """After how many seconds ``tick`` has something to do; None: not by itself."""
        waits = [self._state.watch.idle_s]
        if self._snapshots is not None:
            waits.append(self._snapshots.idle_s(self._next))
        return min((w for w in waits if w is not None), default=None)

    def stats(self) -> dict[str, float]:
        """Counters since the start, and gauges."""
        return {
            **self._counters,
            "commits": float(self._flights.landed),
            "commit_seconds": self._flights.seconds,
            **self._intake.stats(),
            **self._state.stats(),
            **self.people.stats(),
            "epoch": float(self._epoch),
            "log_end": float(self._next),
            "snapshot_offset": float(self._snapshot_offset),
        }
