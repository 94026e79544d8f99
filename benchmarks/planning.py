"""What planning the batch costs: time, files and manifest, by days x buckets.

No peer: it is the product's own bookkeeping. The indexes are those of a build with one segment a
day; the files that they name are there, but empty, so that planning lists and compares all of
them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import Result, alternate, check, summarise
from benchmarks.history import START_MS

SUITE = "planning"
SIZES = ((10, 4), (30, 16), (100, 32))
QUICK = ((5, 4), (10, 8))
PETABYTE = (100, 1_024)
"""Days of 10 TB, and all key buckets."""

PETABYTE_FILES_A_CELL = 64
"""Of each kind and view in a day and bucket, at 10 TB a day: a file has a million rows at most."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes; the defaults are those of committed results."""
    parser.add_argument("--repeats", type=int, default=5)


def run(args: argparse.Namespace) -> Result:
    """Plan at each size; the largest makes the figures."""
    return Result(SUITE, *measure(quick=args.quick, repeats=2 if args.quick else args.repeats))


def measure(*, quick: bool, repeats: int) -> tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]:
    """Figures, samples and notes."""
    sizes = QUICK if quick else SIZES
    with tempfile.TemporaryDirectory(prefix="raypipe-bench-") as folder:
        made = {size: _Made(Path(folder) / f"{size[0]}x{size[1]}", *size) for size in sizes}
        names = {f"{d} days x {b} buckets": m.plan for (d, b), m in made.items()}
        samples = alternate(names, repeats=repeats)
        largest = made[sizes[-1]]
        seconds = summarise(samples[f"{sizes[-1][0]} days x {sizes[-1][1]} buckets"]).median
        files = largest.files
        each_us = seconds / files * 1e6
        days, buckets = PETABYTE
        views = largest.views
        then = days * buckets * views * 2 * PETABYTE_FILES_A_CELL
        figures = {
            "plan_s": seconds,
            "plan_us_per_file": each_us,
            "days": sizes[-1][0],
            "buckets": sizes[-1][1],
            "files": files,
            "manifest_bytes": largest.manifest_bytes,
            "manifest_bytes_per_day": largest.manifest_bytes / sizes[-1][0],
            "index_bytes_per_file": largest.index_bytes / files,
        }
        notes = (
            f"files of {views} views, two kinds, on a local disk; plan: list, compare, decide",
            f"ESTIMATE, not measured: 1 PB as {days} days of 10 TB in {buckets} buckets has "
            f"{then:,} files of values; indexes {then * largest.index_bytes / files / 1e9:,.0f} GB,"
            f" manifest {largest.manifest_bytes / sizes[-1][0] * days / 1e3:,.0f} kB, listing and "
            f"comparing all of them in one process {then * each_us / 1e6 / 3600:,.1f} h",
        )
    return figures, samples, notes


class _Made:
    """A lake as a build of so many days and buckets leaves it, without a row in it."""

    def __init__(self, home: Path, days: int, buckets: int) -> None:
        from features.builds import Day, File, Index, Manifest, Segment, base_name, folder
        from features.builds import index_place as place_of
        from features.intake import History, day_name
        from features.payments import project
        from features.store.names import AT_EVENT, STATE, definition_folder
        from raypipe.clock import DAY_MS
        from raypipe.lake import Place

        a_day = 1_000_000
        self._lake, self._buckets, self._project = Place.at(home), buckets, project
        first = START_MS // DAY_MS
        listed = [Day(day_name(first + n), n * a_day, (n + 1) * a_day) for n in range(days)]
        self._history = History({}, listed, days * a_day)
        base = folder(self._lake, base_name("log", project.decision, buckets))
        self.views, self.files, self.index_bytes = len(project.views), 0, 0
        segments: dict[str, list[Segment]] = {}
        for view in project.views:
            for number, day in enumerate(listed):
                files = []
                for kind in (AT_EVENT, STATE):
                    where = f"{kind}/{definition_folder(view)}"
                    Path(base.url, where).mkdir(parents=True, exist_ok=True)
                    for part in range(buckets):
                        name = f"part-{day.start:012d}-{day.end:012d}-{part:04d}-000.parquet"
                        Path(base.url, where, name).touch()
                        files.append(File(f"{where}/{name}", day.start, part, 0, "0" * 64))
                index = Index(
                    view=view.name,
                    definition=view.definition_hash,
                    start=day.start,
                    end=day.end,
                    inputs={},
                    slices=[],
                    files=files,
                    states=[],
                )
                data = index.encode()
                place = Path(place_of(base, view, day.start, day.end).url)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(data)
                self.files += len(files)
                self.index_bytes += len(data)
                segment = Segment(day.start, day.end, "0" * 64, len(files), 0)
                segments.setdefault(view.name, []).append(segment)
                check(number == len(segments[view.name]) - 1, "a segment a day")
        self._manifest = Manifest(
            build=base.name,
            log="log",
            definition_hash=project.definition_hash,
            tenant="default",
            partitions=buckets,
            end_offset=days * a_day,
            rows=0,
            last_event_ms=0,
            rate=0.0,
            views={v.name: v.definition_hash for v in project.views},
            segments=segments,
            days=listed,
            events={},
        )
        from features.builds import MANIFEST, Build

        Build(self._lake, self._manifest).publish()
        self.manifest_bytes = Path(self._lake.url, "features", MANIFEST).stat().st_size

    def plan(self) -> None:
        """What `raypipe plan` does behind the log."""
        from features.builds import Build
        from features.steps import make

        manifest = Build.current(self._lake).manifest
        made = make(self._project, self._lake, "log", self._history, self._buckets, manifest)
        check(not made.steps and not made.orphans, "all is there, so nothing is to be done")
