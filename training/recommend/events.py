"""Interactions and sessions from the events of a shop in the log.

Declared once as data: which event is which kind of interaction, and where it names user and item.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from raypipe.errors import NotFound
from raypipe.log.port import OFFSET
from training.recommend.interactions import CART, ORDER, VIEW, Interactions

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

TIME = "event_time"
Tables = Callable[[str], "Dataset"]
"""The rows of an event type; ``features.log_files.LogFiles.table`` is one."""


@dataclass(frozen=True, slots=True)
class Source:
    """An event type that is one kind of interaction, by the names of its columns.

    Only rows with an item and a user count, and of these only those where every column of
    ``where`` has its value.
    """

    event: str
    kind: str
    user: str = "customer_id"
    session: str | None = "session_id"
    item: str = "item_id"
    where: tuple[tuple[str, str | bool | int], ...] = ()


SHOP_SOURCES = (
    Source("page_view", VIEW),
    Source("cart", CART, where=(("action", "add"),)),
    Source("order_line", ORDER),
)
"""Of ``features.commerce``. An article put into a cart and taken out again still interested."""


def read_interactions(
    tables: Tables,
    sources: Sequence[Source] = SHOP_SOURCES,
    *,
    end_ms: int | None = None,
    sessions: bool = False,
    listings: str | None = "listing",
) -> Interactions:
    """All interactions of customers before ``end_ms``, or of sessions.

    Items are those of the interactions, and those that events of type ``listings`` name.

    A visit that logs in half-way is its customer's from then on; by ``sessions`` it is one history
    as a whole, for learning what goes together in a visit.

    Raises NotFound when there is none.
    """
    parts = []
    for kind, source in enumerate(sources):
        user = source.session if sessions else source.user
        if user is None:
            continue
        table = _read(tables(source.event), source, user, end_ms)
        parts.append((kind, table))
    whole = pa.concat_tables([t for _, t in parts], promote_options="permissive") if parts else None
    if whole is None or not len(whole):
        who = "sessions" if sessions else "customers"
        raise NotFound(
            f"no interaction of {who} with items is in the log",
            hint="Load " + ", ".join(s.event for s in sources) + " events.",
        )
    return Interactions.of(
        whole.column("user").combine_chunks(),
        whole.column("item").combine_chunks(),
        np.repeat([k for k, _ in parts], [len(t) for _, t in parts]).astype(np.uint8),
        tuple(s.kind for s in sources),
        whole.column(TIME).to_numpy(),
        offset=whole.column(OFFSET).to_numpy(),
        listed=None if listings is None else _listed(tables(listings), end_ms),
    )


def _listed(listings: Dataset, end_ms: int | None) -> pa.Array:
    import pyarrow.dataset as ds

    before = None if end_ms is None else ds.field(TIME) < end_ms
    return listings.to_table(columns=["item_id"], filter=before).column(0).combine_chunks()


def _read(events: Dataset, source: Source, user: str, end_ms: int | None) -> pa.Table:
    import pyarrow.dataset as ds

    wanted = ds.field(user).is_valid() & ds.field(source.item).is_valid()
    for column, value in source.where:
        wanted &= ds.field(column) == value
    if end_ms is not None:
        wanted &= ds.field(TIME) < end_ms
    columns = {
        "user": ds.field(user),
        "item": ds.field(source.item),
        TIME: ds.field(TIME),
        OFFSET: ds.field(OFFSET),
    }
    return events.to_table(columns=columns, filter=wanted)
