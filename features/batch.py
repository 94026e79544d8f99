"""Window values over history: one Ray Data pass per entity, one kernel run per key range.

Rows are shuffled by key bucket, never by time: a block holds all events of its keys, sorts them
by log offset and runs the same kernel as the live path. A block writes its own files, on whatever
node it runs, under names that depend on its buckets alone: a retried task overwrites what it wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe.lake import Place
from raypipe.project import Project
from raypipe.windows import kernel
from raypipe.windows.hashing import BUCKETS, bucket_of
from raypipe.windows.inputs import Inputs, key_hashes
from raypipe.windows.snapshot import write_part
from raypipe.windows.spec import WindowView
from raypipe.windows.state import Rows, Values, ViewState

if TYPE_CHECKING:
    import ray.data

TIMESTAMP = pa.timestamp("us", tz="UTC")
KNOWLEDGE = pa.timestamp("us")
"""Log offsets as timestamps (microseconds), the order in which Feast breaks ties."""

_PARQUET = {"compression": "lz4", "use_dictionary": False}
_WRITTEN = pa.schema([("file", pa.string()), ("sha256", pa.string()), ("rows", pa.int64())])
"""Of a written file: its path in the build, and the decision events it stands for."""


@dataclass(frozen=True, slots=True)
class EntityPass:
    """What one entity's pass computes: its views, and how wide their inputs are."""

    entity: str
    key: str
    views: tuple[WindowView, ...]
    kinds: tuple[str, ...]
    decision: str
    partitions: int

    @classmethod
    def of(cls, project: Project, entity: str, partitions: int) -> EntityPass:
        """The pass over all views of an entity of a project."""
        views = tuple(v for v in project.views if v.entity == entity)
        kinds = tuple(dict.fromkeys([project.decision, *(k for v in views for k in v.events)]))
        return cls(entity, views[0].key, views, kinds, project.decision, partitions)


