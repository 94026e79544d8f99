"""Feast's public API on the packed store, on each of its backends, beside Feast's own store.

Feast's SQLite store is the oracle where it is right; where it isn't (late rows, the TTL) the
expectation is written out.
"""

from __future__ import annotations

import decimal
import math
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureService, FeatureStore, Field, OnDemandFeatureView
from feast.data_source import PushMode
from feast.errors import FeatureViewNotFoundException
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import RepeatedValue, Value
from feast.transformation.python_transformation import PythonTransformation
from feast.types import (
    Array,
    Bool,
    Bytes,
    Decimal,
    Float32,
    Float64,
    ImageBytes,
    Int32,
    Int64,
    Json,
    Map,
    PdfBytes,
    Set,
    String,
    Struct,
    UnixTimestamp,
    Uuid,
)
from feast.utils import _convert_arrow_to_proto
from feast.value_type import ValueType

from features.store.packed.access import packed
from features.store.packed.order import CREATED, NEWEST_BY
from raypipe.errors import UsageError
from tests.contract.store_kit import (
    CARD,
    MIXED,
    NUMBERS,
    SHOP,
    frame,
    now,
    packed_store,
    stock_store,
    view,
)

T = datetime(2026, 11, 1, 12, 0, 0, 123_456, tzinfo=UTC)
SECOND = T.replace(microsecond=0)
"""Feast's SQLite store keeps whole seconds."""

TYPES: dict[str, tuple[Any, list[Any]]] = {
    "float64": (Float64, [1.5, None, -0.0]),
    "float64_infinite": (Float64, [math.inf, math.nan, -math.inf]),
    "float64_of_ints": (Float64, [1, 2**53 + 1, -3]),
    "float32": (Float32, [1.1, None, 3e38]),
    "int64": (Int64, [1, None, -5]),
    "int64_extreme": (Int64, [2**62 + 1, -(2**63), 2**63 - 1]),
    "int64_of_floats": (Int64, [1.0, 2.7, None]),
    "int64_of_texts": (Int64, ["1", "2", "3"]),
    "int32": (Int32, [1, 2**31 - 1, -(2**31)]),
    "bool": (Bool, [True, False, True]),
    "bool_null": (Bool, [True, None, False]),
    "text": (String, ["a", "", None]),
    "text_strange": (String, ["é\0x", "日本" * 20_000, "'; --"]),
    "text_of_ints": (String, [1, 2, 3]),
    "bytes": (Bytes, [b"a\xff\0", b"", None]),
    "pdf": (PdfBytes, [b"%PDF", b"x", None]),
    "image": (ImageBytes, [b"img", b"x", None]),
    "time": (UnixTimestamp, [T, None, T - timedelta(days=40_000)]),
    "time_of_ints": (UnixTimestamp, [1, 2, 3]),
    "float64s": (Array(Float64), [[1.0, math.nan], [], None]),
    "float32s": (Array(Float32), [[1.1, 2.0], [3.0], None]),
    "int64s": (Array(Int64), [[1, -(2**63)], [3], None]),
    "int32s": (Array(Int32), [[1, 2], [3], [4]]),
    "bools": (Array(Bool), [[True, False], [False], None]),
    "texts": (Array(String), [["a", "é"], [""], None]),
    "bytess": (Array(Bytes), [[b"a", b"\xff"], [b""], None]),
    "times": (Array(UnixTimestamp), [[T, T], [T], None]),
    "uuids": (Array(Uuid), [[str(uuid.UUID(int=5))], [str(uuid.UUID(int=7))], None]),
    "int_set": (Set(Int64), [{1, 2}, {3}, None]),
    "text_set": (Set(String), [{"a"}, {"b", "c"}, None]),
    "map": (Map, [{"a": 1}, {"b": "x"}, None]),
    "struct": (Struct({"a": Int64, "b": String}), [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}, None]),
    "json": (Json, ['{"a":1}', "[1,2]", None]),
    "uuid": (Uuid, [str(uuid.UUID(int=5)), str(uuid.UUID(int=6)), None]),
    "decimal": (Decimal, [decimal.Decimal("1.10"), decimal.Decimal(2), None]),
}
REFUSED: dict[str, tuple[Any, list[Any]]] = {
    "no_number": (Float64, ["a", "b", "c"]),
    "too_large": (Int32, [2**40, 1, 2]),
    "no_bytes": (Bytes, ["a", "b", "c"]),
    "no_floats": (Array(Float64), [[1, 2], [3], [4]]),
}


