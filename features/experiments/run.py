"""The table of an experiment's units, computed from the log and written to the lake.

Few rows are worked through in this process, many by Ray Data in two shuffles: by event id, to join
decisions with their events and labels, then by unit. Both ways run the same functions.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.experiments.facts import PART, Plan, decided, prepare
from features.experiments.units import units
from features.intake import exports
from raypipe.errors import NotFound
from raypipe.experiments.registry import load_experiment
from raypipe.experiments.spec import Experiment
from raypipe.lake import Place
from raypipe.ledger.exposure import EXPOSURE, EXPOSURE_SCHEMA
from raypipe.ledger.record import LOG_KIND, LOG_SCHEMA
from raypipe.log import opening
from raypipe.log.port import OFFSET, EventLog
from raypipe.ownership.claim import require_single
from raypipe.project import Project, load_project

if TYPE_CHECKING:
    from raypipe.config import Settings
    from raypipe.runtime.progress import Progress

FOLDER = "experiment-units"
HISTORY_FOLDER = "experiment-history"
PARTITION = 0

TASK_ROWS = 2_000_000
"""Rows of the log up to which this process does it alone."""

PART_ROWS = 500_000
"""Rows of the log for which there is a part."""

_WRITTEN = pa.schema([("units", pa.int64()), ("mixed", pa.int64())])

Files = Mapping[str, Sequence[Place]]
"""Parquet files of the log by kind."""


class Units(msgspec.Struct, frozen=True, kw_only=True):
    """What was made of a log: where it lies, and what it is of."""

    experiment: str
    folder: str
    """Below the lake."""
    as_of_ms: int
    units: int
    mixed: int
    """Units with exposures to several arms: the first one counts."""

    def table(self, lake: Place) -> pa.Table:
        """All units, by unit."""
        files = (lake / self.folder).files()
        tables = [pq.read_table(f.key, filesystem=f.filesystem) for f in files]
        return pa.concat_tables(tables).sort_by("unit")


def run(settings: Settings, progress: Progress, reference: str) -> tuple[Experiment, Units]:
    """Compute the units of a published experiment of the setting tenant, as of the newest event.

    Raises NotFound where nobody was exposed, and what reading the experiment raises.
    """
    project = load_project(settings.project)
    experiment = load_experiment(settings.lake, reference, project)
    log = opening.open_log(settings.log_url, settings.log_cache, create=False)
    try:
        require_single(log, "this command")
        files = _files(log, project, settings.lake, experiment)
    finally:
        log.close()
    with progress.stage("units", unit="units") as stage:
        plan = _plan(experiment, project, settings, files)
        name = f"{FOLDER}/{experiment.name}/{experiment.version}"
        folder = f"{name}/{secrets.token_hex(8)}"
        rows = sum(_rows(f) for of in files.values() for f in of)
        # Ray Data splits and runs tasks only where that pays.
        counted = (
            here(plan, files, settings.lake / folder)
            if rows <= TASK_ROWS
            else spread(plan, files, settings.lake / folder)
        )
        (settings.lake / name).prune([folder.rpartition("/")[2]])
        made = Units(
            experiment=experiment.id,
            folder=folder,
            as_of_ms=plan.as_of_ms,
            units=sum(n for n, _ in counted),
            mixed=sum(m for _, m in counted),
        )
        stage.say(f"{made.units:,} units")
    return experiment, made


def here(plan: Plan, files: Files, out: Place) -> list[tuple[int, int]]:
    """Do it in this process; units and mixed ones by part."""
    asked = pa.concat_tables(
        [prepare(_read(plan, kind, f), plan, kind) for kind, of in files.items() for f in of]
    )
    return _counts(_write(decided(asked, plan), plan, out))


def spread(plan: Plan, files: Files, out: Place) -> list[tuple[int, int]]:
    """Do it by Ray Data; needs a Ray session, and a lake that all nodes reach."""
    import ray.data

    sources = [{"kind": kind, "url": f.url} for kind, of in files.items() for f in of]
    options: dict[str, Any] = {
        "batch_size": None,
        "batch_format": "pyarrow",
        "zero_copy_batch": True,
    }
    asked = ray.data.from_items(sources, override_num_blocks=len(sources)).map_batches(
        partial(_prepared, plan=plan), **options
    )
    facts = asked.repartition(plan.parts, keys=[PART]).map_batches(
        partial(decided, plan=plan), **options
    )
    written = facts.repartition(plan.parts, keys=[PART]).map_batches(
        partial(_write, plan=plan, out=out), **options
    )
    return [(row["units"], row["mixed"]) for row in written.iter_rows()]


def _prepared(sources: pa.Table, plan: Plan) -> pa.Table:
    made = [
        prepare(_read(plan, kind, Place.at(url)), plan, kind)
        for kind, url in zip(*(sources[n].to_pylist() for n in ("kind", "url")), strict=True)
    ]
    return pa.concat_tables(made) if made else plan.asked_schema.empty_table()


def _write(facts: pa.Table, plan: Plan, out: Place) -> pa.Table:
    """Write the units of each part that a block has as a file of its own."""
    counted = []
    for part in np.unique(facts[PART].to_numpy()):
        mine = facts.filter(pc.equal(facts[PART], pa.scalar(part, pa.int32())))
        table, mixed = units(mine, plan)
        (out / f"part-{part:05d}.parquet").write_parquet(table)
        counted.append({"units": table.num_rows, "mixed": mixed})
    return pa.Table.from_pylist(counted, _WRITTEN)


def _counts(written: pa.Table) -> list[tuple[int, int]]:
    return [(r["units"], r["mixed"]) for r in written.to_pylist()]


def _plan(experiment: Experiment, project: Project, settings: Settings, files: Files) -> Plan:
    exposed = _span(
        files.get(EXPOSURE, ()), settings.tenant, pc.field("experiment") == experiment.id
    )
    if exposed is None:
        raise NotFound(
            f"nobody was exposed to {experiment.id}", hint="`raypipe experiment start` runs it."
        )
    as_of = settings.label_as_of
    if as_of is None:
        kinds = {project.decision, project.label.event}
        spans = [_span(files.get(kind, ()), settings.tenant) for kind in kinds]
        as_of = max(s[1] for s in spans if s is not None)
    rows = sum(_rows(f) for of in files.values() for f in of)
    return Plan(
        experiment,
        project,
        settings.tenant,
        as_of,
        exposed[0] + experiment.horizon_ms,
        1 + rows // PART_ROWS,
    )


def _files(log: EventLog, project: Project, lake: Place, experiment: Experiment) -> Files:
    kinds = Plan(experiment, project, "", 0, 0, 1).kinds
    present, end = log.kinds(PARTITION), log.end(PARTITION)
    return {
        kind: log.export(PARTITION, kind, exports(lake, log), log.first(PARTITION, kind), end)
        for kind in kinds
        if kind in present
    }


def _span(
    files: Sequence[Place], tenant: str, chosen: pc.Expression | None = None
) -> tuple[int, int] | None:
    """The first and the last event time of a tenant's rows, ms; None where there are none."""
    mine = pc.field("tenant") == tenant
    mine = mine if chosen is None else mine & chosen
    found = [
        pc.min_max(batch["event_time"]).as_py()
        for file in files
        for batch in _dataset(file).to_batches(columns=["event_time"], filter=mine)
        if batch.num_rows
    ]
    return (min(f["min"] for f in found), max(f["max"] for f in found)) if found else None


def _rows(file: Place) -> int:
    with file.open() as source:
        return int(pq.ParquetFile(source).metadata.num_rows)


def _read(plan: Plan, kind: str, file: Place) -> pa.Table:
    """What an experiment reads of a file; null where it is older than a column."""
    schema = _schema(plan.project, kind)
    return _dataset(file, schema).to_table(
        columns=[OFFSET, *plan.columns(kind)], filter=pc.field("tenant") == plan.tenant
    )


def _schema(project: Project, kind: str) -> pa.Schema:
    own = {EXPOSURE: EXPOSURE_SCHEMA, LOG_KIND: LOG_SCHEMA}.get(kind)
    fields = own or project.event(kind).arrow_schema
    return pa.schema([pa.field(OFFSET, pa.int64()), *(f.with_nullable(True) for f in fields)])


def _dataset(file: Place, schema: pa.Schema | None = None) -> Any:
    import pyarrow.dataset as ds

    return ds.dataset([file.key], schema=schema, format="parquet", filesystem=file.filesystem)
