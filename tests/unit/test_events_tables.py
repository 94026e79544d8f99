"""Reading tables in chunks: CSV as text, Parquet as typed, broken lines named."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypipe.errors import InputError, MalformedBody, UnsupportedMedia
from raypipe.events.tables import SourceTable


def rows(table: SourceTable, *columns: str, chunk: int = 1000) -> list[dict[str, object]]:
    return [r for c in table.chunks(columns, chunk) for r in c.rows.to_pylist()]


def csv(path: Path, content: str | bytes) -> SourceTable:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return SourceTable.open(path)


def test_csv_values_stay_text_and_empty_ones_are_missing(tmp_path: Path) -> None:
    table = csv(tmp_path / "t.csv", 'ID,NOTE,N\n007,"a, ""b""\nc",\n08,"",NA\n')
    assert table.name == "t"
    assert rows(table, "N", "ID", "NOTE") == [
        {"N": None, "ID": "007", "NOTE": 'a, "b"\nc'},
        {"N": "NA", "ID": "08", "NOTE": None},
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_header_tells_the_delimiter(tmp_path: Path, delimiter: str) -> None:
    table = csv(tmp_path / "t.txt", f"a{delimiter}b\r\n1{delimiter}2\r\n")
    assert rows(table, "b") == [{"b": "2"}]


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    table = csv(tmp_path / "t.csv", "\ufeffID,N\n1,2\n")
    assert table.schemas()[0].names == ["ID", "N"]
    assert rows(table, "ID") == [{"ID": "1"}]


def test_a_compressed_csv_is_read(tmp_path: Path) -> None:
    table = csv(tmp_path / "t.csv.gz", gzip.compress(b"ID\n1\n2\n"))
    assert table.name == "t"
    assert rows(table, "ID") == [{"ID": "1"}, {"ID": "2"}]


def test_broken_lines_are_handed_out_and_the_others_read(tmp_path: Path) -> None:
    table = csv(tmp_path / "t.csv", "a,b\n1,2\n3\n4,5,6\n7,8\n")
    chunks = list(table.chunks(["a"]))
    assert [r["a"] for c in chunks for r in c.rows.to_pylist()] == ["1", "7"]
    broken = [b for c in chunks for b in c.broken]
    assert broken == [
        ('{"line": 3, "text": "3"}', "/: has 1 values, the header names 2"),
        ('{"line": 4, "text": "4,5,6"}', "/: has 3 values, the header names 2"),
    ]


def test_a_csv_of_broken_lines_alone_hands_them_out(tmp_path: Path) -> None:
    chunks = list(csv(tmp_path / "t.csv", "a,b\n1\n2\n").chunks(["a"]))
    assert sum(c.rows.num_rows for c in chunks) == 0
    assert sum(len(c.broken) for c in chunks) == 2


def test_a_header_without_rows_is_an_empty_table(tmp_path: Path) -> None:
    assert rows(csv(tmp_path / "t.csv", "a,b\n"), "a") == []


def test_bytes_that_are_no_utf8_reach_the_reader_of_the_value(tmp_path: Path) -> None:
    (chunk,) = csv(tmp_path / "t.csv", b"a,b\nx\xff,1\n").chunks(["a"])
    with pytest.raises(pa.ArrowInvalid):
        chunk.rows.validate(full=True)


@pytest.mark.parametrize("content", [b"", b"\n1,2\n", b"\xff\xfea,b\n", b",\n1,2\n"])
def test_a_csv_without_a_header_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(MalformedBody):
        csv(tmp_path / "t.csv", content).schemas()


@pytest.mark.parametrize("size", [1, 3, 100])
def test_chunks_hold_all_rows_in_order_whatever_their_size(tmp_path: Path, size: int) -> None:
    pq.write_table(pa.table({"n": range(10), "x": ["x"] * 10}), tmp_path / "t.parquet")
    table = SourceTable.open(tmp_path / "t.parquet")
    chunks = list(table.chunks(["n"], size))
    assert max(c.rows.num_rows for c in chunks) <= size
    assert [r["n"] for r in rows(table, "n", chunk=size)] == list(range(10))
    lines = csv(tmp_path / "u.csv", "n\n" + "".join(f"{i}\n" for i in range(10)))
    assert max(c.rows.num_rows for c in lines.chunks(["n"], size)) <= size
    assert [r["n"] for r in rows(lines, "n", chunk=size)] == [str(i) for i in range(10)]


def test_a_folder_is_one_table_in_name_order(tmp_path: Path) -> None:
    folder = tmp_path / "sales"
    (folder / "later").mkdir(parents=True)
    for place, values in [("later/b.parquet", [3]), ("a.parquet", [1, 2])]:
        pq.write_table(pa.table({"n": values}), folder / place)
    (folder / "_SUCCESS").touch()
    table = SourceTable.open(folder)
    assert table.name == "sales"
    assert [r["n"] for r in rows(table, "n")] == [1, 2, 3]


def test_the_hash_is_of_the_content_alone(tmp_path: Path) -> None:
    one, same = csv(tmp_path / "a.csv", "n\n1\n"), csv(tmp_path / "b.csv", "n\n1\n")
    other = csv(tmp_path / "c.csv", "n\n2\n")
    assert one.sha256() == same.sha256() != other.sha256()


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no table"):
        SourceTable.open(tmp_path / "none.csv")
    (tmp_path / "t.xlsx").touch()
    with pytest.raises(UnsupportedMedia, match="neither Parquet nor CSV"):
        SourceTable.open(tmp_path / "t.xlsx")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="Parquet files alone or CSV"):
        SourceTable.open(tmp_path / "empty")


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"n": range(100_000)}), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MalformedBody, match="no readable Parquet"):
        SourceTable.open(path).schemas()
    path.write_bytes(b"\x00" * (len(whole) // 2) + whole[len(whole) // 2 :])
    with pytest.raises(MalformedBody):
        rows(SourceTable.open(path), "n")