@pytest.fixture
def store(tmp_path: Path, online_url: str) -> FeatureStore:
    return packed_store(tmp_path, online_url)


def read(store: FeatureStore, refs: list[str], *keys: Any, **more: Any) -> dict[str, list[Any]]:
    rows = [k if isinstance(k, dict) else {"card_id": k} for k in keys]
    found: dict[str, list[Any]] = store.get_online_features(refs, rows, **more).to_dict()
    return found


def outcome(call: Callable[[], object]) -> str:
    """What a call returns or raises, as text."""
    try:
        return repr(call())
    except Exception as e:
        return f"{type(e).__name__}: {e}"


def same(ours: Any, stock: Any) -> bool:
    """Equal with NaN equal to NaN and -0.0 other than 0.0."""
    return repr(ours) == repr(stock)


# what Feast's own store says


def test_every_type_reads_as_from_feasts_own_store(tmp_path: Path, store: FeatureStore) -> None:
    stock = stock_store(tmp_path)
    views = [view(tmp_path, f"v_{n}", {n: t}) for n, (t, _) in TYPES.items()]
    for s in (store, stock):
        s.apply([CARD, *views])
    for name, (_, values) in TYPES.items():
        rows = frame([{"card_id": k, name: v} for k, v in zip("abc", values, strict=True)], SECOND)
        answers = []
        for s in (store, stock):
            s.write_to_online_store(f"v_{name}", rows)
            answers.append(
                s.get_online_features([f"v_{name}:{name}"], [{"card_id": k} for k in "cadb"])
            )
        ours, theirs = answers
        assert same(ours.to_dict(), theirs.to_dict()), name
        assert same(ours.to_dict(True), theirs.to_dict(True)), name
        pd.testing.assert_frame_equal(ours.to_df(True), theirs.to_df(True))
        arrow = [outcome(lambda r=r: r.to_arrow().to_pydict()) for r in answers]
        assert arrow[0] == arrow[1], name
        if name != "time":  # Feast's store has a number for a null time
            assert str(ours.proto) == str(theirs.proto), name


def test_rows_of_protobuf_and_columns_are_packed_alike(tmp_path: Path, store: FeatureStore) -> None:
    columns = {n: t for n, (t, _) in TYPES.items() if n not in ("time", "map", "struct")}
    both = view(tmp_path, "both", columns, created=True)
    store.apply([CARD, both])
    rows = pa.Table.from_pandas(
        pd.DataFrame(
            {"card_id": list("abc"), "event_timestamp": [T] * 3, "created": [T] * 3}
            | {n: TYPES[n][1] for n in columns}
        )
    )
    backend = packed(store).backend(store.config)
    keys = [b"rp:shop:both:card_id:s" + k for k in (b"a", b"b", b"c")]
    registered = store.get_feature_view("both")
    assert packed(store).write_table(store.config, registered, rows) == 3
    by_column = backend.get(keys)
    assert backend.delete(keys) == 3
    protos = _convert_arrow_to_proto(rows, registered, {"card_id": ValueType.STRING})
    store.provider.online_write_batch(store.config, registered, protos, None)
    assert backend.get(keys) == by_column
    assert None not in by_column


def test_values_of_another_type_are_refused_as_feasts_own_store_refuses_them(
    tmp_path: Path, store: FeatureStore
) -> None:
    stock = stock_store(tmp_path)
    views = [view(tmp_path, f"v_{n}", {n: t}) for n, (t, _) in REFUSED.items()]
    for s in (store, stock):
        s.apply([CARD, *views])
    for name, (_, values) in REFUSED.items():
        rows = frame([{"card_id": k, name: v} for k, v in zip("abc", values, strict=True)])
        errors = []
        for s in (store, stock):
            with pytest.raises((TypeError, ValueError, AssertionError)) as e:
                s.write_to_online_store(f"v_{name}", rows)
            errors.append(repr(e.value))
        assert errors[0] == errors[1]
        assert read(store, [f"v_{name}:{name}"], "a")[name] == [None]


