"""Parity: served decisions, computed again by the batch path and compared in every bit.

A sample of keys is drawn, and every decision about them. What a decision saw is in its record:
float32 bytes. The same vector is computed again from the log alone, by the functions of the batch
path, from all events of all keys that these decisions touch up to their offsets; DuckDB filters
them out of the log's Parquet, so of a large log few columns and few rows enter memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features.batch import EntityPass, prepare, run_views
from features.catalogue import closure
from features.log_files import open_log
from features.parity_report import Cause, Example, FeatureParity, Report, store
from features.parity_rows import Reader, connect
from features.profiles import made
from features.store.asof import Source, join
from features.store.names import TIMESTAMP
from features.store.state import MOMENT
from raypipe.clock import Clock, SystemClock
from raypipe.errors import NotFound, UsageError
from raypipe.lake import Place
from raypipe.ledger.record import DecisionRecord
from raypipe.log.port import OFFSET
from raypipe.profiles import Profile
from raypipe.project import Model, Project, load_project
from raypipe.vector.assemble import FEATURE_VALUE, Assembler, raw_columns

if TYPE_CHECKING:
    from raypipe.config import Settings

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
FeatureNames = Callable[[str], Sequence[str] | None]
"""The features of a model by its ``name@version``, None when that version is not known."""

EXAMPLES = 3
"""Most examples kept of one feature."""


def run(
    settings: Settings,
    feature_names: FeatureNames,
    *,
    keys: int,
    since_ms: int = 0,
    entity: str | None = None,
    clock: Clock | None = None,
) -> Report:
    """Compare the decisions of a sample of keys; the report, which is also kept for `/metrics`.

    Reads the log beside a running worker, and changes nothing in it.

    Args:
        keys: most keys to draw, by the settings' seed.
        since_ms: only decisions made from then on.
        entity: whose keys are drawn; by default that of the first view.

    Raises NotFound when there is no log, UsageError for an entity without windows.
    """
    clock = clock or SystemClock()
    project = load_project(settings.project)
    entity, key = _drawn_by(project, entity)
    began = clock.now_ms()
    with open_log(settings, project) as files, connect(project, files) as con:
        reader = Reader(con, project)
        drawn = reader.draw(key, keys, settings.seed, since_ms)
        records = reader.records(key, drawn, since_ms)
        found = compare(project, reader, settings.lake, records, feature_names)
        report = Report(
            run_at=began,
            tenant=settings.tenant,
            entity=entity,
            keys=drawn.num_rows,
            since=since_ms,
            end_offset=files.end,
            decisions=len(records),
            **found,
            seconds=(clock.now_ms() - began) / 1_000,
        )
    store(settings.lake, report)
    return report


def _drawn_by(project: Project, entity: str | None) -> tuple[str, str]:
    """An entity that has windows, and its key column."""
    keys = {v.entity: v.key for v in project.views}
    name = entity or next(iter(keys), "")
    if name not in keys:
        raise UsageError(
            f"{name!r} is no entity with windows",
            hint="There are: " + (", ".join(keys) or "none"),
        )
    return name, keys[name]


@dataclass(frozen=True)
class Recomputed:
    """What the batch path says about n decided events, in the order of their offsets."""

    offsets: Ints
    event_ids: Sequence[str]
    raw: Mapping[str, Floats]
    windows: Mapping[str, Floats]
    profiles: Mapping[str, Floats]
    late: Mapping[str, Flags]
    """By entity: whether an event of the same key that came before was newer."""

    def places(self, records: Sequence[DecisionRecord]) -> Ints:
        """The place of each record's event; -1 where that is not at its offset."""
        known = {
            o: (i, e)
            for i, (o, e) in enumerate(zip(self.offsets.tolist(), self.event_ids, strict=True))
        }
        found = (known.get(r.event_offset, (-1, "")) for r in records)
        return np.array(
            [i if e == r.event_id else -1 for (i, e), r in zip(found, records, strict=True)],
            np.int64,
        )

    def vectors(self, assembler: Assembler, at: Ints) -> npt.NDArray[np.float32]:
        """Feature vectors of the rows at these places, float32 [rows, features]."""
        inputs = ({n: v[at] for n, v in x.items()} for x in (self.raw, self.windows, self.profiles))
        return assembler.columns(*inputs)


