"""Online store: packed values beside Feast's own Redis and SQLite stores, on the same Redis.

40 features of three views by one key. Every candidate answers the same call of Feast's public API,
``get_online_features(...).to_dict()``, in this process; the reader is what a replica calls instead.
Values of all candidates are compared. Closed loop: a call starts when the one before it ended.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import Result, alternate, check, summarise

if TYPE_CHECKING:
    import feast
    import pandas as pd

    from features.store.packed.reader import OnlineReader

SUITE = "store"
SEED = 23
VIEWS = {"spend": 14, "habits": 13, "devices": 13}
"""Features by view; 40 together."""
START = datetime(2026, 11, 1, tzinfo=UTC)
TTL = timedelta(days=36_500)
WARMUP = 1
WRITTEN = "spend"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes; the defaults are those of committed results."""
    parser.add_argument("--entities", type=int, help="entities in the store")
    parser.add_argument("--calls", type=int, help="calls a round with one entity")
    parser.add_argument("--repeats", type=int, default=5)


def run(args: argparse.Namespace) -> Result:
    """Fill four stores with the same rows, then read and write them in turns."""
    entities = args.entities or (2_000 if args.quick else 10_000)
    calls = args.calls or (100 if args.quick else 1_000)
    with tempfile.TemporaryDirectory(prefix="raypipe-store-") as place, redis_server(place) as port:
        stores = _stores(Path(place), port)
        seconds = _fill(stores, entities)
        reads, differing = _read(stores, entities, calls, args.repeats)
        writes, unlike = _write(stores, entities, args.repeats)
        check(differing + unlike == 0, f"{differing + unlike} values differ between the stores")
    samples = reads | writes
    s = {name: summarise(values).median for name, values in samples.items()}
    api, stock = "packed redis", "feast redis"
    return Result(
        SUITE,
        {
            "read1_p50_ms": s["reader redis, 1"] * 1_000,
            "read1_ratio_stock_redis": s[f"{stock}, 1"] / s[f"{api}, 1"],
            "read1_ratio_stock_sqlite": s["feast sqlite, 1"] / s["packed sqlite, 1"],
            "read100_ratio_stock_redis": s[f"{stock}, 100"] / s[f"{api}, 100"],
            "write_ratio_stock_redis": s[f"{stock}, write"] / s[f"{api}, write"],
            "read1_api_p50_ms": s[f"{api}, 1"] * 1_000,
            "read1_sqlite_p50_ms": s["reader sqlite, 1"] * 1_000,
            "read1_api_sqlite_p50_ms": s["packed sqlite, 1"] * 1_000,
            "read1_reader_ratio_stock_redis": s[f"{stock}, 1"] / s["reader redis, 1"],
            "read100_p50_ms": s[f"{api}, 100"] * 1_000,
            "read100_ratio_stock_sqlite": s["feast sqlite, 100"] / s["packed sqlite, 100"],
            "write_rows_per_s": entities / s[f"{api}, write"],
            "write_sqlite_rows_per_s": entities / s["packed sqlite, write"],
            "write_ratio_stock_sqlite": s["feast sqlite, write"] / s["packed sqlite, write"],
            "mismatches": differing + unlike,
            "entities": entities,
        },
        samples,
        (
            "packed and feast: get_online_features(references, rows).to_dict(), to the same Redis "
            "or to a file each; reader: OnlineReader.read, in the same process",
            f"a read sample is the median of {calls} calls (1 entity) or {max(calls // 20, 5)} "
            "(100 entities)",
            f"a write is write_to_online_store of {entities:,} rows of 14 features, all newer "
            "than what is there; feast's SQLite store keeps no order, so it writes what it gets",
            f"filling the stores took {', '.join(f'{n} {t:.1f} s' for n, t in seconds.items())}",
        ),
    )


