"""Feast stores for the contract of the online store, and the declarations that they share."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, RepoConfig
from feast.types import Array, Float64, Int64, String
from feast.value_type import ValueType

PACKED = {
    "provider": "features.store.packed.provider.PackedProvider",
    "type": "features.store.packed.store.PackedOnlineStore",
}

CARD = Entity(name="card", join_keys=["card_id"], value_type=ValueType.STRING)
SHOP = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.INT64)


def now() -> datetime:
    """To the microsecond, as Feast keeps times."""
    return datetime.now(UTC)


def packed_store(directory: Path, url: str, name: str = "packed") -> FeatureStore:
    online = {"type": PACKED["type"], "url": url}
    return _store(directory, name, PACKED["provider"], online)


def stock_store(directory: Path, online: dict[str, Any] | None = None) -> FeatureStore:
    """Feast's own SQLite store: the oracle."""
    given = online or {"type": "sqlite", "path": str(directory / "stock.db")}
    return _store(directory, f"stock_{given['type']}", "local", given)


def _store(directory: Path, name: str, provider: str, online: dict[str, Any]) -> FeatureStore:
    directory.mkdir(parents=True, exist_ok=True)
    return FeatureStore(
        config=RepoConfig(
            project="shop",
            provider=provider,
            registry=str(directory / f"{name}.pb"),
            offline_store={"type": "duckdb"},
            online_store=online,
            entity_key_serialization_version=3,
        )
    )


def view(
    directory: Path,
    name: str,
    features: dict[str, Any],
    *,
    entities: Sequence[Entity] | None = (CARD,),
    ttl: timedelta = timedelta(0),
    created: bool = False,
    **more: Any,
) -> FeatureView:
    """A view over a Parquet file `NAME.parquet` and a push source `push_NAME`."""
    keys = {"card": Field(name="card_id", dtype=String), "shop": Field(name="shop_id", dtype=Int64)}
    return FeatureView(
        name=name,
        entities=list(entities) if entities else None,
        ttl=ttl,
        schema=[
            *(keys[e.name] for e in entities or () if e.name in keys),
            *(Field(name=n, dtype=t) for n, t in features.items()),
        ],
        source=PushSource(
            name=f"push_{name}",
            batch_source=FileSource(
                name=f"file_{name}",
                path=str(directory / f"{name}.parquet"),
                timestamp_field="event_timestamp",
                created_timestamp_column="created" if created else "",
            ),
        ),
        **more,
    )


def frame(rows: list[dict[str, Any]], at: datetime | None = None) -> pd.DataFrame:
    """Rows with `event_timestamp`, which is `at` where a row has none."""
    return pd.DataFrame([{"event_timestamp": at or now(), **row} for row in rows])


NUMBERS = {"amount": Float64, "count": Int64}
MIXED = {**NUMBERS, "name": String, "vector": Array(Float64)}
