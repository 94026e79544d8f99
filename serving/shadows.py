"""Models that judge every decision again, beside it: what they would have done, for comparison.

A shadow has a thread of its own and a bounded queue before it. When it is behind, decisions are
left out and counted; no answer ever waits for it. Its rows go to the lake as Parquet files, not to
the log: nothing is computed from them, and the worker's commits stay as short as they are. A
replica that dies loses the rows of its last unfinished file, at most ``FLUSH_ROWS`` or those of
``FLUSH_S``.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pyarrow as pa

from raypipe.clock import Clock, SystemClock
from raypipe.errors import RaypipeError
from raypipe.lake import Place
from raypipe.ledger.record import DecisionRecord
from serving.decide import Judge, Known, Observation

FOLDER = "shadows"
QUEUE_LIMIT = 1_024
FLUSH_ROWS = 2_048
FLUSH_S = 5.0

SCHEMA = pa.schema(
    [
        pa.field("tenant", pa.string(), nullable=False),
        pa.field("decision_id", pa.string(), nullable=False),
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("decided_at", pa.int64(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("arm", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("action", pa.string(), nullable=False),
        pa.field("shadow", pa.string(), nullable=False),
        pa.field("shadow_score", pa.float64()),
        pa.field("shadow_action", pa.string(), nullable=False),
        pa.field("shadow_degraded", pa.bool_(), nullable=False),
    ]
)
"""A row: what was decided by ``model``, and what ``shadow`` would have done. Times are ms UTC."""

_log = logging.getLogger("raypipe.serving")


class Shown(NamedTuple):
    """A decision and all that it was made from."""

    record: DecisionRecord
    seen: Observation
    profiles: Known | None


class Shadows:
    """The shadows of one replica. ``offer`` and ``use`` are for its event loop alone.

    Args:
        folder: in the lake; below it each day (UTC) has a folder.
        count: told of rows by what became of them: ``scored``, ``dropped``, ``unwritten``.
    """

    def __init__(
        self,
        folder: Place,
        count: Callable[[str, int], None],
        clock: Clock | None = None,
        *,
        queue_limit: int = QUEUE_LIMIT,
        flush_s: float = FLUSH_S,
    ) -> None:
        self._folder = folder
        self._count = count
        self._clock = clock or SystemClock()
        self._flush_s = flush_s
        self._judges: Sequence[Judge] = ()
        self._queue: queue.Queue[Shown | None] = queue.Queue(queue_limit)
        self._thread: threading.Thread | None = None
        self._rows: list[tuple[object, ...]] = []

    def use(self, judges: Sequence[Judge]) -> None:
        """Have these models judge from now on; what is queued is judged by them too."""
        self._judges = tuple(judges)
        if self._judges and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="shadows", daemon=True)
            self._thread.start()

    def offer(self, record: DecisionRecord, seen: Observation, profiles: Known | None) -> None:
        """Queue a decision, or drop it when the shadows are behind."""
        if not self._judges:
            return
        try:
            self._queue.put_nowait(Shown(record, seen, profiles))
        except queue.Full:
            self._count("dropped", 1)

    def close(self) -> None:
        """Judge what is queued, write it, and end the thread."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        due = time.monotonic() + self._flush_s
        while True:
            try:
                shown = self._queue.get(timeout=max(due - time.monotonic(), 0.0))
            except queue.Empty:
                shown = None
                ended = False
            else:
                ended = shown is None
            if shown is not None:
                self._rows += [self._row(judge, shown) for judge in self._judges]
            if ended or len(self._rows) >= FLUSH_ROWS or time.monotonic() >= due:
                self._flush()
                due = time.monotonic() + self._flush_s
            if ended:
                return

    def _row(self, judge: Judge, shown: Shown) -> tuple[object, ...]:
        """What a shadow makes of a decision: its errors are its own, as a degraded action."""
        mine = judge.judge(shown.seen, shown.profiles, self._clock)
        made = shown.record
        return (
            *(made.tenant, made.decision_id, made.event_id, made.decided_at),
            *(made.model, made.arm, made.score, made.action),
            *(mine.model, mine.score, mine.action, mine.degraded),
        )

    def _flush(self) -> None:
        if not self._rows:
            return
        rows, self._rows = self._rows, []
        columns = zip(*rows, strict=True)
        arrays = [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
        day = time.strftime("%Y-%m-%d", time.gmtime(self._clock.now_ms() / 1_000))
        place = self._folder / day / f"{uuid.uuid4().hex}.parquet"
        try:
            place.write_parquet(pa.Table.from_arrays(arrays, schema=SCHEMA))
        except (OSError, RaypipeError) as e:
            _log.error("%d rows of shadows can't be written: %s", len(rows), e)
            self._count("unwritten", len(rows))
        else:
            self._count("scored", len(rows))
