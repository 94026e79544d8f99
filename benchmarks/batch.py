"""The features of one more day beside those of all days again, by the length of the history.

The peer is what one would do without carried states: every feature of the whole history again, in
the same run, on the same log, through the same kernel. Costs are wall time per event (payments and
chargebacks, six views each), with the export from the log, loading and saving the states, indexes
and the manifest; without starting Ray and without Feast.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import history
from benchmarks.harness import Result, alternate, check, summarise

SUITE = "batch"
LENGTHS = (1, 10, 100)
COMPARED = 10
"""Days of the history at which the increment is set against the whole."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes; the defaults are those of committed results."""
    parser.add_argument("--a-day", type=int, help="payments of a day")
    parser.add_argument("--repeats", type=int, default=5)


def run(args: argparse.Namespace) -> Result:
    """Measure one more day at each length, and the whole at one."""
    from features.passes import TASK_ROWS
    from raypipe.config import Settings
    from raypipe.runtime import session

    a_day = args.a_day or (1_500 if args.quick else 50_000)
    repeats = 2 if args.quick else args.repeats
    with tempfile.TemporaryDirectory(prefix="raypipe-bench-") as folder:
        lines = [_Line(Path(folder) / str(n), n, a_day) for n in LENGTHS]
        session.start(Settings(home=Path(folder) / "home"))
        try:
            once = {line.days: line.begin() for line in lines}
            lakes = {line.days: line.lakes(repeats + 1) for line in lines}
            candidates = {_name(line.days): line.one_more(lakes[line.days]) for line in lines}
            compared = next(line for line in lines if line.days == COMPARED)
            samples = alternate(candidates | {"all again": compared.all_again()}, repeats=repeats)
            bad = compared.differing()
        finally:
            session.stop()
        events = compared.events(1)
    seconds = {name: summarise(values).median for name, values in samples.items()}
    cost = {n: seconds[_name(n)] / events * 1e6 for n in LENGTHS}
    whole = seconds["all again"] / (events * COMPARED) * 1e6
    return Result(
        SUITE,
        {
            "incremental_cost_ratio": cost[COMPARED] / whole,
            "incremental_cost_ratio_100_days": cost[100] / (once[100] / (events * 99) * 1e6),
            "full_us_per_event": whole,
            **{f"incremental_us_per_event_{n}_days": cost[n] for n in LENGTHS},
            "events_a_day": events,
            "mismatches": bad,
        },
        samples | {f"all of {n - 1} days, once": [s] for n, s in once.items() if s},
        (
            f"one more day of {events:,} events behind 0, 9 and 99 days; all again: 10 days",
            "incremental_cost_ratio: an event of one more day over an event of all again;"
            " _100_days: over an event of the 99 days before it, one sample",
            f"more than {TASK_ROWS:,} offsets go through Ray Data's shuffle, a day is a task",
            "mismatches: values before events that differ in a bit between the two, of all views",
        ),
    )


def _name(days: int) -> str:
    return f"day {days} alone"


class _Line:
    """One log, all of whose days came live, and its lakes."""

    def __init__(self, home: Path, days: int, a_day: int) -> None:
        self.days = days
        self._home = home
        self._a_day = a_day
        self._made: dict[str, Any] = {}

    def events(self, days: int) -> int:
        a_day: int = sum(b.num_rows for b in history.day(0, self._a_day).values())
        return days * a_day

    def begin(self) -> float:
        """Features of all days but the last, then its events; the features' seconds."""
        from raypipe.log.sqlite import SqliteLog

        seconds = 0.0
        with closing(SqliteLog(self._home / "log")) as log:
            if self.days > 1:
                for number in range(self.days - 1):
                    history.append(log, number, self._a_day)
                started = time.perf_counter()
                self._compute(self._home / "lake")
                seconds = time.perf_counter() - started
            history.append(log, self.days - 1, self._a_day)
        return seconds

    def _compute(self, lake: Path) -> Any:
        from features.payments import project
        from features.pipeline import compute
        from raypipe.config import Settings
        from raypipe.log.sqlite import SqliteLog
        from raypipe.runtime.progress import Quiet

        settings = Settings(home=self._home, lake_url=str(lake))
        with closing(SqliteLog(self._home / "log")) as log:
            return compute(project, log, settings, Quiet())

    def lakes(self, count: int) -> list[Path]:
        """As many lakes without the last day; nothing in a lake is changed in place."""
        out = [self._home / f"lake-{i}" for i in range(count)]
        for place in out:
            if self.days > 1:
                shutil.copytree(self._home / "lake", place, copy_function=os.link)
        return out

    def one_more(self, lakes: list[Path]) -> Callable[[], None]:
        left = iter(lakes)

        def call() -> None:
            self._made["increment"] = self._compute(next(left))

        return call

    def all_again(self) -> Callable[[], None]:
        numbers = itertools.count()

        def call() -> None:
            lake = self._home / f"again-{next(numbers)}"
            self._made["whole"] = self._compute(lake)
            for old in self._home.glob("again-*"):
                if old != lake:
                    shutil.rmtree(old)

        return call

    def differing(self) -> int:
        """Values before events that the two made differently."""
        bad = 0
        for view in self._made["whole"].manifest.views:
            one, two = (_values(self._made[n], view) for n in ("increment", "whole"))
            check(one.num_rows == two.num_rows > 0, f"{view}: {one.num_rows} of {two.num_rows}")
            for name in one.column_names:
                a, b = (t.column(name).to_numpy() for t in (one, two))
                if a.dtype == np.float64:
                    a, b = a.view(np.uint64), b.view(np.uint64)
                bad += int((a != b).sum())
        check(bad == 0, f"{bad} values differ")
        return bad


def _values(build: Any, view: str) -> pa.Table:
    tables = [pq.read_table((build.place / n).url) for n in build.files_of("at_event", view)]
    return pa.concat_tables(tables).sort_by("offset")