REQUESTS: list[dict[str, Any]] = [
    {"entity_rows": [{"card_id": "a", "shop_id": 1}]},
    {
        "entity_rows": [
            {"card_id": k, "shop_id": i} for k, i in zip("abca", (1, 9, 2, 1), strict=True)
        ]
    },
    {"entity_rows": {"card_id": ["a", "b"], "shop_id": [1, 2]}},
    {"entity_rows": {"shop_id": [2, 1], "card_id": ["a", "b"]}},
    {"entity_rows": [{"card_id": "a", "shop_id": np.int64(1)}]},
    {"entity_rows": [{"card_id": "a", "shop_id": "1"}]},
    {"entity_rows": [{"card_id": "a", "shop_id": 1, "unknown": 5}]},
    {
        "entity_rows": {
            "card_id": RepeatedValue(val=[Value(string_val="a")]),
            "shop_id": [Value(int64_val=1)],
        }
    },
    {"entity_rows": [{"card_id": "a", "shop_id": 1}], "full_feature_names": True},
    {
        "entity_rows": [{"card_id": "a", "shop_id": 1}],
        "include_feature_view_version_metadata": True,
    },
]


@pytest.mark.parametrize("of_service", [False, True], ids=["references", "service"])
def test_every_form_of_request_is_answered_as_by_feasts_own_store(
    tmp_path: Path, store: FeatureStore, of_service: bool
) -> None:
    stock = stock_store(tmp_path)
    by_card = view(tmp_path, "by_card", MIXED)
    by_shop = view(tmp_path, "by_shop", {"sales": Int64}, entities=[SHOP])
    by_both = view(tmp_path, "by_both", {"visits": Int64, "spent": Float32}, entities=[CARD, SHOP])
    service = FeatureService(
        name="all", features=[by_card[["name", "amount", "vector"]], by_shop, by_both]
    )
    frames = {
        "by_card": frame(
            [
                {"card_id": k, "amount": i + 0.5, "count": i, "name": k * i, "vector": [i * 1.0]}
                for i, k in enumerate("abx")
            ],
            SECOND,
        ),
        "by_shop": frame([{"shop_id": i, "sales": i * 10} for i in (1, 2, 3)], SECOND),
        "by_both": frame([{"card_id": "a", "shop_id": 1, "visits": 3, "spent": 1.1}], SECOND),
    }
    references = ["by_card:name", "by_card:amount", "by_card:vector"]
    references += ["by_shop:sales", "by_both:visits", "by_both:spent"]
    for s in (store, stock):
        s.apply([CARD, SHOP, by_card, by_shop, by_both, service])
        for name, rows in frames.items():
            s.write_to_online_store(name, rows)
    for request in REQUESTS:
        ours, theirs = (
            s.get_online_features(
                s.get_feature_service("all") if of_service else references, **request
            )
            for s in (store, stock)
        )
        assert ours.to_dict(True) == theirs.to_dict(True), request
        assert str(ours.proto) == str(theirs.proto), request
        assert list(ours.to_dict()) == list(theirs.to_dict())


