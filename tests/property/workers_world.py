"""Several workers in one process: clients, forwarders and crashes take turns at every step."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pyarrow as pa

from raypipe.errors import Conflict, EventLost
from raypipe.lake import Place
from raypipe.ledger.record import DecisionRecord, decision_id, decode
from raypipe.log.partitions import PartitionedLog
from raypipe.log.port import EventLog, Group, Part
from raypipe.ownership.routes import Ownership, merge_windows
from raypipe.project import Project
from raypipe.runtime.worker.core import WorkerCore
from raypipe.runtime.worker.intake import Bulk
from raypipe.runtime.worker.loads import load_of
from raypipe.runtime.worker.snapshots import Snapshots

Going = Generator[None, None, None]
"""Something that goes on step by step; anything may happen between two steps."""

Event = dict[str, Any]


class World:
    """Workers over one log, by default an embedded one, and whoever asks them."""

    def __init__(
        self,
        project: Project,
        workers: int,
        folder: Path,
        seed: int,
        log: EventLog | None = None,
    ) -> None:
        self.project = project
        self.ownership = Ownership(project, workers)
        self.workers = range(workers)
        self.log = PartitionedLog(folder / "log") if log is None else log
        self.rng = random.Random(seed)
        self.answers: dict[str, bytes] = {}
        """By event id, the window values that a client's decision was made from."""
        self.crashes = 0
        self._folder = folder
        self._lives = [0] * workers
        self.cores = [self.started(w) for w in self.workers]
        self._widths = [8 * len(v.columns) for v in project.views]

    def started(self, worker: int) -> WorkerCore:
        """A worker as it starts."""
        snapshots = Snapshots(
            Place.at(self._folder / "snapshots" / str(worker)),
            self.project.definition_hash,
            3_600,
            lambda: 0.0,
        )
        return WorkerCore(
            self.project, self.log, worker, snapshots=snapshots, ownership=self.ownership
        )

    def forget_snapshots(self) -> None:
        """A worker that starts now has its log alone."""
        shutil.rmtree(self._folder / "snapshots", ignore_errors=True)

    def seal(self) -> None:
        """Move all rows of an embedded log to Parquet, as upkeep does with old ones."""
        if not isinstance(self.log, PartitionedLog):
            return
        for worker in self.workers:
            log = self.log.of(worker)
            while log.compact(worker, log.end(worker)).ranges:
                pass

    def run(self, requests: list[Going], *, crashes: float) -> None:
        """Go through all requests, some at a time, with whatever else may happen between."""
        going: list[Going] = []
        while requests or going:
            while requests and len(going) < 6:
                going.append(requests.pop())
            if self.rng.random() < crashes:
                self.crash(self.rng.choice(self.workers))
            self.rng.choice((self._nothing, self._nothing, self._commit, self._save))()
            if self.rng.random() < 0.3 and len(self.workers) > 1:
                going.append(self.forward(*self.rng.sample(self.workers, 2)))
            one = self.rng.choice(going)
            if next(one, one) is one:
                going.remove(one)
        self._drain()

    def _drain(self) -> None:
        """Have everyone hear of everything."""
        for worker in self.workers:
            self.cores[worker].commit()
        for primary in self.workers:
            for other in self.workers:
                while other != primary and self.cores[other].heard(primary) < self.log.end(primary):
                    for _ in self.forward(primary, other):
                        pass
                    self.cores[other].commit()

    def crash(self, worker: int) -> None:
        """Whatever a worker has not committed is gone; another one takes its place."""
        self._lives[worker] += 1
        self.crashes += 1
        self.cores[worker] = self.started(worker)

    def _nothing(self) -> None:
        pass

    def _commit(self) -> None:
        self.cores[self.rng.choice(self.workers)].commit()

    def _save(self) -> None:
        if self.rng.random() < 0.1:
            self.cores[self.rng.choice(self.workers)].save()

    def _ask(
        self, worker: int, question: Callable[[WorkerCore], Any]
    ) -> Generator[None, None, Any]:
        """Ask until a durable answer comes, and return it."""
        while True:
            life = self._lives[worker]
            answer = question(self.cores[worker])
            yield
            if self._lives[worker] == life:
                self.cores[worker].commit()
                yield
                return answer

    def abandon(self, event: Event) -> Going:
        """A replica that dies when the primary owner has answered, and a client that gives up."""
        kind = self.project.decision
        primary = self.ownership.way(kind, event).primary
        self.cores[primary].observe(event, _hash(event))
        yield

    def decide(self, event: Event) -> Going:
        """A client that wants a decision, and doesn't give up."""
        kind = self.project.decision
        body_hash = _hash(event)
        while True:
            asked = event | {"received_at": event["received_at"] + self.rng.randrange(50)}
            primary = self.ownership.way(kind, asked).primary
            entry, decided = self.cores[primary].observe(asked, body_hash)
            yield
            if decided is not None:
                self.answers[event["event_id"]] = decode(decided).features
                return
            way = self.ownership.way(kind, entry.event)
            windows, offsets = {primary: entry.windows}, [(primary, entry.offset)]
            for worker, part in way.others.items():
                told = (primary, entry.offset, kind, part, body_hash)
                heard = yield from self._ask(worker, lambda core, told=told: core.hear_one(*told))
                windows[worker] = heard.windows
                offsets.append((worker, heard.offset))
            merged = merge_windows(self._widths, way.views, windows)
            record = decision_of(self.project, entry.event, merged, tuple(offsets))
            try:
                stored = yield from self._ask(
                    primary, lambda core, r=record, e=entry: core.record(r, e.windows)
                )
            except EventLost:
                continue
            self.answers[event["event_id"]] = stored.features
            return

    def bulk(self, rows: list[tuple[str, Event]], key: str | None) -> Going:
        """A client that sends rows in bulk, and doesn't give up."""
        group = _group(self.project, rows)
        received_at = rows[-1][1]["received_at"]
        for worker, (mine, _) in self.ownership.split(group).items():
            sent = Bulk("default", mine, received_at, "test", b"x" * 32, key)
            yield from self._ask(worker, lambda core, sent=sent: core.ingest(sent))

    def forward(self, primary: int, other: int) -> Going:
        """One message of a worker's forwarder; a dead one's may still arrive."""
        at = self.cores[other].heard(primary)
        rows = min(self.rng.randrange(1, 40), self.log.end(primary) - at)
        if rows <= 0:
            return
        chunks = list(self.log.read(primary, at, rows))
        load = load_of(self.ownership, primary, other, (at, at + rows), chunks)
        yield
        try:
            self.cores[other].hear(primary, load.first, load.end, load.ones, load.group)
        except Conflict:
            return  # it crashed since, and has yet to hear of what was before
        yield


