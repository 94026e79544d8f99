"""Point-in-time join: three views joined to rows as of their time, beside Feast's DuckDB store.

The same registered views over the same Parquet files, the same rows with keys that nobody knows and
rows that stand twice, the same rule (newest value within the TTL). Both answers are Arrow tables,
compared value by value. Once where every value counts from its time on, and once only from when it
was there (`created`, an hour later; Feast's ``filter_by_created_timestamp``).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import Result, alternate, check, summarise

if TYPE_CHECKING:
    import feast

SUITE = "join"
SEED = 29
VIEWS = {"spend": 14, "habits": 13, "devices": 13}
"""Features by view."""
START_US = 1_780_000_000_000_000
DAY_US = 86_400_000_000
DAYS = 30
TTL = timedelta(days=2)
LAG_US = 3_600_000_000
UNKNOWN = 0.02
DOUBLED = 0.01


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes; the defaults are those of committed results."""
    parser.add_argument("--rows", type=int, help="rows asked, and rows of each view")
    parser.add_argument("--cards", type=int, help="different keys")
    parser.add_argument("--repeats", type=int, default=5)


def run(args: argparse.Namespace) -> Result:
    """Write the views once, then join in turns."""
    size = args.rows or (100_000 if args.quick else 1_000_000)
    cards = args.cards or size // 10
    with tempfile.TemporaryDirectory(prefix="raypipe-join-") as place:
        store = _store(Path(place), size, cards)
        asked = _asked(size, cards)
        frame = asked.to_pandas()
        names = [f"{view}:{view}_{i}" for view, n in VIEWS.items() for i in range(n)]
        answers: dict[str, pa.Table] = {}

        def ours(known_only: bool, name: str) -> None:
            from features.store.historical import historical
            from raypipe.lake import Place

            answers[name] = historical(store, Place.at(place), asked, names, known_only=known_only)

        def feasts(known_only: bool, name: str) -> None:
            job = store.get_historical_features(
                entity_df=frame, features=names, filter_by_created_timestamp=known_only
            )
            answers[name] = job.to_arrow()

        calls = {"raypipe": (ours, False), "feast": (feasts, False)}
        calls |= {"raypipe, known": (ours, True), "feast, known": (feasts, True)}
        candidates: dict[str, Callable[[], object]] = {
            name: partial(call, known_only, name) for name, (call, known_only) in calls.items()
        }
        samples = alternate(candidates, repeats=args.repeats, warmup=1)
        lost, different = 0, 0
        for which in ("", ", known"):
            a, b = _compare(asked, answers[f"raypipe{which}"], answers[f"feast{which}"], names)
            lost, different = lost + a, different + b
        empty = answers["raypipe"].column("spend_0").null_count
    check(lost + different == 0, f"{lost} rows lost and {different} values different")
    check(0.1 < empty / size < 0.9, f"{empty} of {size} rows know nothing: the TTL isn't tried")
    s = {name: summarise(values).median for name, values in samples.items()}
    return Result(
        SUITE,
        {
            "ratio_vs_feast_duckdb": s["feast"] / s["raypipe"],
            "rows_lost": lost,
            "values_different": different,
            "seconds": s["raypipe"],
            "known_ratio_vs_feast_duckdb": s["feast, known"] / s["raypipe, known"],
            "known_seconds": s["raypipe, known"],
            "rows_per_s": size / s["raypipe"],
            "rows": size,
        },
        samples,
        (
            f"{size:,} rows of {cards:,} cards over {DAYS} days; 3 views of as many rows with "
            f"{', '.join(map(str, VIEWS.values()))} features, TTL {TTL.days} days",
            "both end at an Arrow table; Feast is given its rows as the data frame it asks for",
            f"{empty / size:.0%} of the rows have no value of the first view within its TTL",
        ),
    )


def _store(place: Path, size: int, cards: int) -> feast.FeatureStore:
    from feast import Entity, FeatureView, Field, FileSource
    from feast.types import Float64, String
    from feast.value_type import ValueType

    from features.store.repo import open_store

    store = open_store(place)
    card = Entity(name="card", join_keys=["card_id"], value_type=ValueType.STRING)
    objects: list[Any] = [card]
    for number, (view, count) in enumerate(VIEWS.items()):
        path = place / view / "part-0.parquet"
        path.parent.mkdir()
        pq.write_table(_view(view, count, number, size, cards), path, compression="lz4")
        source = FileSource(
            name=f"file_{view}",
            path=f"{path.parent}/part-*.parquet",
            timestamp_field="event_timestamp",
            created_timestamp_column="created",
        )
        fields = [Field(name=f"{view}_{i}", dtype=Float64) for i in range(count)]
        schema = [Field(name="card_id", dtype=String), *fields]
        objects.append(
            FeatureView(name=view, entities=[card], ttl=TTL, schema=schema, source=source)
        )
    store.apply(objects)
    return store


def _view(view: str, count: int, number: int, size: int, cards: int) -> pa.Table:
    rng = np.random.default_rng([SEED, number])
    at = START_US + rng.integers(0, DAYS * DAY_US, size)
    columns = {
        "card_id": _ids(rng.integers(0, cards, size)),
        "event_timestamp": _times(at),
        "created": _times(at + LAG_US),
    }
    for i in range(count):
        values = np.exp(rng.normal(3.0, 2.0, size))
        columns[f"{view}_{i}"] = pa.array(values, mask=rng.random(size) < 0.02)
    return pa.table(columns)


def _asked(size: int, cards: int) -> pa.Table:
    rng = np.random.default_rng([SEED, 99])
    keys = rng.integers(0, round(cards * (1 + UNKNOWN)), size)
    at = START_US + rng.integers(0, DAYS * DAY_US, size)
    twice = max(round(size * DOUBLED), 1)
    keys[-twice:], at[-twice:] = keys[:twice], at[:twice]
    return pa.table({"card_id": _ids(keys), "event_timestamp": _times(at), "row": np.arange(size)})


def _ids(numbers: np.ndarray[Any, Any]) -> pa.Array:
    return pa.array(np.char.add("card-", numbers.astype(str)))


def _times(microseconds: np.ndarray[Any, Any]) -> pa.Array:
    return pa.array(microseconds, pa.int64()).cast(pa.timestamp("us", tz="UTC"))


def _compare(
    asked: pa.Table, ours: pa.Table, theirs: pa.Table, names: list[str]
) -> tuple[int, int]:
    """Rows that are missing or too many in either answer, and values that differ."""
    rows = np.arange(asked.num_rows)
    lost = 0
    for answer in (ours, theirs):
        lost += len(np.setxor1d(rows, answer.column("row").to_numpy()))
        lost += abs(answer.num_rows - asked.num_rows)
    if lost:
        return lost, 0
    different = 0
    mine, other = (t.sort_by("row") for t in (ours, theirs))
    for name in names:
        a, b = (t.column(name.partition(":")[2]).to_numpy() for t in (mine, other))
        different += int((~((a == b) | (np.isnan(a) & np.isnan(b)))).sum())
    return lost, different
