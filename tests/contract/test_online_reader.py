"""The reader that a replica holds, beside Feast's API on the same store."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feast import FeatureStore
from feast.errors import FeatureViewNotFoundException
from feast.types import (
    Bool,
    Float32,
    Float64,
    Int32,
    Int64,
    UnixTimestamp,
)

from features.store.packed.reader import OnlineReader
from raypipe.errors import ConfigError, UsageError
from tests.contract.store_kit import (
    CARD,
    MIXED,
    SHOP,
    frame,
    packed_store,
    stock_store,
    view,
)

T = datetime(2026, 11, 1, 12, 0, 0, 123_456, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path, online_url: str) -> FeatureStore:
    return packed_store(tmp_path, online_url)


def test_the_reader_agrees_with_feasts_api(tmp_path: Path, store: FeatureStore) -> None:
    columns = {
        "amount": Float64,
        "count": Int64,
        "seen": UnixTimestamp,
        "new": Bool,
        "low": Float32,
    }
    both = view(tmp_path, "by_both", {"visits": Int32}, entities=[CARD, SHOP])
    store.apply([CARD, SHOP, view(tmp_path, "by_card", columns), both])
    rows = [
        {"card_id": k, "amount": i / 3, "count": i, "seen": T, "new": i % 2 == 1, "low": None}
        for i, k in enumerate("abc")
    ]
    store.write_to_online_store("by_card", frame(rows, T))
    store.write_to_online_store("by_both", frame([{"card_id": "b", "shop_id": 2, "visits": 4}], T))
    refs = [*(f"by_card:{c}" for c in columns), "by_both:visits"]
    reader = OnlineReader(store, refs)
    keys = {"card_id": ["b", "x", "a"], "shop_id": [2, 2, 2]}
    known = reader.read(keys)
    answer = store.get_online_features(refs, keys).to_dict()
    expected = [
        [
            math.nan if v is None else v.timestamp() if isinstance(v, datetime) else float(v)
            for v in (answer[n][i] for n in reader.names)
        ]
        for i in range(3)
    ]
    np.testing.assert_array_equal(known.values, expected)
    assert known.values.dtype == np.float64
    ms = int(T.timestamp() * 1_000)
    times = dict(zip(reader.views, known.event_times.T.tolist(), strict=True))
    assert times == {"by_card": [ms, -1, ms], "by_both": [ms, -1, -1]}
    none = reader.read({"card_id": [], "shop_id": []})
    assert none.values.shape == (0, 6)
    assert none.event_times.shape == (0, 2)


def test_the_reader_refuses_what_it_can_t_read(tmp_path: Path, store: FeatureStore) -> None:
    store.apply([CARD, view(tmp_path, "by_card", MIXED)])
    with pytest.raises(UsageError, match="are no numbers"):
        OnlineReader(store, ["by_card:amount", "by_card:name"])
    with pytest.raises(FeatureViewNotFoundException):
        OnlineReader(store, ["unknown:amount"])
    reader = OnlineReader(store, ["by_card:amount"])
    wrong: list[dict[str, Any]] = [{}, {"card_id": [1]}, {"card_id": ["a"], "x": ["a"]}]
    for entities in wrong:
        with pytest.raises(UsageError, match="as entities"):
            reader.read(entities)
    with pytest.raises(ConfigError, match="SqliteOnlineStore"):
        OnlineReader(stock_store(tmp_path), ["by_card:amount"])
