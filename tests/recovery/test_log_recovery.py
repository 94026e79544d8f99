"""Kills, torn tails, flipped bits and full disks: what was acknowledged, against what is there.

The processes that die run functions of this file; each acknowledged append is a line on their
standard output.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pytest

from raypipe.errors import IntegrityError, RaypipeError
from raypipe.lake import Place
from raypipe.log.port import DECISION, Chunk, LogUnwritable
from raypipe.log.sqlite import SqliteLog
from tests.recovery.nursery import Nursery

ROOT = Path(__file__).parents[2]
SEAL = {"producer": "load", "seq": 0}
SEALED_ROWS = 200


def batches_of(seq: int) -> list[tuple[str, pa.RecordBatch]]:
    """The batches that append ``seq`` always sends: 1 to 4 events and their decisions."""
    n = 1 + seq % 4
    ids = [f"{seq}-{i}" for i in range(n)]
    event = {"tenant": ["t"] * n, "event_id": ids, "event_time": [seq] * n, "fill": ["f" * 300] * n}
    verdict = {"tenant": ["t"] * n, "decision_id": ids, "score": [seq / 8] * n}
    return [("sale", pa.record_batch(event)), (DECISION, pa.record_batch(verdict))]


def rows_of(seq: int) -> list[tuple[str, dict[str, Any]]]:
    return [(kind, row) for kind, batch in batches_of(seq) for row in batch.to_pylist()]


def history() -> dict[str, Iterator[pa.RecordBatch]]:
    def kind(start: int) -> Iterator[pa.RecordBatch]:
        for at in range(start, SEALED_ROWS, 20):
            places = list(range(at, min(at + 20, SEALED_ROWS), 2))
            ids = [f"h{p}" for p in places]
            times = [7_000 + p for p in places]
            yield pa.record_batch(
                {
                    "_position": places,
                    "tenant": ["t"] * len(ids),
                    "event_id": ids,
                    "event_time": times,
                }
            )

    return {"sale": kind(0), "refund": kind(1)}


def rows_in(log: SqliteLog) -> list[tuple[str, dict[str, Any]]]:
    found = {
        offset: (chunk.kind, row)
        for chunk in log.read(0, 0, 10**9)
        for offset, row in zip(chunk.offsets.tolist(), chunk.batch.to_pylist(), strict=True)
    }
    return [found[offset] for offset in sorted(found)]


def collect(chunks: Iterator[Chunk], into: list[Chunk]) -> None:
    """Keeps what came before an error."""
    for chunk in chunks:
        into.append(chunk)


def check_prefix(log: SqliteLog) -> int:
    """The log holds appends 0..n-1, each whole and once, in order; return n."""
    rows = rows_in(log)
    at = seq = 0
    while at < len(rows):
        expected = rows_of(seq)
        assert rows[at : at + len(expected)] == expected
        at += len(expected)
        seq += 1
    assert log.end(0) == len(rows)
    return seq


# the dying processes


def append_forever(directory: str, first: str, last: str) -> None:
    log = SqliteLog(Path(directory))
    for seq in range(int(first), int(last)):
        offsets = log.append(0, batches_of(seq), producer="p", seq=seq)
        print(json.dumps([seq, [o.tolist() for o in offsets]]), flush=True)


def append_and_die(directory: str, first: str, last: str) -> None:
    log = SqliteLog(Path(directory))
    for seq in range(int(first), int(last)):
        log.append(0, batches_of(seq), producer="p", seq=seq)
    os.kill(os.getpid(), signal.SIGKILL)


def seal_once(directory: str) -> None:
    log = SqliteLog(Path(directory))
    print(json.dumps(log.seal(0, history(), SEALED_ROWS, **SEAL)), flush=True)  # type: ignore[arg-type]


def fill_the_disk(directory: str, allowance: str, seal: str) -> None:
    """Append under a file size limit until it is refused; then lift the limit and go on."""
    log = SqliteLog(Path(directory))
    log.append(0, batches_of(0), producer="p", seq=0)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(allowance), hard))
    refused = ""
    seq = 0
    while not refused:
        try:
            if seal == "seal":
                log.seal(0, history(), SEALED_ROWS, **SEAL)  # type: ignore[arg-type]
            else:
                seq += 1
                log.append(0, batches_of(seq), producer="p", seq=seq)
        except LogUnwritable as e:
            refused = str(e)
    during = len(rows_in(log))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    if seal == "seal":
        left = sorted(p.name for p in (Path(directory) / "sealed").iterdir())
        log.seal(0, history(), SEALED_ROWS, **SEAL)  # type: ignore[arg-type]
    else:
        left = []
        for again in range(seq, seq + 50):
            log.append(0, batches_of(again), producer="p", seq=again)
    print(json.dumps({"refused": refused, "seq": seq, "during": during, "left": left}))


def fail_to_sync(directory: str, broken: str) -> None:
    """Append while fsync works, while it fails (the file ``broken`` exists), and after."""
    log = SqliteLog(Path(directory))
    log.append(0, batches_of(0), producer="p", seq=0)
    Path(broken).touch()
    refused = ""
    try:
        log.append(0, batches_of(1), producer="p", seq=1)
    except LogUnwritable as e:
        refused = str(e)
    during = check_prefix(log)
    Path(broken).unlink()
    log.append(0, batches_of(1), producer="p", seq=1)
    log.append(0, batches_of(2), producer="p", seq=2)
    print(json.dumps({"refused": refused, "during": during}))


class Finish(Protocol):
    """Has a process run one of these to its end: exit status and the JSON lines that got out."""

    def __call__(
        self, job: Callable[..., None], *words: object, **env: str
    ) -> tuple[int, list[Any]]: ...


@pytest.fixture(scope="session")
def finish(nursery: Nursery) -> Finish:
    def run(job: Callable[..., None], *words: object, **env: str) -> tuple[int, list[Any]]:
        done = nursery.finish(job, *words, env=env)
        return done.status, [json.loads(line) for line in done.out.splitlines()]

    return run


# kills


def test_random_kills_lose_nothing_acknowledged_and_write_nothing_twice(
    nursery: Nursery, tmp_path: Path
) -> None:
    rng = random.Random(20261123)
    acknowledged: dict[int, list[list[int]]] = {}
    next_seq = 0
    for _ in range(6):
        # Begins before what is acknowledged already: a client that retries.
        process = nursery.start(append_forever, tmp_path, max(0, next_seq - 3), 10**6, heard=True)
        assert process.out is not None
        wanted = rng.randrange(5, 60)
        lines = []
        with process.out:
            while len(lines) < wanted:
                lines.append(process.out.readline())
            process.kill()
            lines += process.out.readlines()
        for line in lines:
            if not line.endswith("\n"):
                continue
            seq, offsets = json.loads(line)
            assert acknowledged.setdefault(seq, offsets) == offsets
        log = SqliteLog(tmp_path)
        recovered = check_prefix(log)
        assert recovered >= max(acknowledged) + 1
        log.close()
        next_seq = max(acknowledged) + 1
    assert len(acknowledged) > 50


@pytest.mark.parametrize(
    ("point", "whole"), [("log.append.before_commit", 4), ("log.append.after_commit", 5)]
)
def test_a_kill_around_the_commit_leaves_all_of_the_append_or_nothing(
    finish: Finish, tmp_path: Path, point: str, whole: int
) -> None:
    status, acknowledged = finish(
        append_forever, tmp_path / "log", 0, 20, RAYPIPE_ABORT_AT=f"{point}:5"
    )
    assert status == -signal.SIGKILL
    assert [seq for seq, _ in acknowledged] == [0, 1, 2, 3]
    log = SqliteLog(tmp_path / "log")
    assert check_prefix(log) == whole
    log.close()
    status, acknowledged = finish(append_forever, tmp_path / "log", 0, 20)
    assert status == 0
    log = SqliteLog(tmp_path / "log")
    assert check_prefix(log) == 20
    at = 0
    for seq, offsets in acknowledged:
        n = 1 + seq % 4
        assert offsets == [list(range(at, at + n)), list(range(at + n, at + 2 * n))]
        at += 2 * n
    log.close()


@pytest.mark.parametrize(
    ("point", "visible"),
    [
        ("log.seal.file_written", False),
        ("log.seal.file_written:2", False),
        ("log.seal.after_temp_write", False),
        ("log.seal.after_rename", False),
        ("log.seal.before_manifest", False),
        ("log.seal.after_manifest", True),
    ],
)
def test_a_kill_during_a_seal_leaves_all_of_the_range_or_nothing(
    finish: Finish, tmp_path: Path, point: str, visible: bool
) -> None:
    directory = tmp_path / "log"
    assert finish(append_forever, directory, 0, 3)[0] == 0
    before = sum(len(rows_of(seq)) for seq in range(3))
    once = {"RAYPIPE_ABORT_AT": point, "RAYPIPE_ABORT_ONCE": str(tmp_path / "once")}
    assert finish(seal_once, directory, **once) == (-signal.SIGKILL, [])
    left = [p for p in (directory / "sealed").iterdir() if p.name != ".lock"]
    assert left, "the kill came before any file"

    log = SqliteLog(directory)
    expected = (before, before + SEALED_ROWS) if visible else None
    assert log.sealed_range(0, "load", 0) == expected
    assert log.end(0) == before + (SEALED_ROWS if visible else 0)
    assert (log.find(0, "sale", "t", "h0") is not None) == visible
    kept = {p.name for p in (directory / "sealed").iterdir()} - {".lock"}
    assert kept == ({p.name for p in left} if visible else set())
    log.close()

    assert finish(seal_once, directory, **once) == (0, [[before, before + SEALED_ROWS]])
    log = SqliteLog(directory)
    sealed = rows_in(log)[before:]
    assert [r["event_id"] for _, r in sealed] == [f"h{p}" for p in range(SEALED_ROWS)]
    assert {kind for kind, _ in sealed} == {"sale", "refund"}
    log.append(0, batches_of(3), producer="p", seq=3)
    log.close()


def test_an_opening_process_leaves_a_running_seal_alone(finish: Finish, tmp_path: Path) -> None:
    log = SqliteLog(tmp_path)

    def refunds() -> Iterator[pa.RecordBatch]:
        # By now the sales are a file that no manifest names.
        assert list(tmp_path.rglob("*sale*.tmp"))
        SqliteLog(tmp_path).close()
        assert finish(append_forever, tmp_path, 0, 0) == (0, [])
        yield from history()["refund"]

    ordered = {"sale": history()["sale"], "refund": refunds()}
    assert log.seal(0, ordered, SEALED_ROWS, **SEAL) == (0, SEALED_ROWS)  # type: ignore[arg-type]
    assert len(rows_in(log)) == SEALED_ROWS
    log.close()


# damage


@pytest.fixture(scope="module")
def torn(finish: Finish, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log whose process died with everything after the first checkpoint in the -wal file."""
    directory = tmp_path_factory.mktemp("torn") / "log"
    log = SqliteLog(directory)
    log.append(0, batches_of(0), producer="p", seq=0)
    log.close()
    assert not (directory / "log.db-wal").exists()
    assert finish(append_and_die, directory, 1, 30)[0] == -signal.SIGKILL
    return directory


