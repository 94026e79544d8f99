"""A worker goes on while a commit is being written: what it knows then, and whom it answers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raypipe.errors import Conflict
from raypipe.ledger.record import LOG_KIND, TOLD_KIND, DecisionRecord, decision_id, decode, encode
from raypipe.log.port import LogUnwritable, Offsets
from raypipe.log.sqlite import SqliteLog
from raypipe.runtime.worker import reach
from raypipe.runtime.worker.client import WorkerClient
from raypipe.runtime.worker.connection import UnixListener
from raypipe.runtime.worker.core import Entry, WorkerCore
from raypipe.runtime.worker.server import WorkerServer
from raypipe.tenancy.keys import KeyStore
from tests.domains.greenhouse import project

TIME = 1_790_000_000_000
LONG_S = 30.0


class SlowLog(SqliteLog):
    """Its appends wait while it is ``held``; they fail with ``error``, if there is one."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        self.gate.clear()
        try:
            yield
        finally:
            self.gate.set()

    def append(self, *args: Any, **kwargs: Any) -> list[Offsets]:
        assert self.gate.wait(LONG_S)
        if self.error is not None:
            raise self.error
        return super().append(*args, **kwargs)


def opening(number: int) -> dict[str, Any]:
    return {
        "tenant": "default",
        "event_id": f"o-{number}",
        "event_time": TIME + number,
        "received_at": TIME + number,
        "valve": f"v-{number % 3}",
        "gardener": None,
        "litres": 5,
        "mode": None,
    }


def decided(event: dict[str, Any], offset: int, action: str = "review") -> DecisionRecord:
    return DecisionRecord(
        decision_id=decision_id("default", event["event_id"]),
        tenant="default",
        event_id=event["event_id"],
        event_offset=offset,
        event_time=event["event_time"],
        received_at=event["received_at"],
        decided_at=TIME,
        model="m@1",
        model_sha256="",
        policy="p",
        policy_sha256="",
        definition_hash=project.definition_hash,
        features=b"",
        score=0.5,
        action=action,
    )


def observed(core: WorkerCore, number: int) -> Entry:
    entry, decision = core.observe(opening(number), bytes([number]) * 32)
    assert decision is None
    return entry


def rows_by_offset(log: SqliteLog) -> dict[int, tuple[str, str]]:
    """Kind and event id of each row."""
    found: dict[int, tuple[str, str]] = {}
    for chunk in log.read(0, 0, 1_000):
        ids = (
            [decode(r).event_id for r in chunk.batch.column("record").to_pylist()]
            if chunk.kind in (LOG_KIND, TOLD_KIND)
            else chunk.batch.column("event_id").to_pylist()
        )
        found |= dict(zip(map(int, chunk.offsets), ((chunk.kind, i) for i in ids), strict=True))
    return found


def test_what_comes_while_a_commit_is_written_belongs_to_the_next_one(tmp_path: Path) -> None:
    log = SlowLog(tmp_path)
    core = WorkerCore(project, log)
    first = observed(core, 1)
    record = decided(first.event, first.offset)
    core.record(record, first.windows)
    core.tell(record, "{}", "why")
    landed = threading.Event()
    with log.held():
        assert core.take_off(landed.set)
        assert core.flying
        second = observed(core, 2)
        other = decided(second.event, second.offset)
        core.record(other, second.windows)
        assert not landed.is_set()
        # All that was said before is known, though the log can't be asked about it yet.
        again, known = core.observe(opening(1), b"\1" * 32)
        assert (again, known) == (first, encode(record))
        assert core.record(decided(first.event, first.offset, "block"), first.windows) == record
        core.tell(record, "{}", "why")
        with pytest.raises(Conflict):
            core.observe(opening(1), b"\2" * 32)
    assert landed.wait(LONG_S)
    assert core.dirty
    core.commit()
    rows = rows_by_offset(log)
    assert rows[first.offset] == ("opening", "o-1")
    assert rows[second.offset] == ("opening", "o-2")
    assert [kind for kind, _ in rows.values()].count(TOLD_KIND) == 1
    assert [i for kind, i in rows.values() if kind == LOG_KIND] == ["o-1", "o-2"]
    assert core.next_offset == log.end(0)
    later = WorkerCore(project, log)
    assert later.decision("default", record.decision_id) == record
    assert later.decision("default", other.decision_id) == other
    assert later.observe(opening(2), b"\2" * 32)[0].windows == second.windows


