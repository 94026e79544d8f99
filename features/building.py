"""Carrying a plan out: its steps, their indexes, the manifest of what is there then.

What a killed run finished counts: a key range by the note that its block left in the step's
journal, a segment by its index. Everything else of it is removed before the next run begins.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

import msgspec

from features import passes
from features.batch import EntityPass, Span, Written
from features.builds import (
    INDEX,
    JOURNAL,
    SNAPSHOT,
    Build,
    File,
    Index,
    Manifest,
    Segment,
    index_place,
)
from features.intake import PARTITION, forget, take_in
from features.steps import Plan, Step, Wish, make
from features.store.names import AT_EVENT, DEFINITION_CHARACTERS, STATE
from raypipe.aborts import reach
from raypipe.errors import IntegrityError, NotFound, StageError
from raypipe.lake import Place
from raypipe.log.port import EventLog
from raypipe.project import Project
from raypipe.runtime import session
from raypipe.windows import snapshot
from raypipe.windows.spec import WindowView

if TYPE_CHECKING:
    from raypipe.config import Settings
    from raypipe.runtime.progress import Progress, Stage

KEEP_STATES = 8
"""States that are kept of a view: the newest of each of so many days. A day before them is
computed again from the start."""


def plan(
    project: Project,
    log: EventLog,
    settings: Settings,
    *,
    wish: Wish | None = None,
    verify: bool = False,
) -> Plan:
    """What has to be computed; brings new events of the log into the lake as Parquet.

    Raises:
        StageError: the log has none of the project's events.
        NotFound: there is no such day or key range.
    """
    lake = settings.lake
    before = _published(lake)
    known = before if before is not None and before.log == log.id else None
    history = take_in(project, log, lake, known, log.end(PARTITION))
    # A shop that only recommends has nothing to decide, and profiles all the same.
    if not any(history.inputs.values()):
        raise StageError(
            f"the log has no events of project {project.name!r}",
            hint="Bring some in first: `raypipe simulate` and `raypipe load`.",
        )
    partitions = settings.features_blocks or (known.partitions if known else _partitions(settings))
    return make(project, lake, log.id, history, partitions, before, wish=wish, verify=verify)


def carry_out(project: Project, plan: Plan, settings: Settings, progress: Progress) -> Build:
    """Do all steps; the build, not yet published. Starts a Ray session if there is a step."""
    work = _Work(project, plan, settings.lake)
    work.clean()
    started = time.monotonic()
    if plan.steps:
        session.start(settings)
        with progress.stage("features", total=plan.rows, unit="row-views") as stage:
            for beside in zip_longest(*plan.steps):
                work.run([s for s in beside if s is not None], stage)
            stage.say(f"{sum(map(len, plan.steps))} passes")
    else:
        progress.note("features: every view holds all events of the log")
    seconds = time.monotonic() - started
    return work.build(settings.tenant, plan.rows / seconds if plan.steps else None)


class _Work:
    """The state of one run."""

    def __init__(self, project: Project, plan: Plan, lake: Place) -> None:
        self._project = project
        self._plan = plan
        self._lake = lake
        self._views = {v.name: v for v in project.views}
        self._done = {n: list(d.indexes) for n, d in plan.done.items()}
        self._notes = {s.id(project): _journal(plan.base, s.id(project)) for s in self._steps()}

    def _steps(self) -> list[Step]:
        return [s for of in self._plan.steps for s in of]

    def clean(self) -> None:
        """Remove what killed runs left and this one can't use."""
        base = self._plan.base
        (base / JOURNAL).prune(self._notes.keys())
        noted = {
            base / f.path for written in self._notes.values() for w in written for f in w.all_files
        }
        for place in self._plan.orphans:
            if place not in noted:
                place.remove()

    def run(self, steps: Sequence[Step], stage: Stage) -> None:
        """Do steps of different entities."""
        found: list[list[Written]] = [self._notes[s.id(self._project)] for s in steps]
        todo = []
        for number, step in enumerate(steps):
            stage.advance(sum(w.rows for w in found[number]) * len(step.views))
            wanted = set(step.parts if step.parts is not None else range(self._plan.partitions))
            left = wanted - {w.part for w in found[number]}
            if left:
                todo.append((number, self._pass(step, left)))

        def done(which: int, written: Written) -> None:
            number = todo[which][0]
            found[number].append(written)
            stage.advance(written.rows * len(steps[number].views))

        if todo:
            passes.run([p for _, p in todo], done)
        for step, written in zip(steps, found, strict=True):
            self._close(step, written)

    def _pass(self, step: Step, parts: set[int]) -> passes.Pass:
        views = [self._views[n] for n in step.views]
        count = self._plan.partitions
        entity = EntityPass.of(self._project, step.entity, count, views)
        span = Span(
            step.source,
            step.last,
            tuple((s.start, s.end) for s in step.slices),
            None if len(parts) == count else frozenset(parts),
            {n: self._states(n, step.source, parts) for n in step.views},
            step.keep,
            step.id(self._project),
        )
        inputs = self._plan.history.within(entity.kinds, step.source, step.last)
        return passes.Pass.of(self._project, entity, inputs, self._lake, self._plan.base, span)

    def _states(self, view: str, offset: int, parts: set[int] | None = None) -> dict[int, File]:
        index = next((i for i in self._done[view] if i.end == offset), None)
        states = index.states if index else []
        return {f.part: f for f in states if parts is None or f.part in parts}

    def _close(self, step: Step, written: Sequence[Written]) -> None:
        """Write the indexes that make the step count."""
        reach("features.step_done")
        for name in step.views:
            view = self._views[name]
            index = (
                self._mended(step, view, written) if step.mends else self._new(step, view, written)
            )
            place = index_place(self._plan.base, view, index.start, index.end)
            place.write(index.encode())
            reach("features.index_written")
        (self._plan.base / JOURNAL / step.id(self._project)).remove_tree()

    def _new(self, step: Step, view: WindowView, written: Sequence[Written]) -> Index:
        states = self._states(view.name, step.start) | {
            w.part: w.states[view.name] for w in written
        }
        index = Index(
            view=view.name,
            definition=view.definition_hash,
            start=step.start,
            end=step.end,
            inputs=self._plan.history.within(
                (self._project.decision, *view.events), step.start, step.end
            ),
            slices=list(step.slices),
            files=sorted((f for w in written for f in w.files[view.name]), key=_path),
            states=sorted(states.values(), key=_path),
        )
        self._done[view.name].append(index)
        return index

    def _mended(self, step: Step, view: WindowView, written: Sequence[Written]) -> Index:
        number, index = next(
            (n, i) for n, i in enumerate(self._done[view.name]) if i.start == step.start
        )
        starts = {s.start for s in step.slices}
        made = {f.path: f for w in written for f in w.files[view.name]}
        kept = [
            f
            for f in index.files
            if f.slice_start not in starts or (step.parts is not None and f.part not in step.parts)
        ]
        states = {f.part: f for f in index.states}
        if step.keep:
            states |= {w.part: w.states[view.name] for w in written}
        mended = msgspec.structs.replace(
            index,
            files=sorted([*kept, *made.values()], key=_path),
            states=sorted(states.values(), key=_path),
        )
        self._done[view.name][number] = mended
        return mended

    def build(self, tenant: str, rate: float | None) -> Build:
        """Seal the newest states for the worker and sum everything up."""
        plan, project = self._plan, self._project
        end, base = plan.history.end, plan.base
        states = {
            f.path.removeprefix(f"{SNAPSHOT}/"): f.sha256
            for n in self._views
            for f in self._states(n, end).values()
        }
        snapshot.seal(base / SNAPSHOT, end, project.definition_hash, states)
        reach("features.snapshot_sealed")
        known = plan.before.rate if plan.before else 0.0
        manifest = Manifest(
            build=base.name,
            log=plan.log,
            definition_hash=project.definition_hash,
            tenant=tenant,
            partitions=plan.partitions,
            end_offset=end,
            rows=plan.history.rows(project.decision),
            last_event_ms=plan.history.last_event_ms,
            rate=known if rate is None else rate,
            views={v.name: v.definition_hash for v in project.views},
            segments={n: [_segment(i) for i in found] for n, found in self._done.items()},
            days=plan.history.days,
            events=plan.history.inputs,
        )
        return Build(self._lake, manifest)


