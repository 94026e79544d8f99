"""Visits of which nothing is known but what they looked at first: what do they look at then?"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.errors import StageError
from training.recommend.interactions import Interactions
from training.recommend.rows import Codes, Rows


def first_looks(
    sessions: Interactions, items: pa.StringArray, start_ms: int, end_ms: int, *, first: int = 2
) -> tuple[Rows, Rows]:
    """Histories of the first different items of each session, and the other ones, to be guessed.

    Args:
        sessions: interactions by session (``read_interactions(..., sessions=True)``).
        items: ids of the catalogue that the retriever knows; others are left out.
        start_ms: of sessions that begin from then on.
        end_ms: and before this.
        first: how many items are known.

    Both are [sessions, items], of sessions with more than ``first`` different items.

    Raises StageError when there is none.
    """
    place = pc.index_in(sessions.items, items).to_numpy(zero_copy_only=False)
    codes: Codes = np.where(np.isnan(place), -1, place).astype(np.int32)[sessions.item]
    begun = np.full(sessions.shape[0], np.iinfo(np.int64).max)
    np.minimum.at(begun, sessions.user, sessions.time)
    mine = (codes >= 0) & ((begun >= start_ms) & (begun < end_ms))[sessions.user]
    user, item = sessions.user[mine].astype(np.int64), codes[mine]
    order = np.lexsort((sessions.offset[mine], user))
    user, item = user[order], item[order]
    # Of an item that comes again only the first look counts.
    _, met = np.unique(user * len(items) + item, return_index=True)
    met.sort()
    user, item = user[met], item[met]
    _, session, size = np.unique(user, return_inverse=True, return_counts=True)
    nth = np.arange(len(user)) - np.concatenate([[0], np.cumsum(size)])[session]
    kept = size[session] > first
    if not kept.any():
        raise StageError(
            f"no session from {start_ms} to {end_ms} has more than {first} items",
            hint="Take a longer span of time, or fewer first items.",
        )
    _, row = np.unique(session[kept], return_inverse=True)
    shape = (int(row.max()) + 1, len(items))
    known = nth[kept] < first
    ones = np.ones(len(row))
    return (
        Rows.of(row[known], item[kept][known], ones[known], shape),
        Rows.of(row[~known], item[kept][~known], ones[~known], shape),
    )
