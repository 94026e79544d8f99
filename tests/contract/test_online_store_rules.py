"""What the packed store promises beyond Feast's: order, age, change, forgetting, damage, crowds."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from feast import FeatureService, FeatureStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import (
    Bool,
    Float64,
    Int64,
    String,
)

from features.store.packed.access import erase, has, packed
from features.store.packed.order import CREATED, NEWEST_BY
from features.store.packed.reader import OnlineReader
from raypipe.errors import IntegrityError, UsageError
from tests.contract.store_kit import (
    CARD,
    MIXED,
    NUMBERS,
    SHOP,
    frame,
    now,
    packed_store,
    view,
)

T = datetime(2026, 11, 1, 12, 0, 0, 123_456, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path, online_url: str) -> FeatureStore:
    return packed_store(tmp_path, online_url)


def read(store: FeatureStore, refs: list[str], *keys: Any, **more: Any) -> dict[str, list[Any]]:
    rows = [k if isinstance(k, dict) else {"card_id": k} for k in keys]
    found: dict[str, list[Any]] = store.get_online_features(refs, rows, **more).to_dict()
    return found


# newest wins


def put(
    store: FeatureStore, name: str, value: float, at: datetime, created: datetime | None
) -> None:
    row = {"card_id": "a", "amount": value, "count": 1, "event_timestamp": at}
    if created is not None:
        row["created"] = created
    store.write_to_online_store(name, pd.DataFrame([row]))


def amount(store: FeatureStore, name: str) -> float | None:
    found: float | None = read(store, [f"{name}:amount"], "a")["amount"][0]
    return found


def test_a_late_row_never_overwrites(tmp_path: Path, store: FeatureStore) -> None:
    store.apply([CARD, view(tmp_path, "by_time", NUMBERS)])
    tick = timedelta(microseconds=1)
    for value, at, then in [
        (1.0, T, 1.0),
        (2.0, T - tick, 1.0),
        (3.0, T, 1.0),  # the same row again
        (4.0, T + tick, 4.0),
        (5.0, T - timedelta(days=900), 4.0),
        (6.0, datetime(1969, 1, 1, tzinfo=UTC), 4.0),
    ]:
        put(store, "by_time", value, at, None)
        assert amount(store, "by_time") == then


def test_created_decides_between_rows_of_one_time(tmp_path: Path, store: FeatureStore) -> None:
    store.apply([CARD, view(tmp_path, "by_time", NUMBERS, created=True)])
    for value, at, created, then in [
        (1.0, T, T, 1.0),
        (2.0, T, T + timedelta(seconds=1), 2.0),
        (3.0, T, T, 2.0),
        (4.0, T - timedelta(seconds=1), T + timedelta(days=1), 2.0),
    ]:
        put(store, "by_time", value, at, created)
        assert amount(store, "by_time") == then


def test_a_row_without_created_is_before_those_of_its_time(
    tmp_path: Path, store: FeatureStore
) -> None:
    by_time = view(tmp_path, "by_time", NUMBERS, created=True)
    store.apply([CARD, by_time])
    for value, created, then in [(1.0, None, 1.0), (2.0, T, 2.0), (3.0, None, 2.0)]:
        row = {
            "card_id": "a",
            "amount": value,
            "count": 1,
            "event_timestamp": T,
            "created": created,
        }
        packed(store).write_table(store.config, by_time, pa.Table.from_pylist([row]))
        assert amount(store, "by_time") == then


def test_times_may_be_texts(tmp_path: Path, store: FeatureStore) -> None:
    store.apply([CARD, view(tmp_path, "by_time", NUMBERS)])
    for value, text in [(1.0, "2026-11-01 12:00:00"), (2.0, "2026-11-01T13:00:01+01:00")]:
        row = {"card_id": "a", "amount": value, "count": 1, "event_timestamp": text}
        store.write_to_online_store("by_time", pd.DataFrame([row]))
        assert amount(store, "by_time") == value


def test_the_log_offset_alone_decides_where_the_view_says_so(
    tmp_path: Path, store: FeatureStore
) -> None:
    ours = view(tmp_path, "by_offset", NUMBERS, created=True, tags={NEWEST_BY: CREATED})
    store.apply([CARD, ours])
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    for value, at, offset, then in [
        (1.0, T, 0, 1.0),
        (2.0, T, 300, 2.0),
        (3.0, T + timedelta(days=1), 299, 2.0),
        (4.0, T - timedelta(days=1), 2**40, 4.0),
        (5.0, T, 301, 4.0),
    ]:
        put(store, "by_offset", value, at, epoch + timedelta(microseconds=offset))
        assert amount(store, "by_offset") == then


def test_of_rows_in_one_batch_the_newest_counts(tmp_path: Path, store: FeatureStore) -> None:
    store.apply([CARD, view(tmp_path, "by_time", NUMBERS)])
    order = np.random.default_rng(5).permutation(2_000)
    rows = [
        {
            "card_id": f"c{i % 7}",
            "amount": float(i),
            "count": 1,
            "event_timestamp": T + timedelta(milliseconds=int(i)),
        }
        for i in order
    ]
    store.write_to_online_store("by_time", pd.DataFrame(rows))
    found = read(store, ["by_time:amount"], *(f"c{i}" for i in range(7)))["amount"]
    assert found == [max(i for i in range(2_000) if i % 7 == k) for k in range(7)]


def test_naive_times_are_utc_on_every_way_in(tmp_path: Path, store: FeatureStore) -> None:
    store.apply([CARD, view(tmp_path, "by_time", NUMBERS)])
    naive = T.replace(tzinfo=None)
    put(store, "by_time", 1.0, naive, None)
    registered = store.get_feature_view("by_time")
    key = EntityKey(join_keys=["card_id"], entity_values=[Value(string_val="a")])
    for at, value in ((naive, 2.0), (naive + timedelta(microseconds=1), 3.0)):
        row = (key, {"amount": Value(double_val=value)}, at, None)
        store.provider.online_write_batch(store.config, registered, [row], None)
    ((moment, values),) = store.provider.online_read(store.config, registered, [key])
    assert moment == T + timedelta(microseconds=1)
    assert values["amount"].double_val == 3.0
    assert values["count"].WhichOneof("val") is None


# TTL


def test_the_ttl_counts_at_every_read(tmp_path: Path, store: FeatureStore) -> None:
    day = timedelta(days=1)
    store.apply(
        [
            CARD,
            view(tmp_path, "short", NUMBERS, ttl=day),
            view(tmp_path, "endless", {"kept": Int64}),
        ]
    )
    ages = {"young": timedelta(minutes=1), "old": day + timedelta(minutes=1), "future": -day}
    for key, age in ages.items():
        row = {"card_id": key, "amount": 1.5, "count": 1, "kept": 7}
        for name in ("short", "endless"):
            store.write_to_online_store(name, frame([row], now() - age))
    answer = store.get_online_features(
        ["short:amount", "endless:kept"], [{"card_id": k} for k in ages]
    )
    assert answer.to_dict()["amount"] == [1.5, None, 1.5]
    assert answer.to_dict()["kept"] == [7, 7, 7]
    place = list(answer.proto.metadata.feature_names.val).index("amount")
    assert list(answer.proto.results[place].statuses) == [1, 3, 1]  # 3: NOT_FOUND
    assert answer.to_dict(True)["amount__ts"][1] == 0
    registered = store.get_feature_view("short")
    keys = [EntityKey(join_keys=["card_id"], entity_values=[Value(string_val=k)]) for k in ages]
    found = store.provider.online_read(store.config, registered, keys)
    assert [moment is None for moment, _ in found] == [False, True, False]
    assert has(store, registered, "old")


def test_the_ttl_ends_after_its_last_microsecond(tmp_path: Path, store: FeatureStore) -> None:
    store.apply([CARD, view(tmp_path, "short", NUMBERS, ttl=timedelta(seconds=60))])
    at = datetime(2026, 11, 1, 12, tzinfo=UTC)
    store.write_to_online_store("short", frame([{"card_id": "a", "amount": 1.5, "count": 1}], at))
    reader = OnlineReader(store, ["short:amount"])
    ms = int(at.timestamp()) * 1_000
    assert reader.read({"card_id": ["a"]}, ms + 60_000).values.tolist() == [[1.5]]
    late = reader.read({"card_id": ["a"]}, ms + 60_001)
    assert np.isnan(late.values).all()
    assert late.event_times.tolist() == [[-1]]


# schemas


def test_an_old_row_is_read_with_what_it_still_means(tmp_path: Path, store: FeatureStore) -> None:
    """Gained: null. Dropped: ignored. Of another type: null, never a number that was another."""
    store.apply([CARD, view(tmp_path, "v", {"a": Int64, "b": Float64, "c": String, "e": Int64})])
    old = {"card_id": "a", "a": 7, "b": 1.5, "c": "text", "e": 9}
    store.write_to_online_store("v", frame([old, {**old, "card_id": "x"}], T))
    grown = view(tmp_path, "v", {"d": Int64, "c": String, "b": Int64, "a": Int64})
    store.apply([CARD, grown])
    refs = ["v:a", "v:b", "v:c", "v:d"]
    # Another process knows the new schema alone.
    for s in (store, packed_store(tmp_path, store.config.online_store.url)):
        found = read(s, refs, "a")
        assert found == {"card_id": ["a"], "a": [7], "b": [None], "c": ["text"], "d": [None]}
    new = {"card_id": "a", "a": 7, "b": 15, "c": "text", "d": 1}
    store.write_to_online_store("v", frame([new], T - timedelta(seconds=1)))
    assert read(store, refs, "a")["d"] == [None]
    # The same moment under a new schema: the row was written again because of it.
    store.write_to_online_store("v", frame([new], T))
    found = read(store, refs, "a", "x")
    assert (found["b"], found["d"], found["c"]) == ([15, None], [1, None], ["text", "text"])


def test_many_features_of_one_view(tmp_path: Path, store: FeatureStore) -> None:
    kinds = [Float64, Int64, String, Bool]
    columns = {f"f{i}": kinds[i % 4] for i in range(300)}
    store.apply([CARD, view(tmp_path, "wide", columns)])
    values = [
        {f"f{i}": (i + 0.5, i, f"t{i}", i % 8 == 3)[i % 4] for i in range(300)},
        {f"f{i}": None for i in range(300)} | {"f64": 1.25, "f299": True},
    ]
    store.write_to_online_store(
        "wide", frame([{"card_id": k, **v} for k, v in zip("ab", values, strict=True)])
    )
    found = read(store, [f"wide:{c}" for c in columns], "a", "b")
    for name in columns:
        assert found[name] == [v[name] for v in values]


# forgetting


def test_an_entity_is_erased_from_every_view_and_counted(
    tmp_path: Path, store: FeatureStore
) -> None:
    both = view(tmp_path, "by_both", {"visits": Int64}, entities=[CARD, SHOP])
    store.apply(
        [
            CARD,
            SHOP,
            view(tmp_path, "v1", {"one": Int64}),
            view(tmp_path, "v10", {"ten": Int64}),
            view(tmp_path, "by_shop", {"sales": Int64}, entities=[SHOP]),
            both,
        ]
    )
    cards = ["a", "aa", "a*", "b"]
    store.write_to_online_store("v1", frame([{"card_id": k, "one": 1} for k in cards]))
    store.write_to_online_store("v10", frame([{"card_id": k, "ten": 10} for k in cards]))
    store.write_to_online_store("by_shop", frame([{"shop_id": 1, "sales": 5}]))
    pairs = [{"card_id": k, "shop_id": i, "visits": 3} for k in cards for i in (1, 2, 3)]
    store.write_to_online_store("by_both", frame(pairs))
    assert erase(store, {"card_id": "a"}) == 2 + 3
    assert erase(store, {"card_id": "a"}) == 0
    refs = ["v1:one", "v10:ten", "by_shop:sales", "by_both:visits"]
    found = read(store, refs, *({"card_id": k, "shop_id": 1} for k in cards))
    assert found["one"] == [None, 1, 1, 1]
    assert found["ten"] == [None, 10, 10, 10]
    assert found["visits"] == [None, 3, 3, 3]
    assert found["sales"] == [5] * 4
    assert erase(store, {"card_id": "b", "shop_id": 2}) == 1
    assert read(store, refs, *({"card_id": "b", "shop_id": i} for i in (1, 2)))["visits"] == [
        3,
        None,
    ]
    assert erase(store, {"shop_id": 1}) == 1 + 3
    service = FeatureService(
        name="ahead", features=[store.get_feature_view("v1")], precompute_online=True
    )
    store.apply([service])
    key = EntityKey(join_keys=["card_id"], entity_values=[Value(string_val="aa")])
    online = store.provider.online_store
    online.write_precomputed_vector(store.config, "ahead", "shop", key, b"vector")
    read_ahead = (store.config, "ahead", "shop", [key])
    assert online.read_precomputed_vectors(*read_ahead) == [b"vector"]
    assert erase(store, {"card_id": "aa"}) == 2 + 2 + 1
    assert online.read_precomputed_vectors(*read_ahead) == [None]
    with pytest.raises(UsageError, match="no online view has the join keys"):
        erase(store, {"device_id": "a"})


def test_a_deleted_view_takes_its_rows_along_and_no_others(
    tmp_path: Path, store: FeatureStore
) -> None:
    v1, v10 = view(tmp_path, "v1", {"one": Int64}), view(tmp_path, "v10", {"ten": Int64})
    store.apply([CARD, v1, v10])
    store.write_to_online_store("v1", frame([{"card_id": f"k{i}", "one": 1} for i in range(1_200)]))
    store.write_to_online_store("v10", frame([{"card_id": "k1", "ten": 10}]))
    store.apply([CARD, v10], objects_to_delete=[v1], partial=False)
    store.apply([CARD, v1, v10])
    assert read(store, ["v1:one", "v10:ten"], "k1") == {
        "card_id": ["k1"],
        "one": [None],
        "ten": [10],
    }
    store.teardown()
    assert not list(packed(store).backend(store.config).scan(b"rp:"))


# damage


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_damaged_values_are_an_error_and_never_a_value(
    tmp_path: Path, store: FeatureStore, damage: str
) -> None:
    by_card = view(tmp_path, "by_card", MIXED)
    store.apply([CARD, by_card])
    row = {"card_id": "a", "amount": 1.0, "count": 1, "name": "n", "vector": [1.0]}
    store.write_to_online_store("by_card", frame([row]))
    backend = packed(store).backend(store.config)
    key = b"rp:shop:by_card:card_id:sa"
    (value,) = backend.get([key])
    assert value is not None
    for at in range(0, len(value), 7):
        broken = {
            "cut": value[:at],
            "flipped": value[:at] + bytes([value[at] ^ 0x40]) + value[at + 1 :],
            "empty": b"",
            "foreign": b"x" * 200,
        }[damage]
        backend.delete([key])
        backend.put([key], [broken], b"x" * 8, b"{}")
        with pytest.raises(IntegrityError):
            read(store, ["by_card:amount"], "a")
        with pytest.raises(IntegrityError):
            read(store, ["by_card:amount"], {"card_id": "a", "unknown": 1})
    assert erase(store, {"card_id": "a"}) == 1
    store.write_to_online_store("by_card", frame([row]))
    assert read(store, ["by_card:amount"], "a")["amount"] == [1.0]


# many at once


def test_readers_and_writers_at_once_see_whole_rows(tmp_path: Path, store: FeatureStore) -> None:
    """A row's columns are all of one write, and time never goes back."""
    columns = {f"f{i}": Int64 for i in range(40)}
    store.apply([CARD, view(tmp_path, "by_card", columns)])
    refs = [f"by_card:{c}" for c in columns]
    registered = store.get_feature_view("by_card")
    writers, rounds, cards = 3, 20, [f"c{i}" for i in range(20)]
    failures: list[str] = []
    done = threading.Event()

    def write(writer: int) -> None:
        for n in np.random.default_rng(writer).permutation(rounds):
            place = int(n) * writers + writer
            at = T + timedelta(seconds=place)
            rows = [{"card_id": k, **dict.fromkeys(columns, place)} for k in cards]
            table = pa.Table.from_pandas(frame(rows, at))
            packed(store).write_table(store.config, registered, table)

    def watch() -> None:
        newest = dict.fromkeys(cards, -1)
        while not done.is_set():
            found = read(store, refs, *cards)
            for i, card in enumerate(cards):
                seen = {found[c][i] for c in columns}
                place = seen.pop()
                if seen or (place is None and newest[card] >= 0) or (place or -1) < newest[card]:
                    failures.append(f"{card}: {place} and {seen} after {newest[card]}")
                newest[card] = -1 if place is None else place

    def guarded(work: Any, *arguments: Any) -> None:
        try:
            work(*arguments)
        except Exception as e:
            failures.append(repr(e))

    watchers = [threading.Thread(target=guarded, args=(watch,)) for _ in range(2)]
    threads = [threading.Thread(target=guarded, args=(write, w)) for w in range(writers)]
    for t in (*watchers, *threads):
        t.start()
    for t in threads:
        t.join()
    done.set()
    for t in watchers:
        t.join()
    assert failures == []
    assert set(read(store, ["by_card:f7"], *cards)["f7"]) == {writers * rounds - 1}
