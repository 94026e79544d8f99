"""Window values of any keys at any moments, by the kernel that serves them.

Events and readings go through it in log order, a reading before the event at its own offset: what
a value sees is exactly what a worker would have seen.
"""

from __future__ import annotations

import dataclasses

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
from training.recommend.rows import Integers

TENANT = "tenant"


def read_at(
    view: WindowView, tables: Tables, tenant: str, keys: pa.Array, time: Integers, offset: Integers
) -> npt.NDArray[np.float64]:
    """Values of keys [n] as of times (ms) and places in the log [n]; float64 [n, columns].

    Raises LeakageError if a value used an event at its own offset or a later one.
    """
    asked = key_hashes(view, pa.table({TENANT: pa.repeat(tenant, len(keys)), view.key: keys}))
    count = len(asked)
    parts = [
        Rows(
            asked,
            time,
            offset,
            np.full(count, kernel.READ, np.uint8),
            np.zeros((count, len(view.value_columns)), np.int64),
            np.zeros((count, len(view.sketches)), np.int64),
            np.zeros(count, np.int64),
        )
    ]
    parts += [_events(view, tables, kind) for kind in view.events]
    joined = [np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(Rows)]
    whole = Rows(*joined)
    # Stable: readings stand first, so they come before the event at their offset.
    order = np.argsort(whole.offsets, kind="stable")
    ordered = Rows(*(getattr(whole, f.name)[order] for f in dataclasses.fields(Rows)))
    found = ViewState(view).process(ordered)
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    check_no_leak(offset, {f"view {view.name!r}": found.newest[back[:count]]})
    return found.before[back[:count]]


def _events(view: WindowView, tables: Tables, kind: str) -> Rows:
    inputs = Inputs(view, kind)
    names = dict.fromkeys([OFFSET, TENANT, TIME, view.key, *inputs.columns])
    table = tables(kind).to_table(columns=list(names)).combine_chunks()
    return Rows(
        key_hashes(view, table),
        table.column(TIME).to_numpy(),
        table.column(OFFSET).to_numpy(),
        np.full(len(table), kernel.UPDATE, np.uint8),
        *inputs.of_columns(table),
    )
