"""Parquet files and arrays that are either whole and durable under their name or not there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raypipe.errors import IntegrityError
from raypipe.log.port import LogUnwritable

TEMPORARY = ".tmp"
"""Suffix of a file that is still being written."""

GROUP_ROWS = 50_000
"""Rows of a row group: what finding one row has to decode."""

FILE_ROWS = 1_000_000
"""Most rows of one file."""


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Turn the operating system's refusal to write ``what`` into LogUnwritable."""
    try:
        yield
    except OSError as e:
        raise LogUnwritable(
            f"{what}: {e}", hint="Free space on the log's disk or check its health, then retry."
        ) from e


def parquet_writer(sink: Path | pa.NativeFile, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer with the log's settings; page checksums let a reader notice damage."""
    return pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True)


def temporary(path: Path) -> Path:
    """Where the file of that name is written first."""
    return path.with_name(path.name + TEMPORARY)


def sync(path: Path) -> str:
    """Make a finished file durable and return its sha256."""
    with path.open("rb") as f:
        os.fsync(f.fileno())
        return hashlib.file_digest(f, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Have what is written so far on the disk: many megabytes synced at once hold up the syncs of
    others on the same disk, and the log's commits are such syncs."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)


def check_file(path: Path, sha256: str, offset: int) -> None:
    """Raise IntegrityError that names the file's first offset, unless its bytes are as sealed."""
    try:
        with path.open("rb") as f:
            found = hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as e:
        raise damaged(path, offset, str(e)) from e
    if found != sha256:
        raise damaged(path, offset, f"sha256 is {found}, sealed was {sha256}")


def damaged(path: Path, offset: int, why: str) -> IntegrityError:
    """The error for a sealed file that can't be trusted."""
    return IntegrityError(
        f"sealed file {path.name}, from offset {offset}: {why}",
        hint="Restore the file from a backup; the log doesn't go on without it.",
    )
