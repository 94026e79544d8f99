"""A small declared domain and its files, written as the log and the batch features write them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from raypipe.clock import DAY_MS
from raypipe.events.schema import EventType, Field, Kind, Tag
from raypipe.project import Entity, Label, Model, Project
from raypipe.vector.expressions import Derived
from raypipe.windows.spec import WindowView, count, mean, since_last, spans
from training.dataset import Dataset, Origin

HORIZON_MS = 3 * DAY_MS
START_MS = 1_750_000_000_000
TENANT = "acme"
BUILD = "b1"
SPANS = spans("1h/1m", "1d/30m")
KEY = frozenset({Tag.KEY})

PURCHASE = EventType(
    "purchase",
    (
        Field("buyer_id", Kind.STRING, tags=KEY),
        Field("shop_id", Kind.STRING, required=False, tags=KEY),
        Field("amount", Kind.AMOUNT, minimum=0),
        Field("currency", Kind.CURRENCY),
        Field("channel", Kind.CHOICE, required=False, choices=("shop", "web", "phone")),
    ),
)
DISPUTE = EventType(
    "dispute",
    (Field("purchase_id", Kind.STRING), Field("buyer_id", Kind.STRING, tags=KEY)),
)
BUYER = WindowView("buyer", "buyer", "purchase", "buyer_id", (count(), mean("amount")), SPANS)
RISK = WindowView("risk", "buyer", "dispute", "buyer_id", (count(), since_last()), SPANS)
SHOP = WindowView("shop", "shop", "purchase", "shop_id", (count(),), SPANS)

PROJECT = Project(
    name="shopping",
    events=(PURCHASE, DISPUTE),
    entities=(Entity("buyer"), Entity("shop")),
    views=(BUYER, RISK, SHOP),
    derived=(
        Derived("hour", "hour_of_day(event_time)"),
        Derived(
            "amount_ratio", "where(buyer_amount_mean_1d > 0, amount / buyer_amount_mean_1d, 0)"
        ),
    ),
    decision="purchase",
    label=Label("dispute", "purchase_id", HORIZON_MS),
    models=(
        Model(
            "fraud",
            ("hour", "channel", "shop_count_1d", "amount", "amount_ratio", "risk_count_1d"),
        ),
    ),
)


@dataclass
class World:
    """Purchases and disputes with window values; change what a test is about, then write."""

    offsets: npt.NDArray[np.int64]
    event_time: npt.NDArray[np.int64]
    columns: dict[str, list[Any]]
    windows: dict[str, npt.NDArray[np.float64]]
    newest: dict[str, npt.NDArray[np.int64]]
    dispute_of: list[str]
    dispute_time: list[int]
    dispute_tenant: list[str] = field(default_factory=list)
    tenants: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def ids(self) -> list[str]:
        return [f"p{i}" for i in range(len(self))]

    @property
    def end(self) -> int:
        return int(self.offsets.max()) + 1 + len(self.dispute_of)

    def write(self, home: Path) -> Path:
        """Log export, feature tables and manifest; returns the build's directory."""
        build = home / "features" / BUILD
        events = self._write_events(home / "export")
        self._write_features(build)
        manifest = {
            "build": BUILD,
            "definition_hash": PROJECT.definition_hash,
            "tenant": TENANT,
            "end_offset": self.end,
            "rows": len(self),
            "last_event_ms": int(self.event_time.max()),
            "log": "",
            "partitions": 3,
            "rate": 0.0,
            "days": [],
            "views": {v.name: v.definition_hash for v in PROJECT.views},
            "segments": {v.name: [[0, self.end, "", 3, 0]] for v in PROJECT.views},
            "events": {
                k: [[str(p.relative_to(home)), 0, self.end, 1, 0] for p in paths]
                for k, paths in events.items()
            },
        }
        (build.parent / "manifest.json").write_text(json.dumps(manifest))
        reseal(build)
        return build

    def _write_events(self, directory: Path) -> dict[str, list[Path]]:
        directory.mkdir(parents=True, exist_ok=True)
        tenants = self.tenants or [TENANT] * len(self)
        purchases = {
            "offset": self.offsets,
            "tenant": tenants,
            "event_id": self.ids,
            "event_time": self.event_time,
            "received_at": self.event_time + 5,
            **self.columns,
            "currency": ["EUR"] * len(self),
        }
        count_ = len(self.dispute_of)
        disputes = {
            "offset": np.arange(self.end - count_, self.end),
            "tenant": self.dispute_tenant or [TENANT] * count_,
            "event_id": [f"d{i}" for i in range(count_)],
            "event_time": np.array(self.dispute_time, np.int64),
            "received_at": np.array(self.dispute_time, np.int64),
            "purchase_id": self.dispute_of,
            "buyer_id": ["b"] * count_,
        }
        out = {}
        for event, columns in ((PURCHASE, purchases), (DISPUTE, disputes)):
            schema = pa.schema([("offset", pa.int64()), *event.arrow_schema])
            table = pa.table({n: pa.array(columns[n], schema.field(n).type) for n in schema.names})
            half = table.num_rows // 2
            out[event.name] = []
            for i, part in enumerate((table.slice(0, half), table.slice(half))):
                path = directory / f"{event.name}-{i}.parquet"
                pq.write_table(part, path)
                out[event.name].append(path)
        return out

    def _write_features(self, build: Path) -> None:
        for view in PROJECT.views:
            table = pa.table(
                {
                    "offset": self.offsets,
                    "event_id": self.ids,
                    "event_timestamp": pa.array(self.event_time * 1000).cast(
                        pa.timestamp("us", "UTC")
                    ),
                    **{n: self.windows[n] for n in view.column_names},
                    f"newest_{view.name}": self.newest[view.name],
                }
            )
            # Files of key ranges: each in offset order, all of them interleaved.
            for part in range(3):
                path = values_file(build, view.name, part)
                path.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(table.take(np.arange(part, len(self), 3)), path)


