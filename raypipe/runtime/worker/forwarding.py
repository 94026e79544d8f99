"""A worker's forwarder: follows its own log and tells the other workers what concerns them.

It holds nothing that must survive. The log has the events, whoever hears of them knows up to where
(heard.py), so after any crash of either side it goes on from there. Of events that asked for a
decision a replica has told before, most of the time; those are known by their ids.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from raypipe.errors import IntegrityError, RaypipeError
from raypipe.log.port import Chunk, EventLog
from raypipe.ownership.routes import Ownership
from raypipe.runtime.worker.client import WorkerClient
from raypipe.runtime.worker.loads import Load, load_of
from raypipe.runtime.worker.reach import Connect

ROWS = 8_192
"""Rows of the log that one message is made of: as many bulk rows as a worker's round takes."""

FAR = 100_000
"""Rows that concern nobody after which a worker is told so, to begin there when it starts anew."""

WAIT_MS = 200
PAUSE_S = 0.5
"""After a refusal: the other worker may just be starting with the same declarations."""

_log = logging.getLogger("raypipe.forwarding")


class Forwarder:
    """Follows one partition in a thread of its own until ``stop``; if that fails, the process ends.

    Args:
        others: how each other worker is reached.
    """

    def __init__(
        self, log: EventLog, ownership: Ownership, partition: int, others: Mapping[int, Connect]
    ) -> None:
        self._log = log
        self._ownership = ownership
        self._partition = partition
        self._others = others
        self._end = 0
        self._told = dict.fromkeys(others, 0)
        self._grown: asyncio.Condition
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="forwarder", daemon=True)
        self._thread.start()

    def figures(self) -> dict[str, float]:
        """Rows of the log that each other worker has yet to be told of, if they concern it."""
        return {f"untold_{w}": float(max(0, self._end - at)) for w, at in self._told.items()}

    def stop(self) -> None:
        """End; what was not told is told by the next one."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException:  # noqa: BLE001 - whatever it was, events must not stay behind
            _log.exception("the forwarder ends")
            os._exit(1)

    async def _main(self) -> None:
        self._grown = asyncio.Condition()
        with ThreadPoolExecutor(1, "tail") as tail, ThreadPoolExecutor(1, "reader") as reader:
            tasks = [asyncio.create_task(self._tell(worker, reader)) for worker in self._others]
            try:
                await self._watch(tail, tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, tail: ThreadPoolExecutor, tasks: list[asyncio.Task[None]]) -> None:
        """Wake the others when the log has grown."""
        loop = asyncio.get_running_loop()
        self._end = await loop.run_in_executor(tail, self._log.end, self._partition)
        while not self._stopped.is_set():
            for task in tasks:
                if task.done():
                    task.result()
            end = await loop.run_in_executor(tail, self._await_end)
            if end > self._end:
                async with self._grown:
                    self._end = end
                    self._grown.notify_all()

    def _await_end(self) -> int:
        """Where the log ends, once it has grown or some time has passed."""
        next(self._log.read(self._partition, self._end, 1, WAIT_MS), None)
        return self._log.end(self._partition)

    async def _tell(self, worker: int, reader: ThreadPoolExecutor) -> None:
        client = WorkerClient(self._others[worker])
        try:
            while True:
                try:
                    await self._follow(worker, client, reader)
                except RaypipeError as e:
                    _log.warning("worker %d heard nothing of %d: %s", worker, self._partition, e)
                    await asyncio.sleep(PAUSE_S)
        finally:
            await client.close()

    async def _follow(self, worker: int, client: WorkerClient, reader: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        heard = at = await client.heard(self._partition)
        if heard > await loop.run_in_executor(reader, self._log.end, self._partition):
            raise IntegrityError(
                f"worker {worker} heard of events up to {heard}, where this log has none",
                hint="The log lost rows that were acknowledged, or the other log is of another.",
            )
        while True:
            await self._beyond(at)
            load = await loop.run_in_executor(reader, self._load, worker, heard, at)
            at = load.end
            if load or at - heard >= FAR:
                heard = await client.hear(self._ownership.project, self._partition, load)
            self._told[worker] = at

    async def _beyond(self, offset: int) -> None:
        """Wait until the log ends after an offset."""
        async with self._grown:
            await self._grown.wait_for(lambda: offset < self._end)

    def _load(self, worker: int, heard: int, at: int) -> Load:
        """What to tell of rows from ``at`` on: of those before there is nothing to tell."""
        at = max(at, self._log.first(self._partition))
        chunks: list[Chunk] = list(self._log.read(self._partition, at, min(ROWS, self._end - at)))
        end = at + sum(map(len, chunks))
        return load_of(self._ownership, self._partition, worker, (heard, end), chunks)
