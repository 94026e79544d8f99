"""A home with the log of a simulated shop, and what a judge of lists must know of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features import log_files
from features.commerce import project
from raypipe.clock import DAY_MS, SystemClock
from raypipe.config import Settings
from raypipe.log.opening import open_log
from raypipe.log.port import POSITION
from raypipe.simulate.shop.config import ShopConfig
from raypipe.simulate.shop.tables import events
from raypipe.simulate.shop.world import Shop

KINDS: Mapping[str, float] = {"page_view": 1.0, "cart": 3.0, "order_line": 5.0}
"""What counts as an interaction, with the weights that the shop's retriever gives it."""

_ROWS = 65_536


@dataclass(frozen=True)
class World:
    """What happened in the shop before the benchmark.

    ``pairs`` has one row for each customer and item: ``user``, ``item``, ``weight``. ``bought`` are
    the items of each customer's orders, ``in_stock`` what the newest listing says can be ordered,
    ``known`` all that was ever listed.
    """

    pairs: pa.Table
    bought: Mapping[str, frozenset[str]]
    in_stock: frozenset[str]
    known: frozenset[str]
    rows: int

    def __repr__(self) -> str:
        users, stock = len(self.pairs["user"].unique()), len(self.in_stock)
        return f"{self.rows} events, {users} customers, {len(self.known)} items, {stock} in stock"


def config(items: int, users: int, days: int, seed: int) -> ShopConfig:
    """A shop whose history ends with the day before this one."""
    today = SystemClock().now_ms() // DAY_MS * DAY_MS
    return ShopConfig(
        seed=seed,
        start_ms=today - days * DAY_MS,
        days=days,
        shoppers=users,
        items=items,
        categories=max(20, items // 400),
        brands=max(100, items // 40),
        visits_per_day=0.06,
        join_per_year=0.2,
    )


def load_history(settings: Settings, shop: ShopConfig) -> None:
    """Seal the shop's days into the home's empty log, as a load of its history would."""
    world = Shop(shop)
    days = [events(world, day) for day in range(shop.days)]
    whole = {kind: pa.concat_tables([d[kind] for d in days]) for kind in days[0]}
    received = np.concatenate([t["received_at"].to_numpy() for t in whole.values()])
    place = np.empty(len(received), np.int64)
    place[np.argsort(received, kind="stable")] = np.arange(len(received))
    ordered, at = {}, 0
    for kind, table in whole.items():
        ordered[kind] = _batches(kind, table, place[at : at + len(table)], settings.tenant)
        at += len(table)
    with closing(open_log(settings.log_url, settings.log_cache)) as log:
        log.seal(0, ordered, len(received), producer="history", seq=0)


def read_world(settings: Settings) -> World:
    """What the home's log says."""
    with log_files.open_log(settings, project) as files:
        whole = {kind: files.table(kind).to_table() for kind in (*KINDS, "listing")}
        rows = files.end
    listed = whole["listing"].sort_by([("event_time", "ascending"), ("offset", "ascending")])
    newest = dict(zip(listed["item_id"].to_pylist(), listed["available"].to_pylist(), strict=True))
    return World(
        _pairs(whole),
        _bought(whole["order_line"]),
        frozenset(item for item, there in newest.items() if there),
        frozenset(newest),
        rows,
    )


def _batches(
    kind: str, table: pa.Table, place: npt.NDArray[np.int64], tenant: str
) -> Iterator[pa.RecordBatch]:
    order = np.argsort(place)
    schema = project.event(kind).arrow_schema
    for first in range(0, len(order), _ROWS):
        rows = order[first : first + _ROWS]
        part = table.take(pa.array(rows))
        columns = {n: part.column(n).combine_chunks() for n in part.column_names}
        columns["tenant"] = pa.repeat(tenant, len(rows))
        arrays = [
            columns[f.name].cast(f.type) if f.name in columns else pa.nulls(len(rows), f.type)
            for f in schema
        ]
        yield pa.RecordBatch.from_arrays(
            [pa.array(place[rows]), *arrays],
            schema=schema.insert(0, pa.field(POSITION, pa.int64())),
        )


def _pairs(whole: Mapping[str, pa.Table]) -> pa.Table:
    parts = [
        pa.table(
            {
                "user": whole[kind]["customer_id"],
                "item": whole[kind]["item_id"],
                "weight": pa.repeat(weight, len(whole[kind])),
            }
        )
        for kind, weight in KINDS.items()
    ]
    known = pa.concat_tables(parts).filter(pc.field("user").is_valid())
    summed = known.group_by(["user", "item"]).aggregate([("weight", "sum")])
    return summed.rename_columns(["user", "item", "weight"]).sort_by(
        [("user", "ascending"), ("item", "ascending")]
    )


def _bought(lines: pa.Table) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for user, item in zip(
        lines["customer_id"].to_pylist(), lines["item_id"].to_pylist(), strict=True
    ):
        found.setdefault(user, set()).add(item)
    return {user: frozenset(items) for user, items in found.items()}