def test_wrong_requests_fail_as_with_feasts_own_store(tmp_path: Path, store: FeatureStore) -> None:
    stock = stock_store(tmp_path)
    by_card = view(tmp_path, "by_card", NUMBERS)
    wrong: list[tuple[list[str], Any]] = [
        (["unknown:amount"], [{"card_id": "a"}]),
        (["by_card:unknown"], [{"card_id": "a"}]),
        (["by_card:amount", "by_card:amount"], [{"card_id": "a"}]),
        (["by_card:amount"], [{"other": "a"}]),
        (["by_card:amount"], [{"card_id": "a"}, {}]),
        (["by_card:amount"], {"card_id": []}),
        (["by_card:amount"], []),
    ]
    for s in (store, stock):
        s.apply([CARD, by_card])
        s.write_to_online_store("by_card", frame([{"card_id": "a", "amount": 1.0, "count": 1}]))
    for features, rows in wrong:
        outcomes = [
            outcome(lambda s=s, f=features, r=rows: s.get_online_features(f, r).to_dict())
            for s in (store, stock)
        ]
        assert outcomes[0] == outcomes[1], (features, rows)
    with pytest.raises(FeatureViewNotFoundException):
        read(store, ["unknown:amount"], "a")


def test_renamed_views_and_join_keys_read_their_own_rows(
    tmp_path: Path, store: FeatureStore
) -> None:
    stock = stock_store(tmp_path)
    by_card = view(tmp_path, "by_card", NUMBERS)
    payer = by_card.with_name("payer").with_join_key_map({"card_id": "payer_id"})
    payee = by_card.with_name("payee").with_join_key_map({"card_id": "payee_id"})
    service = FeatureService(name="transfer", features=[payer, payee])
    for s in (store, stock):
        s.apply([CARD, by_card, service])
        rows = [{"card_id": k, "amount": i + 0.5, "count": i} for i, k in enumerate("ab")]
        s.write_to_online_store("by_card", frame(rows, T))
    ours, theirs = (
        s.get_online_features(
            s.get_feature_service("transfer"),
            [{"payer_id": "a", "payee_id": "b"}, {"payer_id": "b", "payee_id": "x"}],
            full_feature_names=True,
        ).to_dict()
        for s in (store, stock)
    )
    assert ours == theirs
    assert ours["payer__count"] == [0, 1]
    assert ours["payee__count"] == [1, None]


def test_a_view_without_entity_is_read(tmp_path: Path, store: FeatureStore) -> None:
    world = view(tmp_path, "world", {"rate": Float64}, entities=None)
    store.apply([world])
    store.write_to_online_store("world", frame([{"rate": 1.25}]))
    # Feast's own store writes it under one key and looks for it under another.
    answer = store.get_online_features(["world:rate"], {"any": [1]})
    assert answer.to_dict() == {"rate": [1.25]}


def _twice(inputs: dict[str, Any]) -> dict[str, Any]:
    return {"twice": [None if a is None else a * 2 for a in inputs["amount"]]}


@pytest.mark.parametrize("at_write", [False, True], ids=["at read", "at write"])
def test_on_demand_views_are_computed(tmp_path: Path, store: FeatureStore, at_write: bool) -> None:
    by_card = view(tmp_path, "by_card", NUMBERS)
    twice = OnDemandFeatureView(
        name="doubled",
        entities=[CARD] if at_write else [],
        schema=[Field(name="twice", dtype=Float64)],
        sources=[by_card],
        feature_transformation=PythonTransformation(_twice, "twice"),
        mode="python",
        write_to_online_store=at_write,
    )
    store.apply([CARD, by_card, twice])
    rows = [{"card_id": "a", "amount": 1.5, "count": 1}]
    store.write_to_online_store("by_card", frame(rows))
    if at_write:
        store.write_to_online_store("doubled", frame(rows))
    found = read(store, ["by_card:count", "doubled:twice"], "a", "x")
    assert found == {"card_id": ["a", "x"], "count": [1, None], "twice": [3.0, None]}


# keys


