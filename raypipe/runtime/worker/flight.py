"""One commit that is being written by a thread of its own, and what of it may be asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from raypipe.aborts import reach
from raypipe.errors import IntegrityError
from raypipe.events.quarantine import Refusal
from raypipe.ledger.record import DecisionRecord
from raypipe.log.port import Appended, Chunk, EventLog, Group, Offsets, chunks_of
from raypipe.runtime.worker.intake import Intake

Name = tuple[str, str]
"""A tenant and an id."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one commit makes durable; ``first`` is the offset that its first row is to get."""

    batches: Sequence[Appended]
    refusals: Sequence[Refusal]
    decisions: Mapping[Name, DecisionRecord]
    told: Mapping[Name, pa.RecordBatch]
    first: int

    @property
    def rows(self) -> int:
        """Of the log."""
        return sum(len(b) if isinstance(b, Group) else b[1].num_rows for b in self.batches)


class Flights:
    """Writes commits, one at a time, to a partition of which this is the only writer.

    ``load`` is what is being written; None: nothing is.
    """

    def __init__(self, log: EventLog, partition: int, epoch: int, intake: Intake) -> None:
        self._log = log
        self._partition = partition
        self._epoch = epoch
        self._intake = intake
        self._thread = ThreadPoolExecutor(1, "commit")
        self._seq = 0
        self._offsets: Future[list[Offsets]] | None = None
        self._began = 0.0
        self.load: Load | None = None
        self.landed = 0
        self.seconds = 0.0
        """Of all that landed."""

    def take_off(self, load: Load, landing: Callable[[], object] | None) -> None:
        """Begin to write. ``landing`` is called, by another thread, when ``land`` would no longer
        wait; without it all is written at once: whoever would wait saves the way there and back."""
        self._began = time.monotonic()
        if landing is None:
            offsets: Future[list[Offsets]] = Future()
            offsets.set_result(self._write(load, self._seq))
        else:
            offsets = self._thread.submit(self._write, load, self._seq)
            offsets.add_done_callback(lambda _: landing())
        self.load, self._offsets = load, offsets
        self._seq += bool(load.batches)

    @property
    def waits(self) -> bool:
        """Whether ``land`` would wait."""
        return self._offsets is not None and not self._offsets.done()

    def land(self) -> list[Chunk]:
        """Wait until all is durable; the rows as they are in the log.

        Raises what prevents it, IntegrityError for other offsets than were expected.
        """
        load, written = self.load, self._offsets
        if load is None or written is None:
            return []
        offsets = written.result()
        self.load = self._offsets = None
        if not offsets:
            return []  # rows were refused, and no others came
        reach("worker.after_commit")
        if int(offsets[0][0]) != load.first:
            raise IntegrityError(f"the log gave offset {offsets[0][0]}, expected {load.first}")
        self.landed += 1
        self.seconds += time.monotonic() - self._began
        return [
            chunk
            for batch, given in zip(load.batches, offsets, strict=True)
            for chunk in chunks_of(batch, given)
        ]

    def _write(self, load: Load, seq: int) -> list[Offsets]:
        self._intake.keep(load.refusals)
        if not load.batches:
            return []
        reach("worker.before_commit")
        producer = f"worker-{self._partition}-{self._epoch}"
        return self._log.append(
            self._partition, load.batches, producer=producer, seq=seq, epoch=self._epoch
        )
