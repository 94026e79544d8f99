"""Window features: the kernel beside Polars and DuckDB, and Ray Data beside one plain process.

Four entities, six spans, six aggregates. The peers compute their nearest native equivalent, true
sliding windows that include the current row; a nested sawtooth window lies between the sliding
windows of length W - h and W, and that is asserted for every count and sum. Every candidate has
one thread, except Ray Data, which has the machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import Result, alternate, check, summarise
from benchmarks.peers import spark
from raypipe.clock import DAY_MS
from raypipe.events.schema import EventType, Field, Kind
from raypipe.project import Entity, Label, Model, Project
from raypipe.windows.spec import (
    DEFAULT_SPANS,
    WindowView,
    count,
    maximum,
    mean,
    minimum,
    std,
    total,
)

SUITE = "windows"
SEED = 11
START_MS = 1_760_000_000_000
ENTITIES = {"card": 92_000, "customer": 66_000, "merchant": 20_000, "device": 108_000}
"""Keys by entity for two million events; fewer events have fewer keys."""

PAYMENT = EventType(
    "payment",
    (*(Field(f"{e}_id", Kind.STRING) for e in ENTITIES), Field("amount", Kind.AMOUNT)),
)
AGGREGATES = (
    count(),
    total("amount"),
    mean("amount"),
    minimum("amount"),
    maximum("amount"),
    std("amount"),
)
VIEWS = tuple(WindowView(e, e, "payment", f"{e}_id", AGGREGATES, DEFAULT_SPANS) for e in ENTITIES)
PROJECT = Project(
    name="windows_benchmark",
    events=(PAYMENT, EventType("dispute", (Field("payment_id", Kind.STRING),))),
    entities=tuple(Entity(e) for e in ENTITIES),
    views=VIEWS,
    derived=(),
    decision="payment",
    label=Label("dispute", "payment_id", DAY_MS),
    models=(Model("none", ("amount",)),),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes; the defaults are those of committed results."""
    parser.add_argument("--events", type=int, help="events for kernel and peers")
    parser.add_argument("--batch-events", type=int, help="events for Ray Data and plain process")
    parser.add_argument("--repeats", type=int, default=5)


def run(args: argparse.Namespace) -> Result:
    """Measure both comparisons."""
    events = args.events or (25_000 if args.quick else 200_000)
    batch_events = args.batch_events or (150_000 if args.quick else 2_000_000)
    kernel, mismatches = _against_peers(events, args.repeats)
    batch, differing, without = _batches(batch_events, 2 if args.quick else args.repeats)
    state_bytes = _state_bytes(100_000 if args.quick else 1_000_000)
    seconds = {name: summarise(s).median for name, s in (kernel | batch).items()}
    return Result(
        SUITE,
        {
            "kernel_row_keys_per_s": events * len(ENTITIES) / seconds["kernel"],
            "ratio_vs_polars": seconds["polars"] / seconds["kernel"],
            "ratio_vs_polars_expressions": seconds["polars expressions"] / seconds["kernel"],
            "ratio_vs_duckdb": seconds["duckdb"] / seconds["kernel"],
            "ratio_vs_pyspark": seconds["spark"] / seconds["Ray Data"]
            if "spark" in seconds
            else None,
            "ray_data_vs_plain": seconds["plain process"] / seconds["Ray Data"],
            "ray_data_row_keys_per_s": batch_events * len(ENTITIES) / seconds["Ray Data"],
            "state_bytes_per_card_30_events": state_bytes,
            "mismatches": mismatches + differing,
            "events": events,
            "batch_events": batch_events,
        },
        kernel | batch,
        (
            f"kernel, Polars and DuckDB: {events:,} events in memory, one thread each",
            "polars is DataFrame.rolling().agg(), its fastest form; expressions are rolling_*_by()",
            f"Ray Data and plain process: {batch_events:,} events, Parquet to Parquet, the same "
            "block function",
            without or "spark: local[2], warm, the same Parquet; its windows as those of the peers",
            "state: card and chargeback views of the payments project, 30 payments a card",
        ),
    )


