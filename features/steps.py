"""What a build has to compute: a plan, made of the manifest, the indexes and what lies there.

Pure but for reading the lake; needs no Ray. `raypipe plan` shows it and `raypipe features` does it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from features.builds import (
    INDEX,
    SNAPSHOT,
    Index,
    Manifest,
    Slice,
    base_name,
    folder,
    index_name,
)
from features.intake import History, slices
from features.store.names import AT_EVENT, STATE, definition_folder
from raypipe.errors import IntegrityError, NotFound
from raypipe.events.schema import canonical_json
from raypipe.lake import Place
from raypipe.log.port import Expired
from raypipe.project import Project
from raypipe.windows.spec import WindowView

SLICE_ROWS = 100_000
"""Offsets from which on a slice ends with its day."""

PART_ROWS = 1_000_000
"""Offsets of a pass for each key range: what a block holds when keys are even. If all events are
of one key, a block holds the whole pass."""

NEW_EVENTS, ASKED, DAMAGED = "new events", "asked for", "missing or changed files"


@dataclass(frozen=True)
class Done:
    """What is there of one view, as its indexes say."""

    start: int
    """Where the view begins: with the log, or where the log began when it was declared."""
    indexes: tuple[Index, ...] = ()
    """Segments in log order, from there on, without gaps."""

    @property
    def end(self) -> int:
        """The first offset that isn't done."""
        return self.indexes[-1].end if self.indexes else self.start


@dataclass(frozen=True)
class Wish:
    """What to compute again although it is there."""

    day: str
    part: int | None = None


@dataclass(frozen=True)
class Step:
    """One pass of some views of an entity, and the segment that it makes or mends."""

    entity: str
    views: tuple[str, ...]
    source: int
    """Offset of the states that it begins with; where the view begins they are empty."""
    start: int
    end: int
    """Of the segment."""
    slices: tuple[Slice, ...]
    """Whose values it writes."""
    parts: tuple[int, ...] | None
    """Key ranges; None for all."""
    keep: bool
    """Whether it writes the states at the end."""
    mends: bool
    """Whether the segment is there already."""
    why: str

    @property
    def last(self) -> int:
        """Where feeding ends."""
        return self.end if self.keep or not self.slices else self.slices[-1].end

    @property
    def rows(self) -> int:
        """Offsets that it reads, times its views."""
        return (self.last - self.source) * len(self.views)

    def id(self, project: Project) -> str:
        """Equal steps have equal names: what a killed one finished is found under it."""
        views = [v.definition_hash for v in project.views if v.name in self.views]
        told = [self.entity, views, self.source, self.start, self.last, self.keep, self.parts]
        told.append([(s.start, s.end) for s in self.slices])
        return hashlib.sha256(canonical_json(told)).hexdigest()[:16]


@dataclass(frozen=True)
class Plan:
    """Steps by entity: those of one entity in their order, entities beside each other."""

    base: Place
    log: str
    before: Manifest | None
    """The published manifest, of whatever log and definitions."""
    partitions: int
    history: History
    done: Mapping[str, Done]
    steps: tuple[tuple[Step, ...], ...]
    reasons: Mapping[str, tuple[str, ...]]
    """By view: why something of it is computed; empty for a view that stays as it is."""
    orphans: tuple[Place, ...]
    """Files that no index names: a killed run left them."""

    @property
    def rows(self) -> int:
        """Rows times views that are read."""
        return sum(s.rows for of in self.steps for s in of)


def make(
    project: Project,
    lake: Place,
    log: str,
    history: History,
    partitions: int,
    manifest: Manifest | None,
    *,
    wish: Wish | None = None,
    verify: bool = False,
) -> Plan:
    """Compare what is declared and logged with what lies in the lake.

    Args:
        manifest: the published one, of whatever log and definitions.
        wish: compute this again, too.
        verify: read every file and compare its hash, not only its size.

    Raises:
        NotFound: there is no such day or key range.
        IntegrityError: there are features of events that the log doesn't have.
        Expired: what is to be computed needs events that were deleted.
    """
    base = folder(lake, base_name(log, project.decision, partitions))
    known = manifest if manifest and manifest.build == base.name else None
    found = {v.name: _Found.of(base, v, history.start, verify) for v in project.views}
    furthest = max(f.done.end for f in found.values())
    if furthest > history.end:
        raise IntegrityError(
            f"there are features of events before offset {furthest}, the log ends at {history.end}",
            hint="The log lost rows that were acknowledged: restore it from a backup.",
        )
    if wish is not None:
        _check(wish, history, partitions)
    steps = []
    reasons: dict[str, list[str]] = {v.name: [] for v in project.views}
    for entity in dict.fromkeys(v.entity for v in project.views):
        views = [v for v in project.views if v.entity == entity]
        mine = [
            *_mends(entity, [found[v.name] for v in views], wish, partitions),
            *_passes(entity, [found[v.name] for v in views], history, partitions, manifest, known),
        ]
        for step in mine:
            _check_source(step, history)
            for name in step.views:
                if step.why not in reasons[name]:
                    reasons[name].append(step.why)
        if mine:
            steps.append(tuple(mine))
    return Plan(
        base,
        log,
        manifest,
        partitions,
        history,
        {n: f.done for n, f in found.items()},
        tuple(steps),
        {n: tuple(why) for n, why in reasons.items()},
        tuple(o for f in found.values() for o in f.orphans),
    )


