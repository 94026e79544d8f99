"""What there is to say of an experiment while it runs: its arms, and how often each one decided."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal, Protocol

from raypipe.errors import NotFound
from raypipe.experiments.registry import EXPERIMENTS
from raypipe.experiments.spec import Experiment
from raypipe.lake import Place
from raypipe.ledger.exposure import Counted
from serving import schemas
from serving.decide import deadline
from serving.release import Release

ANSWER_S = 2.0
"""How long the worker has to count."""


class CountsExposures(Protocol):
    """Owner of the counts; a raypipe.runtime.worker.client.WorkerClient is."""

    async def exposures(self, tenant: str, experiment: str) -> Sequence[Counted]:
        """How often each arm of ``name@version`` was decided with."""


class Experiments:
    """Answers for published experiments. ``release`` is the one that serves, None before it."""

    def __init__(self, lake: Place, worker: CountsExposures) -> None:
        self.release: Release | None = None
        self._lake = lake
        self._worker = worker
        self._read: dict[str, Experiment] = {}

    async def read(self, tenant: str, reference: str) -> schemas.ExperimentState:
        """An experiment by ``name@version``; of a name alone the version that runs, else the
        highest.

        Raises NotFound for one that isn't published, Unavailable while the worker is away.
        """
        found = await self._find(reference)
        async with deadline(ANSWER_S):
            counted = {c.arm: c for c in await self._worker.exposures(tenant, found.id)}
        runs = found.id in self._running
        state: Literal["running", "stopped", "published"] = "published"
        if runs or counted:
            state = "running" if runs else "stopped"
        return schemas.ExperimentState(
            experiment=found.id,
            state=state,
            release=self.release.number if runs and self.release is not None else None,
            unit=found.unit,
            layer=found.layer,
            holdout=found.holdout,
            arms=[
                schemas.ExperimentArm(
                    name=arm.name,
                    share=arm.share,
                    model=arm.model,
                    policy=arm.policy,
                    exposures=mine.exposures if mine else 0,
                    first_exposure=mine.first_ms if mine else None,
                    last_exposure=mine.last_ms if mine else None,
                )
                for arm in found.arms
                for mine in (counted.get(arm.name),)
            ],
            metrics=[m.name for m in found.metrics],
            horizon_ms=found.horizon_ms,
            sha256=found.sha256,
        )

    @property
    def _running(self) -> tuple[str, ...]:
        return () if self.release is None else self.release.experiments

    async def _find(self, reference: str) -> Experiment:
        if "@" not in reference:
            running = (e for e in self._running if e.partition("@")[0] == reference)
            reference = next(running, reference)
        known = self._read.get(reference)
        if known is not None:
            return known
        # Published versions never change; a name alone may mean another one tomorrow.
        try:
            found = await asyncio.to_thread(EXPERIMENTS.read, self._lake, reference)
        except NotFound as e:
            # What else there is may be of other tenants.
            raise NotFound(e.detail, hint="Ask for NAME or NAME@VERSION.") from None
        self._read[found.id] = found
        return found