def values_file(build: Path, view: str, part: int) -> Path:
    """Where the values before events lie."""
    (found,) = (v for v in PROJECT.views if v.name == view)
    return build / "at_event" / view / found.definition_hash[:12] / f"part-{part:04d}.parquet"


def reseal(build: Path) -> None:
    """Bring all hashes in line with files that were changed on purpose."""
    path = build.parent / "manifest.json"
    manifest = json.loads(path.read_text())
    end = manifest["end_offset"]
    for view in PROJECT.views:
        files = [values_file(build, view.name, part) for part in range(3)]
        index = {
            "view": view.name,
            "definition": view.definition_hash,
            "start": 0,
            "end": end,
            "inputs": {},
            "slices": [],
            "files": [
                [
                    str(f.relative_to(build)),
                    0,
                    part,
                    f.stat().st_size,
                    hashlib.sha256(f.read_bytes()).hexdigest(),
                ]
                for part, f in enumerate(files)
            ],
            "states": [],
        }
        place = build / "index" / view.name / view.definition_hash[:12]
        place.mkdir(parents=True, exist_ok=True)
        text = json.dumps(index).encode()
        (place / f"{0:012d}-{end:012d}.json").write_bytes(text)
        manifest["segments"][view.name][0][2] = hashlib.sha256(text).hexdigest()
    path.write_text(json.dumps(manifest))


def world(
    rows: int = 300, *, seed: int = 1, spacing_ms: int = 600_000, share: float = 0.1
) -> World:
    """Purchases at a steady pace; about ``share`` of them are disputed a day later.

    A dispute is likelier for high amounts by phone with a high ``risk_count_1d``.
    """
    rng = np.random.default_rng(seed)
    offsets = np.cumsum(rng.integers(1, 3, rows))
    event_time = START_MS + spacing_ms * np.arange(rows, dtype=np.int64)
    amount = rng.integers(100, 100_000, rows)
    channel = rng.integers(-1, 3, rows)
    windows = {n: np.round(rng.gamma(2.0, 3.0, rows), 3) for n in PROJECT.window_names}
    strength = (
        amount / 1e5 + (channel == 2) + windows["risk_count_1d"] / 10 + rng.normal(0, 0.2, rows)
    )
    disputed = np.flatnonzero(strength > np.quantile(strength, 1 - share))
    return World(
        offsets=offsets,
        event_time=event_time,
        columns={
            "buyer_id": [f"b{i}" for i in rng.integers(0, 40, rows)],
            "shop_id": [None if i == 0 else f"s{i}" for i in rng.integers(0, 10, rows)],
            "amount": amount.tolist(),
            "channel": [None if c < 0 else PURCHASE.field("channel").choices[c] for c in channel],
        },
        windows=windows,
        newest={v.name: offsets - rng.integers(1, 5, rows) for v in PROJECT.views},
        dispute_of=[f"p{i}" for i in disputed],
        dispute_time=[int(event_time[i]) + DAY_MS for i in disputed],
    )


def dataset(rows: int = 2_000, *, seed: int = 3, noise: float = 0.5) -> Dataset:
    """A dataset without files: ten features, of which three matter, one row a minute."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 10)).astype(np.float32)
    strength = x[:, 0] + x[:, 1] * (x[:, 2] > 0) + rng.normal(0, noise, rows)
    y = (strength > np.quantile(strength, 0.92)).astype(np.uint8)
    return Dataset(
        names=tuple(f"f{i}" for i in range(10)),
        x=x,
        y=y,
        offsets=np.arange(rows, dtype=np.int64) * 2,
        event_time=START_MS + 60_000 * np.arange(rows, dtype=np.int64),
        origin=Origin("p", "fraud", "0" * 64, TENANT, START_MS + 60_000 * rows, 3_600_000),
        keys={"buyer_id": rng.integers(0, 50, rows).astype(np.int32)},
    )
