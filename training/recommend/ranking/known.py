"""What a replica starts from: everything that is in the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.windows.spec import WindowView
from training.recommend.catalogue import read_catalogue
from training.recommend.events import TIME, Source, Tables, Visits, guests_of, read_visits
from training.recommend.interactions import Interactions
from training.recommend.ranking.artefact import Known
from training.recommend.ranking.visitors import Done, Visitors
from training.recommend.ranking.windows import state_of

_NEVER = 2**62
"""Ms UTC: all listings of the log came before."""


def known(
    tables: Tables,
    sources: Sequence[Source],
    interactions: Interactions,
    views: Sequence[WindowView],
    since_ms: int,
) -> Known:
    """The shop as of the log's end.

    Args:
        tables: the log's rows by event type.
        sources: of the interactions.
        interactions: all of the log, those of sessions that name nobody among them or not.
        views: whose states are kept.
        since_ms: sessions without an event then or later are over.
    """
    visits, items = read_visits(tables, sources), interactions.items
    owners = {s: user for s, (user, _) in visits.owners(since_ms).items()}
    return Known(
        read_catalogue(tables, items, as_of_ms=_NEVER),
        _customers(interactions),
        _sessions(visits.anonymous(since_ms), items),
        owners,
        {view.name: state_of(view, tables).snapshot() for view in views},
    )


def _customers(interactions: Interactions) -> Visitors:
    """Without the sessions that name nobody: of these the newest are kept beside."""
    guests = guests_of(interactions)
    mine = interactions.where(~guests[interactions.user])
    place = np.cumsum(~guests) - 1
    return Visitors.of(
        interactions.users.filter(pa.array(~guests)),
        place[mine.user],
        Done(mine.item, mine.kind, mine.time, mine.offset),
    )


def _sessions(visits: Visits, items: pa.StringArray) -> Visitors:
    table = visits.table
    ids = pc.unique(table.column("session").cast(pa.string())).sort()
    item = pc.index_in(table.column("item"), items)
    kept = item.is_valid().combine_chunks().to_numpy(zero_copy_only=False)
    table, item, kind = table.filter(kept), item.filter(kept), visits.kind[kept]
    done = Done(
        _numbers(item).astype(np.int32),
        kind,
        table.column(TIME).to_numpy(),
        table.column("offset").to_numpy(),
    )
    return Visitors.of(ids, _numbers(pc.index_in(table.column("session"), ids)), done)


def _numbers(column: Any) -> np.ndarray:
    return np.asarray(column.to_numpy())
