"""Tables to load from: Parquet or CSV, a file or a folder of files, read in chunks of any size.

CSV columns are read as text, so that an id like 007 keeps its zeros; the mapping says what they
mean. A CSV line with too few or too many values is skipped and handed out as broken.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from raypipe.errors import InputError, MalformedBody, UnsupportedMedia
from raypipe.events.validate import as_json

CHUNK_ROWS = 131_072
_CSV_BLOCK = 8 * 2**20
_CSV_SUFFIXES = (".csv", ".tsv", ".txt")
_COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of a table. ``broken`` are (JSON text, reason) of lines that are no rows."""

    rows: pa.Table
    broken: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class SourceTable:
    """One table: files of the same columns, in name order."""

    name: str
    files: tuple[Path, ...]

    @classmethod
    def open(cls, path: Path) -> SourceTable:
        """A file, or a folder with Parquet or CSV files; raises InputError when it is neither."""
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and _format(p))
            if not inside or len({_format(p) for p in inside}) > 1:
                raise InputError(
                    f"folder {path} must hold Parquet files alone or CSV files alone",
                    hint=f"It holds {len(inside)} files of these two formats.",
                )
            return cls(path.name, tuple(inside))
        if not path.is_file():
            raise InputError(f"there is no table {path}")
        if not _format(path):
            raise UnsupportedMedia(
                f"{path} is neither Parquet nor CSV",
                hint="Known endings: .parquet, " + ", ".join(_CSV_SUFFIXES) + ", also with .gz.",
            )
        plain = path.with_suffix("") if path.suffix.lower() in _COMPRESSED else path
        return cls(plain.stem, (path,))

    def sha256(self) -> str:
        """Hash of the content: of each file's bytes, in order."""
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as f:
                digest.update(hashlib.file_digest(f, "sha256").digest())
        return digest.hexdigest()

    def schemas(self) -> list[pa.Schema]:
        """Names and types of each file's columns; raises MalformedBody."""
        found = []
        for path in self.files:
            if _format(path) == "csv":
                names, _ = _csv_header(path)
                found.append(pa.schema([(n, pa.string()) for n in names]))
            else:
                with _open_parquet(path) as f:
                    found.append(f.schema_arrow)
        return found

    def chunks(self, columns: Sequence[str], rows: int = CHUNK_ROWS) -> Iterator[Chunk]:
        """The given columns in file order, at most about ``rows`` rows at once in memory."""
        for path in self.files:
            read = _csv_chunks if _format(path) == "csv" else _parquet_chunks
            try:
                yield from read(path, list(columns), rows)
            except (pa.ArrowException, OSError) as e:
                raise MalformedBody(f"{path} can't be read to its end: {e}") from e


def _format(path: Path) -> str:
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        return "csv" if len(suffixes) > 1 and suffixes[-2] in _CSV_SUFFIXES else ""
    if suffixes and suffixes[-1] in _CSV_SUFFIXES:
        return "csv"
    return "parquet" if suffixes and suffixes[-1] in (".parquet", ".pq") else ""


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        # Not pre-buffered: a row group may be the whole file.
        return pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
    except (pa.ArrowException, OSError) as e:
        raise MalformedBody(f"{path} is no readable Parquet file: {e}") from e


def _parquet_chunks(path: Path, columns: list[str], rows: int) -> Iterator[Chunk]:
    with _open_parquet(path) as f:
        for batch in f.iter_batches(batch_size=rows, columns=columns, use_threads=False):
            yield Chunk(pa.Table.from_batches([batch]))


def _csv_header(path: Path) -> tuple[list[str], str]:
    """Column names and the delimiter: of comma, semicolon, tab and bar the one used most."""
    try:
        with pa.input_stream(str(path), compression="detect") as stream:
            head = stream.read(2**20)
        line = io.StringIO(head.decode("utf-8-sig", "replace"), newline="").readline()
        delimiter = max(",;\t|", key=line.count)
        names = next(csv.reader([line], delimiter=delimiter), [])
    except (pa.ArrowException, OSError, csv.Error) as e:
        raise MalformedBody(f"{path} is no readable CSV file: {e}") from e
    if not any(names) or "\ufffd" in line:
        raise MalformedBody(
            f"{path} has no header line in UTF-8", hint="The first line must name the columns."
        )
    return names, delimiter


def _csv_chunks(path: Path, columns: list[str], rows: int) -> Iterator[Chunk]:
    names, delimiter = _csv_header(path)
    broken: list[tuple[str, str]] = []

    def skip(line: pa.csv.InvalidRow) -> str:
        reason = f"/: has {line.actual_columns} values, the header names {line.expected_columns}"
        broken.append((as_json({"line": line.number, "text": line.text}), reason))
        return "skip"

    reader = pa.csv.open_csv(
        path,
        # One thread: only then is the line number of a broken line known.
        pa.csv.ReadOptions(use_threads=False, block_size=_CSV_BLOCK),
        pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip),
        pa.csv.ConvertOptions(
            check_utf8=False,
            column_types={name: pa.string() for name in names},
            include_columns=columns,
            null_values=[""],
            strings_can_be_null=True,
        ),
    )
    with reader:
        for batch in reader:
            taken, broken[:] = tuple(broken), []
            whole = pa.Table.from_batches([batch])
            for start in range(0, max(len(batch), 1), rows):
                yield Chunk(whole.slice(start, rows), taken)
                taken = ()
    if broken:
        yield Chunk(pa.schema([(c, pa.string()) for c in columns]).empty_table(), tuple(broken))