def test_every_type_of_key_is_its_own(tmp_path: Path, store: FeatureStore) -> None:
    kinds: dict[str, tuple[ValueType, Any, list[Any]]] = {
        "text": (ValueType.STRING, String, ["1", "é\0", "", "a:b", "x" * 10_000]),
        "long": (ValueType.INT64, Int64, [1, -1, 2**63 - 1, -(2**63)]),
        "short": (ValueType.INT32, Int32, [1, -1]),
        "bytes": (ValueType.BYTES, Bytes, [b"1", b"\xff\0", b""]),
    }
    for name, (value_type, dtype, keys) in kinds.items():
        entity = Entity(name=name, join_keys=[f"{name}_id"], value_type=value_type)
        v = view(tmp_path, f"by_{name}", {"place": Int64}, entities=[entity])
        v.entity_columns = [Field(name=f"{name}_id", dtype=dtype)]
        store.apply([entity, v])
        rows = [{f"{name}_id": k, "place": i} for i, k in enumerate(keys)]
        store.write_to_online_store(f"by_{name}", frame(rows))
        found = read(store, [f"by_{name}:place"], *({f"{name}_id": k} for k in keys))
        assert found == {f"{name}_id": keys, "place": list(range(len(keys)))}


def test_composite_keys_don_t_run_into_each_other(tmp_path: Path, store: FeatureStore) -> None:
    entities = [
        Entity(name=n, join_keys=[n], value_type=ValueType.STRING) for n in ("second", "first")
    ]
    pair = view(tmp_path, "pair", {"place": Int64}, entities=entities)
    pair.entity_columns = [Field(name=e.name, dtype=String) for e in entities]
    store.apply([*entities, pair])
    keys = [
        ("ab", "c"),
        ("a", "bc"),
        ("", "abc"),
        ("abc", ""),
        ("c", "ab"),
        ("as", "b"),
        ("a", "sb"),
    ]
    rows = [{"first": a, "second": b, "place": i} for i, (a, b) in enumerate(keys)]
    store.write_to_online_store("pair", frame(rows))
    asked = [{"second": b, "first": a} for a, b in keys]
    assert read(store, ["pair:place"], *asked)["place"] == list(range(len(keys)))


def test_what_can_t_be_a_key_is_refused(tmp_path: Path, store: FeatureStore) -> None:
    by_card = view(tmp_path, "by_card", NUMBERS)
    store.apply([CARD, by_card])
    with pytest.raises(UsageError, match="no Unicode text"):
        read(store, ["by_card:amount"], "\ud800")
    rows = frame([{"card_id": "a", "amount": 1.0, "count": 1}, {"card_id": None, "amount": 2.0}])
    with pytest.raises(UsageError, match="join key 'card_id' is missing"):
        store.write_to_online_store("by_card", rows)
    assert read(store, ["by_card:amount"], "a")["amount"] == [None]


# ways in


def test_push_and_materialize_go_the_same_way(tmp_path: Path, store: FeatureStore) -> None:
    by_card = view(tmp_path, "by_card", MIXED, created=True)
    store.apply([CARD, by_card])
    start = now() - timedelta(hours=1)
    rows = pd.DataFrame(
        [
            {
                "card_id": f"c{i % 50}",
                "event_timestamp": start + timedelta(seconds=i),
                "created": start,
                "amount": i + 0.5,
                "count": i,
                "name": f"n{i}",
                "vector": [float(i)] * (i % 3),
            }
            for i in range(500)
        ]
    )
    rows.to_parquet(tmp_path / "by_card.parquet", coerce_timestamps="us")
    end = start + timedelta(seconds=399)
    store.materialize(start - timedelta(seconds=1), end)
    refs = ["by_card:count", "by_card:name", "by_card:vector"]
    found = read(store, refs, "c0", "c49")
    assert found["count"] == [350, 399]
    assert found["vector"] == [[350.0] * (350 % 3), [399.0] * (399 % 3)]
    store.materialize_incremental(now())
    assert read(store, refs, "c0", "c49")["count"] == [450, 499]
    store.materialize(start - timedelta(seconds=1), end)  # back in time
    assert read(store, refs, "c0", "c49")["count"] == [450, 499]
    new = {**rows.iloc[0].to_dict(), "event_timestamp": now(), "count": -1}
    store.push("push_by_card", pd.DataFrame([new]), to=PushMode.ONLINE)
    assert read(store, refs, "c0")["count"] == [-1]


