"""Bulk events through two processes that are killed: acknowledged is recovered, once each."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from raypipe.clock import SystemClock
from raypipe.ingest.media import Media
from raypipe.runtime.sender import Sender
from raypipe.sources.batch import Batch
from tests.recovery import cli_process, ingest_kit, soak
from tests.recovery.nursery import Finished, Nursery

pytestmark = pytest.mark.slow

POINTS = [
    ("worker.quarantined:3", True),
    ("worker.before_commit:3", True),
    ("worker.after_commit:3", True),
    ("worker.after_commit:3", False),
    ("worker.after_reply:3", True),
    ("log.append.before_commit:4", True),
    ("log.append.after_commit:4", True),
]


@pytest.mark.parametrize(("point", "keyed"), POINTS)
def test_death_at_each_step_of_a_bulk_commit(
    nursery: Nursery, tmp_path: Path, point: str, keyed: bool
) -> None:
    with ingest_kit.Processes(nursery, tmp_path, point) as processes:
        told = ingest_kit.run(processes, batches=12, keyed=keyed, kills=0, seed=1)
        if keyed:
            ingest_kit.check_receipts(processes, told)
    assert processes.starts == {"worker": 2, "ingest": 1, "upkeep": 1}
    ingest_kit.check(tmp_path, told, keyed=keyed)


def test_a_short_soak(nursery: Nursery, tmp_path: Path) -> None:
    done = soak.soak(nursery, tmp_path, kills=20, seed=11)
    assert done.kills.total() >= 20
    assert {"worker", "ingest"} <= done.kills.keys()
    assert done.rows > 2_000


ROWS = 12_000


def test_a_watched_folder_survives_death_at_each_step(nursery: Nursery, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    points = ["feed.taken:2", "watch.sent", "watch.explained"]
    with ingest_kit.Processes(nursery, home) as processes, ThreadPoolExecutor() as pool:
        processes.await_ready()

        def survives(number: int) -> None:
            folder = tmp_path / f"in-{number}"
            folder.mkdir()
            rows = [opening(f"{number}-{i}") for i in range(ROWS)]
            rows[7]["litres"] = -1
            (folder / "a.ndjson").write_text("\n".join(map(json.dumps, rows)))
            assert watch(nursery, processes, folder, points[number]).status == -9
            assert [p.name for p in folder.iterdir() if p.is_file()] == ["a.ndjson"]
            again = watch(nursery, processes, folder, "")
            assert again.status == 3, again.err
            said = json.loads(again.out)
            assert (said["files"], said["accepted"], said["refused"]) == (1, ROWS - 1, 1)
            assert sorted(p.name for p in (folder / "done").iterdir()) == [
                "a.ndjson", "a.ndjson.reasons",
            ]  # fmt: skip

        list(pool.map(survives, range(3)))  # at once: each waits for its file to settle
    with ingest_kit.closed_log(home) as log:
        ids = [i for c in ingest_kit.chunks(log) for i in c.batch.column("event_id").to_pylist()]
    wanted = {f"{n}-{i}" for n in range(3) for i in range(ROWS) if i != 7}
    assert len(ids) == len(wanted)
    assert set(ids) == wanted


def opening(event_id: str) -> dict[str, Any]:
    now = SystemClock().now_ms()
    return {"type": "opening", "event_id": event_id, "event_time": now, "valve": "v", "litres": 1}


def watch(
    nursery: Nursery, processes: ingest_kit.Processes, folder: Path, abort_at: str
) -> Finished:
    """`raypipe ingest --watch` as a process, until the folder is empty."""
    return raypipe(nursery, processes, abort_at, "ingest", "--watch", str(folder), "--once")


def test_a_retry_of_the_quarantine_survives_death_at_each_step(
    nursery: Nursery, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    wanted = set()
    with ingest_kit.Processes(nursery, home) as processes:
        processes.await_ready()
        for number, point in enumerate(["requeue.begun", "requeue.sent"]):
            rows = [opening(f"{number}-{i}") | {"litres": -1} for i in range(40)]
            wanted |= {row["event_id"] for row in rows}
            body = "\n".join(map(json.dumps, rows)).encode()
            with closing(Sender(processes.url, processes.key)) as sender:
                taken = sender.send(Batch(f"k-{number}", body, Media.LINES, None, 40))
            assert len(taken.refused) == 40
            retry = ("quarantine", "retry", "--all", "--replace", "litres=5")
            assert raypipe(nursery, processes, point, *retry).status == -9
            again = raypipe(nursery, processes, "", *retry)
            assert again.status == 0, again.err
            said = json.loads(again.out)
            assert (said["accepted"], said["duplicates"], said["resumed"]) == (40, 0, 40)
    with ingest_kit.closed_log(home) as log:
        found = [row for c in ingest_kit.chunks(log) for row in c.batch.to_pylist()]
    assert sorted(row["event_id"] for row in found) == sorted(wanted)
    assert {row["litres"] for row in found} == {5}


def raypipe(
    nursery: Nursery, processes: ingest_kit.Processes, abort_at: str, *words: str
) -> Finished:
    """The command line as a process."""
    settings = ["project=tests.domains.greenhouse:project", f"ingest_port={processes.port}"]
    options = [word for setting in settings for word in ("--set", setting)]
    return nursery.finish(
        cli_process.start,
        *(*words, *options, "--home", processes.home, "--json"),
        env={"RAYPIPE_API_KEY": processes.key, "RAYPIPE_ABORT_AT": abort_at},
    )
