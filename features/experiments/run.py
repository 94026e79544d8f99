"""The table of an experiment's units, computed from the log and written to the lake.

Few rows are worked through in this process, many by Ray Data in two shuffles: by event id, to join
decisions with their events and labels, then by unit. Both ways run the same functions.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.experiments.facts import PART, Plan, decided, prepare
from features.experiments.units import units
from features.intake import exports, in_lake
from features.moments import point
from raypipe.errors import NotFound
from raypipe.experiments.checks import check
from raypipe.experiments.registry import EXPERIMENTS, load_experiment
from raypipe.experiments.spec import Experiment
from raypipe.lake import Place
from raypipe.ledger.exposure import EXPOSURE, EXPOSURE_SCHEMA
from raypipe.ledger.record import LOG_KIND, LOG_SCHEMA
from raypipe.log import opening
from raypipe.log.export import STEP
from raypipe.log.port import OFFSET
from raypipe.ownership.claim import require_single
from raypipe.project import Project, load_project
from raypipe.runtime import session

if TYPE_CHECKING:
    from raypipe.config import Settings
    from raypipe.runtime.progress import Progress

FOLDER = "experiment-units"
HISTORY_FOLDER = "experiment-history"
SCRATCH = "experiment-scratch"
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
    plan = Plan(experiment, project, settings.tenant, 0, 0, 1)
    with _log_files(settings, plan) as files:
        mine = pc.field("experiment") == experiment.id
        exposed = _span(files.get(EXPOSURE, ()), settings.tenant, mine)
        if exposed is None:
            raise NotFound(
                f"nobody was exposed to {experiment.id}", hint="`raypipe experiment start` runs it."
            )
        until = exposed[0] + experiment.horizon_ms
        plan = replace(plan, as_of_ms=_as_of(settings, plan, files), until_ms=until)
        return experiment, _made(settings, progress, plan, files, FOLDER)


def history(
    settings: Settings, progress: Progress, reference: str, since: str | None = None
) -> tuple[Experiment, Units]:
    """Compute the units that would have been in an experiment, a file or a published one.

    Args:
        since: a date, a time or a duration before the newest event; by default the horizon.

    Raises NotFound where nothing happened, and what reading the experiment raises.
    """
    project = load_project(settings.project)
    experiment = EXPERIMENTS.find(settings.lake, reference)
    check(experiment, project)
    plan = Plan(experiment, project, settings.tenant, 0, 0, 1, 0)
    with _log_files(settings, plan) as files:
        as_of = _as_of(settings, plan, files)
        start = as_of - experiment.horizon_ms if since is None else point("--since", since, as_of)
        plan = replace(plan, as_of_ms=as_of, until_ms=as_of + 1, since_ms=start)
        return experiment, _made(settings, progress, plan, files, HISTORY_FOLDER)


def _made(settings: Settings, progress: Progress, plan: Plan, files: Files, folder: str) -> Units:
    rows = sum(_rows(f) for of in files.values() for f in of)
    plan = replace(plan, parts=1 + rows // PART_ROWS)
    experiment, name = plan.experiment, secrets.token_hex(8)
    out = settings.lake / folder / experiment.name / str(experiment.version)
    with progress.stage("units", unit="units") as stage:
        if rows <= TASK_ROWS:
            counted = here(plan, files, out / name)
        else:
            session.start(settings)
            counted = spread(plan, files, out / name)
        out.prune([name])
        made = Units(
            experiment=experiment.id,
            folder=f"{folder}/{experiment.name}/{experiment.version}/{name}",
            as_of_ms=plan.as_of_ms,
            units=sum(n for n, _ in counted),
            mixed=sum(m for _, m in counted),
        )
        stage.say(f"{made.units:,} units")
    return made


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


def _as_of(settings: Settings, plan: Plan, files: Files) -> int:
    """The setting, or the time of the newest event; raises NotFound where there is none."""
    if settings.label_as_of is not None:
        return settings.label_as_of
    kinds = {plan.project.decision, plan.project.label.event}
    spans = [_span(files.get(kind, ()), settings.tenant) for kind in kinds]
    newest = max((s[1] for s in spans if s is not None), default=None)
    if newest is None:
        raise NotFound("the log has no events", hint="`raypipe simulate` or `load` brings some.")
    return newest


@contextmanager
def _log_files(settings: Settings, plan: Plan) -> Iterator[Files]:
    """All that the log has of the kinds that a plan reads, in the lake.

    Whole steps stay for other readers; the rows after them go when the block ends.
    """
    log = opening.open_log(settings.log_url, settings.log_cache, create=False)
    scratch = settings.lake / SCRATCH / secrets.token_hex(8)
    try:
        require_single(log, "this command")
        kept, present, end = exports(settings.lake, log), log.kinds(PARTITION), log.end(PARTITION)
        found: dict[str, list[Place]] = {}
        for kind in plan.kinds:
            if kind in present:
                first = log.first(PARTITION, kind)
                whole = max(first, end // STEP * STEP)
                steps = log.export(PARTITION, kind, kept, first, whole)
                found[kind] = [in_lake(f, settings.lake, kept) for f in steps]
                rest = log.export(PARTITION, kind, scratch, whole, end)
                found[kind] += [in_lake(f, settings.lake, scratch) for f in rest]
        yield found
    finally:
        scratch.remove_tree()
        log.close()


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
