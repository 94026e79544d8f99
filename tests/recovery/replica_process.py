"""A replica of the greenhouse without Ray, as a process of its own, to be killed by tests.

Its arguments are its home, its port, the milliseconds of its deadline and the bytes of its spill.
The score is made of litres and a window alone, so that no model must be trained.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import uvicorn

from raypipe.clock import MINUTE_MS, SystemClock
from raypipe.config import Settings
from raypipe.events.row import RowValidator
from raypipe.ledger.record import Reason
from raypipe.policy.policy import Policy
from raypipe.project import Model
from raypipe.runtime.worker import reach
from raypipe.runtime.worker.client import WorkerClient
from raypipe.runtime.worker.link import Link
from raypipe.vector.assemble import Assembler
from serving.batch import Limits
from serving.credentials import AWAY_S, Credentials
from serving.decide import Decider, Judge, Vector, Ways
from serving.docs import render
from serving.events import Events
from serving.experiments import Experiments
from serving.explain import Explainer
from serving.guard import Guard
from serving.http import HttpApp
from serving.key_shelf import KeyShelf
from serving.key_values import KeyValues, OnlineStore
from serving.metrics import Metrics
from serving.openapi import document
from serving.options import load_options
from serving.reviews import Reviews
from serving.tables import TableReader
from tests.domains.greenhouse import project

MODEL = Model("flooding", ("litres", "valve_count_2d"))
DOCUMENTS = render(document(project, "EUR", 65_536))
REFERENCE = "flooding@test"


class Litres:
    """More water, more openings: more risk. What is missing counts nothing."""

    ways = Ways("here", "none")

    def score(self, row: Vector) -> float:
        litres, count = (0.0 if x != x else float(x) for x in row)
        return min(1.0, litres / 1_000 + count / 10_000)

    def reasons(self, row: Vector) -> tuple[Reason, ...]:
        return ()


def judge() -> Judge:
    return Judge(
        features=Assembler(project, MODEL),
        scorer=Litres(),
        model=REFERENCE,
        model_sha256="",
        policy=Policy.from_thresholds("p", {"review": 0.5, "block": 0.9}),
        definition_hash=project.definition_hash,
    )


async def main(home: Path, port: int, deadline_ms: int, spill_bytes: int) -> None:
    async def connect() -> Link:
        return await reach.unix(str(home / "worker.sock"))

    settings = Settings(
        home=home,
        project="tests.domains.greenhouse:project",
        log_url=f"sqlite:///{home}/log",
        decision_deadline_ms=deadline_ms,
        spill_bytes=spill_bytes,
        fallback_reserve_ms=deadline_ms // 2,  # on any machine
    )
    worker, clock = WorkerClient(connect), SystemClock()
    shelf = KeyShelf(settings.spill_dir / "keys", AWAY_S)
    keys, metrics = Credentials(worker, shelf=shelf), Metrics(str(port))
    stored = OnlineStore(project, home, settings.online_url)
    guard = Guard(settings, load_options(), project, worker, stored, keys, metrics)
    app = HttpApp(
        keys=keys,
        entrance=guard.entrance,
        worker=worker,
        key_values=KeyValues(project, worker, stored, settings.tenant, clock),
        tables=TableReader(project, worker, clock),
        events=Events(project, worker, "EUR", clock, body_limit=2**20, waiting_limit=2**20),
        explainer=Explainer(settings.lake / "models"),
        reviews=Reviews(project, worker, clock, settings.review_minutes * MINUTE_MS),
        experiments=Experiments(settings.lake, worker),
        metrics=metrics,
        documents=DOCUMENTS,
        feature_names=lambda _: MODEL.features,
        last_parity=lambda: None,
        replica=str(port),
        body_limit=65_536,
        batch_limits=Limits.of(settings),
    )
    app.decider = Decider(
        project.decision_event,
        RowValidator(project.decision_event, "EUR"),
        worker,
        judge(),
        clock,
        deadline_ms / 1_000,
        fallback=guard.fallback,
    )
    await worker.stats()  # as a replica of the product, which comes up after the worker
    await guard.begin()
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, lifespan="off", log_level="critical", loop="none"
    )
    await uvicorn.Server(config).serve()


def start(home: str, port: str, deadline_ms: str, spill_bytes: str) -> None:
    """As its nursery has the words."""
    asyncio.run(main(Path(home), int(port), int(deadline_ms), int(spill_bytes)))