@contextmanager
def redis_server(place: str) -> Iterator[int]:
    """A Redis without persistence, in a process of its own; its port."""
    program = shutil.which("redis-server")
    check(program is not None, "redis-server is not installed")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", place]
    process = subprocess.Popen([str(program), *options], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                check(time.monotonic() < deadline, "redis-server doesn't answer")
                time.sleep(0.02)
        yield port
    finally:
        process.kill()
        process.wait()


def _stores(place: Path, port: int) -> dict[str, feast.FeatureStore]:
    from feast import FeatureStore, RepoConfig

    packed = "features.store.packed"
    online: dict[str, dict[str, str]] = {
        "packed redis": {
            "type": f"{packed}.store.PackedOnlineStore",
            "url": f"redis://127.0.0.1:{port}/0",
        },
        "packed sqlite": {
            "type": f"{packed}.store.PackedOnlineStore",
            "url": f"sqlite:///{place}/packed.db",
        },
        "feast redis": {"type": "redis", "connection_string": f"127.0.0.1:{port},db=1"},
        "feast sqlite": {"type": "sqlite", "path": f"{place}/feast.db"},
    }
    stores = {}
    for name, config in online.items():
        ours = name.startswith("packed")
        store = FeatureStore(
            config=RepoConfig(
                project="bench",
                provider=f"{packed}.provider.PackedProvider" if ours else "local",
                registry=str(place / f"{name}.pb"),
                offline_store={"type": "duckdb"},
                online_store=config,
                entity_key_serialization_version=3,
            )
        )
        store.apply(_objects(place))
        stores[name] = store
    return stores


def _objects(place: Path) -> list[Any]:
    from feast import Entity, FeatureView, Field, FileSource, PushSource
    from feast.types import Float64, String
    from feast.value_type import ValueType

    card = Entity(name="card", join_keys=["card_id"], value_type=ValueType.STRING)
    views = []
    for name, size in VIEWS.items():
        file = FileSource(
            name=f"file_{name}",
            path=str(place / f"{name}.parquet"),
            timestamp_field="event_timestamp",
        )
        fields = [Field(name=f"{name}_{i}", dtype=Float64) for i in range(size)]
        views.append(
            FeatureView(
                name=name,
                entities=[card],
                ttl=TTL,
                schema=[Field(name="card_id", dtype=String), *fields],
                source=PushSource(name=f"push_{name}", batch_source=file),
            )
        )
    return [card, *views]


def _rows(name: str, entities: int, turn: int) -> pd.DataFrame:
    import pandas as pd

    rng = np.random.default_rng([SEED, turn, list(VIEWS).index(name)])
    columns: dict[str, Any] = {
        "card_id": [_card(i) for i in range(entities)],
        "event_timestamp": pd.Timestamp(START) + pd.Timedelta(minutes=turn),
    }
    for i in range(VIEWS[name]):
        values = np.exp(rng.normal(3.0, 2.0, entities))
        values[rng.random(entities) < 0.02] = np.nan
        columns[f"{name}_{i}"] = values
    return pd.DataFrame(columns)


def _card(i: int) -> str:
    return f"card-{i:010d}"


def _fill(stores: dict[str, feast.FeatureStore], entities: int) -> dict[str, float]:
    seconds = dict.fromkeys(stores, 0.0)
    for view in VIEWS:
        rows = _rows(view, entities, 0)
        for name, store in stores.items():
            begin = time.perf_counter()
            store.write_to_online_store(view, rows)
            seconds[name] += time.perf_counter() - begin
    return seconds


def _read(
    stores: dict[str, feast.FeatureStore], entities: int, calls: int, repeats: int
) -> tuple[dict[str, list[float]], int]:
    from features.store.packed.reader import OnlineReader

    references = [f"{view}:{view}_{i}" for view, size in VIEWS.items() for i in range(size)]
    ours = {n: s for n, s in stores.items() if n.startswith("packed")}
    readers = {n.replace("packed", "reader"): OnlineReader(s, references) for n, s in ours.items()}
    rng = np.random.default_rng([SEED, 1])
    medians: dict[str, list[float]] = {}

    def timed(name: str, count: int, of: int, call: Callable[[list[str]], object]) -> None:
        samples = []
        for _ in range(count):
            cards = [_card(i) for i in rng.choice(entities, of, replace=False)]
            begin = time.perf_counter()
            call(cards)
            samples.append(time.perf_counter() - begin)
        medians.setdefault(f"{name}, {of}", []).append(statistics.median(samples))

    def api(store: feast.FeatureStore) -> Callable[[list[str]], dict[str, list[Any]]]:
        def call(cards: list[str]) -> dict[str, list[Any]]:
            rows = [{"card_id": c} for c in cards]
            answer: dict[str, list[Any]] = store.get_online_features(references, rows).to_dict()
            return answer

        return call

    candidates: dict[str, Callable[[list[str]], object]] = {n: api(s) for n, s in stores.items()}
    candidates |= {name: partial(_read_one, reader) for name, reader in readers.items()}
    differing = _compare(stores, api, readers, entities)
    gc.collect()
    gc.freeze()  # as a server does after its start
    for of, count in ((1, calls), (100, max(calls // 20, 5))):
        alternate(
            {name: partial(timed, name, count, of, call) for name, call in candidates.items()},
            repeats=repeats,
            warmup=WARMUP,
        )
    return {name: found[WARMUP:] for name, found in medians.items()}, differing


def _read_one(reader: OnlineReader, cards: list[str]) -> object:
    return reader.read({"card_id": cards})


def _compare(
    stores: dict[str, feast.FeatureStore],
    api: Callable[[feast.FeatureStore], Callable[[list[str]], dict[str, list[Any]]]],
    readers: dict[str, OnlineReader],
    entities: int,
) -> int:
    """Values that differ between any two candidates, over some entities and two unknown ones."""
    cards = [_card(i) for i in range(0, entities, max(entities // 500, 1))]
    cards += [_card(entities), "unknown"]
    answers = [api(store)(cards) for store in stores.values()]
    first = answers[0]
    bad = sum(a[n] != first[n] for a in answers for n in first)
    check(first["spend_0"][-1] is None, "an unknown card has a value")
    check(sum(v is None for v in first["spend_0"]) < len(cards) / 2, "known cards have none")
    for reader in readers.values():
        values = reader.read({"card_id": cards}).values
        expected = np.array([first[n] for n in reader.names], np.float64).T
        bad += int((~np.isclose(values, expected, rtol=0, atol=0, equal_nan=True)).sum())
    return bad


def _write(
    stores: dict[str, feast.FeatureStore], entities: int, repeats: int
) -> tuple[dict[str, list[float]], int]:
    frames = [_rows(WRITTEN, entities, turn) for turn in range(1, WARMUP + repeats + 1)]
    turns = dict.fromkeys(stores, 0)

    def write(name: str) -> None:
        stores[name].write_to_online_store(WRITTEN, frames[turns[name]])
        turns[name] += 1

    samples = alternate(
        {name: partial(write, name) for name in stores}, repeats=repeats, warmup=WARMUP
    )
    references = [f"{WRITTEN}:{WRITTEN}_{i}" for i in range(VIEWS[WRITTEN])]
    expected = frames[-1]
    bad = 0
    for i in range(0, entities, max(entities // 200, 1)):
        row = expected.iloc[i]
        for store in stores.values():
            found = store.get_online_features(references, [{"card_id": _card(i)}]).to_dict()
            for name in (r.partition(":")[2] for r in references):
                value = row[name]
                bad += found[name] != [None if np.isnan(value) else value]
    return {f"{name}, write": values for name, values in samples.items()}, bad