def test_every_chunk_of_a_table_is_written(tmp_path: Path, store: FeatureStore) -> None:
    by_card = view(tmp_path, "by_card", MIXED)
    store.apply([CARD, by_card])
    chunks = [
        pa.Table.from_pandas(
            frame(
                [{"card_id": f"c{i}", "amount": 1.0, "count": i, "name": "n", "vector": [1.0 * i]}]
            )
        )
        for i in range(5)
    ]
    table = pa.concat_tables(chunks).slice(1)
    assert table.column("vector").num_chunks == 4
    assert packed(store).write_table(store.config, store.get_feature_view("by_card"), table) == 4
    found = read(store, ["by_card:vector"], *(f"c{i}" for i in range(5)))["vector"]
    assert found == [None, [1.0], [2.0], [3.0], [4.0]]
    assert packed(store).write_table(store.config, by_card, table.slice(0, 0)) == 0


def test_a_table_that_lacks_something_is_refused_whole(tmp_path: Path, store: FeatureStore) -> None:
    by_card = view(tmp_path, "by_card", NUMBERS, created=True)
    store.apply([CARD, by_card])
    row = {"card_id": "a", "amount": 1.0, "count": 1, "event_timestamp": T, "created": T}
    for lacking in ("card_id", "amount", "event_timestamp", "created"):
        rows = pa.Table.from_pylist([{k: v for k, v in row.items() if k != lacking}])
        with pytest.raises(ValueError, match=lacking):
            packed(store).write_table(store.config, by_card, rows)
    by_offset = view(tmp_path, "by_offset", NUMBERS, created=True, tags={NEWEST_BY: CREATED})
    for empty, needed in (("event_timestamp", by_card), ("created", by_offset)):
        rows = pa.Table.from_pylist([row, {**row, "card_id": "b", empty: None}])
        with pytest.raises(ValueError, match=f"1 rows have no {empty}"):
            packed(store).write_table(store.config, needed, rows)
    rows = pa.Table.from_pylist([{**row, "event_timestamp": 5}])
    with pytest.raises(ValueError, match="holds int64, no times"):
        packed(store).write_table(store.config, by_card, rows)
    assert read(store, ["by_card:amount"], "a", "b")["amount"] == [None, None]


def test_a_value_of_another_type_than_declared_is_refused(
    tmp_path: Path, store: FeatureStore
) -> None:
    by_card = view(tmp_path, "by_card", NUMBERS)
    store.apply([CARD, by_card])
    key = EntityKey(join_keys=["card_id"], entity_values=[Value(string_val="a")])
    for wrong in ({"count": Value(double_val=1.0)}, {"amount": Value(string_val="1")}):
        with pytest.raises(UsageError, match=r"takes (int64|double)_val, got"):
            store.provider.online_write_batch(store.config, by_card, [(key, wrong, T, None)], None)
    assert read(store, ["by_card:amount"], "a")["amount"] == [None]


def test_a_row_larger_than_the_limit_is_refused(
    tmp_path: Path, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("features.store.packed.codec.MAX_VALUE_BYTES", 1_000_000)
    store.apply([CARD, view(tmp_path, "by_card", {"text": String})])
    store.write_to_online_store("by_card", frame([{"card_id": "a", "text": "x" * 900_000}]))
    with pytest.raises(UsageError, match=r"1,100,0.. bytes, at most 1,000,000"):
        store.write_to_online_store("by_card", frame([{"card_id": "b", "text": "x" * 1_100_000}]))
    assert list(map(len, read(store, ["by_card:text"], "a")["text"])) == [900_000]


def test_offline_rows_are_untouched_by_the_online_store(
    tmp_path: Path, store: FeatureStore
) -> None:
    by_card = view(tmp_path, "by_card", NUMBERS)
    pq.write_table(
        pa.Table.from_pandas(frame([{"card_id": "a", "amount": 1.5, "count": 1}], T)),
        tmp_path / "by_card.parquet",
    )
    store.apply([CARD, by_card])
    asked = pd.DataFrame({"card_id": ["a"], "event_timestamp": [T + timedelta(seconds=1)]})
    job = store.get_historical_features(entity_df=asked, features=["by_card:amount"])
    assert job.to_df()["amount"].tolist() == [1.5]
