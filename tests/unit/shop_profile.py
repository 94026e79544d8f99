"""Values of the shopper's profile for a shop's home, offline and online, without the daily job."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from features.commerce_profiles import SHOPPER_PROFILE as PROFILE
from features.profiles import made
from features.store.names import CREATED, TIMESTAMP, newest_column
from features.store.packed.backend import open_backend
from features.store.packed.codec import Column, encode
from features.store.packed.keys import key_prefix, one
from features.store.packed.layout import layout
from features.store.repo import settings
from features.store.state import MOMENT
from raypipe.clock import DAY_MS
from raypipe.lake import Place

Known = dict[tuple[str, int], tuple[float | None, ...]]
"""Values by shopper and day."""


def values(shoppers: int, days: range) -> Known:
    """Two of three shoppers have some on a day; where the number of days is odd one is null."""
    found: Known = {}
    for number in range(shoppers):
        random = np.random.default_rng(number)
        for day in days:
            drawn = random.random(len(PROFILE.values)) * 100
            if random.random() < 2 / 3:
                known: list[float | None] = drawn.tolist()
                if day % 2:
                    known[1] = None
                found[f"shopper_{number:08}", day] = tuple(known)
    return found


def put(home: Path, log_id: str, known: Known) -> None:
    """Publish them in the home's lake, and the newest of each shopper in its online store."""
    keys = [key for key, _ in known]
    ends = np.array([(day + 1) * DAY_MS for _, day in known])
    columns = list(zip(*known.values(), strict=True))
    table = {
        PROFILE.key: pa.array(keys),
        TIMESTAMP: _moments(ends),
        CREATED: _moments(ends + PROFILE.delay_ms),
        newest_column(PROFILE.name): pa.array(np.zeros(len(keys), np.int64)),
    }
    table |= dict(zip(PROFILE.column_names, map(pa.array, columns), strict=True))
    wanted = made.Manifest(
        definition_hash=PROFILE.definition_hash, log=log_id, tenant="default", parts=1
    )
    lake, file = Place.at(home), "values/part-0.parquet"
    sha256 = (made.folder(lake, PROFILE) / wanted.set_name / file).write_parquet(pa.table(table))
    days = [day for _, day in known]
    segment = made.Segment(
        first_day=min(days), last_day=max(days), begin_offset=0, end_offset=1, files={file: sha256}
    )
    published = made.Manifest(
        definition_hash=PROFILE.definition_hash,
        log=log_id,
        tenant="default",
        parts=1,
        segments=(segment,),
    )
    made.publish(lake, PROFILE, published, None)
    _online(home, known)


def _online(home: Path, known: Known) -> None:
    newest = {key: (day, row) for (key, day), row in known.items()}  # days ascend
    store = settings(home)["online_store"]["url"]
    prefix = key_prefix(settings(home)["project"], PROFILE.name, [PROFILE.key])
    at = np.array([(day + 1) * DAY_MS * 1_000 for day, _ in newest.values()])
    columns = [
        Column(
            np.array([v is None for v in column]),
            np.array([0.0 if v is None else v for v in column]),
        )
        for column in zip(*(row for _, row in newest.values()), strict=True)
    ]
    form = layout(tuple((name, "d") for name in PROFILE.column_names))
    Path(store.removeprefix("sqlite:///")).parent.mkdir(exist_ok=True)
    backend = open_backend(store)
    rows = encode(form, at, np.zeros(len(at), np.int64), at, columns)
    backend.put([one(prefix, key) for key in newest], rows, form.schema, form.described)
    backend.close()


def _moments(milliseconds: np.ndarray) -> pa.Array:
    return pa.array(milliseconds * 1_000, pa.int64()).cast(MOMENT)