def recompute(
    project: Project, reader: Reader, lake: Place, records: Sequence[DecisionRecord]
) -> Recomputed:
    """Compute what decisions were made from again, without worker and online store.

    A further kind of column is computed here, and handed to the assembler by ``vectors``.
    """
    decided = reader.decided(np.unique([r.event_offset for r in records]))
    windows: dict[str, Floats] = {}
    late: dict[str, Flags] = {}
    for entity in dict.fromkeys(v.entity for v in project.views):
        plan = EntityPass.of(project, entity, partitions=1)
        values, late[entity] = _windows(plan, reader, decided)
        windows |= values
    return Recomputed(
        decided.column(OFFSET).to_numpy(),
        decided.column("event_id").to_pylist(),
        raw_columns(project.decision_event, decided),
        windows,
        _profiles(project, lake, decided, records),
        late,
    )


def _windows(
    plan: EntityPass, reader: Reader, decided: pa.Table
) -> tuple[dict[str, Floats], Flags]:
    """One entity's window values of decided events, and which of these came late."""
    rows = pa.concat_tables(
        prepare(reader.events(plan, kind, decided), plan, kind) for kind in plan.kinds
    )
    rows = rows.take(np.argsort(rows.column(OFFSET).to_numpy(), kind="stable")).combine_chunks()
    at = np.searchsorted(rows.column(OFFSET).to_numpy(), decided.column(OFFSET).to_numpy())
    results = run_views(rows, plan, after=False)
    values = {
        name: results[view.name][0].before[at, i]
        for view in plan.views
        for i, name in enumerate(view.column_names)
    }
    return values, came_late(rows.column("key").to_numpy(), rows.column("time").to_numpy())[at]


def _profiles(
    project: Project, lake: Place, decided: pa.Table, records: Sequence[DecisionRecord]
) -> dict[str, Floats]:
    """Profile values of decided events, as the batch made them for the days that were served."""
    out: dict[str, Floats] = {}
    for i, profile in enumerate(project.profiles):
        served = {r.event_offset: r.profile_times[i] for r in records}
        midnights = np.array([served[o] for o in decided.column(OFFSET).to_pylist()], np.int64)
        known = midnights >= 0
        out |= {name: np.full(len(known), np.nan) for name in profile.column_names}
        if known.any():
            asked = {
                profile.key: decided.column(profile.key).filter(pa.array(known)),
                TIMESTAMP: pa.array(midnights[known] * 1_000).cast(MOMENT),
            }
            found = join(pa.table(asked), [_made(profile, lake)], known_only=False, few=True)
            for name in profile.column_names:
                out[name][known] = pc.fill_null(found.column(name), math.nan).to_numpy()
    return out


def _made(profile: Profile, lake: Place) -> Source:
    manifest = made.current(lake, profile)
    if manifest is None:
        raise NotFound(
            f"profile {profile.name!r} was served and is not there as it is declared now",
            hint="`raypipe features` makes it again.",
        )
    return made.source(lake, profile, manifest)


def came_late(keys: Ints, times: Ints) -> Flags:
    """Whether an earlier row of the same key has a later time [n]; never where the key is 0.

    >>> came_late(np.array([7, 8, 7, 0, 0]), np.array([5, 9, 4, 2, 1])).tolist()
    [False, False, True, False, False]
    """
    order = np.argsort(keys, kind="stable")
    grouped, late = times[order], np.zeros(len(keys), np.bool_)
    borders = np.flatnonzero(np.diff(keys[order])) + 1
    for start, end in pairwise([0, *borders.tolist(), len(keys)]):
        newest = np.maximum.accumulate(grouped[start:end])
        late[order[start:end]] = grouped[start:end] < newest
    late[keys == 0] = False
    return late


