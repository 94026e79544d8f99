"""History on its way into the topic: kind by kind into files, then all kinds in their one order.

A seal takes one kind after the other, the topic wants rows by offset. The files are those of a
sealed range of the embedded log, with all its checks; they end with the seal.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raypipe.log.manifest import SealedFile, SealedRange
from raypipe.log.port import OFFSET, Group, Offsets, Part
from raypipe.log.sealing import Sealing

_FOLDER = "sealing"

_STEP = 20_000
"""Rows of a group, before it is cut to the size of a record."""


class Staged:
    """The rows of one range, in files of one folder."""

    def __init__(self, directory: Path, span: SealedRange) -> None:
        self._directory = directory
        self._span = span

    def groups(self) -> Iterator[Group]:
        """All rows in the order of their offsets; can be called again."""
        streams = [
            _Stream(kind, self._batches(files)) for kind, files in sorted(self._span.files.items())
        ]
        for low in range(self._span.start, self._span.end, _STEP):
            high = min(low + _STEP, self._span.end)
            yield Group(tuple(part for s in streams for part in s.take(low, high)))

    def _batches(self, files: Iterable[SealedFile]) -> Iterator[tuple[Offsets, pa.RecordBatch]]:
        for file in files:
            path = self._directory / file.name
            with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
                for batch in parquet.iter_batches(batch_size=_STEP):
                    yield batch.column(0).to_numpy(), batch.drop_columns([OFFSET])


class _Stream:
    """One kind's rows."""

    def __init__(self, kind: str, batches: Iterator[tuple[Offsets, pa.RecordBatch]]) -> None:
        self._kind = kind
        self._batches = batches
        self._rest = next(batches, None)

    def take(self, low: int, high: int) -> Iterator[Part]:
        """The rows before offset ``high``; positions count from ``low``."""
        while self._rest is not None:
            offsets, batch = self._rest
            count = int(np.searchsorted(offsets, high))
            if count:
                positions = (offsets[:count] - low).astype(np.int32)
                yield Part(self._kind, batch.slice(0, count), positions)
            if count < len(offsets):
                self._rest = offsets[count:], batch.slice(count)
                return
            self._rest = next(self._batches, None)


def remove_leftovers(directory: Path) -> None:
    """Remove what a crash left of a seal in this folder, unless one is running."""
    with _locked(directory, fcntl.LOCK_EX | fcntl.LOCK_NB) as alone:
        if alone:
            shutil.rmtree(directory / _FOLDER, ignore_errors=True)


@contextmanager
def staging(
    directory: Path,
    partition: int,
    start: int,
    ordered: Mapping[str, Iterable[pa.RecordBatch]],
    count: int,
) -> Iterator[Staged]:
    """Take the batches in; see EventLog.seal for what they must be. One at a time in a folder."""
    folder = directory / _FOLDER
    with _locked(directory, fcntl.LOCK_EX):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        try:
            sealing = Sealing(folder, partition, start, count)
            span = sealing.write(ordered)
            sealing.publish()
            yield Staged(folder, span)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(directory: Path, how: int) -> Iterator[bool]:
    """Hold the folder; False when another holds it and ``how`` doesn't wait."""
    lock = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, how)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(lock)
