"""The daily job: facts of the new days, then values of the new days, by key range, on Ray Data.

Only the new days' events are shuffled. Facts and values are files of their own for each key range
and run; a task that is repeated writes the same bytes under the same name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.profiles import made
from features.profiles.days import Days, Ints, midnight
from features.profiles.made import Manifest, Segment
from features.store.duck import connect, scan
from features.store.names import CREATED, TIMESTAMP, newest_column
from features.store.state import MOMENT
from raypipe.aborts import reach
from raypipe.events.schema import EventType
from raypipe.lake import Place
from raypipe.profiles import DAY, KEY, Profile
from raypipe.windows.hashing import BUCKETS, bucket_of, hash_column, key_seed

if TYPE_CHECKING:
    import ray.data

_PARQUET = {"compression": "zstd"}
_WRITTEN = pa.schema([("file", pa.string()), ("sha256", pa.string()), ("rows", pa.int64())])
_MEMORY = "1GB"
"""What DuckDB holds in a task before it spills. One thread a task, so sums have one order, too."""


@dataclass(frozen=True)
class Run:
    """The new days of one profile: what every task has to know."""

    profile: Profile
    events: tuple[EventType, ...]
    tenant: str
    days: Days
    out: Place
    """Folder of the set."""
    parts: int

    @property
    def label(self) -> str:
        """Part of the names of this run's files."""
        return f"{self.days.first:06d}-{self.days.last:06d}"

    def file(self, kind: str, part: int) -> str:
        """Path in the set of the facts or values of a key range."""
        return f"{kind}/part-{self.label}-{part:04d}.parquet"


def extend(
    profile: Profile,
    events: Sequence[EventType],
    files: Mapping[str, Sequence[Place]],
    lake: Place,
    before: Manifest | None,
    days: Days,
    wanted: Manifest,
) -> tuple[Manifest, int]:
    """Make the new days of a profile and publish them.

    Args:
        files: exported events by type.
        before: the published manifest, of whatever definition.
        wanted: the manifest to be extended, without segments for a new set.

    Returns:
        the manifest that is published now, and how many rows of values were made.
    """
    out = made.folder(lake, profile) / wanted.set_name
    by_name = {e.name: e for e in events}
    mine = tuple(by_name[name] for name in profile.events)
    run = Run(profile, mine, wanted.tenant, days, out, wanted.parts)
    written = _facts(run, files)
    oldest = days.first - profile.lookback_days
    kept = [n for s in wanted.segments if s.last_day > oldest for n in s.files]
    values = _values(run, [*kept, *(n for n, _, _ in written)])
    segment = Segment(
        first_day=days.first,
        last_day=days.last,
        begin_offset=days.begin,
        end_offset=days.end,
        files={n: h for n, h, _ in sorted([*written, *values])},
    )
    manifest = Manifest(
        definition_hash=wanted.definition_hash,
        log=wanted.log,
        tenant=wanted.tenant,
        parts=wanted.parts,
        segments=(*wanted.segments, segment),
    )
    reach("profiles.before_manifest")
    made.publish(lake, profile, manifest, before)
    return manifest, sum(rows for _, _, rows in values)


def _facts(run: Run, files: Mapping[str, Sequence[Place]]) -> list[tuple[str, str, int]]:
    import ray.data

    parts: list[ray.data.Dataset] = []
    for event in run.events:
        places = files.get(event.name)
        if places:
            parts.append(
                ray.data.read_parquet([p.key for p in places], filesystem=places[0].filesystem)
                .select_columns(columns(run.profile, event))
                .map_batches(partial(prepare, run=run, event=event), **_whole_blocks())
            )
    if not parts:
        return []
    dataset = parts[0].union(*parts[1:]) if len(parts) > 1 else parts[0]
    done = dataset.repartition(run.parts, keys=["part"]).map_batches(
        partial(write_facts, run=run), **_whole_blocks()
    )
    return _rows(done.take_all())


def _values(run: Run, files: Sequence[str]) -> list[tuple[str, str, int]]:
    import ray.data

    tasks = [
        {"part": p, "files": found}
        for p in range(run.parts)
        if (
            found := [
                n for n in files if n.startswith("facts/") and n.endswith(f"-{p:04d}.parquet")
            ]
        )
    ]
    if not tasks:
        return []
    done = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        partial(write_values, run=run), batch_size=1, batch_format="pyarrow"
    )
    return _rows(done.take_all())


