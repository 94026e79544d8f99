"""What the log hands to the batch: Parquet files in the lake, and the days that they hold.

Order is log order, so a *day* is a run of offsets: it begins with the first event that arrived on
that UTC day, and an event that bears an earlier arrival behind it belongs to it too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pyarrow.parquet as pq

from features.builds import Day, Input, Manifest, Slice
from raypipe.clock import DAY_MS
from raypipe.lake import Place
from raypipe.log.port import EventLog
from raypipe.project import Project

PARTITION = 0

_EXPORTED = re.compile(
    r"\d{5}-(?:(?P<start>\d{12})-(?P<kind>\w+)-\d{4}|(?P<of>\w+)-(?P<low>\d{12})-\d{12})\.parquet"
)
"""Names of a copied sealed file, and of a file with a log's live rows."""

Inputs = dict[str, list[Input]]
"""Files by event type, in log order."""


@dataclass(frozen=True)
class History:
    """All events of a log from ``start`` to ``end``; events before it were deleted."""

    inputs: Inputs
    days: list[Day]
    end: int
    start: int = 0

    def rows(self, kind: str) -> int:
        """Events of one type."""
        return sum(i.rows for i in self.inputs.get(kind, ()))

    @property
    def last_event_ms(self) -> int:
        """The newest event time."""
        return max((i.last_event_ms for found in self.inputs.values() for i in found), default=0)

    def within(self, kinds: Iterable[str], start: int, end: int) -> Inputs:
        """The files that hold some of these offsets."""
        return {
            kind: [i for i in self.inputs.get(kind, ()) if i.start < end and start < i.end]
            for kind in kinds
        }


def take_in(
    project: Project, log: EventLog, lake: Place, known: Manifest | None, end: int
) -> History:
    """Bring what is new in the log into the lake; earlier files stay as they are.

    Args:
        known: of the same log, or None.
    """
    exported = exports(lake, log)
    first = log.first(PARTITION)
    held = {k: [i for i in v if i.end > first] for k, v in known.events.items()} if known else {}
    if known and not _all_there(held, lake, exported):
        known, held = None, {}
    start = max(known.end_offset, first) if known else first
    declared = [e.name for e in project.events]
    inputs = {k: list(v) for k, v in held.items() if k in declared}
    days = list(known.days) if known else []
    present = set(log.kinds(PARTITION))
    first_offsets: dict[int, int] = {}
    for kind in declared:
        # A type that was declared after its events came has all of them still to bring.
        since = start if kind in inputs else first
        if kind not in present or since >= end:
            continue
        found = inputs.setdefault(kind, [])
        for file in log.export(PARTITION, kind, exported, since, end):
            place = in_lake(file, lake, exported)
            taken = _footer(place, place.below(lake) or place.name)
            found.append(taken)
            if taken.end > start:
                for number, offset in _arrivals(place, start, end):
                    first_offsets[number] = min(offset, first_offsets.get(number, offset))
    days = _extend(days, first_offsets, start, end)
    return History(inputs, days, end, first)


def exports(lake: Place, log: EventLog) -> Place:
    """The folder of a log's rows in the lake."""
    return lake / "export" / log.id


def forget(project: Project, log: EventLog, lake: Place, named: Iterable[Input]) -> None:
    """Remove exported events that the log no longer has, but for the files that are named."""
    first = log.first(PARTITION)
    kept = {(lake / i.path).name for i in named}
    for name in exports(lake, log).names() if first else ():
        found = _EXPORTED.match(name)
        kind = (found["kind"] or found["of"]) if found else None
        old = found is not None and int(found["start"] or found["low"]) < first
        if old and name not in kept and kind in {e.name for e in project.events}:
            (exports(lake, log) / name).remove()


def slices(days: Sequence[Day], start: int, end: int, least: int, most: int) -> list[Slice]:
    """Cut offsets at the ends of days.

    Days with few events share a slice, until it has ``least`` offsets; a day with more than
    ``most`` is cut itself. The last slice may be short: its day goes on.

    >>> days = [Day("2026-03-01", 0, 30), Day("2026-03-02", 30, 70), Day("2026-03-03", 70, 500)]
    >>> [(s.start, s.end, s.last_day) for s in slices(days, 0, 500, 50, 300)]
    [(0, 70, '2026-03-02'), (70, 370, '2026-03-03'), (370, 500, '2026-03-03')]
    """
    out: list[Slice] = []
    begun: Slice | None = None
    for day in days:
        low, high = max(day.start, start), min(day.end, end)
        if low >= high:
            continue
        if begun is not None and high - begun.start > most:
            out.append(begun)
            begun = None
        while high - low > most:
            out.append(Slice(low, low + most, day.day, day.day))
            low += most
        if begun is None:
            begun = Slice(low, high, day.day, day.day)
        else:
            begun = Slice(begun.start, high, begun.first_day, day.day)
        if high - begun.start >= least:
            out.append(begun)
            begun = None
    return [*out, *([begun] if begun else [])]


