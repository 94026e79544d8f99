"""Upkeep that is killed at every point, also beside a writer: all rows are there, each once.

The processes that die run functions of this file.
"""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path

import pytest

from raypipe.clock import DAY_MS
from raypipe.log import compaction
from raypipe.log.retention import GRACE_MS
from raypipe.log.sqlite import SqliteLog
from tests.contract.upkeep_kit import EVENTS, NOW, check, expected, fill, items
from tests.recovery.nursery import Nursery

APPENDS = 12
ROWS = 11 * APPENDS


def compact(directory: str) -> None:
    if hold := os.environ.get("RAYPIPE_TEST_HOLD_S"):
        compaction.HOLD_S = float(hold)
    log = SqliteLog(Path(directory))
    while True:
        done = log.compact(0, log.end(0) - 5, range_rows=40)
        print(json.dumps([done.rows, done.swept]), flush=True)
        if not done.ranges:
            return


def merge(directory: str) -> None:
    log = SqliteLog(Path(directory))
    print(json.dumps(log.merge_ids(0, NOW)), flush=True)


def retain(directory: str) -> None:
    log = SqliteLog(Path(directory))
    print(json.dumps(log.retain(0, EVENTS, NOW - 30 * DAY_MS, NOW).first), flush=True)
    log.remove_doomed(NOW + GRACE_MS)


def compact_forever(directory: str) -> None:
    log = SqliteLog(Path(directory))
    while True:
        if log.compact(0, log.end(0) - 5, range_rows=40).ranges:
            print("compacted", flush=True)
            log.merge_ids(0, NOW)


def append(directory: str, first: str, last: str) -> None:
    log = SqliteLog(Path(directory))
    epoch = log.begin_epoch(0)
    for seq in range(int(first), int(last)):
        log.append(0, items(seq), producer="p", seq=seq, epoch=epoch)
        print(seq, flush=True)


def whole(directory: Path, first: int = 0, at: int = 0) -> SqliteLog:
    """The log, checked, with no file that the manifest doesn't name."""
    log = SqliteLog(directory)
    check(log, expected(APPENDS, at=at), first)
    assert not list((directory / "sealed").glob("*.tmp"))
    return log


@pytest.mark.parametrize(
    "point",
    [
        "log.seal.file_written",
        "log.seal.file_written:3",
        "log.compact.written",
        "log.compact.published",
        "log.compact.before_manifest",
        "log.compact.after_manifest",
        "log.compact.sweeping",
        "log.compact.swept",
        "log.compact.written:2",
        "log.compact.after_manifest:2",
        "log.compact.sweeping:9",
    ],
)
def test_a_kill_during_compaction_leaves_each_row_once(
    nursery: Nursery, tmp_path: Path, point: str
) -> None:
    directory = tmp_path / "log"
    log = SqliteLog(directory)
    fill(log, APPENDS)
    log.close()
    one_by_one = {"RAYPIPE_ABORT_AT": point, "RAYPIPE_TEST_HOLD_S": "0"}
    assert nursery.finish(compact, directory, env=one_by_one).status == -signal.SIGKILL
    log = whole(directory)
    fill(log, 1, start=APPENDS)
    log.close()
    assert nursery.finish(compact, directory).status == 0
    log = SqliteLog(directory)
    check(log, expected(APPENDS + 1))
    assert log.usage(0).live_rows <= 11
    assert log.usage(0).live_rows + log.usage(0).sealed_rows == ROWS + 11
    log.close()


@pytest.mark.parametrize(
    "point", ["log.merge.published", "log.merge.before_commit", "log.merge.after_commit"]
)
def test_a_kill_during_a_merge_of_ids_loses_none(
    nursery: Nursery, tmp_path: Path, point: str
) -> None:
    log = SqliteLog(tmp_path / "log")
    for seq in range(APPENDS):
        fill(log, 1, start=seq)
        log.compact(0, log.end(0))
    log.close()
    there = {"RAYPIPE_ABORT_AT": point}
    assert nursery.finish(merge, tmp_path / "log", env=there).status == -signal.SIGKILL
    whole(tmp_path / "log").close()
    assert nursery.finish(merge, tmp_path / "log").status == 0
    log = whole(tmp_path / "log")
    assert log.usage(0).id_arrays < APPENDS
    log.close()


@pytest.mark.parametrize(
    ("point", "first"),
    [("log.retain.before_commit", 0), ("log.retain.after_commit", 33)],
)
def test_a_kill_during_retention_deletes_all_of_a_range_or_nothing(
    nursery: Nursery, tmp_path: Path, point: str, first: int
) -> None:
    old = NOW - 40 * DAY_MS
    directory = tmp_path / "log"
    log = SqliteLog(directory)
    fill(log, APPENDS, at=old)
    log.compact(0, 33)
    log.commit("windows", 0, ROWS, "")
    log.close()
    there = {"RAYPIPE_ABORT_AT": point}
    assert nursery.finish(retain, directory, env=there).status == -signal.SIGKILL
    whole(directory, first, old).close()
    assert nursery.finish(retain, directory).status == 0
    whole(directory, 33, old).close()
    left = {p.name.split("-")[2].split(".")[0] for p in (directory / "sealed").glob("*-*")}
    assert left == {"decision", "receipt"}


def test_random_kills_beside_a_writer_lose_nothing_and_double_nothing(
    nursery: Nursery, tmp_path: Path
) -> None:
    rng = random.Random(20261126)
    appends = 120
    writer = nursery.start(append, tmp_path / "log", 0, appends, heard=True)
    assert writer.out is not None
    kills = 0
    while not writer.ended:
        process = nursery.start(compact_forever, tmp_path / "log", heard=True)
        assert process.out is not None
        with process.out:
            for _ in range(rng.randrange(1, 4)):
                process.out.readline()
                if writer.ended:
                    break
            process.kill()
        kills += 1
    assert writer.wait() == 0
    with writer.out:
        assert writer.out.read().split() == [str(seq) for seq in range(appends)]
    assert kills > 0
    assert nursery.finish(compact, tmp_path / "log").status == 0
    log = SqliteLog(tmp_path / "log")
    check(log, expected(appends))
    assert log.usage(0).live_rows <= 11
    log.close()