def decision_of(
    project: Project, event: Event, windows: bytes, offsets: tuple[tuple[int, int], ...]
) -> DecisionRecord:
    """A decision that keeps the window values that it was made from as its features."""
    return DecisionRecord(
        decision_id=decision_id(event["tenant"], event["event_id"]),
        tenant=event["tenant"],
        event_id=event["event_id"],
        event_offset=offsets[0][1],
        event_time=event["event_time"],
        received_at=event["received_at"],
        decided_at=event["received_at"] + 1,
        model="m@1",
        model_sha256="0" * 64,
        policy="p",
        policy_sha256="0" * 64,
        definition_hash=project.definition_hash,
        features=windows,
        score=0.5,
        action="review",
        owner_offsets=offsets,
    )


def _hash(event: Event) -> bytes:
    body = {n: v for n, v in event.items() if n != "received_at"}
    return hashlib.sha256(repr(sorted(body.items())).encode()).digest()


def _group(project: Project, rows: list[tuple[str, Event]]) -> Group:
    parts = []
    for kind in dict.fromkeys(kind for kind, _ in rows):
        places = [i for i, (k, _) in enumerate(rows) if k == kind]
        schema = project.event(kind).arrow_schema
        batch = pa.RecordBatch.from_pylist([rows[i][1] for i in places], schema)
        parts.append(Part(kind, batch, pa.array(places, pa.int32()).to_numpy()))
    return Group(tuple(parts))
