"""The simulated shop's events as the tables of a log, in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from raypipe.simulate.shop.world import Shop
    from training.recommend.events import Tables

START_MS = 1_790_035_200_000
TENANT = "default"


def logged(shop: Shop) -> Tables:
    """All days of a shop, placed in the log in order of arrival."""
    import pyarrow.dataset as ds

    from raypipe.simulate.shop.tables import events

    days = [events(shop, day) for day in range(shop.config.days)]
    whole = {kind: pa.concat_tables([d[kind] for d in days]) for kind in days[0]}
    received = np.concatenate([t["received_at"].to_numpy() for t in whole.values()])
    place = np.empty(len(received), np.int64)
    place[np.argsort(received, kind="stable")] = np.arange(len(received))
    log, at = {}, 0
    for kind, table in whole.items():
        offsets = pa.array(place[at : at + len(table)])
        at += len(table)
        tenants = pa.repeat(pa.scalar(TENANT), len(table))
        placed = table.append_column("offset", offsets).append_column("tenant", tenants)
        log[kind] = ds.dataset(placed.sort_by("offset"))
    return log.__getitem__
