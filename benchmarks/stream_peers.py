"""Keyed sliding windows over a file of payments, warm: our worker beside Flink, per core.

Both read the same JSON lines, keep count and sum of each card's last minute, hour and day (in a
second job: of the last hour alone) and write the windows out. The windows get hops of one second
and the payments times of whole seconds, so ours are exactly SQL's ``RANGE`` frames; every window
that ours writes must be equal to Flink's for the same payment. One long job of each is handed file
after file, pinned to one core; the first files are warm-up. Per core means per second of processor.

The worker is the one that serves, without its socket: it validates all fields, leaves out known
ids, commits each body of rows to the log on SQLite with ``synchronous=FULL``, and then hands out
the windows of the cards in it, as it does to the online store; a snapshot every 10 s.

Flink (PyPI's apache-flink, ``make flink``) runs SQL, all of it in Java: parallelism 1, object
reuse, state on the heap, its faster backend, exactly-once checkpoints to disk every 10 s, and of
each line it parses the four fields that it needs. Streaming SQL takes one frame a step, so three
spans are three steps. The JVM sizes its heap itself: 4 GB from the start changed nothing, G1 cost
more. It doesn't validate, know ids or keep the events: after a crash it reads its source again,
which must still have them. It writes the windows of each payment, ours those of a card's last in a
body.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import count as numbers
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pcsv

from benchmarks.harness import Result, alternate, check, summarise
from benchmarks.load import free_port
from benchmarks.peers.flink import Job, flink, obstacle, version
from benchmarks.shop.traffic import ID_DIGITS, Row, Shop, Template
from raypipe.windows.spec import Span, WindowView, count, spans, total

SUITE = "stream_peers"
SEED = 37
START_MS = 1_790_000_000_000
CARDS = 100_000
PER_SECOND = 12
"""Payments a second in their own time: ten a day of each card."""

BODY = 4_000
SNAPSHOT_S = 10
WARM = 6
"""Files before the measured ones: a JVM of one core compiles for long."""

SPANS = {"": spans("1m/1s", "1h/1s", "1d/1s"), "_one_span": spans("1h/1s")}

Ints = npt.NDArray[np.int64]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes; the defaults are those of committed results."""
    parser.add_argument("--events", type=int, help="payments of a file")
    parser.add_argument("--repeats", type=int, default=5, help="measured files")


