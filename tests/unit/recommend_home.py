"""A home with a simulated shop's log, and a version of both stages fitted on all but its end."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa

from features.commerce import project
from features.log_files import open_log
from raypipe.clock import DAY_MS, ManualClock
from raypipe.config import Settings
from raypipe.log.port import Group, Part
from raypipe.log.sqlite import SqliteLog
from raypipe.runtime.progress import reporter
from raypipe.runtime.worker.intake import Bulk
from raypipe.simulate.shop.config import ShopConfig
from raypipe.simulate.shop.tables import events
from raypipe.simulate.shop.world import Shop
from tests.unit import shop_profile
from training.recommend.fit import Options
from training.recommend.neighbours import ItemKNN, RP3Beta
from training.recommend.ranking.fit import Fitted, Plan, fit

START = 1_790_000_000_000
CONFIG = ShopConfig(
    start_ms=START, days=26, shoppers=300, items=120, visits_per_day=0.4, launched_share=0.0
)
DAYS = 24
"""Of which the version knows; the two after them come live."""

NOW = START + CONFIG.days * DAY_MS
PROFILE = shop_profile.values(CONFIG.shoppers, range(START // DAY_MS, NOW // DAY_MS))
PLAN = Plan(
    retrieval=Options(method=RP3Beta(50), test_ms=4 * DAY_MS, ks=(10,)),
    learn_ms=8 * DAY_MS,
    choose_ms=4 * DAY_MS,
    candidates=60,
    rounds=30,
    beside={"itemknn": ItemKNN(20)},
)


def settings(home: Path) -> Settings:
    return Settings(home=home, project="features.commerce:project")


def groups(days: range, tenant: str = "default") -> Iterator[Group]:
    """Each day's events as one group, in order of arrival over all kinds."""
    shop = Shop(CONFIG)
    for day in days:
        tables = {k: t for k, t in events(shop, day).items() if len(t)}
        received = np.concatenate([t["received_at"].to_numpy() for t in tables.values()])
        place = np.empty(len(received), np.int32)
        place[np.argsort(received, kind="stable")] = np.arange(len(received), dtype=np.int32)
        parts, at = [], 0
        for kind, table in tables.items():
            mine = place[at : at + len(table)]
            at += len(table)
            order = np.argsort(mine)
            columns = table.take(order).to_pydict() | {"tenant": [tenant] * len(table)}
            schema = project.event(kind).arrow_schema
            filled = [columns.get(f.name, [None] * len(table)) for f in schema]
            arrays = [pa.array(c, f.type) for c, f in zip(filled, schema, strict=True)]
            parts.append(Part(kind, pa.RecordBatch.from_arrays(arrays, schema=schema), mine[order]))
        yield Group(tuple(parts))


def append(home: Path, days: range, tenant: str = "default") -> None:
    """Bring days into the log."""
    with closing(SqliteLog(home / "log")) as log:
        for number, group in enumerate(groups(days, tenant)):
            log.append(0, [group], producer=f"{tenant}-{days.start}", seq=number)


def fitted(home: Path, plan: Plan = PLAN) -> Fitted:
    """The log up to DAYS, another tenant's events among them, profiles, and a version of both."""
    append(home, range(DAYS - 1))
    append(home, range(2), "other")
    append(home, range(DAYS - 1, DAYS))
    made = settings(home)
    with open_log(made, project) as files:
        shop_profile.put(home, files.id, PROFILE)
        return fit(files, made.lake, plan, reporter(quiet=True), clock=ManualClock(NOW))


def bulk(kind: str, batch: pa.RecordBatch, now: int) -> Bulk:
    """Rows as a bulk request brings them."""
    return Bulk("default", Group.of(kind, batch), now, "test", bytes(32))


def fitted_again(made: Settings, plan: Plan = PLAN, days: int = 1) -> Fitted:
    """Another version, so many days later, with fewer trees."""
    other = dataclasses.replace(plan, rounds=3)
    with open_log(made, project) as files:
        clock = ManualClock(NOW + days * DAY_MS)
        return fit(files, made.lake, other, reporter(quiet=True), clock=clock)
