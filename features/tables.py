"""What SQL can see of one tenant: its events by type, its features, its decisions. Nothing else.

Each table is an Arrow object that yields the tenant's rows alone, so no query can reach others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from features.builds import Build
from features.log_files import LogFiles
from features.profiles import made
from features.store.names import (
    CREATED,
    EVENT_KEY,
    TIMESTAMP,
    at_event_folder,
    at_event_view,
    newest_column,
    state_folder,
    state_view,
)
from raypipe.errors import NotFound
from raypipe.lake import Place
from raypipe.ledger.exposure import EXPOSURE, EXPOSURE_SCHEMA
from raypipe.ledger.record import LOG_KIND, decode
from raypipe.log.port import OFFSET
from raypipe.profiles import Profile
from raypipe.project import Project
from raypipe.vector.assemble import FEATURE_VALUE

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

DECISIONS = "decisions"
EXPOSURES = "exposures"

MOMENT = pa.timestamp("us")
"""UTC, and not said so: DuckDB can do little with time zones without an extension."""

_REASON = pa.struct(
    [
        ("code", pa.string()),
        ("feature", pa.string()),
        ("contribution", pa.float64()),
        ("words", pa.string()),
    ]
)
_EXPOSED = pa.struct(
    [
        ("experiment", pa.string()),
        ("arm", pa.string()),
        ("unit", pa.string()),
        ("propensity", pa.float64()),
    ]
)
DECISION_SCHEMA = pa.schema(
    [
        *(pa.field(n, pa.string()) for n in ("decision_id", "tenant", "event_id")),
        *(
            pa.field(n, pa.int64())
            for n in (OFFSET, "event_offset", "event_time", "received_at", "decided_at")
        ),
        *(
            pa.field(n, pa.string())
            for n in ("model", "model_sha256", "policy", "policy_sha256", "definition_hash")
        ),
        pa.field("score", pa.float64()),
        pa.field("action", pa.string()),
        pa.field("reasons", pa.list_(_REASON)),
        pa.field("rule_hits", pa.list_(pa.string())),
        pa.field("experiment", pa.string()),
        pa.field("arm", pa.string()),
        pa.field("degraded", pa.bool_()),
        pa.field("features", pa.list_(pa.float32())),
        pa.field("profile_times", pa.list_(pa.int64())),
        pa.field("codes", pa.list_(pa.string())),
        pa.field("segment", pa.string()),
        pa.field("lists", pa.string()),
        pa.field("list_hits", pa.list_(pa.string())),
        pa.field("degraded_by", pa.list_(pa.string())),
        pa.field("spilled", pa.bool_()),
        pa.field("exposures", pa.list_(_EXPOSED)),
    ]
)
"""The fields of a decision record, and the decision's own place in the log."""


@dataclass(frozen=True)
class Table:
    """A name in SQL, what its rows are, and its columns."""

    name: str
    about: str
    schema: pa.Schema


def declared(project: Project) -> dict[str, Table]:
    """The tables of a project by name, whether they have rows yet or not."""
    found = [_events(project, e.name, e.description) for e in project.events]
    decided = project.decision
    for view in project.views:
        values = [(n, pa.float64()) for n in view.column_names]
        found.append(
            Table(
                at_event_view(view.name),
                f"window values before each {decided}, of the last build",
                pa.schema(
                    [
                        (EVENT_KEY, pa.string()),
                        (TIMESTAMP, MOMENT),
                        (OFFSET, pa.int64()),
                        *values,
                        (newest_column(view.name), pa.int64()),
                    ]
                ),
            )
        )
        found.append(
            Table(
                state_view(view.name),
                f"window values of a {view.entity} after each event, of the last build; "
                f"{CREATED} is the event's offset as microseconds",
                pa.schema(
                    [
                        (view.key, pa.string()),
                        (TIMESTAMP, MOMENT),
                        (CREATED, MOMENT),
                        *values,
                    ]
                ),
            )
        )
    for profile in project.profiles:
        values = [(n, pa.float64()) for n in profile.column_names]
        columns = [(profile.key, pa.string()), (TIMESTAMP, MOMENT), (CREATED, MOMENT), *values]
        newest = (newest_column(profile.name), pa.int64())
        about = f"profile of a {profile.entity} at the end of each day"
        found.append(Table(profile.name, about, pa.schema([*columns, newest])))
    found.append(Table(DECISIONS, "recorded decisions", DECISION_SCHEMA))
    exposures = pa.schema([pa.field(OFFSET, pa.int64()), *EXPOSURE_SCHEMA])
    found.append(Table(EXPOSURES, "arms of experiments that decisions were made with", exposures))
    return {t.name: t for t in found}