def test_a_commit_waits_for_the_one_before(tmp_path: Path) -> None:
    log = SlowLog(tmp_path)
    core = WorkerCore(project, log)
    observed(core, 1)
    landed = threading.Event()
    with log.held():
        assert core.take_off(landed.set)
        observed(core, 2)
        waiting = threading.Timer(0.05, log.gate.set)
        waiting.start()
        core.commit()
    waiting.join()
    assert {i for kind, i in rows_by_offset(log).values() if kind == "opening"} == {"o-1", "o-2"}


def test_a_commit_that_fails_is_heard_of_where_it_lands(tmp_path: Path) -> None:
    log = SlowLog(tmp_path)
    core = WorkerCore(project, log)
    observed(core, 1)
    log.error = LogUnwritable("the disk is full")
    assert core.take_off(threading.Event().set)
    with pytest.raises(LogUnwritable):
        core.land()
    observed(core, 2)
    with pytest.raises(LogUnwritable):
        core.commit()


@dataclass
class Served:
    """A worker whose log may be slow."""

    log: SlowLog
    server: WorkerServer
    path: Path

    def client(self) -> WorkerClient:
        return WorkerClient(lambda: reach.unix(str(self.path)))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    log, path = SlowLog(tmp_path / "log"), tmp_path / "w.sock"
    server = WorkerServer(
        WorkerCore(project, log), KeyStore(tmp_path / "tenants.db"), [UnixListener(path)]
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    yield Served(log, server, path)
    server.stop()
    thread.join()
    log.close()


async def decide_two(client: WorkerClient) -> list[asyncio.Task[DecisionRecord]]:
    """Two decisions at once: one alone is not written beside anything."""
    made = []
    for number in (1, 2):
        seen = await client.observe(opening(number), b"%d" % number * 32)
        made.append((decided(dict(seen.event), seen.offset), seen.own))
    return [asyncio.create_task(client.record(*one)) for one in made]


def test_nobody_is_told_before_it_is_durable_and_others_are_answered_meanwhile(
    served: Served,
) -> None:
    log = served.log

    async def ask() -> None:
        client = served.client()
        with log.held():
            made = await decide_two(client)
            async with asyncio.timeout(LONG_S):
                # The answers to these come while the first decisions are being written.
                for number in range(3, 13):
                    other = await client.observe(opening(number), b"2" * 32)
                    assert other.decision is None
                again = asyncio.create_task(client.observe(opening(1), b"1" * 32))
                await client.stats()
            assert not any(task.done() for task in made)
            assert not again.done()
        async with asyncio.timeout(LONG_S):
            first, _ = [await task for task in made]
            retried = await again
            assert retried.decision is not None
            assert decode(retried.decision) == first
        await client.close()

    asyncio.run(ask())


def test_a_server_that_stops_answers_what_is_being_written(served: Served) -> None:
    log = served.log

    async def ask() -> None:
        client = served.client()
        with log.held():
            made = await decide_two(client)
            await client.stats()
            served.server.stop()
        async with asyncio.timeout(LONG_S):
            assert [r.event_id for r in await asyncio.gather(*made)] == ["o-1", "o-2"]
        await client.close()

    asyncio.run(ask())
    assert [i for kind, i in rows_by_offset(log).values() if kind == LOG_KIND] == ["o-1", "o-2"]