def _whole_blocks() -> dict[str, Any]:
    return {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}


def _rows(found: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, int]]:
    return [(r["file"], r["sha256"], r["rows"]) for r in found]


def columns(profile: Profile, event: EventType) -> list[str]:
    """Columns of an exported event type that its facts need."""
    needed = ("offset", "tenant", profile.key, *profile.fact_columns(event))
    return list(dict.fromkeys(needed))


def prepare(table: pa.Table, run: Run, event: EventType) -> pa.Table:
    """The tenant's rows of the new days that have a key, with event type, day and key range.

    All event types come in one form, in which the fields of the others are null.
    """
    profile, offsets = run.profile, table.column("offset")
    new = pc.and_(pc.greater_equal(offsets, run.days.begin), pc.less(offsets, run.days.end))
    ours = pc.equal(table.column("tenant"), run.tenant)
    table = table.filter(pc.and_(pc.and_(new, ours), pc.is_valid(table.column(profile.key))))
    keys = table.column(profile.key)
    buckets = bucket_of(hash_column(keys, key_seed(run.tenant, profile.entity)))
    out = {
        "offset": table.column("offset"),
        "kind": pa.array(np.full(table.num_rows, profile.events.index(event.name), np.int8)),
        KEY: keys,
        DAY: pa.array(run.days.of(table.column("offset").to_numpy())),
        "part": pa.array((buckets * run.parts // BUCKETS).astype(np.int32)),
    }
    for e in run.events:
        for name in profile.fact_columns(e):
            column = table.column(name) if e is event else pa.nulls(table.num_rows)
            out[f"{e.name}.{name}"] = column.cast(e.field(name).arrow_type)
    return pa.table(out)


def write_facts(table: pa.Table, run: Run) -> pa.Table:
    """Facts of some key ranges by key and day; returns a row about each file (_WRITTEN)."""
    table = table.take(np.argsort(table.column("offset").to_numpy(), kind="stable"))
    parts = table.column("part").to_numpy()
    # The shuffle may put several key ranges into one block.
    done = [_write_facts(table.filter(pa.array(parts == p)), run, int(p)) for p in np.unique(parts)]
    return pa.concat_tables([_WRITTEN.empty_table(), *done])


def _write_facts(table: pa.Table, run: Run, part: int) -> pa.Table:
    with connect(threads=1, memory=_MEMORY) as con:
        for kind, event in enumerate(run.events):
            names = run.profile.fact_columns(event)
            rows = table.filter(pc.equal(table.column("kind"), kind))
            rows = rows.select([KEY, DAY, *(f"{event.name}.{n}" for n in names)])
            con.register(event.name, rows.rename_columns([KEY, DAY, *names]))
        sql = run.profile.facts_sql([e.name for e in run.events])
        found = con.sql(f"SELECT * FROM ({sql}) ORDER BY {KEY}, {DAY}").to_arrow_table()  # noqa: S608
    return _write(run, run.file("facts", part), found)


def write_values(task: pa.Table, run: Run) -> pa.Table:
    """Values of one key range on the new days; returns a row about the file (_WRITTEN)."""
    (given,) = task.to_pylist()
    profile, days = run.profile, run.days
    with connect(threads=1, memory=_MEMORY) as con:
        scan(con, [run.out / n for n in given["files"]], together=True).create_view("facts")
        found = con.sql(
            profile.values_sql(), params={"first": days.first, "last": days.last}
        ).to_arrow_table()
    if not found.num_rows:
        return _WRITTEN.empty_table()
    of = found.column(DAY).to_numpy()
    ends = midnight(of)
    out = {
        profile.key: found.column(KEY),
        TIMESTAMP: _moments(ends),
        CREATED: _moments(ends + profile.delay_ms),
        newest_column(profile.name): pa.array(days.newest(of)),
        **{n: found.column(n) for n in profile.column_names},
    }
    return _write(run, run.file("values", given["part"]), pa.table(out))


def _write(run: Run, file: str, table: pa.Table) -> pa.Table:
    sha256 = (run.out / file).write_parquet(table, **_PARQUET)
    return pa.table([[file], [sha256], [table.num_rows]], schema=_WRITTEN)


def _moments(milliseconds: Ints) -> pa.Array:
    return pa.array(milliseconds * 1_000, pa.int64()).cast(MOMENT)
