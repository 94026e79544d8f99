"""A strange domain, a tiny real model of it, and a worker in memory: serving without Ray."""

from __future__ import annotations

import asyncio
import itertools
import json
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pyarrow as pa
import xgboost

from features import parity_report
from features.online import OnlineRow
from raypipe.clock import DAY_MS, HOUR_MS, ManualClock
from raypipe.errors import Conflict, Unavailable
from raypipe.events.row import RowValidator
from raypipe.events.schema import EventType, Field, Kind, Tag
from raypipe.lake import Place
from raypipe.ledger.exposure import Counted
from raypipe.ledger.record import DecisionRecord, encode
from raypipe.log.port import Chunk
from raypipe.profiles import Profile, Value, facts
from raypipe.project import Entity, Label, Model, Project
from raypipe.runtime.worker.exposures import ExposureCounts
from raypipe.tables.engine import TableEngine
from raypipe.tables.spec import Table
from raypipe.tables.spec import count as count_of
from raypipe.tables.spec import total as total_of
from raypipe.tenancy.keys import Credential, KeyStore, Presented
from raypipe.vector.expressions import Derived
from raypipe.windows.spec import WindowView, count, spans
from serving.batch import Limits
from serving.credentials import Credentials
from serving.decide import Decider, Profiles
from serving.docs import render
from serving.entrance import Entrance
from serving.events import Events
from serving.experiments import Experiments
from serving.explain import Explainer
from serving.fairness import Gate
from serving.http import HttpApp
from serving.key_values import KeyValues
from serving.metrics import Metrics
from serving.openapi import document
from serving.reviews import Reviews
from serving.scoring import feature_names, load_judge
from serving.tables import TableReader
from training import artefact, registry

NOW = 1_760_000_000_000
BODY_LIMIT = 4_096
DEADLINE_MS = 5_000

READING = EventType(
    "reading",
    (
        Field("sensor_id", Kind.STRING, tags=frozenset({Tag.KEY}), max_length=16),
        Field("cost", Kind.AMOUNT, minimum=0),
        Field("currency", Kind.CURRENCY),
        Field("heat", Kind.NUMBER, minimum=-50, maximum=1000),
        Field("ticks", Kind.INTEGER, required=False),
        Field("tampered", Kind.BOOLEAN, required=False),
        Field("side", Kind.CHOICE, required=False, choices=("left", "right")),
        Field("noticed", Kind.TIME, required=False),
        Field("a/b~c", Kind.STRING, required=False),
    ),
    "a sensor reports",
)
FAULT = EventType("fault", (Field("reading_id", Kind.STRING), Field("sensor_id", Kind.STRING)))
VIEW = WindowView("sensor", "sensor", "reading", "sensor_id", (count(),), spans("1h/1m"))
FEATURES = ("heat", "cost", "ticks", "side", "cost_per_degree", "sensor_count_1h")
PROJECT = Project(
    name="plant",
    events=(READING, FAULT),
    entities=(Entity("sensor"),),
    views=(VIEW,),
    derived=(Derived("cost_per_degree", "cost / heat"),),
    decision="reading",
    label=Label("fault", "reading_id", HOUR_MS),
    models=(Model("fault", FEATURES),),
    tables=(Table("heat", ("reading",), (count_of("readings"), total_of("cost", "cost"))),),
)

PROFILE = Profile(
    "sensor_year",
    "sensor",
    "sensor_id",
    facts=(facts("reading", readings="count(*)"),),
    values=(Value("age", "max(age)"),),
)
PROFILED = replace(
    PROJECT,
    profiles=(PROFILE,),
    models=(Model("fault", (*FEATURES, *PROFILE.column_names)),),
)
"""The same plant with a profile that its model uses."""

DOCUMENTS = render(document(PROJECT, "EUR", BODY_LIMIT))


def body(**changes: Any) -> dict[str, Any]:
    """A good body; a change to ``...`` leaves the field out."""
    whole = {
        "event_id": "r-1",
        "event_time": NOW,
        "sensor_id": "s-1",
        "cost": 100,
        "currency": "EUR",
        "heat": 20.5,
        "side": "left",
    } | changes
    return {k: v for k, v in whole.items() if v is not ...}


HOT = {"heat": 900.0, "cost": 90_000}
"""What the tiny model has learnt to fear."""


