"""Upkeep of the event log: live rows to Parquet, beside deleting them by plain SQL; the write lock.

The peer does what a script of one's own would: DELETE FROM both tables in one transaction, without
writing the rows anywhere. Its time is a floor for freeing the space, and all of it holds the lock.
Rows per second of the compaction include writing Parquet, making it durable, and comparing it with
the live rows. Appends beside it, open loop, come from this process, and the compaction runs as a
worker's does.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import Result, alternate, check, summarise

if TYPE_CHECKING:
    from raypipe.log.port import Appended

SUITE = "upkeep"
BATCH = 1_000
"""Payments of one append, in bulk; one in fifty has a chargeback that came alone, with its id."""


LEAST_S = 5.0
"""How long appends are timed at least."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes; the defaults are those of committed results."""
    parser.add_argument("--rows", type=int, help="payments that are compacted")
    parser.add_argument("--rate", type=int, default=20_000, help="payments a second beside it")
    parser.add_argument("--repeats", type=int, default=5)


def run(args: argparse.Namespace) -> Result:
    """Compact copies of one log in turns with the peer, then once beside a writer."""
    rows = args.rows or (100_000 if args.quick else 1_000_000)
    with tempfile.TemporaryDirectory(prefix="raypipe-upkeep-") as folder:
        made = Path(folder) / "made"
        total = _fill(made, rows)
        copies = _Copies(made, Path(folder), 2 * (args.repeats + 1))
        samples = alternate(
            {"compact": copies.compact, "sql_delete": copies.delete}, repeats=args.repeats, warmup=1
        )
        _check(made, copies.last, total)
        beside = {
            name: _beside(made, Path(folder) / name, args.rate, compacting=compacting)
            for name, compacting in (("alone", False), ("compacting", True))
        }
    seconds = {name: summarise(found).median for name, found in samples.items()}
    waits = {name: np.array(found[0]) * 1_000 for name, found in beside.items()}
    figures = {
        "rows": total,
        "compact_rows_per_s": total / seconds["compact"],
        "compact_cpu_us_per_row": 1e6 * summarise(copies.cpu).median / total,
        "ratio_time_vs_sql_delete": seconds["compact"] / seconds["sql_delete"],
        "longest_hold_ms": max(copies.holds),
        "peer_hold_ms": summarise(copies.peer_holds).median,
        "live_payload_mb": copies.live_bytes / 1e6,
        "sealed_mb": copies.sealed_bytes / 1e6,
        "ratio_sealed_vs_live": copies.sealed_bytes / copies.live_bytes,
        "database_mb_before": copies.file_before / 1e6,
        "database_mb_after": copies.file_after / 1e6,
        "beside_rate": args.rate,
        "beside_longest_hold_ms": beside["compacting"][1],
        "beside_compact_rows_per_s": beside["compacting"][2],
    }
    for name, found in waits.items():
        figures |= {
            f"append_p50_ms_{name}": float(np.quantile(found, 0.5)),
            f"append_p99_ms_{name}": float(np.quantile(found, 0.99)),
            f"append_max_ms_{name}": float(found.max()),
        }
    notes = [f"{len(found)} appends of {BATCH:,} payments {name}" for name, found in waits.items()]
    return Result(SUITE, figures, samples, notes)


