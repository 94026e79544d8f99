"""Files become the same batches every time, and every row of them is taken once."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.errors import (
    Conflict,
    InputError,
    MalformedBody,
    Unavailable,
    UnsupportedMedia,
    UsageError,
)
from raypipe.sources import files
from raypipe.sources.batch import Batch, Send, Taken
from raypipe.sources.feed import Fed, feed
from raypipe.sources.files import EventFile
from raypipe.sources.watch import Watched
from tests.unit.ingest_kit import Service, lines, reading
from tests.unit.serving_kit import PROJECT


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path / "home")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ROWS", 3)


def opened(path: Path, kind: str | None = None) -> EventFile:
    return EventFile(path, PROJECT, "EUR", kind)


def send(service: Service, path: Path, kind: str | None = None, how: Send | None = None) -> Fed:
    return feed(opened(path, kind), how or service.sender().send, 1, lambda _: None)


def logged(service: Service) -> dict[str, int]:
    return Counter(name for kind, name in service.logged() if kind in ("reading", "fault"))


def once(names: list[str]) -> dict[str, int]:
    return dict.fromkeys(names, 1)


def plain(event_id: str, **changes: Any) -> dict[str, Any]:
    row = reading(event_id, **changes)
    del row["type"]
    return row


IDS = [f"r-{i}" for i in range(8)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = lines(*rows)
    match path.suffixes:
        case [*_, ".json"]:
            path.write_text(json.dumps(rows, indent=2))
        case [*_, ".gz"]:
            path.write_bytes(gzip.compress(text, mtime=0))
        case [*_, ".zst"]:
            with pa.output_stream(str(path), compression="zstd") as stream:
                stream.write(text)
        case [".parquet"]:
            pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=5)
        case [".csv"]:
            pyarrow.csv.write_csv(pa.Table.from_pylist(rows), path)
        case _:
            path.write_bytes(text + b"\n\n")
    return path


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("name", ["a.ndjson", "a.json", "a.jsonl.gz", "a.ndjson.zst", "a.parquet"])
def test_every_form_is_taken_once_however_often_it_is_sent(
    service: Service, tmp_path: Path, name: str
) -> None:
    path = write(tmp_path / name, [reading(i) for i in IDS])
    assert send(service, path).accepted == 8
    service.clock.advance(3_600_000)
    service.worker.start()
    path.rename(tmp_path / f"again-{name}")
    assert send(service, tmp_path / f"again-{name}").accepted == 8  # the first answer
    assert logged(service) == once(IDS)


@pytest.mark.usefixtures("few")
def test_text_of_a_csv_is_read_as_its_fields_are_declared(service: Service, tmp_path: Path) -> None:
    rows = [plain(i, cost=str(n * 100)) for n, i in enumerate(IDS)]
    rows[4]["cost"] = "much"
    rows[6]["heat"] = None
    texts = [{k: None if v is None else str(v) for k, v in r.items()} for r in rows]
    path = write(tmp_path / "a.csv", texts)
    fed = send(service, path, "reading")
    assert (fed.accepted, fed.rejected) == (6, 2)
    assert fed.refused == {
        4: ("/cost: must be an integer of minor units, not a string",),
        6: ("/heat: is required",),
    }
    assert send(service, path, "reading").accepted == 6
    assert logged(service) == once([i for n, i in enumerate(IDS) if n not in (4, 6)])
    kept = [json.loads(r.body) for r in service.worker.quarantine.rows()]
    assert [(r["event_id"], r.get("cost")) for r in kept] == [("r-6", 600), ("r-4", "much")]


def test_a_broken_csv_line_is_refused_with_its_text(service: Service, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [plain(i) for i in IDS])
    path.write_text(path.read_text() + "too,few\n")
    fed = send(service, path, "reading")
    assert (fed.accepted, fed.rejected) == (8, 1)
    assert "too,few" in service.worker.quarantine.rows()[0].body


@given(
    rows=st.lists(st.text("ab", min_size=1, max_size=9), max_size=30),
    limit=st.integers(1, 7),
    size=st.integers(1, 40),
    block=st.integers(1, 17),
)
def test_lines_are_cut_like_this(
    rows: list[str], limit: int, size: int, block: int, tmp_path_factory: Any
) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.ndjson"
    path.write_text("\n \n".join(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "ROWS", limit)
        patch.setattr(files, "BYTES", size)
        patch.setattr(files, "_BLOCK", block)
        found = list(opened(path).batches())
    assert [row for b in found for row in b.batch.body.decode().split("\n")] == rows
    place = 0
    for number, b in enumerate(found):
        assert (b.first, b.row(b.batch.rows - 1)) == (place, place + b.batch.rows - 1)
        place += b.batch.rows
        held = len(b.batch.body) - b.batch.rows + 1
        full = b.batch.rows == limit or held >= size
        assert full or number == len(found) - 1
        assert b.batch.rows <= limit
    assert len({b.batch.key for b in found}) == len(found)


def test_other_files_have_other_keys(tmp_path: Path) -> None:
    first = write(tmp_path / "a.ndjson", [plain("a")])
    second = write(tmp_path / "b.ndjson", [plain("b")])
    found = {
        (p, k): next(opened(p, k).batches()).batch.key
        for p in (first, second)
        for k in (None, "reading")
    }
    assert len(set(found.values())) == 4
    assert all(len(key) <= 128 and key.isprintable() for key in found.values())


@pytest.mark.usefixtures("few")
def test_a_file_that_was_broken_off_goes_on(service: Service, tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [*(reading(i) for i in IDS), reading("x", cost="free")])
    sender, sent = service.sender(), []

    def breaks(batch: Batch) -> Taken:
        taken = sender.send(batch)
        sent.append(batch.key)
        if len(sent) == 2:
            raise Unavailable("the answer was lost")
        return taken

    with pytest.raises(Unavailable):
        send(service, path, how=breaks)
    service.clock.advance(3_600_000)
    service.worker.start()
    fed = send(service, path)
    assert (fed.accepted, fed.duplicates, fed.rejected) == (8, 0, 1)
    assert fed.refused == {8: ("/cost: must be an integer of minor units, not a string",)}
    assert logged(service) == once(IDS)
    assert len(service.worker.quarantine) == 1


@pytest.mark.usefixtures("few")
def test_many_at_once_bring_all(service: Service, tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [reading(i) for i in IDS])
    done: list[int] = []
    sender = service.sender()
    # The worker of the test is one thread's; the answers come in any order.
    order = random.Random(3)

    def slow(batch: Batch) -> Taken:
        return answers[batch.key]

    answers = {b.batch.key: sender.send(b.batch) for b in opened(path).batches()}
    fed = feed(opened(path), slow, order.randint(2, 4), done.append)
    assert (fed.accepted, sum(done)) == (8, 8)


def test_a_file_that_changes_meanwhile_is_noticed(service: Service, tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [reading("a")])
    file = opened(path)
    path.write_bytes(path.read_bytes() + lines(reading("b")))
    with pytest.raises(Conflict, match="changed while"):
        feed(file, service.sender().send, 1, lambda _: None)


@pytest.mark.parametrize(
    ("name", "kind", "error", "words"),
    [
        ("a.xlsx", None, UnsupportedMedia, ".ndjson"),
        ("a.parquet.gz", None, UnsupportedMedia, "Parquet"),
        ("a.csv", None, UsageError, "--type"),
        ("a.ndjson", "raeding", UsageError, "reading, fault"),
        ("none.ndjson", None, InputError, "no file"),
    ],
)
def test_files_that_cannot_be(
    tmp_path: Path, name: str, kind: str | None, error: type[Exception], words: str
) -> None:
    if "none" not in name:
        (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(error) as caught:
        opened(tmp_path / name, kind)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.ndjson.gz", gzip.compress(b"{}" * 1_000, mtime=0)[:-9]),
        ("a.json", b"[{}, "),
        ("a.ndjson", b"x" * (2 * 2**20)),
        ("a.parquet", b"PAR1"),
    ],
)
def test_files_that_cannot_be_read(
    service: Service, tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MalformedBody):
        send(service, tmp_path / name)


# A watched folder ---------------------------------------------------------------------------------


class Folder:
    def __init__(self, service: Service, path: Path) -> None:
        path.mkdir(exist_ok=True)
        self.path = path
        self.now = 0.0
        self.service = service
        self.restart()

    def restart(self, how: Callable[[EventFile], Fed] | None = None) -> None:
        sender = self.service.sender()
        self.watched = Watched(
            self.path,
            opened,
            how or (lambda file: feed(file, sender.send, 1, lambda _: None)),
            lambda: self.now,
        )

    def turn(self) -> dict[str, Any]:
        self.watched.ready()
        self.now += 3
        return {path.name: self.watched.take(path) for path in self.watched.ready()}

    def names(self, where: str = ".") -> list[str]:
        return sorted(p.name for p in (self.path / where).iterdir() if p.is_file())


@pytest.fixture
def folder(service: Service, tmp_path: Path) -> Folder:
    return Folder(service, tmp_path / "in")


def test_files_move_when_they_are_taken(service: Service, folder: Folder) -> None:
    write(folder.path / "a.ndjson", [reading("a"), reading("b", cost="free")])
    write(folder.path / "b.ndjson", [reading("c")])
    (folder.path / "c.ndjson.gz").write_bytes(b"no gzip")
    (folder.path / "d.txt.zip").write_bytes(b"strange")
    for name in (".hidden.ndjson", "e.ndjson.part", "f.ndjson.tmp"):
        write(folder.path / name, [reading("never")])
    took = folder.turn()
    assert sorted(took) == ["a.ndjson", "b.ndjson", "c.ndjson.gz", "d.txt.zip"]
    assert folder.names() == [".hidden.ndjson", "e.ndjson.part", "f.ndjson.tmp"]
    assert folder.names("done") == ["a.ndjson", "a.ndjson.reasons", "b.ndjson"]
    assert folder.names("failed") == [
        "c.ndjson.gz", "c.ndjson.gz.reasons", "d.txt.zip", "d.txt.zip.reasons",
    ]  # fmt: skip
    (why,) = (folder.path / "done/a.ndjson.reasons").read_text().splitlines()
    assert json.loads(why) == {
        "row": 1, "reasons": ["/cost: must be an integer of minor units, not a string"],
    }  # fmt: skip
    assert "to its end" in (folder.path / "failed/c.ndjson.gz.reasons").read_text()
    assert logged(service) == once(["a", "c"])


def test_a_file_is_left_until_it_no_longer_grows(service: Service, folder: Folder) -> None:
    path = folder.path / "a.ndjson"
    path.write_bytes(lines(reading("a")) + b"\n")
    assert folder.watched.ready() == []
    folder.now += 1.5
    path.write_bytes(path.read_bytes() + lines(reading("b")))
    assert folder.watched.ready() == []
    folder.now += 1.5
    assert folder.watched.ready() == []
    assert folder.watched.waiting
    folder.now += 1
    assert folder.watched.ready() == [path]


def test_the_same_name_again_replaces_nothing(service: Service, folder: Folder) -> None:
    for name in ("a", "b"):
        write(folder.path / "x.ndjson", [reading(name)])
        folder.turn()
    assert len(folder.names("done")) == 2
    write(folder.path / "x.ndjson", [reading("b")])
    folder.turn()
    assert len(folder.names("done")) == 2
    assert logged(service) == once(["a", "b"])


def test_a_system_that_is_away_leaves_the_file(service: Service, folder: Folder) -> None:
    write(folder.path / "a.ndjson", [reading("a")])

    def away(file: EventFile) -> Fed:
        raise Unavailable("away")

    folder.restart(away)
    with pytest.raises(Unavailable):
        folder.turn()
    assert folder.names() == ["a.ndjson"]
    folder.restart()
    folder.turn()
    assert folder.names("done") == ["a.ndjson"]
    assert logged(service) == once(["a"])
