"""Window values of any keys at any moments, by the kernel that serves them.

Events and readings go through it in log order, a reading before the event at its own offset: what
a value sees is exactly what a worker would have seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe.log.port import OFFSET
from raypipe.windows import kernel
from raypipe.windows.inputs import Inputs, key_hashes
from raypipe.windows.spec import WindowView
from raypipe.windows.state import Rows, ViewState
from training.leakage import check_no_leak
from training.recommend.events import TIME, Tables
from training.recommend.rows import Codes, Integers

TENANT = "tenant"
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LoggedWindows:
    """Windows at moments of the past, from the log's tables; see features.Windows.

    Args:
        tables: the log's rows by event type.
        tenant: whose windows are read.
        items: ids by code.
        users: ids by code.
        item_views: views whose key is the item.
        user_views: views whose key is the user.
    """

    tables: Tables
    tenant: str
    items: pa.StringArray
    users: pa.StringArray
    item_views: tuple[WindowView, ...] = ()
    user_views: tuple[WindowView, ...] = ()

    def of_items(self, item: Codes, time: Integers, offset: Integers) -> dict[str, Doubles]:
        """See Windows."""
        return self._read(self.item_views, self.items.take(pa.array(item)), time, offset)

    def of_users(self, user: Codes, time: Integers, offset: Integers) -> dict[str, Doubles]:
        """See Windows."""
        return self._read(self.user_views, self.users.take(pa.array(user)), time, offset)

    def _read(
        self, views: tuple[WindowView, ...], ids: pa.Array, time: Integers, offset: Integers
    ) -> dict[str, Doubles]:
        out: dict[str, Doubles] = {}
        for view in views:
            values = read_at(view, self.tables, self.tenant, ids, time, offset)
            out |= dict(zip(view.column_names, values.T, strict=True))
        return out


def read_at(
    view: WindowView, tables: Tables, tenant: str, keys: pa.Array, time: Integers, offset: Integers
) -> npt.NDArray[np.float64]:
    """Values of keys [n] as of times (ms) and places in the log [n]; float64 [n, columns].

    Raises LeakageError if a value used an event at its own offset or a later one.
    """
    asked = readings(view, keys_of(view, tenant, keys), time, offset)
    count = len(asked.keys)
    events = [event_rows(view, Inputs(view, k), _columns(view, tables, k)) for k in view.events]
    # Readings stand first, so they come before the event at their offset.
    ordered, back = in_log_order([asked, *events])
    found = ViewState(view).process(ordered)
    check_no_leak(offset, {f"view {view.name!r}": found.newest[back[:count]]})
    return found.before[back[:count]]


def state_of(view: WindowView, tables: Tables) -> ViewState:
    """The view's state after all rows of the tables."""
    state = ViewState(view)
    events = [event_rows(view, Inputs(view, k), _columns(view, tables, k)) for k in view.events]
    state.process(in_log_order(events)[0])
    return state


def keys_of(view: WindowView, tenant: str, ids: pa.Array) -> Integers:
    """The hashes [n] by which a view knows ids."""
    return key_hashes(view, pa.table({TENANT: pa.repeat(tenant, len(ids)), view.key: ids}))


def readings(view: WindowView, keys: Integers, time: Integers, offset: Integers) -> Rows:
    """Rows that read and change nothing, of hashes [n] as of times (ms) [n]."""
    count = len(keys)
    return Rows(
        keys,
        time,
        offset,
        np.full(count, kernel.READ, np.uint8),
        np.zeros((count, len(view.value_columns)), np.int64),
        np.zeros((count, len(view.sketches)), np.int64),
        np.zeros(count, np.int64),
    )


def event_rows(view: WindowView, inputs: Inputs, table: pa.Table | pa.RecordBatch) -> Rows:
    """Events of one type, with their offsets, as rows that change the view's state."""
    return Rows(
        key_hashes(view, table),
        table.column(TIME).to_numpy(),
        table.column(OFFSET).to_numpy(),
        np.full(table.num_rows, kernel.UPDATE, np.uint8),
        *inputs.of_columns(table),
    )


def in_log_order(parts: Iterable[Rows]) -> tuple[Rows, Integers]:
    """All rows by offset, those of one offset as they stand; and the new place of each [n]."""
    given = list(parts)
    joined = [np.concatenate([getattr(p, f.name) for p in given]) for f in dataclasses.fields(Rows)]
    whole = Rows(*joined)
    order = np.argsort(whole.offsets, kind="stable")
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    return Rows(*(getattr(whole, f.name)[order] for f in dataclasses.fields(Rows))), back


def _columns(view: WindowView, tables: Tables, kind: str) -> pa.Table:
    names = dict.fromkeys([OFFSET, TENANT, TIME, view.key, *Inputs(view, kind).columns])
    return tables(kind).to_table(columns=list(names)).combine_chunks()