def train(
    home: Path,
    thresholds: dict[str, float] | None = None,
    objective: str = "binary:logistic",
    scale: float = 1.0,
    project: Project = PROJECT,
    rounds: int = 12,
) -> str:
    """A real model version in home/models, made current; heat and cost speak for a fault."""
    rng = np.random.default_rng(1)
    names = project.model("fault").features
    X = np.column_stack(
        [
            rng.uniform(-50, 1000, 600),
            rng.uniform(0, 100_000, 600),
            rng.integers(0, 9, 600),
            rng.integers(0, 2, 600),
            rng.uniform(0, 100, 600),
            rng.integers(0, 50, 600),
            *(rng.integers(0, 300, 600) for _ in names[len(FEATURES) :]),
        ]
    ).astype(np.float32)
    y = (X[:, 0] / 1000 + X[:, 1] / 100_000 > 1.2) * scale
    booster = xgboost.train(
        {"objective": objective, "max_depth": 3, "nthread": 1, "seed": 1},
        xgboost.DMatrix(X, y, feature_names=list(names)),
        num_boost_round=rounds,
    )
    return save_model(home, bytes(booster.save_raw("ubj")), thresholds, project).name


def save_model(
    home: Path,
    model: bytes,
    thresholds: dict[str, float] | None = None,
    project: Project = PROJECT,
) -> Place:
    """A version of any model in home/models, made current."""
    place = artefact.write(
        Place.at(home) / "models",
        model,
        project=project,
        name="fault",
        created_ms=NOW,
        training={},
        data_fingerprint="",
        parameters={},
        metrics={},
        thresholds=thresholds or {"review": 0.3, "block": 0.99},
    )
    registry.promote(Place.at(home) / "models", "fault", place.name)
    return place


@dataclass
class Seen:
    offset: int
    windows: bytes
    event: dict[str, Any]
    body_hash: bytes
    decision: bytes | None = None
    owner_offsets: msgspec.UnsetType = msgspec.UNSET

    @property
    def own(self) -> bytes:
        return self.windows


@dataclass
class MemoryWorker:
    """observe/record as a worker does it: first wins, windows without the event itself."""

    keys: KeyStore | None = None
    seen: dict[tuple[str, str], Seen] = field(default_factory=dict)
    records: dict[tuple[str, str], DecisionRecord] = field(default_factory=dict)
    failure: Exception | None = None
    failure_of_record: Exception | None = None
    hangs: bool = False

    async def observe(self, event: dict[str, Any], body_hash: bytes) -> Seen:
        await self._reached()
        key = event["tenant"], event["event_id"]
        known = self.seen.get(key)
        if known is None:
            earlier = sum(
                s.event["sensor_id"] == event["sensor_id"] and t == event["tenant"]
                for (t, _), s in self.seen.items()
            )
            known = Seen(len(self.seen), struct.pack("<d", earlier), dict(event), body_hash)
            self.seen[key] = known
        elif known.body_hash != body_hash:
            raise Conflict(f"event {event['event_id']!r} came before with another body")
        return Seen(known.offset, known.windows, known.event, body_hash, known.decision)

    async def record(self, record: DecisionRecord, windows: bytes) -> DecisionRecord:
        await self._reached()
        if self.failure_of_record:
            raise self.failure_of_record
        first = self.records.setdefault((record.tenant, record.decision_id), record)
        self.seen[record.tenant, record.event_id].decision = encode(first)
        return first

    async def decision(self, tenant: str, decision_id: str) -> DecisionRecord | None:
        await self._reached()
        return self.records.get((tenant, decision_id))

    async def read(self, tenant: str, entity: str, key: str, now: int) -> dict[str, float]:
        await self._reached()
        mine = [
            s.event
            for (t, _), s in self.seen.items()
            if t == tenant and s.event["sensor_id"] == key and s.event["event_time"] > now - HOUR_MS
        ]
        return {"sensor_count_1h": float(len(mine))}

    async def table(
        self, tenant: str, table: str, since: int, until: int, now: int
    ) -> tuple[list[dict[str, Any]], int | None]:
        await self._reached()
        engine = TableEngine(PROJECT.tables, PROJECT.events)
        for seen in self.seen.values():
            batch = pa.RecordBatch.from_pylist([seen.event], READING.arrow_schema)
            engine.take([Chunk("reading", np.array([seen.offset]), batch)])
        return engine.read(tenant, table, since, until, now), engine.watermark(table)

    async def verify(self, shown: Presented) -> Credential | None:
        assert self.keys is not None
        return self.keys.verify(shown)

    async def exposures(self, tenant: str, experiment: str) -> list[Counted]:
        await self._reached()
        counts = ExposureCounts()
        for record in self.records.values():
            counts.decided(record)
        return counts.of(tenant, experiment)

    async def figures(self, within_s: float) -> list[dict[str, float] | None]:
        try:
            return [await self.stats()]
        except Unavailable:
            return [None]

    async def stats(self) -> dict[str, float]:
        await self._reached()
        return {"events": float(len(self.seen)), "commit.seconds": 0.5}

    async def _reached(self) -> None:
        await asyncio.sleep(0)
        if self.hangs:
            await asyncio.get_running_loop().create_future()
        if self.failure:
            raise self.failure