def _appends(first: int, count: int) -> Iterator[list[Appended]]:
    from benchmarks import history
    from raypipe.log.port import Group

    a_day = 50 * BATCH
    for number in range(first, first + count):
        if number == first or number % 50 == 0:
            kinds = history.day(number // 50, a_day)
        at = number % 50
        size = BATCH // history.DISPUTED
        yield [
            Group.of("transaction", kinds["transaction"].slice(at * BATCH, BATCH)),
            ("chargeback", kinds["chargeback"].slice(at * size, size)),
        ]


def _fill(directory: Path, rows: int) -> int:
    from raypipe.log.sqlite import SqliteLog

    log = SqliteLog(directory)
    for seq, batches in enumerate(_appends(0, rows // BATCH)):
        log.append(0, batches, producer="fill", seq=seq)
    end = log.end(0)
    log.close()
    return end


class _Copies:
    """Fresh copies of the log, made before anything is measured."""

    def __init__(self, made: Path, folder: Path, count: int) -> None:
        names = [folder / f"copy-{number}" for number in range(count)]
        self._ready = [Path(shutil.copytree(made, name)) for name in names]
        self.last = made
        self.cpu: list[float] = []
        self.holds: list[float] = []
        self.peer_holds: list[float] = []
        self.live_bytes = self.sealed_bytes = self.file_before = self.file_after = 0

    def compact(self) -> None:
        """All rows."""
        from raypipe.log.sqlite import SqliteLog

        directory = self._ready.pop()
        log = SqliteLog(directory)
        self.file_before = log.file_bytes()["file_bytes"]
        began = time.process_time()
        done = log.compact(0, log.end(0))
        self.cpu.append(time.process_time() - began)
        self.holds.append(done.longest_hold_ms)
        self.live_bytes, self.sealed_bytes = done.live_bytes, done.sealed_bytes
        log.shrink(0, 60.0)
        self.file_after = log.file_bytes()["file_bytes"]
        log.close()
        self.last = directory

    def delete(self) -> None:
        """The peer."""
        directory = self._ready.pop()
        db = sqlite3.connect(directory / "log.db", isolation_level=None)
        db.execute("pragma synchronous=full")
        db.execute("begin immediate")
        began = time.perf_counter()
        for table in ("batch", "ids"):
            db.execute(f"delete from {table} where place >= 0")  # noqa: S608
        db.execute("commit")
        self.peer_holds.append(1_000 * (time.perf_counter() - began))
        db.close()


def _check(made: Path, compacted: Path, total: int) -> None:
    from raypipe.log.sqlite import SqliteLog

    before, after = SqliteLog(made), SqliteLog(compacted)
    check(after.live_start(0) == total, "rows are left live")
    check(before.counts(0) == after.counts(0), "counts differ")
    sums = [
        sum(int(np.sum(c.offsets * c.batch.column("amount").to_numpy() % 1_000_003)) for c in found)
        for found in (log.read(0, 0, total) for log in (before, after))
    ]
    check(sums[0] == sums[1], "rows or their offsets differ")
    before.close()
    after.close()


def _beside(
    made: Path, directory: Path, rate: int, *, compacting: bool
) -> tuple[list[float], float, float]:
    """Waits of the appends in seconds, the longest hold in ms, rows compacted a second."""
    from raypipe.log.sqlite import SqliteLog

    shutil.copytree(made, directory)
    log = SqliteLog(directory)
    end = log.end(0)
    # Numbers that the log doesn't have yet: its ids stay new.
    prepared = list(_appends(10**6, 50 * 20))
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_compact, args=(directory, end if compacting else 0, theirs))
    process.start()
    ours.recv()
    waits: list[float] = []
    ours.send("go")
    began = time.perf_counter()
    for number, batches in enumerate(prepared):
        due = began + number * BATCH / rate
        time.sleep(max(0.0, due - time.perf_counter()))
        if due - began > LEAST_S and ours.poll():
            break
        log.append(0, batches, producer="beside", seq=number)
        waits.append(time.perf_counter() - due)
    hold, speed = ours.recv()
    process.join()
    appended = len(waits) * (BATCH + BATCH // 50)
    check(log.end(0) == end + appended, "appended rows are missing")
    log.close()
    shutil.rmtree(directory)
    return waits, hold, speed


def _compact(directory: Path, until: int, pipe: Any) -> None:
    """As the process beside a worker does it."""
    from raypipe.log.sqlite import SqliteLog
    from raypipe.runtime.upkeep import yield_to_worker

    log = SqliteLog(directory, eager=yield_to_worker())
    pipe.send("ready")
    pipe.recv()
    began = time.perf_counter()
    done = log.compact(0, until)
    pipe.send((done.longest_hold_ms, done.rows / (time.perf_counter() - began)))
    log.close()