def _events(n: int) -> tuple[dict[str, npt.NDArray[np.int64]], npt.NDArray[np.int64]]:
    """Keys by entity, and time; times are unique, because peers see ties in another order."""
    rng = np.random.default_rng(SEED)
    times = START_MS + np.sort(rng.choice(90 * DAY_MS, n, replace=False, shuffle=False))
    keys = {}
    for entity, most in ENTITIES.items():
        size = max(10, most * n // 2_000_000)
        # Half the traffic is uniform, half has Zipf's popularity.
        popular = np.minimum(rng.zipf(1.3, n) - 1, size - 1)
        keys[entity] = np.where(rng.random(n) < 0.5, popular, rng.integers(0, size, n))
    return keys, times


def _amounts(n: int) -> npt.NDArray[np.int64]:
    rng = np.random.default_rng(SEED + 1)
    return np.exp(rng.normal(8.0, 1.2, n)).astype(np.int64) + 1


@dataclass
class _Input:
    """The same events in the shape that each candidate likes best."""

    keys: dict[str, npt.NDArray[np.int64]]
    times: npt.NDArray[np.int64]
    amounts: npt.NDArray[np.int64]


def _against_peers(n: int, repeats: int) -> tuple[dict[str, list[float]], int]:
    # Polars reads it when it is imported: one thread, like the kernel.
    os.environ["POLARS_MAX_THREADS"] = "1"
    keys, times = _events(n)
    data = _Input(keys, times, _amounts(n))
    results: dict[str, Any] = {}

    def keep(name: str, work: Callable[[_Input], Any]) -> Callable[[], None]:
        def call() -> None:
            results[name] = work(data)

        return call

    samples = alternate(
        {
            "kernel": keep("kernel", _kernel),
            "polars": keep("polars", _polars),
            "polars expressions": keep("polars expressions", _polars_expressions),
            "duckdb": keep("duckdb", _duckdb),
        },
        repeats=repeats,
    )
    shorter = _polars(data, shorter=True)
    bad = 0
    for entity in ENTITIES:
        ours = results["kernel"][entity]
        for i in range(len(DEFAULT_SPANS)):
            for column, less in (("count", 1), ("sum", data.amounts)):
                # Peers count the current row; the kernel doesn't.
                upper = results["polars"][entity][f"{column}_{i}"] - less
                lower = shorter[entity][f"{column}_{i}"] - less
                value = ours[:, i if column == "count" else len(DEFAULT_SPANS) + i]
                bad += int(((value < lower) | (value > upper)).sum())
                for peer in ("polars expressions", "duckdb"):
                    bad += int((results[peer][entity][f"{column}_{i}"] - less != upper).sum())
    return samples, bad


def _kernel(data: _Input) -> dict[str, npt.NDArray[np.float64]]:
    from raypipe.windows.kernel import READ, UPDATE
    from raypipe.windows.state import Rows, ViewState

    n = len(data.times)
    out = {}
    for view in VIEWS:
        rows = Rows(
            data.keys[view.entity] + 1,
            data.times,
            np.arange(n),
            np.full(n, READ | UPDATE, np.uint8),
            data.amounts.reshape(-1, 1),
            np.zeros((n, 0), np.int64),
            np.zeros(n, np.int64),
        )
        out[view.entity] = ViewState(view).process(rows).before
    return out


def _polars(data: _Input, *, shorter: bool = False) -> dict[str, Any]:
    import polars as pl

    amount = pl.col("amount")
    out = {}
    for entity, keys in data.keys.items():
        frame = pl.DataFrame(
            {"row": np.arange(len(keys)), "key": keys, "t": data.times, "amount": data.amounts}
        ).sort("key", "t")
        columns: dict[str, Any] = {}
        for i, span in enumerate(DEFAULT_SPANS):
            length = (span.length - (span.hop if shorter else 0)) * 1_000
            found = frame.rolling("t", period=f"{length}i", closed="right", group_by="key").agg(
                pl.col("row").last(),
                pl.len().cast(pl.Int64).alias("count"),
                amount.sum().alias("sum"),
                amount.mean().alias("mean"),
                amount.min().alias("min"),
                amount.max().alias("max"),
                amount.std(ddof=0).alias("std"),
            )
            order = np.argsort(found["row"].to_numpy())
            for name in ("count", "sum"):
                columns[f"{name}_{i}"] = found[name].to_numpy()[order]
        out[entity] = columns
    return out


def _polars_expressions(data: _Input) -> dict[str, Any]:
    """The other native form, one expression a column: ``rolling_*_by(...).over(...)``."""
    import polars as pl

    out = {}
    for entity, keys in data.keys.items():
        frame = pl.DataFrame(
            {
                "key": keys,
                "t": data.times,
                "amount": data.amounts,
                "count": np.ones(len(keys), "i8"),
            }
        )
        amount, columns = pl.col("amount"), []
        for i, span in enumerate(DEFAULT_SPANS):
            size = f"{span.length * 1_000}i"
            columns += [
                pl.col("count").rolling_sum_by("t", size).over("key").alias(f"count_{i}"),
                *(
                    getattr(amount, f"rolling_{name}_by")("t", size)
                    .over("key")
                    .alias(f"{name}_{i}")
                    for name in ("sum", "mean", "min", "max")
                ),
                amount.rolling_std_by("t", size, ddof=0).over("key").alias(f"std_{i}"),
            ]
        found = frame.select(columns)
        out[entity] = {c: found[c].to_numpy() for c in found.columns}
    return out


def _duckdb(data: _Input) -> dict[str, Any]:
    import duckdb

    out = {}
    with duckdb.connect(config={"threads": 1}) as db:
        for entity, keys in data.keys.items():
            db.register(
                "events",
                pa.table(
                    {
                        "n": np.arange(len(keys)),
                        "k": keys,
                        "t": data.times,
                        "amount": data.amounts,
                    }
                ),
            )
            columns, windows = ["n"], []
            for i, span in enumerate(DEFAULT_SPANS):
                columns += [
                    f"count(*) over w{i} as count_{i}",
                    f"cast(sum(amount) over w{i} as bigint) as sum_{i}",
                    *(
                        f"{f}(amount) over w{i} as {f}_{i}"
                        for f in ("avg", "min", "max", "stddev_pop")
                    ),
                ]
                windows.append(
                    f"w{i} as (partition by k order by t "
                    f"range between {span.length * 1_000 - 1} preceding and current row)"
                )
            query = f"select {', '.join(columns)} from events window {', '.join(windows)}"  # noqa: S608
            found: Any = db.sql(query).to_arrow_table()
            order = np.argsort(found.column("n").to_numpy())
            out[entity] = {
                f"{name}_{i}": found.column(f"{name}_{i}").to_numpy()[order]
                for i in range(len(DEFAULT_SPANS))
                for name in ("count", "sum")
            }
    return out


def _state_bytes(cards: int) -> float:
    """Bytes of window state per card: 30 payments a card in 30 days, one in fifty charged back."""
    from features.payments import CARD, CARD_RISK
    from raypipe.windows.kernel import UPDATE
    from raypipe.windows.state import Rows, ViewState

    rng = np.random.default_rng(SEED + 2)
    keys = rng.integers(1, 2**62, cards)

    def rows(view: WindowView, at: npt.NDArray[np.int64], day: int, days: int) -> Rows:
        n = len(at)
        return Rows(
            at,
            START_MS + day * DAY_MS + np.sort(rng.integers(0, days * DAY_MS, n)),
            np.arange(n),
            np.full(n, UPDATE, np.uint8),
            np.exp(rng.normal(8.0, 1.2, (n, len(view.value_columns)))).astype(np.int64) + 1,
            rng.integers(1, 2**62, (n, len(view.sketches))),
            np.zeros(n, np.int64),
        )

    payments, disputes = ViewState(CARD), ViewState(CARD_RISK)
    for day in range(30):
        payments.process(rows(CARD, keys[rng.integers(0, cards, cards)], day, 1))
    disputes.process(rows(CARD_RISK, rng.choice(keys, cards // 50), 0, 30))
    check(payments.keys == cards, f"{payments.keys} cards, expected {cards}")
    return (payments.nbytes + disputes.nbytes) / cards


def _batches(n: int, repeats: int) -> tuple[dict[str, list[float]], int, str]:
    """Seconds of each batch, values that differ, and why Spark is missing ("" if it isn't)."""
    from features.batch import EntityPass, Span, prepare, write_block
    from features.passes import run_entity
    from raypipe.config import Settings
    from raypipe.lake import Place
    from raypipe.runtime import session

    without = spark.obstacle()
    with tempfile.TemporaryDirectory(prefix="raypipe-bench-") as folder, ExitStack() as open_ones:
        table = _write_events(Path(folder) / "events.parquet", n)
        outs = {name: Path(folder) / name for name in ("ray", "plain", "spark")}
        events, ray_out = Place.at(table), Place.at(outs["ray"])

        def with_ray() -> None:
            shutil.rmtree(outs["ray"], ignore_errors=True)
            for entity in ENTITIES:
                run_entity(PROJECT, entity, {"payment": [events]}, ray_out, partitions=4)

        def plain() -> None:
            shutil.rmtree(outs["plain"], ignore_errors=True)
            for entity in ENTITIES:
                plan = EntityPass.of(PROJECT, entity, 1)
                columns = ["offset", "tenant", "event_id", "event_time", f"{entity}_id", "amount"]
                rows = prepare(pq.read_table(table, columns=columns), plan, "payment")
                write_block(rows, plan, Place.at(outs["plain"]), Span(0, n, ((0, n),)))

        candidates: dict[str, Callable[[], None]] = {"Ray Data": with_ray, "plain process": plain}
        if not without:
            lengths = [span.length for span in DEFAULT_SPANS]
            candidates["spark"] = open_ones.enter_context(
                spark.spark(table, outs["spark"], list(ENTITIES), lengths, os.cpu_count() or 1)
            )
        session.start(Settings(home=Path(folder) / "home"))
        try:
            samples = alternate(candidates, repeats=repeats)
        finally:
            session.stop()
        bad = _differing(outs["ray"], outs["plain"])
        return (
            samples,
            bad if without else bad + _outside(outs["ray"], outs["spark"], table),
            without,
        )


def _outside(ours: Path, theirs: Path, events: Path) -> int:
    """Counts and sums that Spark's sliding windows don't bound: at most as much as them."""
    amounts = pq.read_table(events, columns=["offset", "amount"]).sort_by("offset")["amount"]
    bad = 0
    for entity in ENTITIES:
        a = pq.read_table(ours / "at_event" / entity).sort_by("offset")
        b = pq.read_table(theirs / entity).sort_by("offset")
        check(a.num_rows == b.num_rows, f"Spark gave {b.num_rows} rows, expected {a.num_rows}")
        for i, span in enumerate(DEFAULT_SPANS):
            for column, name, less in (
                ("count", f"{entity}_count_{span.label}", 1),
                ("sum", f"{entity}_amount_sum_{span.label}", amounts.to_numpy()),
            ):
                upper = b[f"{column}_{i}"].to_numpy() - less
                bad += int((a[name].to_numpy() > upper).sum())
    return bad


def _write_events(path: Path, n: int) -> Path:
    keys, times = _events(n)
    columns: dict[str, Any] = {
        "offset": np.arange(n),
        "tenant": pa.array(["default"]).take(pa.array(np.zeros(n, np.int64))),
        "event_id": [f"p{i:09d}" for i in range(n)],
        "event_time": times,
        "amount": _amounts(n),
    }
    for entity, codes in keys.items():
        names = pa.array([f"{entity}_{i:07d}" for i in range(int(codes.max()) + 1)])
        columns[f"{entity}_id"] = names.take(pa.array(codes))
    pq.write_table(pa.table(columns), path, row_group_size=131_072)
    return path


def _differing(ours: Path, theirs: Path) -> int:
    """Window values that differ in a bit between two outputs."""
    bad = 0
    for entity in ENTITIES:
        a, b = (
            pq.read_table(out / "at_event" / entity).sort_by("offset") for out in (ours, theirs)
        )
        check(a.num_rows == b.num_rows, f"{entity}: {a.num_rows} rows, expected {b.num_rows}")
        for name in a.column_names:
            x, y = a.column(name).to_numpy(), b.column(name).to_numpy()
            if x.dtype == np.float64:
                x, y = x.view(np.uint64), y.view(np.uint64)
            bad += int((x != y).sum())
    return bad
