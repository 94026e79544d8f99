"""What keeps a replica answering under overload and without its worker, put together."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from raypipe.errors import RaypipeError
from raypipe.ledger.spill import Spill
from raypipe.log.opening import open_log
from serving.entrance import Entrance
from serving.fairness import Gate
from serving.fallback import Fallback
from serving.logged import LoggedDecisions
from serving.presence import Presence
from serving.spill import SpillWriter
from serving.taking_in import CONTRADICTED, RECORDED, REFUSED, TakingIn

if TYPE_CHECKING:
    from raypipe.config import Settings
    from raypipe.project import Project
    from raypipe.runtime.worker.client import WorkerClient
    from raypipe.runtime.worker.routing import RoutingClient
    from serving.auth import Keys
    from serving.key_values import StoredState
    from serving.metrics import Metrics
    from serving.options import Options

_log = logging.getLogger("raypipe.serving")

HAND_OVER_S = 5.0
"""How long a replica that ends tries to hand over what its node has kept."""

_MILLION_HOURS = 1_000_000 / 3_600
"""Core hours of a million decisions, where one takes a second."""

ABOUT = {
    "decisions_running": "Decisions in work.",
    "decisions_queued": "Decisions that wait for a place.",
    "decisions_refused_busy_total": "Decisions answered 503: all places were taken.",
    "decisions_refused_share_total": "Decisions answered 429: their tenant had its share.",
    "worker_away": "Whether decisions are made without the worker.",
    "fallback_reserve_seconds": "Time kept for deciding without the worker.",
    "spill_rows": "Decisions on this node that the log does not have yet.",
    "spill_kept_total": "Decisions that this replica kept on its node.",
    "spill_failed_total": "Decisions that it could not keep.",
    "spill_recorded_total": "Kept decisions that this replica handed to the log.",
    "spill_contradicted_total": "Those beside which another decision had been recorded.",
    "spill_refused_total": "Those whose event the worker did not take.",
    "decision_cpu_seconds": "Processor time of this replica for each decision.",
    "decisions_million_cost": "Price of the replica's processor time for a million decisions.",
}
"""Metrics by name; serving.metrics puts `raypipe_` before."""


class Guard:
    """Admission, fallback and spill of one replica; ``begin`` starts what runs beside requests."""

    def __init__(
        self,
        settings: Settings,
        options: Options,
        project: Project,
        worker: WorkerClient | RoutingClient,
        stored: StoredState,
        keys: Keys,
        metrics: Metrics,
    ) -> None:
        self.gate = Gate(
            settings.max_ongoing_requests, settings.max_queued_requests, options.fairness.weights
        )
        # Half the places may wait for a worker that is away, so that the others answer.
        self.presence = Presence(
            worker, max(1, settings.max_ongoing_requests // 2), settings.worker_patience_ms / 1_000
        )
        self.writer = SpillWriter(partial(Spill, settings.spill_dir, settings.spill_bytes))
        self.fallback = Fallback(
            project,
            stored,
            settings.tenant,
            self.writer,
            self.presence,
            _logged(settings, project),
            settings.fallback_reserve_ms / 1_000,
        )
        self.entrance = Entrance(keys, self.gate, settings.decision_deadline_ms, self.presence)
        self.taking_in = TakingIn(worker, self.writer, self.presence, project.decision_event)
        self._price = options.core_hour_price
        self._metrics = metrics
        self._cpu_s = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        metrics.watch(ABOUT, self._figures)

    async def begin(self) -> None:
        """Be ready for the worker's absence, and hand over what was kept before; once, in the
        replica's event loop, before its first request: that may have been answered from the spill.
        """
        if self._tasks:
            return
        self._cpu_s = time.process_time()
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(run) for run in (self.taking_in.run(), self.presence.watch())
        ]
        try:
            await asyncio.to_thread(self.writer.open)
        except RaypipeError as e:
            _log.error("nothing can be decided without the worker for now: %s", e)
        await self.fallback.warm()

    async def end(self) -> None:
        """Hand over what is kept before the replica goes, for the node may go with it. What the
        worker doesn't take within ``HAND_OVER_S`` waits on the disk for the next start.
        """
        if not self._tasks:
            return
        for task in self._tasks:
            task.cancel()
        try:
            async with asyncio.timeout(HAND_OVER_S):
                await self.taking_in.finish()
        except TimeoutError:
            _log.error("decisions are left in this node's spill: the worker is away")

    def _figures(self) -> dict[str, float]:
        gate, taken, decided = self.gate, self.taking_in.taken, self._metrics.count
        figures = {
            "decisions_running": float(gate.running),
            "decisions_queued": float(gate.queued),
            "decisions_refused_busy_total": float(gate.refused_busy),
            "decisions_refused_share_total": float(gate.refused_share),
            "worker_away": float(self.presence.away),
            "fallback_reserve_seconds": self.fallback.reserve.of(float("inf")),
            "spill_kept_total": float(self.writer.kept),
            "spill_failed_total": float(self.writer.failed),
            "spill_recorded_total": float(taken[RECORDED]),
            "spill_contradicted_total": float(taken[CONTRADICTED]),
            "spill_refused_total": float(taken[REFUSED]),
        }
        if self.writer.opened is not None:
            # The other figures are told all the same; doctor says what ails the file.
            with suppress(RaypipeError):
                figures["spill_rows"] = float(self.writer.opened.backlog().rows)
        if decided:
            each = (time.process_time() - self._cpu_s) / decided
            figures["decision_cpu_seconds"] = each
            if self._price:
                figures["decisions_million_cost"] = each * _MILLION_HOURS * self._price
        return figures


def _logged(settings: Settings, project: Project) -> LoggedDecisions | None:
    """The embedded log can be read beside its worker; another one has no such way."""
    if not settings.log_url.startswith("sqlite:"):
        return None
    opening = partial(
        open_log, settings.log_url, settings.log_cache, create=False, workers=settings.workers
    )
    return LoggedDecisions(opening, project.decision, settings.workers)