def compare(
    project: Project,
    reader: Reader,
    lake: Place,
    records: Sequence[DecisionRecord],
    names: FeatureNames,
) -> dict[str, Any]:
    """The counts and the features of a report about these decisions."""
    names = cache(names)
    counts = {"version": 0, "featureless": 0, "broken": 0}
    groups: dict[tuple[str, ...], list[DecisionRecord]] = {}
    for record in records:
        known = names(record.model)
        if (
            record.definition_hash != project.definition_hash
            or known is None
            or not set(known) <= set(project.feature_names)
        ):
            counts["version"] += 1
        elif not record.features:
            counts["featureless"] += 1
        elif len(record.features) != len(known) * FEATURE_VALUE.itemsize or len(
            record.profile_times
        ) != len(project.profiles):
            counts["broken"] += 1
        else:
            groups.setdefault(tuple(known), []).append(record)
    sound = [r for group in groups.values() for r in group]
    tallies: dict[str, _Tally] = {}
    if sound:
        again = recompute(project, reader, lake, sound)
        for features, group in groups.items():
            counts["broken"] += _compare(project, features, group, again, tallies)
    compared = len(records) - sum(counts.values())
    done = tuple(tallies[n].done() for n in project.feature_names if n in tallies)
    return {"compared": compared, "features": done, **counts}


class _Tally:
    """What was seen of one feature so far."""

    def __init__(self, feature: str) -> None:
        self._feature = feature
        self.compared = 0
        self._found: list[Example] = []

    def differs(self, example: Example) -> None:
        self._found.append(example)

    def done(self) -> FeatureParity:
        found = sorted(self._found, key=lambda e: (e.cause is not Cause.UNEXPLAINED, e.event_time))
        times = [e.event_time for e in found]
        causes = [e.cause for e in found]
        return FeatureParity(
            feature=self._feature,
            compared=self.compared,
            mismatches={c: causes.count(c) for c in Cause if c in causes},
            first_time=min(times, default=None),
            last_time=max(times, default=None),
            examples=tuple(found[:EXAMPLES]),
        )


def _compare(
    project: Project,
    features: tuple[str, ...],
    records: Sequence[DecisionRecord],
    again: Recomputed,
    tallies: dict[str, _Tally],
) -> int:
    """Compare decisions of one list of features; returns how many have lost their event."""
    at = again.places(records)
    lost = int((at < 0).sum())
    records, at = [r for r, i in zip(records, at, strict=True) if i >= 0], at[at >= 0]
    recomputed = again.vectors(Assembler(project, Model("", features)), at)
    stored = b"".join(r.features for r in records)
    served = np.frombuffer(stored, FEATURE_VALUE).reshape(-1, len(features))
    differs = served.view(np.uint32) != recomputed.view(np.uint32)
    for column, feature in enumerate(features):
        tally = tallies.setdefault(feature, _Tally(feature))
        tally.compared += len(records)
        late = np.zeros(len(records), np.bool_)
        below = set(closure(project, feature))
        for entity in {v.entity for v in project.views if below & set(v.column_names)}:
            late |= again.late[entity][at]
        for row in np.flatnonzero(differs[:, column]).tolist():
            record = records[row]
            tally.differs(
                Example(
                    decision_id=record.decision_id,
                    event_id=record.event_id,
                    event_time=record.event_time,
                    cause=_cause(record, late=bool(late[row])),
                    served=_number(served[row, column]),
                    recomputed=_number(recomputed[row, column]),
                )
            )
    return lost


def _cause(record: DecisionRecord, *, late: bool) -> Cause:
    if record.degraded or record.spilled:
        return Cause.WORKER_AWAY
    return Cause.LATE if late else Cause.UNEXPLAINED


def _number(value: np.float32) -> float | None:
    return float(value) if np.isfinite(value) else None
