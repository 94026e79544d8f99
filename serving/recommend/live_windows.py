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

from raypipe.windows.inputs import Inputs
from raypipe.windows.spec import WindowView
from raypipe.windows.state import ViewState
from training.recommend.ranking.windows import (
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
        self._item_keys = {v.name: keys_of(v, tenant, items) for v in item_views}

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
                self._states[view.name].process(in_log_order(parts)[0])

    def of_visitor(self, user: str | None) -> VisitorWindows:
        """Windows for the columns of one visitor."""
        ids = pa.array([user or NOBODY])
        keys = {v.name: keys_of(v, self._tenant, ids) for v in self._user_views}
        return VisitorWindows(self, keys)

    def items(self, item: Codes, time: Integers, offset: Integers) -> dict[str, Doubles]:
        """Values of items [n] as of times and offsets [n], by column."""
        keys = {v.name: self._item_keys[v.name][item] for v in self._item_views}
        return self._read(self._item_views, keys, time, offset)

    def users(
        self, keys: Mapping[str, Integers], time: Integers, offset: Integers
    ) -> dict[str, Doubles]:
        """Values of visitors' keys [n]."""
        return self._read(self._user_views, keys, time, offset)

    def _read(
        self,
        views: tuple[WindowView, ...],
        keys: Mapping[str, Integers],
        time: Integers,
        offset: Integers,
    ) -> dict[str, Doubles]:
        out: dict[str, Doubles] = {}
        for view in views:
            asked = readings(view, keys[view.name], time, offset)
            found: npt.NDArray[np.float64] = self._states[view.name].process(asked).before
            out |= dict(zip(view.column_names, found.T, strict=True))
        return out


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
