"""Point-in-time joins against plain Python, row by row."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.store.asof import Source, join
from raypipe.errors import StageError, UsageError
from raypipe.lake import Place

UTC_US = pa.timestamp("us", tz="UTC")
NOW = 1_750_000_000_000_000
MINUTE = 60_000_000
HOUR = 60 * MINUTE


@dataclass(frozen=True)
class Known:
    """A row of a view: key parts, when it holds, when it was there, what it says."""

    keys: tuple[str | None, ...]
    at: int
    created: int | None
    value: float | None


def times(values: list[int | None]) -> pa.Array:
    return pa.array(values, pa.int64()).cast(UTC_US)


def write(folder: Path, name: str, rows: list[Known], parts: int = 2, **of: Any) -> Source:
    """The rows in files of a view, and the source that reads them."""
    keys = of.pop("keys", ("card",))
    places = []
    for p in range(parts):
        mine = rows[p::parts]
        table = {k: pa.array([r.keys[i] for r in mine], pa.string()) for i, k in enumerate(keys)}
        table["event_timestamp"] = times([r.at for r in mine])
        table["created"] = times([r.created for r in mine])
        table[name] = pa.array([r.value for r in mine], pa.float64())
        table["words"] = pa.array([f"at {r.at}" for r in mine], pa.string())
        path = folder / f"{name}-{p}.parquet"
        pq.write_table(pa.table(table), path)
        places.append(Place.at(path))
    columns = of.pop("columns", (name,))
    return Source(name, tuple(places), keys, columns, created="created", **of)


def ask(keys: list[Any], at: list[int], names: tuple[str, ...] = ("card",)) -> pa.Table:
    parts = [k if isinstance(k, tuple) else (k,) for k in keys]
    columns = {n: pa.array([p[i] for p in parts], pa.string()) for i, n in enumerate(names)}
    return pa.table(columns | {"event_timestamp": times(list(at)), "tag": pa.array(range(len(at)))})


def expected(
    rows: list[Known], keys: tuple[str | None, ...], at: int, ttl: int, known_only: bool
) -> float | None:
    """The newest row that counts, by looking at each of them."""
    best: Known | None = None
    for row in rows:
        if None in keys or row.keys != keys or row.at > at:
            continue
        if known_only and (row.created is None or row.created > at):
            continue
        place = (row.at, -math.inf if row.created is None else row.created)
        if best is None or place > (best.at, best.created or -math.inf):
            best = row
    if best is None or (ttl and at - best.at > ttl):
        return None
    return best.value


def draw(seed: int, lag: str, size: int = 600) -> list[Known]:
    random = np.random.default_rng(seed)
    rows = []
    for i in range(size):
        at = NOW + int(random.integers(0, 60)) * 10 * MINUTE
        lags = {
            "none": 0,
            "constant": HOUR,
            "before": -int(random.integers(1, 9)) * MINUTE,
            "any": int(random.integers(-3, 40)) * 5 * MINUTE,
        }
        value = None if i % 11 == 0 else float(i)
        created = None if lag == "any" and i % 17 == 0 else at + lags[lag]
        rows.append(Known((f"c{random.integers(0, 9)}",), at, created, value))
    # Rows that are alike in key, time and creation would leave the answer open.
    return list({(r.keys, r.at, r.created): r for r in rows}.values())


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("known_only", [True, False])
@pytest.mark.parametrize("ttl", [0, 2 * HOUR])
@pytest.mark.parametrize("lag", ["none", "constant", "before", "any"])
def test_it_equals_plain_python_on_random_rows(
    tmp_path: Path, lag: str, ttl: int, known_only: bool, few: bool
) -> None:
    rows = draw(7, lag)
    source = write(tmp_path, "heat", rows, ttl_us=ttl)
    random = np.random.default_rng(8)
    keys: list[str | None] = [f"c{k}" for k in random.integers(0, 12, 400)]
    keys[5] = keys[6] = None
    at = (NOW + random.integers(-10, 90, 400) * 5 * MINUTE).tolist()
    asked = ask(keys + keys[:50], at + at[:50])  # the same question twice
    got = join(asked, [source], known_only=known_only, few=few)
    assert got.column_names == [*asked.column_names, "heat"]
    assert got.select(asked.column_names).equals(asked)
    wanted = [
        expected(rows, (k,), t, ttl, known_only)
        for k, t in zip(keys + keys[:50], at + at[:50], strict=True)
    ]
    assert got.column("heat").to_pylist() == wanted
    assert 0.05 < wanted.count(None) / len(wanted) < 0.95


def test_a_correction_that_came_late_counts_from_then_on_and_never_hides_a_newer_row(
    tmp_path: Path,
) -> None:
    rows = [
        Known(("a",), NOW, NOW, 1.0),
        Known(("a",), NOW + HOUR, NOW + HOUR, 2.0),
        Known(("a",), NOW, NOW + 2 * HOUR, 1.5),  # of the first, and too late to matter
        Known(("b",), NOW, NOW, 1.0),
        Known(("b",), NOW, NOW + 2 * HOUR, 1.5),
        Known(("c",), NOW, NOW + 3 * HOUR, 7.0),
    ]
    source = write(tmp_path, "heat", rows)
    at = [NOW - 1, NOW, NOW + 2 * HOUR - 1, NOW + 2 * HOUR, NOW + 9 * HOUR]
    asked = ask(["a"] * 5 + ["b"] * 5 + ["c"] * 5, at * 3)
    found = join(asked, [source]).column("heat").to_pylist()
    assert found[:5] == [None, 1.0, 2.0, 2.0, 2.0]
    assert found[5:10] == [None, 1.0, 1.0, 1.5, 1.5]
    assert found[10:] == [None, None, None, None, 7.0]
    # Without knowledge time the correction was always there.
    found = join(asked, [source], known_only=False).column("heat").to_pylist()
    assert found[5:10] == [None, 1.5, 1.5, 1.5, 1.5]
    assert found[10:] == [None, 7.0, 7.0, 7.0, 7.0]


def test_the_ttl_is_inclusive_to_the_microsecond(tmp_path: Path) -> None:
    source = write(tmp_path, "heat", [Known(("a",), NOW, NOW, 3.0)], ttl_us=HOUR)
    asked = ask(["a"] * 4, [NOW - 1, NOW, NOW + HOUR, NOW + HOUR + 1])
    assert join(asked, [source]).column("heat").to_pylist() == [None, 3.0, 3.0, None]


def test_several_keys_and_several_views_at_once(tmp_path: Path) -> None:
    pairs = list(itertools.product("ab", "xy"))
    both = [Known(p, NOW, NOW, float(i)) for i, p in enumerate(pairs)]
    two = write(tmp_path, "both", both, keys=("card", "shop"), columns=("both", "words"))
    one = write(tmp_path, "alone", [Known(("a",), NOW, NOW, 9.0)])
    asked = ask([*pairs, ("a", None), (None, "x"), ("z", "x")], [NOW] * 7, ("card", "shop"))
    got = join(asked, [two, one])
    assert got.column_names == ["card", "shop", "event_timestamp", "tag", "both", "words", "alone"]
    assert got.column("both").to_pylist() == [0.0, 1.0, 2.0, 3.0, None, None, None]
    assert got.column("words").to_pylist() == [f"at {NOW}"] * 4 + [None] * 3
    assert got.column("alone").to_pylist() == [9.0, 9.0, None, None, 9.0, None, None]


def test_a_timeless_view_is_found_by_key_alone(tmp_path: Path) -> None:
    rows = [Known((f"e{i}",), NOW + i * HOUR, NOW, float(i)) for i in range(5)]
    source = write(tmp_path, "heat", rows, keys=("event",), timeless=True)
    asked = pa.table({"event": ["e3", "e0", "gone", "e3"]})
    assert join(asked, [source]).column("heat").to_pylist() == [3.0, 0.0, None, 3.0]


def test_no_row_asked_and_no_row_known_are_no_error(tmp_path: Path) -> None:
    source = write(tmp_path, "heat", [Known(("a",), NOW, NOW, 3.0)])
    empty = join(ask([], []), [source])
    assert (empty.num_rows, empty.column_names[-1]) == (0, "heat")
    nothing = write(tmp_path, "cold", [])
    assert join(ask(["a"], [NOW]), [nothing]).column("cold").to_pylist() == [None]


def test_what_it_would_read_wrongly_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path, "heat", [Known(("a",), NOW, NOW, 3.0)])
    asked = ask(["a"], [NOW])
    naive = asked.column("event_timestamp").cast(pa.timestamp("us"))
    with pytest.raises(UsageError, match=r"event_timestamp.*not timestamp\[us\]"):
        join(asked.set_column(1, "event_timestamp", naive), [source])
    with pytest.raises(UsageError, match=r"column card .*not None"):
        join(asked.drop_columns(["card"]), [source])
    with pytest.raises(UsageError, match="heat"):
        join(asked.append_column("heat", asked.column("tag")), [source])
    with pytest.raises(UsageError, match="heat"):
        join(asked, [source, source])
    with pytest.raises(StageError, match="no files"):
        join(asked, [replace(source, files=())])
    with pytest.raises(StageError, match=r"view 'heat'.*today's declaration"):
        join(asked, [replace(source, columns=("cold",))])
