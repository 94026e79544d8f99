"""A real worker's core in this process, asked as a replica asks the worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raypipe.clock import Clock
from raypipe.lake import Place
from raypipe.ledger import record as ledger
from raypipe.ledger.exposure import Counted
from raypipe.ledger.outcome import Outcome
from raypipe.log.sqlite import SqliteLog
from raypipe.project import Project
from raypipe.runtime.worker import protocol
from raypipe.runtime.worker.compiled import compile_worker
from raypipe.runtime.worker.core import WorkerCore
from raypipe.runtime.worker.intake import Bulk
from raypipe.runtime.worker.reviews import Review, Wanted
from raypipe.runtime.worker.snapshots import Snapshots
from raypipe.tenancy.keys import Credential, KeyStore, Presented


class CoreWorker:
    """``start`` begins anew from the log, as after a death; with snapshots if there are any."""

    keys: KeyStore

    def __init__(self, folder: Path, project: Project, clock: Clock) -> None:
        self._folder = folder
        self._project = project
        self._clock = clock
        compile_worker(project)  # before a request with a deadline
        self.start()

    def start(self) -> None:
        self.log = SqliteLog(self._folder / "log")
        self.core = WorkerCore(
            self._project,
            self.log,
            clock=self._clock,
            snapshots=Snapshots(
                Place.at(self._folder / "snapshots"), self._project.definition_hash, 1e9
            ),
        )

    async def observe(self, event: dict[str, Any], body_hash: bytes) -> protocol.Observed:
        entry, decision = self.core.observe(event, body_hash)
        return protocol.Observed(0, entry.offset, entry.windows, entry.event, decision)

    async def record(self, record: ledger.DecisionRecord, own: bytes) -> ledger.DecisionRecord:
        stored = self.core.record(record, own)
        self.core.commit()
        return stored

    async def decision(self, tenant: str, decision_id: str) -> ledger.DecisionRecord | None:
        return self.core.decision(tenant, decision_id)

    async def exposures(self, tenant: str, experiment: str) -> list[Counted]:
        return self.core.exposures(tenant, experiment)

    async def event_of(self, tenant: str, decision_id: str) -> dict[str, Any] | None:
        found = self.core.event_of(tenant, decision_id)
        return None if found is None else dict(found)

    async def reviews(self, tenant: str, wanted: Wanted) -> tuple[list[Review], int]:
        return self.core.people.page(tenant, wanted)

    async def claim_review(
        self, tenant: str, decision_id: str, holder: str, lease_ms: int
    ) -> Review:
        review = self.core.people.claim(tenant, decision_id, holder, lease_ms)
        self.core.commit()
        return review

    async def report(self, outcome: Outcome) -> Outcome:
        decided = self.core.decision(outcome.tenant, outcome.decision_id)
        stored = self.core.people.report(outcome, decided)
        self.core.commit()
        return stored

    async def ingest(self, project: Project, bulk: Bulk) -> protocol.Ingested:
        receipt = self.core.ingest(bulk)
        self.core.commit()
        told = receipt.first_offset, receipt.accepted, receipt.duplicates
        return protocol.Ingested(0, receipt.received_at, *told)

    async def verify(self, shown: Presented) -> Credential | None:
        return self.keys.verify(shown)

    async def stats(self) -> dict[str, float]:
        return self.core.stats()

    async def figures(self, within_s: float) -> list[dict[str, float]]:
        return [self.core.stats()]
