"""Load tables into the log as history: map, validate, bring into arrival order, seal.

The rows become visible all at once, when the log seals them. A load is known by its content: the
same files through the same mapping for the same tenant are written once, however often it is
tried. A load that was broken off left nothing but its staging folder and starts over.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from raypipe.aborts import reach
from raypipe.clock import Clock, SystemClock
from raypipe.errors import ConfigError, Unavailable, UsageError
from raypipe.events.convert import convert
from raypipe.events.declarations import check_declarations
from raypipe.events.mapping import Mapping, StreamRule
from raypipe.events.merge import Staging
from raypipe.events.quarantine import Quarantine
from raypipe.events.schema import canonical_json
from raypipe.events.tables import Chunk, SourceTable
from raypipe.events.validate import as_json, row_dicts, validate
from raypipe.log.port import EventLog
from raypipe.project import Project

SOURCE = "load"
"""What the quarantine's sources of loads begin with."""

Progress = Callable[[int, int], None]
"""Called after each chunk with the rows read and the rows refused so far."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What became of the rows of a load.

    ``start`` and ``end`` are its log offsets [start, end). ``read`` counts rows of the tables;
    ``accepted``, ``rejected`` and ``duplicates`` count events, of which a row can be several.
    A load that was in the log already reports its offsets alone.
    """

    load_id: str
    start: int
    end: int
    already_loaded: bool = False
    read: int = 0
    rejected: int = 0
    accepted: dict[str, int] = field(default_factory=dict)
    duplicates: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)


def load(
    log: EventLog,
    project: Project,
    tables: Sequence[Path],
    mapping: Mapping,
    *,
    tenant: str,
    currency: str,
    quarantine: Quarantine,
    staging_dir: Path,
    progress: Progress | None = None,
    clock: Clock | None = None,
    partition: int = 0,
) -> LoadReport:
    """Load tables through a mapping; rows that break a rule go to the quarantine.

    Raises UsageError or ConfigError when mapping and tables don't fit together, MalformedBody when
    a table can't be read to its end, Unavailable while another load uses ``staging_dir``. After an
    error the log is as before.
    """
    work = _assign(mapping, [SourceTable.open(Path(t)) for t in tables])
    for table, rules in work:
        for schema in table.schemas():
            for rule in rules:
                convert(rule, schema.empty_table(), currency)
    check_declarations(log, project, partition)
    load_id = _identity(work, tenant, currency)
    producer = f"load:{load_id}"
    with _staging_folder(staging_dir) as folder:
        known = log.sealed_range(partition, producer, 0)
        if known is not None:
            return LoadReport(load_id, *known, already_loaded=True)
        now = (clock or SystemClock()).now_ms()
        with closing(Staging(folder, project.events)) as staging:
            run = _Run(tenant, currency, quarantine, staging)
            run.stage(work, load_id, now, progress)
            reach("load.staged")
            duplicates = staging.merge()
            reach("load.merged")
        start = end = 0
        if staging.rows:
            start, end = log.seal(
                partition, staging.ordered(), staging.rows, producer=producer, seq=0
            )
        reach("load.sealed")
    return LoadReport(
        load_id,
        start,
        end,
        read=run.read,
        rejected=run.rejected,
        accepted=dict(run.accepted - Counter(duplicates)),
        duplicates=duplicates,
        reasons=dict(run.reasons.most_common()),
    )


_Work = list[tuple[SourceTable, list[StreamRule]]]


def _assign(mapping: Mapping, tables: list[SourceTable]) -> _Work:
    """Which streams read which table, in the order in which the mapping names them."""
    by_name = {t.name: t for t in tables}
    if len(by_name) < len(tables):
        raise UsageError("two tables have the same name", hint="Rename one; streams go by name.")
    work: dict[str, list[StreamRule]] = {}
    for rule in mapping.streams:
        name = rule.table
        if name is None and len(tables) == 1:
            name = tables[0].name
        if name not in by_name:
            raise ConfigError(
                f"{rule.name} reads table {name!r}, which is not among those given"
                if name
                else f"{rule.name} must name its `table`: {len(tables)} are given",
                hint="Given: " + ", ".join(by_name),
            )
        work.setdefault(name, []).append(rule)
    unused = [n for n in by_name if n not in work]
    if unused:
        raise ConfigError(f"{mapping.name} has no stream for the table(s) {', '.join(unused)}")
    return [(by_name[name], rules) for name, rules in work.items()]


def _identity(work: _Work, tenant: str, currency: str) -> str:
    streams = [[table.sha256(), [rule.describe() for rule in rules]] for table, rules in work]
    known_by = {"tenant": tenant, "currency": currency, "streams": streams}
    return hashlib.sha256(canonical_json(known_by)).hexdigest()[:32]


@contextmanager
def _staging_folder(staging_dir: Path) -> Iterator[Path]:
    """An empty folder for one load at a time; what a dead load left in it is removed."""
    staging_dir.mkdir(parents=True, exist_ok=True)
    folder = staging_dir / "load"
    with (staging_dir / "load.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise Unavailable(
                f"another load is using {staging_dir}", hint="Try again when it is done."
            ) from e
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@dataclass
class _Run:
    """The counts of one load while its rows are staged."""

    tenant: str
    currency: str
    quarantine: Quarantine
    staging: Staging
    read: int = 0
    rejected: int = 0
    accepted: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def stage(self, work: _Work, load_id: str, now: int, progress: Progress | None) -> None:
        """Map and validate every chunk of every table."""
        for table, rules in work:
            source = f"{SOURCE} {load_id[:12]} {table.name}"
            self.quarantine.discard(source, tenant=self.tenant)
            columns = dict.fromkeys(name for rule in rules for name in rule.sources)
            for chunk in table.chunks(list(columns)):
                self._refuse(source, "", [(body, [reason]) for body, reason in chunk.broken])
                for rule in rules:
                    self._stage_chunk(rule, chunk, source, now)
                self.read += chunk.rows.num_rows + len(chunk.broken)
                if progress:
                    progress(self.read, self.rejected)

    def _stage_chunk(self, rule: StreamRule, chunk: Chunk, source: str, now: int) -> None:
        converted = convert(rule, chunk.rows, self.currency)
        refused: dict[int, list[str]] = {}
        readable = np.ones(len(converted.selected), np.bool_)
        for reason, mask in converted.failures:
            readable &= ~mask
            for row in np.flatnonzero(mask):
                refused.setdefault(int(row), []).append(reason)
        places = np.flatnonzero(readable)
        validated = validate(
            rule.event,
            converted.table.take(pa.array(places)) if refused else converted.table,
            tenant=self.tenant,
            currency=self.currency,
            received_at=None,
            now=now,
            unique=False,
        )
        self.staging.add(rule.event, validated.accepted)
        self.accepted[rule.event.name] += validated.accepted.num_rows
        rejected = validated.rejected
        for row, reasons in zip(
            rejected["row"].to_pylist(), rejected["reasons"].to_pylist(), strict=True
        ):
            refused[int(places[row])] = reasons
        if refused:
            rows = sorted(refused)
            came = {name: chunk.rows[name].combine_chunks() for name in rule.sources}
            bodies = row_dicts(came, converted.selected[rows])
            self._refuse(
                source,
                rule.event.name,
                [(as_json(b), refused[row]) for b, row in zip(bodies, rows, strict=True)],
            )

    def _refuse(self, source: str, event: str, rows: list[tuple[str, list[str]]]) -> None:
        if rows:
            self.rejected += len(rows)
            self.quarantine.add(source, event, rows, tenant=self.tenant)
            self.reasons.update(reason for _, reasons in rows for reason in reasons)