def snapshot_folder(made: Build) -> Place:
    """What a worker starts from."""
    return made.place / SNAPSHOT


def prune(project: Project, log: EventLog, made: Build, plan: Plan) -> None:
    """Remove what neither this build nor the one before it names, states of long ago, and events
    that the log no longer has."""
    forget(project, log, made.lake, (i for of in made.manifest.events.values() for i in of))
    manifests = [m for m in (made.manifest, plan.before) if m is not None]
    base = made.place
    base.parent.prune({m.build for m in manifests})
    named: dict[str, set[str]] = {}
    for manifest in (m for m in manifests if m.build == base.name):
        for view, definition in manifest.views.items():
            named.setdefault(view, set()).add(definition[:DEFINITION_CHARACTERS])
    for kind in (AT_EVENT, STATE, SNAPSHOT, INDEX):
        (base / kind).prune(named)
        for view, definitions in named.items():
            (base / kind / view).prune(definitions)
    for view, definition in made.manifest.views.items():
        kept = _recent(made.indexes(view))
        (base / SNAPSHOT / view / definition[:DEFINITION_CHARACTERS]).prune(kept)


def _recent(indexes: Sequence[Index]) -> set[str]:
    """Folders of the states that are kept: the newest of each of the last days."""
    kept: dict[str, Index] = {}
    for index in reversed(indexes):
        if len(kept) < KEEP_STATES:
            kept.setdefault(index.slices[-1].last_day, index)
    return {s.path.split("/")[-2] for i in kept.values() for s in i.states}


def _published(lake: Place) -> Manifest | None:
    try:
        return Build.current(lake).manifest
    except (NotFound, IntegrityError):
        return None


def _partitions(settings: Settings) -> int:
    if session.address():
        return 2 * session.cpus()
    return 2 * (settings.ray_num_cpus or os.cpu_count() or 1)


def _journal(base: Place, name: str) -> list[Written]:
    """What key ranges of a step that was killed had finished."""
    found = []
    for note in (base / JOURNAL / name).files():
        try:
            found.append(msgspec.json.decode(note.read(), type=Written))
        except msgspec.DecodeError:
            note.remove()
    return found


def _path(file: File) -> str:
    return file.path


def _segment(index: Index) -> Segment:
    sha256 = hashlib.sha256(index.encode()).hexdigest()
    size = sum(f.size for f in (*index.files, *index.states))
    return Segment(index.start, index.end, sha256, len(index.files) + len(index.states), size)