@dataclass(frozen=True)
class _Found:
    """One view's files: what the indexes name, what of it lies there unharmed."""

    view: WindowView
    done: Done
    whole: frozenset[str]
    """Paths of files that are as they were written."""
    orphans: tuple[Place, ...]

    @classmethod
    def of(cls, base: Place, view: WindowView, first: int, verify: bool) -> _Found:
        done, orphans = _chain(base, view, first)
        folders = [f"{kind}/{definition_folder(view)}" for kind in (AT_EVENT, STATE, SNAPSHOT)]
        sizes = {f"{f}/{n}": s for f in folders for n, s in (base / f).sizes().items()}
        named = {f.path: f for i in done.indexes for f in (*i.files, *i.states)}
        whole = {
            path
            for path, file in named.items()
            if sizes.get(path) == file.size
            and not (verify and (base / path).sha256() != file.sha256)
        }
        orphans += [base / path for path in sizes if path not in named]
        return cls(view, done, frozenset(whole), tuple(orphans))

    def state_at(self, index: Index, parts: Iterable[int] | None) -> bool:
        """Whether the states at the end of a segment are all there."""
        wanted = None if parts is None else set(parts)
        return all(s.path in self.whole for s in index.states if wanted is None or s.part in wanted)


def _chain(base: Place, view: WindowView, first: int) -> tuple[Done, list[Place]]:
    """Indexes that follow each other and leave out no event that is there, and files that lead
    nowhere."""
    place = base / INDEX / definition_folder(view)
    chain: list[Index] = []
    astray = []
    for name in place.names():
        index = _index(place / name)
        if index is None:
            astray.append(place / name)
            continue
        start = chain[-1].end if chain else min(index.start, first)
        if name == index_name(start, index.end):
            chain.append(index)
        else:
            astray.append(place / name)
    return Done(chain[0].start if chain else first, tuple(chain)), astray


def _index(place: Place) -> Index | None:
    try:
        return msgspec.json.decode(place.read(), type=Index)
    except msgspec.DecodeError:
        return None


def _check(wish: Wish, history: History, partitions: int) -> None:
    if all(d.day != wish.day for d in history.days):
        between = f"{history.days[0].day} to {history.days[-1].day}" if history.days else "none"
        raise NotFound(f"no events arrived on {wish.day}", hint=f"Days with events: {between}.")
    if wish.part is not None and not 0 <= wish.part < partitions:
        raise NotFound(f"no key range {wish.part}", hint=f"There are 0 to {partitions - 1}.")


def _mends(
    entity: str, found: Sequence[_Found], wish: Wish | None, partitions: int
) -> Iterable[Step]:
    """Steps for segments that lack files, or whose day is asked for; views alike go together."""
    together: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for view in found:
        for number, index in enumerate(view.done.indexes):
            bad = [f for f in index.files if f.path not in view.whole]
            starts, parts = {f.slice_start for f in bad}, {f.part for f in bad}
            why = DAMAGED if bad else ASKED
            newest = number == len(view.done.indexes) - 1
            lost = {s.part for s in index.states if s.path not in view.whole} if newest else set()
            if lost:
                why, parts = DAMAGED, parts | lost
            if wish is not None and (asked := [s for s in index.slices if s.holds(wish.day)]):
                starts |= {s.start for s in asked}
                parts |= set(range(partitions)) if wish.part is None else {wish.part}
            if parts:
                chosen = tuple(s for s in index.slices if s.start in starts)
                some = None if len(parts) == partitions else tuple(sorted(parts))
                source = _source(view, index.start, some)
                key = (source, index.start, index.end, chosen, some, bool(lost), why)
                together[key].append(view.view.name)
    for (source, start, end, chosen, some, keep, why), names in together.items():
        yield Step(entity, tuple(names), source, start, end, chosen, some, keep, True, why)


def _source(view: _Found, start: int, parts: tuple[int, ...] | None) -> int:
    """The newest offset up to ``start`` of which all states are there."""
    ends = [i.end for i in view.done.indexes if i.end <= start and view.state_at(i, parts)]
    return max(ends, default=view.done.start)


def _check_source(step: Step, history: History) -> None:
    """Raise Expired for a step over events that were deleted."""
    if step.source < history.start:
        raise Expired(
            f"{', '.join(step.views)}: {step.why} from offset {step.source} on, and events before "
            f"offset {history.start} were deleted",
            hint="Restore what is missing from a backup, or remove the folder features/ of the "
            "lake: then all views begin with the log.",
        )


def _passes(
    entity: str,
    found: Sequence[_Found],
    history: History,
    partitions: int,
    manifest: Manifest | None,
    known: Manifest | None,
) -> Iterable[Step]:
    """Steps for what was never computed; views that are as far as each other go together."""
    together: dict[tuple[int, str], list[str]] = defaultdict(list)
    for view in found:
        if view.done.end < history.end:
            together[view.done.end, _why(view, manifest, known)].append(view.view.name)
    most = PART_ROWS * partitions
    for (end, why), names in together.items():
        # If its states are lost, a mending step before this one brings them back.
        source, begun = end, list[Slice]()
        for cut in [*slices(history.days, end, history.end, SLICE_ROWS, most), None]:
            if begun and (cut is None or cut.end - begun[0].start > most):
                start, stop = begun[0].start, begun[-1].end
                yield Step(
                    entity, tuple(names), source, start, stop, tuple(begun), None, True, False, why
                )
                source, begun = stop, []
            if cut is not None:
                begun.append(cut)


def _why(view: _Found, manifest: Manifest | None, known: Manifest | None) -> str:
    name = view.view.name
    if view.done.indexes:
        lacks = known is not None and view.done.end < known.end_offset
        return DAMAGED if lacks else NEW_EVENTS
    if manifest is None:
        return "first build"
    if known is None:
        return "another log, decision event, or number of key ranges"
    made_by = known.views.get(name)
    if made_by is None:
        return "new view"
    if made_by != view.view.definition_hash:
        return "changed definition"
    return DAMAGED