def _events(project: Project, kind: str, description: str) -> Table:
    schema = pa.schema([pa.field(OFFSET, pa.int64()), *project.event(kind).arrow_schema])
    return Table(kind, description or f"{kind} events", schema)


class Tables:
    """Opens the tables of a project, for the tenant whose log it was given."""

    def __init__(self, project: Project, files: LogFiles, lake: Place) -> None:
        self._project = project
        self._files = files
        self._lake = lake
        self._views = {
            name: (view, folder)
            for view in project.views
            for name, folder in (
                (at_event_view(view.name), at_event_folder),
                (state_view(view.name), state_folder),
            )
        }

    def open(self, table: Table) -> Any:
        """The rows as an object that DuckDB scans; raises NotFound when nothing was built."""
        if table.name == DECISIONS:
            return Decisions(self._files.table(LOG_KIND))
        if table.name == EXPOSURES:
            return self._files.table(EXPOSURE)
        if table.name in self._views:
            return self._features(table)
        for profile in self._project.profiles:
            if profile.name == table.name:
                return self._profile(table, profile)
        return self._files.table(table.name)

    def _profile(self, table: Table, profile: Profile) -> Dataset:
        manifest = made.current(self._lake, profile)
        if manifest is None or manifest.tenant != self._files.tenant:
            raise NotFound(
                f"profile {profile.name!r} was not made for tenant {self._files.tenant!r}",
                hint="`raypipe features` makes it.",
            )
        return _dataset(made.values_files(self._lake, profile, manifest), table.schema)

    def _features(self, table: Table) -> Dataset:
        view, folder = self._views[table.name]
        build = Build.current(self._lake)
        if build.manifest.views.get(view.name) != view.definition_hash:
            raise NotFound(
                f"{table.name} was built from another declaration of {view.name!r}",
                hint="`raypipe features` computes it again.",
            )
        is_state = folder is state_folder
        # The one place that knows how a build's files lie.
        files = folder(build.place, view).files()
        found = _dataset(files, table.schema)
        if self._files.alone:
            return found
        # Feature files name no tenant: their rows are known by the offsets of its events.
        kinds = view.events if is_state else (self._project.decision,)
        offsets = pa.concat_arrays(
            [
                chunk
                for kind in kinds
                for chunk in self._files.table(kind).to_table([OFFSET]).column(0).chunks
            ]
            or [pa.array([], pa.int64())]
        )
        if is_state:
            return found.filter(pc.field(CREATED).isin(offsets.cast(MOMENT)))
        return found.filter(pc.field(OFFSET).isin(offsets))


def _dataset(files: Sequence[Place], schema: pa.Schema) -> Dataset:
    import pyarrow.dataset as ds

    filesystem = files[0].filesystem if files else None
    keys = [f.key for f in files]
    return ds.dataset(keys, schema=schema, format="parquet", filesystem=filesystem)


class Decisions:
    """Decision records as columns, decoded while they are scanned."""

    def __init__(self, log: Dataset) -> None:
        self._log = log

    def __arrow_c_schema__(self) -> object:
        return DECISION_SCHEMA.__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        batches = self._batches()
        return pa.RecordBatchReader.from_batches(DECISION_SCHEMA, batches).__arrow_c_stream__()

    def _batches(self) -> Iterator[pa.RecordBatch]:
        import msgspec
        import numpy as np

        for batch in self._log.to_batches(columns=[OFFSET, "record"], batch_size=8_192):
            rows = []
            for offset, data in zip(*(c.to_pylist() for c in batch.columns), strict=True):
                record = decode(data)
                row = msgspec.structs.asdict(record)
                row["reasons"] = [msgspec.structs.asdict(r) for r in record.reasons]
                row["exposures"] = [msgspec.structs.asdict(e) for e in record.exposed]
                row["features"] = np.frombuffer(record.features, FEATURE_VALUE)
                rows.append(row | {OFFSET: offset})
            yield pa.RecordBatch.from_pylist(rows, DECISION_SCHEMA)