def prepare(table: pa.Table, entity: EntityPass, kind: str) -> pa.Table:
    """Reduce events of one type to what the kernel needs, with the key range of each row.

    The text of keys and ids travels along for the outputs; everything else is int64.
    """
    columns = {
        "offset": table.column("offset"),
        "kind": pa.array(np.full(table.num_rows, entity.kinds.index(kind), np.int8)),
        "event_id": table.column("event_id"),
        "key_text": table.column(entity.key),
        "time": table.column("event_time"),
    }
    keys = key_hashes(entity.views[0], table)
    # Rows without a key enter no state: spread them instead of heaping them on one range.
    spread = np.where(keys == 0, np.arange(len(keys)) % BUCKETS, bucket_of(keys))
    columns["key"] = pa.array(keys)
    columns["part"] = pa.array((spread * entity.partitions // BUCKETS).astype(np.int32))
    for view in entity.views:
        amounts, hashes, flags = _fact_columns(view)
        if kind in view.events:
            facts = Inputs(view, kind).of_columns(table)
            found = [*facts.amounts.T, *facts.hashes.T, facts.flags]
        else:
            found = [np.zeros(table.num_rows, np.int64)] * (len(amounts) + len(hashes) + 1)
        columns |= {n: pa.array(x) for n, x in zip((*amounts, *hashes, flags), found, strict=True)}
    return pa.table(columns)


def _fact_columns(view: WindowView) -> tuple[list[str], list[str], str]:
    """Names under which prepared rows carry a view's amounts, hashes and flags."""
    return (
        [f"a:{view.name}:{c}" for c in view.value_columns],
        [f"h:{view.name}:{s.column}" for s in view.sketches],
        f"f:{view.name}",
    )


def _ints(table: pa.Table, names: Sequence[str]) -> npt.NDArray[np.int64]:
    out = np.empty((table.num_rows, len(names)), np.int64)
    for i, name in enumerate(names):
        out[:, i] = table.column(name).to_numpy()
    return out


def run_views(
    table: pa.Table, entity: EntityPass, *, after: bool = True
) -> dict[str, tuple[Values, ViewState]]:
    """Run every view of an entity over prepared rows that are sorted by offset."""
    kinds = table.column("kind").to_numpy()
    key, time, offset = (np.ascontiguousarray(table.column(c)) for c in ("key", "time", "offset"))
    reads = np.where(kinds == entity.kinds.index(entity.decision), kernel.READ, 0)
    out = {}
    for view in entity.views:
        counted = _counted(view, entity, kinds)
        amounts, hashes, flags = _fact_columns(view)
        update = kernel.UPDATE | (kernel.READ_AFTER if after else 0)
        state = ViewState(view)
        rows = Rows(
            key,
            time,
            offset,
            (reads | np.where(counted, update, 0)).astype(np.uint8),
            _ints(table, amounts),
            _ints(table, hashes),
            np.ascontiguousarray(table.column(flags)),
        )
        out[view.name] = (state.process(rows), state)
    return out


def _counted(
    view: WindowView, entity: EntityPass, kinds: npt.NDArray[np.int8]
) -> npt.NDArray[np.bool_]:
    """Which rows a view counts [n]."""
    return np.isin(kinds, [entity.kinds.index(kind) for kind in view.events])


def write_block(table: pa.Table, entity: EntityPass, out: Place) -> pa.Table:
    """Kernel over one key range; writes its files and returns a row about each (_WRITTEN)."""
    if not table.num_rows:
        return _WRITTEN.empty_table()
    table = table.take(np.argsort(table.column("offset").to_numpy(), kind="stable"))
    table = table.combine_chunks()
    results = run_views(table, entity)
    kinds = table.column("kind").to_numpy()
    asked = np.flatnonzero(kinds == entity.kinds.index(entity.decision))
    at_event = {
        "offset": table.column("offset").take(asked),
        "event_id": table.column("event_id").take(asked),
        "event_timestamp": _timestamps(table.column("time").to_numpy()[asked]),
    }
    name = f"part-{int(table.column('part').to_numpy().min()):04d}"
    files: dict[str, str] = {}
    for view in entity.views:
        values, state = results[view.name]
        for i, column in enumerate(view.column_names):
            at_event[column] = pa.array(values.before[asked, i])
        at_event[f"newest_{view.name}"] = pa.array(values.newest[asked])
        rows = _state_rows(view, table, _counted(view, entity, kinds), values)
        file = f"state/{view.name}/{name}.parquet"
        files[file] = (out / file).write_parquet(rows, **_PARQUET)
        file = f"snapshot/{view.name}/{name}.arrow"
        files[file] = write_part(out / file, state.snapshot())
    file = f"at_event/{entity.entity}/{name}.parquet"
    files[file] = (out / file).write_parquet(pa.table(at_event), **_PARQUET)
    decided = [len(asked) if f == file else 0 for f in files]
    return pa.table([list(files), list(files.values()), decided], schema=_WRITTEN)


def _timestamps(milliseconds: npt.NDArray[np.int64]) -> pa.Array:
    return pa.array(milliseconds * 1_000, pa.int64()).cast(TIMESTAMP)


def _state_rows(
    view: WindowView, table: pa.Table, counted: npt.NDArray[np.bool_], values: Values
) -> pa.Table:
    at = np.flatnonzero(counted & (table.column("key").to_numpy() != 0))
    columns = {
        view.key: table.column("key_text").take(at),
        "event_timestamp": _timestamps(values.clocks[at]),
        "created": pa.array(table.column("offset").to_numpy()[at]).cast(KNOWLEDGE),
    }
    columns |= {c: pa.array(values.after[at, i]) for i, c in enumerate(view.column_names)}
    return pa.table(columns)


def run_entity(
    project: Project,
    entity: str,
    events: Mapping[str, Sequence[Place]],
    out: Place,
    *,
    partitions: int,
) -> tuple[int, dict[str, str]]:
    """Compute and write all views of one entity.

    Args:
        events: Parquet files of the log by event type, each with a leading ``offset`` column.
        out: receives ``at_event/<entity>``, ``state/<view>`` and ``snapshot/<view>``.
        partitions: key ranges; each must fit in the memory of one task.

    Returns:
        the number of decision events, and the sha256 of each written file by its path in ``out``.
    """
    import ray.data

    plan = EntityPass.of(project, entity, partitions)
    parts: list[ray.data.Dataset] = []
    for kind in plan.kinds:
        files = events.get(kind)
        if not files:
            continue
        columns = _columns_of(project, plan, kind)
        parts.append(
            ray.data.read_parquet([f.key for f in files], filesystem=files[0].filesystem)
            .select_columns(columns)
            .map_batches(
                partial(prepare, entity=plan, kind=kind),
                batch_size=None,
                batch_format="pyarrow",
                zero_copy_batch=True,
            )
        )
    dataset = parts[0].union(*parts[1:]) if len(parts) > 1 else parts[0]
    done = (
        dataset.repartition(partitions, keys=["part"])
        .map_batches(
            partial(write_block, entity=plan, out=out),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
        )
        .take_all()
    )
    return sum(row["rows"] for row in done), {row["file"]: row["sha256"] for row in done}


def _columns_of(project: Project, plan: EntityPass, kind: str) -> list[str]:
    wanted = ["offset", "tenant", "event_id", "event_time", plan.key]
    for view in plan.views:
        if kind in view.events:
            wanted += Inputs(view, kind).columns
    return list(dict.fromkeys(wanted))
