"""A home whose log a worker wrote: sealed history, then live decisions of two tenants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pyarrow as pa

from raypipe.clock import MINUTE_MS
from raypipe.config import Settings
from raypipe.ledger.record import DecisionRecord, Reason, decision_id
from raypipe.log.sqlite import SqliteLog
from raypipe.project import Model
from raypipe.runtime.worker.core import WorkerCore
from raypipe.vector.assemble import FEATURE_VALUE, Assembler
from tests.domains.greenhouse import OPENING, project

PROJECT = "tests.domains.greenhouse:project"
START = 1_790_000_000_000
HISTORY, LIVE = 60, 90
MODEL = Model("flooding", project.feature_names)
"""Reads everything, so that everything is compared."""

Change = Callable[[DecisionRecord], DecisionRecord]


def settings(home: Path, **changes: object) -> Settings:
    return Settings(home=home, project=PROJECT, **changes)


def opening(i: int, tenant: str = "default") -> dict:
    """Each eleventh is older than the ones before it; each seventh has no gardener."""
    return {
        "tenant": tenant,
        "event_id": f"o-{i}",
        "event_time": START + i * MINUTE_MS - (5 * MINUTE_MS + 1 if i % 11 == 0 else 0),
        "received_at": START + i * MINUTE_MS,
        "valve": f"v-{i % 5}",
        "gardener": None if i % 7 == 0 else f"g-{i % 3}",
        "litres": i * 37 % 101,
        "mode": ("drip", "spray", None)[i % 3],
    }


def flood(i: int) -> dict:
    event = opening(i)
    return {
        "tenant": "default",
        "event_id": f"f-{i}",
        "event_time": event["event_time"],
        "received_at": event["received_at"],
        "opening_id": f"o-{i - 1}",
        "valve": event["valve"],
        "gardener": event["gardener"],
    }


def late(event_id: str) -> bool:
    """Whether that opening came after a newer one of its valve or its gardener."""
    number = int(event_id.removeprefix("o-"))
    mine = opening(number)
    return any(
        opening(i)["event_time"] > mine["event_time"]
        and any(mine[k] is not None and opening(i)[k] == mine[k] for k in ("valve", "gardener"))
        for i in range(number)
    )


def write(home: Path, change: Change = lambda record: record) -> list[DecisionRecord]:
    """Fill the log of a home; the default tenant's decisions, each as ``change`` made it."""
    log = SqliteLog(home / "log")
    rows = [opening(i) for i in range(HISTORY)]
    batch = pa.RecordBatch.from_pylist(rows, OPENING.arrow_schema)
    position = pa.array(range(HISTORY), pa.int64())
    schema = pa.schema([pa.field("_position", pa.int64(), nullable=False), *OPENING.arrow_schema])
    sealed = pa.RecordBatch.from_arrays([position, *batch.columns], schema=schema)
    log.seal(0, {"opening": iter([sealed])}, HISTORY, producer="history", seq=0)
    core = WorkerCore(project, log)
    assembler = Assembler(project, MODEL)
    made = []
    for i in range(HISTORY, HISTORY + LIVE):
        if i % 8 == 0:
            core.observe(flood(i), i.to_bytes(32, "big"), "flood")
        for tenant in ("default", "other"):
            entry, _ = core.observe(opening(i, tenant), i.to_bytes(32, "big"))
            row = assembler.row(entry.event, entry.windows, ()).astype(FEATURE_VALUE)
            record = decision(entry.event, entry.offset, row.tobytes())
            if tenant == "default":
                record = change(record)
                made.append(record)
            core.record(record, entry.windows)
        core.commit()
    log.close()
    return made


def decision(event: dict, offset: int, features: bytes) -> DecisionRecord:
    return DecisionRecord(
        decision_id=decision_id(event["tenant"], event["event_id"]),
        tenant=event["tenant"],
        event_id=event["event_id"],
        event_offset=offset,
        event_time=event["event_time"],
        received_at=event["received_at"],
        decided_at=event["received_at"] + 1,
        model="flooding@1",
        model_sha256="0" * 64,
        policy="p",
        policy_sha256="0" * 64,
        definition_hash=project.definition_hash,
        features=features,
        score=0.5,
        action="review",
        reasons=(Reason("LITRES", "litres", 0.25),),
        rule_hits=("review_threshold",),
    )


def flipped(record: DecisionRecord, feature: str) -> DecisionRecord:
    """The record with the lowest bit of one feature turned over."""
    data = bytearray(record.features)
    data[MODEL.features.index(feature) * FEATURE_VALUE.itemsize] ^= 1
    return msgspec.structs.replace(record, features=bytes(data))
