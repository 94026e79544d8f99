"""What a lake promises, on a folder and on a real S3 server."""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
import threading
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from raypipe.errors import ConfigError, Unavailable, UsageError
from raypipe.lake import Place
from tests.recovery.nursery import Nursery

BIG = bytes(range(256)) * 60_000
"""15 MB: more than one part of an upload."""


@pytest.fixture(params=["folder", "s3"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        return Place.at(tmp_path / "lake")
    query = request.getfixturevalue("s3_query")
    return Place.at(f"s3://lake/{uuid.uuid4().hex}?{query}")


def raw(place: Place) -> tuple[fs.FileSystem, str]:
    """The same place through pyarrow alone."""
    if place.local is not None:
        return fs.LocalFileSystem(), str(place.local)
    bucket, _, path = place.url.removeprefix("s3://").partition("/")
    found, root = fs.FileSystem.from_uri(f"s3://{bucket}?{place.options}")
    return found, f"{root}/{path}"


# bytes


@pytest.mark.parametrize("data", [b"", b"x", b"a\0b\r\n", BIG], ids=["empty", "one", "odd", "big"])
def test_what_was_written_is_read(lake: Place, data: bytes) -> None:
    place = lake / "some" / "file.bin"
    assert place.write(data) == hashlib.sha256(data).hexdigest() == place.sha256()
    assert place.read() == data
    assert place.buffer().to_pybytes() == data
    with place.open() as file:
        assert file.size() == len(data)
        file.seek(len(data) // 2)
        assert file.read() == data[len(data) // 2 :]
    filesystem, key = raw(place)
    with filesystem.open_input_stream(key) as stream:
        assert stream.read() == data


def test_a_second_write_replaces_the_first(lake: Place) -> None:
    place = lake / "pointer"
    for text in (b"first, and longer", b"second"):
        place.write(text)
        assert place.read() == text
    assert lake.names() == ["pointer"]


def test_bytes_at_hand_stay_what_they_were_when_the_file_is_replaced(lake: Place) -> None:
    place = lake / "f"
    place.write(BIG)
    held = place.buffer()
    place.write(b"short")
    assert held.to_pybytes() == BIG


def test_what_is_written_in_pieces_is_one_file(lake: Place) -> None:
    place = lake / "a" / "b"
    with place.writing() as sink:
        for i in range(0, len(BIG), 1_000_003):
            sink.write(BIG[i : i + 1_000_003])
        assert not place.exists()
    assert place.read() == BIG


def _fail_while_writing(place: Place, error: type[BaseException]) -> None:
    with place.writing() as sink:
        sink.write(BIG)
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_the_file_before(lake: Place, error: type[BaseException]) -> None:
    old, new = lake / "old", lake / "new"
    old.write(b"before")
    for place in (old, new):
        with pytest.raises(error):
            _fail_while_writing(place, error)
    assert old.read() == b"before"
    assert not new.exists()
    assert lake.names() == ["old"]
    filesystem, key = raw(lake)
    assert len(filesystem.get_file_info(fs.FileSelector(key, recursive=True))) == 1


def write_and_die(url: str) -> None:
    with Place.at(url).writing() as sink:
        sink.write(bytes(20_000_000))
        sink.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_killed_while_writing_leaves_the_file_before(
    nursery: Nursery, lake: Place
) -> None:
    place = lake / "f"
    place.write(b"before")
    assert nursery.finish(write_and_die, place).status == -9
    assert place.read() == b"before"
    assert lake.names() == ["f"]


def test_a_reader_sees_one_of_the_written_files_whole(lake: Place) -> None:
    place = lake / "pointer"
    texts = [bytes([65 + i]) * (1_000 + i) for i in range(8)]
    place.write(texts[0])
    reads = threading.Semaphore(0)

    def write() -> None:
        for i in range(300):
            reads.acquire()
            place.write(texts[i % len(texts)])

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    for _ in range(300):
        reads.release()  # a write begins with each read
        seen.add(place.read())
    writer.join()
    assert seen <= set(texts)


# tables


def test_a_parquet_table_comes_back(lake: Place) -> None:
    table = pa.table({"n": pa.array([1, None, 3], pa.int64()), "t": ["a", "b", None]})
    place = lake / "t.parquet"
    assert place.write_parquet(table, compression="lz4") == place.sha256()
    with pq.ParquetFile(place.open()) as file:
        assert file.read().equals(table)
        assert file.read(columns=["t"]).column_names == ["t"]
    assert pq.read_table(place.key, filesystem=place.filesystem).equals(table)
    lake_table = table.slice(0, 0)
    place.write_parquet(lake_table)
    assert pq.read_table(pa.BufferReader(place.buffer())).equals(lake_table)


# what is there


def test_absent_is_told_from_empty(lake: Place) -> None:
    place = lake / "no" / "such"
    assert not place.exists()
    assert (place.names(), place.files()) == ([], [])
    for call in (place.read, place.buffer, place.open, place.sha256):
        with pytest.raises(FileNotFoundError):
            call()
    place.write(b"")
    assert place.exists()
    assert not (lake / "no").exists(), "a folder is no file"


def test_names_are_what_lies_right_below_and_files_what_lies_anywhere_below(lake: Place) -> None:
    for name in ("b/2/y", "b/1/x", "a", "c/.hidden/z", ".tmp", "bb"):
        (lake / name).write(name.encode())
    assert lake.names() == ["a", "b", "bb", "c"]
    assert (lake / "b").names() == ["1", "2"]
    assert [f.below(lake) for f in lake.files()] == ["a", "b/1/x", "b/2/y", "bb"]
    assert [f.read() for f in (lake / "b").files()] == [b"b/1/x", b"b/2/y"]


def test_removing_takes_just_that(lake: Place) -> None:
    for name in ("a/1", "a/b/2", "a/b/c/3", "a/.hidden", "ab/4", "d"):
        (lake / name).write(b"x")
    (lake / "d").remove()
    (lake / "a").remove_tree()
    for gone in (lake / "d", lake / "never"):
        gone.remove()
        gone.remove_tree()
    assert [f.below(lake) for f in lake.files()] == ["ab/4"]
    assert (lake / "a").names() == []
    (lake / "a" / "1").write(b"again")
    assert (lake / "a").names() == ["1"]


def test_pruning_keeps_named_folders_and_all_files(lake: Place) -> None:
    for name in ("current", "v1/a/x", "v2/y", "v3/z", "v10/z"):
        (lake / name).write(b"x")
    lake.prune({"v1", "v3", "v9"})
    assert [f.below(lake) for f in lake.files()] == ["current", "v1/a/x", "v3/z"]
    (lake / "nothing").prune(set())


# the value


def test_a_place_is_a_value_that_text_and_other_processes_carry(lake: Place) -> None:
    place = lake / "a/b" / "c.txt"
    assert Place.at(str(place)) == place == pickle.loads(pickle.dumps(place))
    assert len({place, Place.at(str(place))}) == 1
    assert (place.name, place.parent, place.below(lake)) == ("c.txt", lake / "a" / "b", "a/b/c.txt")
    assert place.below(lake / "x") is None
    assert (lake / "ab").below(lake / "a") is None
    assert "?" not in place.url
    assert (place.local is None) == ("://" in place.url)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/../b", "/a", "a/", "a//b", "a?b", "a#b", "a\\b", "a\0b"]
)
def test_a_name_that_could_lead_elsewhere_is_refused(lake: Place, name: str) -> None:
    with pytest.raises(UsageError):
        lake / name


def test_a_folder_by_path_and_by_url_is_one_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b").mkdir()
    expected = Place(str(tmp_path / "a b"))
    assert Place.at("a b") == Place.at(tmp_path / "x" / ".." / "a b") == expected
    assert Place.at((tmp_path / "a b").as_uri()) == expected
    assert expected.local == tmp_path / "a b"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://host/x", "ftp: is no lake"),
        ("http://host/x", "http: is no lake"),
        ("file://host/x", "absolute path"),
        ("file://x", "absolute path"),
        ("s3://", "'' is no bucket"),
        ("s3:///x", "'' is no bucket"),
        ("s3://Upper/x", "'Upper' is no bucket"),
        ("s3://key:secret@lake/x", "credentials"),
        ("s3://key:sec/ret@lake/x", "credentials"),
        ("gs://key@lake/x", "credentials"),
        ("s3://lake/a/../b", "dots"),
        ("s3://lake/a*", r"\*"),
        ("s3://lake/a%20b", "%"),
        ("s3://lake/a#b", "#"),
        ("s3://lake/a?regoin=x", "regoin"),
        ("s3://lake/a?region=", "region="),
        ("s3://lake/a?region=x&region=y", "once each"),
        ("s3://lake/a?access_key=x", "access_key"),
        ("gs://lake/a?region=x", "region"),
    ],
)
def test_a_url_that_can_not_work_is_refused_without_telling_secrets(url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as e:
        Place.at(url)
    assert e.value.hint
    assert "sec" not in e.value.detail


def test_a_store_that_is_away_or_refuses_is_unavailable(
    s3_query: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = Place.at(f"s3://no-such-bucket/x?{s3_query}")
    with pytest.raises(Unavailable, match=r"s3://no-such-bucket/x/f.*[Bb]ucket") as e:
        (missing / "f").write(b"x")
    assert "lake_url" in e.value.hint
    # Another region's client is another one of pyarrow's, made with the wrong key.
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    refused = Place.at(f"s3://lake/x?{s3_query.replace('us-east-1', 'us-east-2')}")
    with pytest.raises(Unavailable):
        refused.write(b"x")