def _all_there(held: Inputs, lake: Place, exported: Place) -> bool:
    names = exported.sizes()
    files = [lake / i.path for found in held.values() for i in found]
    return all(f.below(exported) in names or f.exists() for f in files)


def in_lake(file: Place, lake: Place, folder: Place) -> Place:
    """A sealed file of the log lies on one node: where all must read it, it is copied once."""
    if file.below(lake) is not None:
        return file
    copy = folder / file.name
    if not copy.exists():
        copy.write(file.buffer())
    return copy


def _footer(place: Place, path: str) -> Input:
    with place.open() as source, pq.ParquetFile(source) as file:
        offsets = [_range(file, g, "offset") for g in range(file.num_row_groups)]
        times = [_range(file, g, "event_time") for g in range(file.num_row_groups)]
        return Input(
            path=path,
            start=min(low for low, _ in offsets),
            end=max(high for _, high in offsets) + 1,
            rows=file.metadata.num_rows,
            last_event_ms=max(high for _, high in times),
        )


def _arrivals(place: Place, start: int, end: int) -> Iterable[tuple[int, int]]:
    """Days since 1970 with the first offset from ``start`` on that arrived on each.

    Only row groups in which a day begins are read.
    """
    with place.open() as source, pq.ParquetFile(source) as file:
        for group in range(file.num_row_groups):
            low, high = _range(file, group, "offset")
            if high < start or low >= end:
                continue
            first, last = (t // DAY_MS for t in _range(file, group, "received_at"))
            if first == last and low >= start:
                yield first, low
                continue
            table = file.read_row_group(group, columns=["offset", "received_at"])
            offsets = table.column("offset").to_numpy()
            inside = (offsets >= start) & (offsets < end)
            arrived = table.column("received_at").to_numpy()[inside] // DAY_MS
            numbers, places = np.unique(arrived, return_index=True)
            yield from zip(numbers.tolist(), offsets[inside][places].tolist(), strict=True)


def _range(file: pq.ParquetFile, group: int, name: str) -> tuple[int, int]:
    """Least and largest value of a column of integers in a row group."""
    column = file.schema_arrow.names.index(name)
    statistics = file.metadata.row_group(group).column(column).statistics
    if statistics is not None and statistics.has_min_max:
        return int(statistics.min), int(statistics.max)
    values = file.read_row_group(group, columns=[name]).column(0).to_numpy()
    return int(values.min()), int(values.max())


def _extend(days: list[Day], firsts: Mapping[int, int], start: int, end: int) -> list[Day]:
    """The days with those that begin, or go on, from ``start`` to ``end``."""
    if start >= end:
        return days
    newest = day_number(days[-1].day) if days else None
    cuts: dict[int, int] = {}
    lowest = end
    for number in sorted(firsts, reverse=True):
        lowest = min(lowest, firsts[number])
        cuts[max(number, newest) if newest is not None else number] = lowest
    # Rows of no declared type come first or alone: they are of the day before, or of the first.
    first = min(cuts, default=newest if newest is not None else 0)
    cuts[first] = start
    out = list(days)
    ordered = sorted(cuts)
    for number, after in zip(ordered, [*ordered[1:], None], strict=True):
        low, high = cuts[number], end if after is None else cuts[after]
        if low >= high:
            continue
        if out and out[-1].day == day_name(number):
            out[-1] = Day(out[-1].day, out[-1].start, high)
        else:
            out.append(Day(day_name(number), low, high))
    return out


def day_name(number: int) -> str:
    """How a day is written, by its number since 1970."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=number)).date().isoformat()


def day_number(name: str) -> int:
    """The number since 1970 of a day as it is written; the reverse of ``day_name``."""
    return (date.fromisoformat(name) - date(1970, 1, 1)).days
