"""Where a pass over a range of the log runs: few rows in one Ray task, many through Ray Data.

A shuffle by key range costs a second or more before its first row, and a day of a small shop fits
a task many times over. Both ways run the same block function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from features.batch import EntityPass, Span, Written, columns_of, prepare, write_block
from features.builds import Input
from raypipe.errors import IntegrityError
from raypipe.lake import Place
from raypipe.project import Project

if TYPE_CHECKING:
    import ray.data

TASK_ROWS = 500_000
"""Offsets up to which a pass is one task."""

_RESULT = pa.schema([("written", pa.binary())])


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over the log."""

    plan: EntityPass
    columns: Mapping[str, Mapping[str, pa.DataType]]
    """That it reads, by event type."""
    inputs: Mapping[str, Sequence[Place]]
    span: Span
    out: Place

    @classmethod
    def of(
        cls,
        project: Project,
        plan: EntityPass,
        inputs: Mapping[str, Sequence[Input]],
        lake: Place,
        out: Place,
        span: Span,
    ) -> Pass:
        """The pass of a plan over the files that hold the span's events."""
        columns = {kind: columns_of(project, plan, kind) for kind in plan.kinds}
        places = {k: [lake / i.path for i in inputs.get(k, ())] for k in plan.kinds}
        return cls(plan, columns, {k: v for k, v in places.items() if v}, span, out)


def run(passes: Sequence[Pass], done: Callable[[int, Written], None]) -> None:
    """Run passes that don't depend on each other; needs a Ray session.

    Args:
        done: called with the number of a pass for each of its key ranges that is finished.
    """
    import ray

    small = {i: p for i, p in enumerate(passes) if p.span.end - p.span.start <= TASK_ROWS}
    task = ray.remote(num_cpus=1)(_encoded)
    waiting = {task.remote(p): i for i, p in small.items()}
    for i, large in enumerate(passes):
        if i not in small:
            for written in shuffled(large):
                done(i, written)
    while waiting:
        (ready,), _ = ray.wait(list(waiting))
        i = waiting.pop(ready)
        for data in ray.get(ready):
            done(i, msgspec.json.decode(data, type=Written))


def here(one: Pass) -> list[Written]:
    """Run a pass in this process."""
    tables = [
        prepare(rows, one.plan, kind, one.span)
        for kind, files in one.inputs.items()
        for file in files
        for rows in [_read(file, one.columns[kind], one.span)]
    ]
    return write_block(pa.concat_tables(tables), one.plan, one.out, one.span) if tables else []


def shuffled(one: Pass) -> Iterator[Written]:
    """Run a pass through Ray Data, shuffled by key range; each range as it is finished."""
    import ray.data

    read: list[ray.data.Dataset] = []
    for kind, files in one.inputs.items():
        read.append(
            ray.data.read_parquet([f.key for f in files], filesystem=files[0].filesystem)
            .select_columns(list(one.columns[kind]))
            .map_batches(
                partial(prepare, entity=one.plan, kind=kind, span=one.span),
                batch_size=None,
                batch_format="pyarrow",
                zero_copy_batch=True,
            )
        )
    rows = read[0].union(*read[1:]) if len(read) > 1 else read[0]
    blocks = rows.repartition(one.plan.partitions, keys=["part"]).map_batches(
        partial(_block, entity=one.plan, out=one.out, span=one.span),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
    )
    for row in blocks.iter_rows():
        yield msgspec.json.decode(row["written"], type=Written)


def run_entity(
    project: Project,
    entity: str,
    events: Mapping[str, Sequence[Place]],
    out: Place,
    *,
    partitions: int,
) -> tuple[int, dict[str, str]]:
    """Compute and write all views of one entity over whole files, in one shuffle.

    Args:
        events: Parquet files of the log by event type, each with a leading ``offset`` column.
        out: receives ``at_event/<view>``, ``state/<view>`` and ``snapshot/<view>``.
        partitions: key ranges.

    Returns:
        the number of decision events, and the sha256 of each written file by its path in ``out``.
    """
    plan = EntityPass.of(project, entity, partitions)
    places = {k: list(events[k]) for k in plan.kinds if events.get(k)}
    end, decisions = 0, 0
    for kind, files in places.items():
        for file in files:
            with file.open() as source, pq.ParquetFile(source) as parquet:
                if parquet.metadata.num_rows:
                    groups = range(parquet.num_row_groups)
                    of = [parquet.metadata.row_group(g).column(0).statistics.max for g in groups]
                    end = max(end, 1 + max(of))
                decisions += parquet.metadata.num_rows if kind == project.decision else 0
    columns = {kind: columns_of(project, plan, kind) for kind in places}
    one = Pass(plan, columns, places, Span(0, end, ((0, end),)), out)
    found: dict[str, str] = {}
    for written in shuffled(one):
        found |= {f.path: f.sha256 for f in written.all_files}
    return decisions, found


def _encoded(one: Pass) -> list[bytes]:
    return [msgspec.json.encode(w) for w in here(one)]


def _block(table: pa.Table, entity: EntityPass, out: Place, span: Span) -> pa.Table:
    written = write_block(table, entity, out, span)
    return pa.table([[msgspec.json.encode(w) for w in written]], schema=_RESULT)


def _read(place: Place, columns: Mapping[str, pa.DataType], span: Span) -> pa.Table:
    """Row groups that hold some of the span, null where the file is older than a column."""
    try:
        with place.open() as source, pq.ParquetFile(source, pre_buffer=True) as file:
            present = set(file.schema_arrow.names)
            first = file.schema_arrow.names.index("offset")
            groups = []
            for group in range(file.num_row_groups):
                found: Any = file.metadata.row_group(group).column(first).statistics
                if found is None or (found.min < span.end and span.start <= found.max):
                    groups.append(group)
            table = file.read_row_groups(groups, columns=[c for c in columns if c in present])
    except FileNotFoundError as e:
        raise IntegrityError(
            f"{place.url} is missing", hint="Run `raypipe features` again: it exports it."
        ) from e
    for name, kind in columns.items():
        if name not in present:
            table = table.append_column(name, pa.nulls(table.num_rows, kind))
    return table