def run(args: argparse.Namespace) -> Result:
    """Measure both jobs, then compare what they wrote."""
    a_file = -(-(args.events or (20_000 if args.quick else 160_000)) // BODY) * BODY
    without = obstacle()
    figures: dict[str, Any] = {}
    samples: dict[str, Sequence[float]] = {}
    with tempfile.TemporaryDirectory(prefix="raypipe-bench-") as folder, _one_core():
        given = _Payments(Path(folder), a_file, WARM + args.repeats)
        for suffix, windows in SPANS.items():
            point = _Point(Path(folder) / f"job{suffix}", windows, given)
            wall, cpu = point.measure(args.repeats, peer=not without)
            figures |= _figures(suffix, wall, cpu, a_file)
            figures[f"results_equal{suffix}"] = None if without else True
            figures[f"compared_share{suffix}"] = None if without else point.compare()
            samples |= {f"{name}{suffix} cpu": seconds for name, seconds in cpu.items()}
            samples |= {f"{name}{suffix} wall": seconds for name, seconds in wall.items()}
    return Result(
        SUITE,
        figures | {"events_a_file": a_file, "cards": CARDS},
        samples,
        (
            f"seconds of a file of {a_file:,} payments, after {WARM} of warm-up, on one core",
            without or f"flink: {version()}, SQL, parallelism 1, heap state, object reuse",
            "durable, raypipe: each body of 4,000 payments, in the log, before its windows go out;"
            " snapshot of the windows every 10 s",
            "durable, flink: windows and state at each checkpoint, every 10 s; the events are not",
            "results_equal: every window that raypipe wrote is Flink's for that payment;"
            " compared_share: of payments, the others came before another of their card in a body",
        ),
    )


def _figures(
    suffix: str, wall: dict[str, list[float]], cpu: dict[str, list[float]], events: int
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for unit, ratio, taken in (("cpu_s", "per_core", cpu), ("s", "by_wall", wall)):
        middle = {name: summarise(seconds).median for name, seconds in taken.items()}
        mine, its = middle["raypipe"], middle.get("flink")
        found[f"ratio_vs_flink_{ratio}{suffix}"] = its and its / mine
        found[f"raypipe_events_per_{unit}{suffix}"] = events / mine
        found[f"flink_events_per_{unit}{suffix}"] = its and events / its
    return found


@contextmanager
def _one_core() -> Iterator[None]:
    """Keep this process, and all that it starts meanwhile, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class _Payments:
    """Files of payments in the order of their times; which card paid when, by event number."""

    def __init__(self, folder: Path, a_file: int, files: int) -> None:
        self.a_file = a_file
        self.files = [folder / f"payments-{i}.json" for i in range(files)]
        rows = list(islice(_rows(), 60 * BODY))
        templates = [Template(rows[at : at + BODY]) for at in range(0, len(rows), BODY)]
        events = np.arange(a_file * files)
        self.times: Ints = START_MS + events // PER_SECOND * 1_000
        cards = np.array([int(row.fields["card_id"][1:]) for row in rows])
        self._places = self.place(cards[events % len(rows)], self.times)
        self._order = np.argsort(self._places)
        check(len(np.unique(self._places)) == len(events), "a card pays twice in a second")
        for at, file in zip(range(0, len(events), a_file), self.files, strict=True):
            with file.open("wb") as out:
                for first in range(at, at + a_file, BODY):
                    template = templates[first // BODY % len(templates)]
                    out.write(template.fill(first, self.times[first : first + BODY]) + b"\n")

    @staticmethod
    def place(cards: Ints, times: Ints) -> Ints:
        """One number for a card and a time."""
        return cards * 2**32 + (times - START_MS) // 1_000

    def numbers(self, cards: Ints, times: Ints) -> Ints:
        """Which events they are."""
        places = self.place(cards, times)
        found = self._order[np.searchsorted(self._places, places, sorter=self._order)]
        check(bool((self._places[found] == places).all()), "windows of payments that never were")
        return found


def _rows() -> Iterator[Row]:
    """Payments without end; between two of a card are others, so it pays once a second at most."""
    shop, lately = Shop(CARDS, SEED), deque[str](maxlen=10 * PER_SECOND)
    while True:
        for row in shop.rows(BODY, ["payment"]):
            card = row.fields["card_id"]
            if card not in lately:
                lately.append(card)
                yield row


class _Point:
    """Both jobs over the same windows."""

    def __init__(self, folder: Path, windows: tuple[Span, ...], given: _Payments) -> None:
        folder.mkdir()
        self._folder = folder
        self._given = given
        self._spans = windows
        self._names = [f"card_{v}_{s.label}" for s in windows for v in ("count", "amount_sum")]

    def measure(
        self, repeats: int, *, peer: bool
    ) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """Wall and processor seconds of each measured file, by candidate."""
        from raypipe.log.sqlite import SqliteLog

        cpu: dict[str, list[float]] = {"raypipe": []}
        with closing(SqliteLog(self._folder / "log")) as log, self._peer(peer) as theirs:
            ours = _Worker(log, self._view, self._folder)
            mine, its = iter(self._given.files), iter(self._given.files)

            def work() -> None:
                before = time.process_time()
                ours.take(next(mine))
                cpu["raypipe"].append(time.process_time() - before)

            def ask() -> None:
                before = theirs.cpu_s()
                theirs.take(next(its), self._given.a_file)
                cpu["flink"].append(theirs.cpu_s() - before)

            candidates = {"raypipe": work}
            if peer:
                cpu["flink"] = []
                candidates["flink"] = ask
            wall = alternate(candidates, repeats=repeats, warmup=WARM)
            ours.close()
            if peer:
                theirs.drain()
        return wall, {name: seconds[WARM:] for name, seconds in cpu.items()}

    @property
    def _view(self) -> WindowView:
        aggregates = (count(), total("amount"))
        return WindowView("card", "card", "payment", "card_id", aggregates, self._spans)

    @contextmanager
    def _peer(self, wanted: bool) -> Iterator[Any]:
        if not wanted:
            yield None
            return
        job = Job(
            events=str(self._folder / "events"),
            out=str(self._folder / "flink"),
            checkpoints=str(self._folder / "checkpoints"),
            checkpoint_s=SNAPSHOT_S,
            spans=[span.length for span in self._spans],
            # Those of the newest second, at each step.
            tail=len(self._spans) * PER_SECOND,
            port=free_port(),
        )
        with flink(job, self._folder / "flink.log") as running:
            yield running

    def compare(self) -> float:
        """Check every window that ours wrote against Flink's; returns the share of payments."""
        theirs = self._theirs()
        with pa.OSFile(str(self._folder / "windows.arrow")) as file:
            ours = pa.ipc.open_stream(file).read_all()
        cards = np.array([int(key[1:]) for key in ours.column("key").to_pylist()])
        events = self._given.numbers(cards, ours.column("time").to_numpy() // 1_000)
        check(len(np.unique(events)) == len(events), "windows of a payment came twice")
        for at, name in enumerate(self._names):
            wrong = ours.column(name).to_numpy() != theirs[events, at]
            check(not wrong.any(), f"{name}: {wrong.sum()} of {len(wrong)} are not Flink's")
        return len(events) / len(theirs)

    def _theirs(self) -> Ints:
        """Flink's windows [payments, values], by event number."""
        names = ["event_id", *self._names]
        reading = pcsv.ReadOptions(column_names=names)
        parts = [
            pcsv.read_csv(file, read_options=reading)
            for file in sorted((self._folder / "flink").glob("[!.]*"))
        ]
        found = pa.concat_tables(parts)
        digits = [int(name[-ID_DIGITS:]) for name in found.column("event_id").to_pylist()]
        n = len(self._given.times)
        check(sorted(digits) == list(range(n)), f"Flink wrote {len(digits)} windows of {n}")
        values = np.empty((n, len(self._names)), np.int64)
        values[digits] = np.stack([found.column(n).to_numpy() for n in self._names], axis=1)
        return values


class _Worker:
    """The worker's core over a log of its own, and the windows that it hands out."""

    def __init__(self, log: Any, view: WindowView, folder: Path) -> None:
        from features.commerce import project
        from raypipe.ingest.bulk import BulkReader
        from raypipe.lake import Place
        from raypipe.runtime.worker.core import WorkerCore
        from raypipe.runtime.worker.snapshots import Snapshots
        from raypipe.windows.engine import compile_windows

        mine = replace(project, views=(view,), tables=(), derived=(), models=(), profiles=())
        compile_windows(mine.views, mine.decision)
        self._reader = BulkReader(mine.events, "EUR")
        place = Place.at(folder / "snapshots")
        self._core = WorkerCore(
            mine, log, snapshots=Snapshots(place, mine.definition_hash, SNAPSHOT_S)
        )
        self._out = pa.OSFile(str(folder / "windows.arrow"), "wb")
        self._writer: Any = None
        self._bodies = numbers()

    def take(self, file: Path) -> None:
        """Take a file in, body by body; each is durable before its windows are written."""
        with file.open("rb") as lines:
            while body := b"".join(islice(lines, BODY)):
                self._take(body)

    def _take(self, body: bytes) -> None:
        from raypipe.ingest.media import Media
        from raypipe.runtime.worker.intake import Bulk

        last = (next(self._bodies) + 1) * BODY - 1
        now = START_MS + last // PER_SECOND * 1_000
        read = self._reader.read(body, Media.LINES, None, "default", now)
        check(not read.refused, "payments were refused")
        hashed = hashlib.sha256(body).digest()
        receipt = self._core.ingest(Bulk("default", read.group, now, "bench", hashed))
        check(receipt.accepted == BODY, f"{receipt.accepted} payments were new")
        self._core.commit()
        self._core.tick()
        while (changed := self._core.changed(BODY, written=True)) is not None:
            table = changed[1]
            if self._writer is None:
                self._writer = pa.ipc.new_stream(self._out, table.schema)
            self._writer.write_table(table)

    def close(self) -> None:
        """All windows are written."""
        self._writer.close()
        self._out.close()