def damaged_copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    (target / "log.db-shm").unlink(missing_ok=True)
    return target / "log.db-wal"


def test_a_truncated_tail_ends_at_an_append_and_the_log_goes_on(torn: Path, tmp_path: Path) -> None:
    rng = random.Random(7)
    size = (torn / "log.db-wal").stat().st_size
    seen = set()
    for n, cut in enumerate([0, 1, 31, 32, size - 1, *(rng.randrange(size) for _ in range(25))]):
        wal = damaged_copy(torn, tmp_path / f"cut{n}")
        os.truncate(wal, cut)
        log = SqliteLog(wal.parent)
        found = check_prefix(log)
        seen.add(found)
        for seq in range(found, 32):
            log.append(0, batches_of(seq), producer="p", seq=seq)
        assert check_prefix(log) == 32
        log.close()
    assert min(seen) == 1
    assert max(seen) >= 28
    assert len(seen) > 8


def test_a_corrupted_tail_ends_at_an_append(torn: Path, tmp_path: Path) -> None:
    rng = random.Random(8)
    size = (torn / "log.db-wal").stat().st_size
    seen = set()
    for n in range(25):
        wal = damaged_copy(torn, tmp_path / f"flip{n}")
        data = bytearray(wal.read_bytes())
        first = rng.randrange(size // 2, size)
        data[first : first + 600] = rng.randbytes(len(data[first : first + 600]))
        wal.write_bytes(data)
        log = SqliteLog(wal.parent)
        seen.add(check_prefix(log))
        log.close()
    assert 30 not in seen
    assert len(seen) > 5


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed log: 40 appends in log.db, one sealed range after them."""
    directory = tmp_path_factory.mktemp("settled") / "log"
    log = SqliteLog(directory)
    for seq in range(40):
        log.append(0, batches_of(seq), producer="p", seq=seq)
    log.seal(0, history(), SEALED_ROWS, **SEAL)  # type: ignore[arg-type]
    log.close()
    return directory


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as f:
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ 0x10]))


def test_a_flipped_payload_bit_is_reported_with_its_offset(settled: Path, tmp_path: Path) -> None:
    directory = tmp_path / "log"
    shutil.copytree(settled, directory)
    offset = sum(len(rows_of(seq)) for seq in range(20))
    stored = re.search(rb"20-0.{0,200}?f{300}", (directory / "log.db").read_bytes(), re.DOTALL)
    assert stored
    flip(directory / "log.db", stored.end() - 100)
    log = SqliteLog(directory)
    read: list[Chunk] = []
    with pytest.raises(IntegrityError, match=f"offset {offset} .* checksum"):
        collect(log.read(0, 0, 10**6), read)
    assert sum(len(c) for c in read) == offset
    with pytest.raises(IntegrityError, match=f"offset {offset} "):
        log.find(0, "sale", "t", "20-0")
    with pytest.raises(IntegrityError, match=f"offset {offset} "):
        log.export(0, "sale", Place.at(tmp_path / "out"), 0, 10**6)
    log.close()


def test_any_flipped_bit_gives_the_right_rows_or_an_error(settled: Path, tmp_path: Path) -> None:
    rng = random.Random(9)
    log = SqliteLog(shutil.copytree(settled, tmp_path / "whole"))
    right = rows_in(log)
    log.close()
    ids = [(kind, row.get("event_id") or row["decision_id"]) for kind, row in right]
    refused = 0
    for n in range(120):
        directory = tmp_path / f"flip{n}"
        shutil.copytree(settled, directory)
        flip(directory / "log.db", rng.randrange((directory / "log.db").stat().st_size))
        log = None
        try:
            log = SqliteLog(directory)
            assert rows_in(log) == right
            for at in rng.sample(range(len(ids)), 20):
                kind, id = ids[at]
                found = log.find(0, kind, "t", id)
                # A flipped hash in the index may hide an id from find(); reads never lose it.
                assert found is None or (found[0], found[1].to_pylist()) == (at, [right[at][1]])
        except RaypipeError:
            refused += 1
        finally:
            if log:
                log.close()
    assert refused > 10


@pytest.mark.parametrize("suffix", ["sale-0000.parquet", "refund-0000.parquet", "sale-ids.npy"])
@pytest.mark.parametrize("how", ["flip", "truncate", "remove"])
def test_damaged_sealed_files_are_never_read(
    settled: Path, tmp_path: Path, suffix: str, how: str
) -> None:
    directory = tmp_path / "log"
    shutil.copytree(settled, directory)
    (path,) = (directory / "sealed").glob(f"*{suffix}")
    size = path.stat().st_size
    if how == "flip":
        flip(path, size // 3)
    elif how == "truncate":
        os.truncate(path, size // 2)
    else:
        path.unlink()
    log = SqliteLog(directory)
    live = sum(len(rows_of(seq)) for seq in range(40))
    assert sum(len(c) for c in log.read(0, 0, live)) == live
    if suffix.endswith(".npy"):
        with pytest.raises(IntegrityError, match=path.name):
            log.find(0, "sale", "t", "h10")
    else:
        with pytest.raises(IntegrityError, match=path.name):
            list(log.read(0, live, 10))
        with pytest.raises(IntegrityError, match=path.name):
            log.export(0, path.name.split("-")[2], Place.at(tmp_path / "out"), 0, 10**6)
    log.close()


def test_every_flipped_bit_of_a_sealed_file_gives_the_right_row_or_an_error(
    settled: Path, tmp_path: Path
) -> None:
    (source,) = (settled / "sealed").glob("*sale-0000.parquet")
    rng = random.Random(10)
    refused = 0
    directory = tmp_path / "log"
    shutil.copytree(settled, directory)
    path = directory / "sealed" / source.name
    for _ in range(60):
        shutil.copy(source, path)
        flip(path, rng.randrange(source.stat().st_size))
        log = SqliteLog(directory)
        place = rng.randrange(0, SEALED_ROWS, 2)
        try:
            found = log.find(0, "sale", "t", f"h{place}")
            assert found is not None
            assert found[1].to_pylist() == [
                {"tenant": "t", "event_id": f"h{place}", "event_time": 7_000 + place}
            ]
        except IntegrityError:
            refused += 1
        log.close()
    assert refused > 10


def test_a_flipped_bit_inside_a_sealed_value_is_not_returned(tmp_path: Path) -> None:
    rng = random.Random(11)
    fills = [rng.randbytes(3_000) for _ in range(50)]
    ids = [f"h{n}" for n in range(50)]
    rows = {"_position": range(50), "tenant": ["t"] * 50, "event_id": ids, "fill": fills}
    log = SqliteLog(tmp_path)
    log.seal(0, {"sale": [pa.record_batch(rows)]}, 50, **SEAL)  # type: ignore[arg-type]
    (path,) = (tmp_path / "sealed").glob("*.parquet")
    # What can't be compressed lies in the file as it is.
    flip(path, path.read_bytes().index(fills[7][1_000:1_100]))
    with pytest.raises(IntegrityError, match=path.name):
        log.find(0, "sale", "t", "h7")
    log.close()


def test_rows_that_vanished_are_noticed(settled: Path, tmp_path: Path) -> None:
    for n, statement in enumerate(
        [
            "delete from batch where place = (select place from batch limit 1 offset 9)",
            "delete from batch where base_offset > 100",
            "delete from sealed_range",
            "update kind set rows = rows - 1 where kind = 'sale'",
        ]
    ):
        directory = tmp_path / str(n)
        shutil.copytree(settled, directory)
        log = SqliteLog(directory)
        with log._db.write() as db:
            db.execute(statement)
        with pytest.raises(IntegrityError):
            rows_in(log)
        log.close()


def test_a_log_of_another_format_is_refused(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path)
    with log._db.write() as db:
        db.execute("pragma user_version = 99")
    log.close()
    with pytest.raises(IntegrityError, match="format 99"):
        SqliteLog(tmp_path)


# a medium that refuses


@pytest.mark.parametrize("kilobytes", [100, 150, 333])
def test_a_full_disk_refuses_clearly_and_the_log_goes_on(
    finish: Finish, tmp_path: Path, kilobytes: int
) -> None:
    status, lines = finish(fill_the_disk, tmp_path, kilobytes * 1024, "append")
    assert status == 0
    (said,) = lines
    assert "can't be written" in said["refused"]
    assert said["during"] == sum(len(rows_of(seq)) for seq in range(said["seq"]))
    log = SqliteLog(tmp_path)
    assert check_prefix(log) == said["seq"] + 50
    log.close()


def test_a_seal_on_a_full_disk_leaves_nothing(finish: Finish, tmp_path: Path) -> None:
    status, lines = finish(fill_the_disk, tmp_path, 2_000, "seal")
    assert status == 0
    (said,) = lines
    assert "can't be written" in said["refused"]
    assert said["during"] == len(rows_of(0))
    assert said["left"] == [".lock"]
    log = SqliteLog(tmp_path)
    assert log.end(0) == len(rows_of(0)) + SEALED_ROWS
    log.close()


FAILING_SYNC = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
static int broken(void) { return access(getenv("BROKEN_SYNC"), F_OK) == 0; }
int fsync(int fd) {
  if (broken()) { errno = EIO; return -1; }
  return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}
int fdatasync(int fd) {
  if (broken()) { errno = EIO; return -1; }
  return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd);
}
"""


@pytest.mark.skipif(
    shutil.which("cc") is None or not sys.platform.startswith("linux"),
    reason="a failing fsync is injected with a C library that `cc` builds",
)
def test_nothing_is_acknowledged_when_the_sync_fails(tmp_path: Path) -> None:
    source, library, broken = tmp_path / "sync.c", tmp_path / "sync.so", tmp_path / "broken"
    source.write_text(FAILING_SYNC)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    more = {"LD_PRELOAD": str(library), "BROKEN_SYNC": str(broken), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, __file__, tmp_path / "log", broken],
        env={**os.environ, **more},
        check=True,
        stdout=subprocess.PIPE,
    )
    said = json.loads(done.stdout)
    assert "can't be written" in said["refused"]
    assert said["during"] == 1
    log = SqliteLog(tmp_path / "log")
    assert check_prefix(log) == 3
    log.close()


if __name__ == "__main__":
    fail_to_sync(*sys.argv[1:])
