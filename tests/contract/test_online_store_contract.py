"""Feast's public API on the packed store, on each of its backends, beside Feast's own store.

Feast's SQLite store is the oracle where it is right; where it isn't (late rows, the TTL) the
expectation is written out.
"""

from __future__ import annotations

import decimal
import math
import threading
import uuid
from collections.abc import Callable, Iterator
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

from features.store.packed.access import erase, has, packed
from features.store.packed.order import CREATED, NEWEST_BY
from features.store.packed.reader import OnlineReader
from raypipe.errors import ConfigError, IntegrityError, UsageError
from tests.contract.redis_server import PROGRAM, RedisServer
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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    redis = RedisServer(tmp_path_factory.mktemp("redis"))
    yield redis
    redis.kill()


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/online.db"
    if PROGRAM is None:
        pytest.skip("no redis-server: apt-get install --no-install-recommends redis-server")
    server: RedisServer = request.getfixturevalue("server")
    server.client().flushall()
    return server.url()


@pytest.fixture
def store(tmp_path: Path, url: str) -> FeatureStore:
    return packed_store(tmp_path, url)


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
    keys = [("ab", "c"), ("a", "bc"), ("", "abc"), ("abc", ""), ("c", "ab")]
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


# the reader in process


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