@dataclass
class MemoryStore:
    """Rows as the online store has them; a key that is not there is unknown."""

    rows: dict[str, OnlineRow] = field(default_factory=dict)

    def read(self, view: WindowView, key: str, now: int) -> OnlineRow:
        return self.rows.get(key, OnlineRow(key, None, {}))


class Service:
    """The application of one replica over a home folder, called in process."""

    def __init__(
        self,
        home: Path,
        store: Path,
        project: Project = PROJECT,
        worker: Any = None,
        **options: Any,
    ) -> None:
        self.clock = ManualClock(NOW)
        self.keys = KeyStore(store, self.clock)
        self.worker = worker or MemoryWorker()
        self.worker.keys = self.keys
        self.stored = MemoryStore()
        self.believed_at = itertools.count()  # each request asks for its key again
        self.key = self.keys.create(
            "default", ["decisions:write", "decisions:read", "features:read"]
        )
        self.home = home
        keys = Credentials(self.worker, lambda: float(next(self.believed_at)))
        self.gate = Gate(64, 64)
        self.app = HttpApp(
            keys=keys,
            entrance=Entrance(keys, self.gate, DEADLINE_MS),
            worker=self.worker,
            key_values=KeyValues(PROJECT, self.worker, self.stored, "default", self.clock),
            tables=TableReader(PROJECT, self.worker, self.clock),
            events=Events(
                PROJECT, self.worker, "EUR", self.clock, body_limit=BODY_LIMIT, waiting_limit=2**20
            ),
            explainer=Explainer(Place.at(home) / "models"),
            reviews=Reviews(project, self.worker, self.clock, DAY_MS),
            experiments=Experiments(Place.at(home), self.worker),
            metrics=Metrics("r1"),
            documents=DOCUMENTS,
            feature_names=lambda reference: feature_names(Place.at(home) / "models", reference),
            last_parity=lambda: parity_report.last(Place.at(home)),
            replica="r1",
            batch_limits=Limits(rows=20, body_bytes=16_384, row_bytes=BODY_LIMIT),
            **{"body_limit": BODY_LIMIT} | options,
        )
        self.judge = load_judge(Place.at(home) / "models", project, "fault", None, "review")
        self.use(self.judge)

    def use(self, judge: Any, profiles: Profiles | None = None) -> None:
        validator, deadline_s = RowValidator(READING, "EUR"), DEADLINE_MS / 1_000
        self.app.decider = Decider(
            READING, validator, self.worker, judge, self.clock, deadline_s, profiles
        )

    async def call(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **kwargs)

    def get(self, path: str, key: str | None = "own", method: str = "GET") -> httpx.Response:
        return asyncio.run(self.call(method, path, headers=self._headers(key)))

    def raw(
        self,
        content: bytes | AsyncIterator[bytes],
        key: str | None = "own",
        path: str = "/v1/decisions",
        **headers: str,
    ) -> httpx.Response:
        named = {k.replace("_", "-"): v for k, v in headers.items()}
        sent = {"Content-Type": "application/json"} | self._headers(key) | named
        return asyncio.run(self.call("POST", path, content=content, headers=sent))

    def post(
        self, payload: Any, key: str | None = "own", path: str = "/v1/decisions", **headers: str
    ) -> httpx.Response:
        return self.raw(json.dumps(payload).encode(), key, path, **headers)

    def _headers(self, key: str | None) -> dict[str, str]:
        text = self.key if key == "own" else key
        return {} if text is None else {"Authorization": f"Bearer {text}"}


def pointers(response: httpx.Response) -> list[str]:
    """The places that a problem names, in order."""
    return [e["pointer"] for e in response.json().get("errors", [])]


ids = (f"r-{n}" for n in itertools.count(1000))
"""Event ids that no other call used."""
