"""Windows of the present, by the kernel of training, from the version's snapshot on.

In the replica rather than with the worker: a request reads 200 items at once, which here is one
call over memory (docs/adr/0031).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe.windows.inputs import Inputs, key_hash
from raypipe.windows.spec import WindowView
from raypipe.windows.state import ViewState
from training.recommend.ranking.windows import (
    TENANT,
    Doubles,
    event_rows,
    in_log_order,
    keys_of,
    readings,
)
from training.recommend.rows import Codes, Integers

NOBODY = "\0"
"""Stands for a visitor without an account: he has no events, as a new customer has none."""


class LiveWindows:
    """State of all views, fed in log order.

    Args:
        item_views: views whose key is the item.
        user_views: views whose key is the user.
        snapshots: of their states, by name.
        items: ids by code.
        tenant: whose windows are read.
    """

    def __init__(
        self,
        item_views: tuple[WindowView, ...],
        user_views: tuple[WindowView, ...],
        snapshots: Mapping[str, pa.Table],
        items: pa.StringArray,
        tenant: str,
    ) -> None:
        self._tenant = tenant
        self._item_views, self._user_views = item_views, user_views
        self._states = {v.name: ViewState(v) for v in (*item_views, *user_views)}
        for name, state in self._states.items():
            state.restore(snapshots[name])
        self._inputs = {
            (v.name, kind): Inputs(v, kind) for v in (*item_views, *user_views) for kind in v.events
        }
        self._shelves = {v.name: _Shelf.of(v, keys_of(v, tenant, items)) for v in item_views}

    @property
    def kinds(self) -> frozenset[str]:
        """Event types that some view counts."""
        return frozenset(kind for _, kind in self._inputs)

    @property
    def nbytes(self) -> int:
        """Memory of the states."""
        return sum(state.nbytes for state in self._states.values())

    def feed(self, events: Iterable[tuple[str, pa.RecordBatch]]) -> None:
        """Count events, by type, with their offsets; all come after what was fed before."""
        given = list(events)
        for view in (*self._item_views, *self._user_views):
            parts = [
                event_rows(view, self._inputs[view.name, kind], batch)
                for kind, batch in given
                if kind in view.events
            ]
            if parts:
                rows = in_log_order(parts)[0]
                self._states[view.name].process(rows)
                if view.name in self._shelves:
                    self._shelves[view.name].forget(rows.keys)

    def of_visitor(self, user: str | None) -> VisitorWindows:
        """Windows for the columns of one visitor."""
        keys = {
            v.name: np.array([key_hash(v, {TENANT: self._tenant, v.key: user or NOBODY})])
            for v in self._user_views
        }
        return VisitorWindows(self, keys)

    def items(self, item: Codes, time: Integers, offset: Integers) -> dict[str, Doubles]:
        """Values of items [n] as of one time and offset, each given [n] times, by column.

        What was read of an item at the same time stands until an event of it comes: lists of one
        second share it.
        """
        out: dict[str, Doubles] = {}
        for view in self._item_views:
            shelf, now = self._shelves[view.name], int(time[0]) if len(time) else 0
            unread = item[shelf.read_at[item] != now]
            if len(unread):
                at, place = np.full(len(unread), now), np.full(len(unread), offset[0])
                asked = readings(view, shelf.keys[unread], at, place)
                shelf.values[unread] = self._states[view.name].process(asked).before
                shelf.read_at[unread] = now
            out |= dict(zip(view.column_names, shelf.values[item].T, strict=True))
        return out

    def users(
        self, keys: Mapping[str, Integers], time: Integers, offset: Integers
    ) -> dict[str, Doubles]:
        """Values of visitors' keys [n]."""
        out: dict[str, Doubles] = {}
        for view in self._user_views:
            asked = readings(view, keys[view.name], time, offset)
            found: npt.NDArray[np.float64] = self._states[view.name].process(asked).before
            out |= dict(zip(view.column_names, found.T, strict=True))
        return out


@dataclass(frozen=True)
class _Shelf:
    """What was read of each item, float64 [items, columns], and as of when, ms [items]."""

    keys: Integers
    order: Integers
    values: Doubles
    read_at: Integers

    @classmethod
    def of(cls, view: WindowView, keys: Integers) -> _Shelf:
        count = len(keys)
        values = np.empty((count, len(view.column_names)))
        return cls(keys, np.argsort(keys), values, np.full(count, -1, np.int64))

    def forget(self, keys: Integers) -> None:
        """Events came of these; some may be of no item here."""
        count = len(self.keys)
        place = self.order[
            np.minimum(np.searchsorted(self.keys, keys, sorter=self.order), count - 1)
        ]
        self.read_at[place[self.keys[place] == keys]] = -1


@dataclass(frozen=True)
class VisitorWindows:
    """See training.recommend.ranking.features.Windows; its only user is code 0."""

    live: LiveWindows
    keys: Mapping[str, Integers]

    def of_items(self, item: Codes, time: Integers, offset: Integers) -> dict[str, Doubles]:
        """See Windows."""
        return self.live.items(item, time, offset)

    def of_users(self, user: Codes, time: Integers, offset: Integers) -> dict[str, Doubles]:
        """See Windows."""
        return self.live.users({n: k[user] for n, k in self.keys.items()}, time, offset)
