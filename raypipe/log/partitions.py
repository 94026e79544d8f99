"""An embedded log of several partitions that several processes write: a folder for each.

Writers of one SQLite file take turns, so that each worker would wait for the commits of all others.
Partition 0 lies where a log of one worker has it, so readers of that one need not know.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from raypipe.lake import Place
from raypipe.log.port import Appended, Chunk, Offsets
from raypipe.log.sqlite import SqliteLog

_FOLDER = re.compile(r"partition-([1-9][0-9]*)")


class PartitionedLog:
    """The event log in one directory, each partition a SqliteLog. See EventLog."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = threading.Lock()
        self._logs: dict[int, SqliteLog] = {}
        self.of(0)

    def __repr__(self) -> str:
        return f"PartitionedLog({str(self.directory)!r})"

    def of(self, partition: int) -> SqliteLog:
        """The log that has the partition; made if there is none."""
        with self._lock:
            found = self._logs.get(partition)
            if found is None:
                found = self._logs[partition] = SqliteLog(folder(self.directory, partition))
            return found

    def append(
        self,
        partition: int,
        batches: Sequence[Appended],
        *,
        producer: str,
        seq: int,
        epoch: int | None = None,
    ) -> list[Offsets]:
        """See EventLog.append."""
        return self.of(partition).append(
            partition, batches, producer=producer, seq=seq, epoch=epoch
        )

    def seal(
        self,
        partition: int,
        ordered: Mapping[str, Iterable[pa.RecordBatch]],
        count: int,
        *,
        producer: str,
        seq: int,
        epoch: int | None = None,
    ) -> tuple[int, int]:
        """See EventLog.seal."""
        log = self.of(partition)
        return log.seal(partition, ordered, count, producer=producer, seq=seq, epoch=epoch)

    def sealed_range(self, partition: int, producer: str, seq: int) -> tuple[int, int] | None:
        """See EventLog.sealed_range."""
        return self.of(partition).sealed_range(partition, producer, seq)

    def read(
        self, partition: int, offset: int, max_events: int, wait_ms: int = 0
    ) -> Iterator[Chunk]:
        """See EventLog.read."""
        return self.of(partition).read(partition, offset, max_events, wait_ms)

    def first(self, partition: int, kind: str | None = None) -> int:
        """See EventLog.first."""
        return self.of(partition).first(partition, kind)

    def end(self, partition: int) -> int:
        """See EventLog.end."""
        return self.of(partition).end(partition)

    def find(
        self, partition: int, kind: str, tenant: str, id: str
    ) -> tuple[int, pa.RecordBatch] | None:
        """See EventLog.find."""
        return self.of(partition).find(partition, kind, tenant, id)

    def commit(self, group: str, partition: int, offset: int, state_ref: str) -> None:
        """See EventLog.commit."""
        self.of(partition).commit(group, partition, offset, state_ref)

    def committed(self, group: str, partition: int) -> tuple[int, str] | None:
        """See EventLog.committed."""
        return self.of(partition).committed(group, partition)

    def begin_epoch(self, partition: int) -> int:
        """See EventLog.begin_epoch."""
        return self.of(partition).begin_epoch(partition)

    @property
    def id(self) -> str:
        """See EventLog.id."""
        return self.of(0).id

    def export(
        self, partition: int, kind: str, directory: Place, start: int, end: int
    ) -> list[Place]:
        """See EventLog.export."""
        return self.of(partition).export(partition, kind, directory, start, end)

    def kinds(self, partition: int) -> list[str]:
        """See EventLog.kinds."""
        return self.of(partition).kinds(partition)

    def counts(self, partition: int) -> dict[str, int]:
        """See EventLog.counts."""
        return self.of(partition).counts(partition)

    def close(self) -> None:
        """See EventLog.close."""
        for log in self._logs.values():
            log.close()


def folder(directory: Path, partition: int) -> Path:
    """Where a partition of the log in ``directory`` lies."""
    return directory / f"partition-{partition}" if partition else directory


def partitions(directory: Path) -> list[int]:
    """The partitions of the log in ``directory``."""
    found = [_FOLDER.fullmatch(path.name) for path in directory.glob("partition-*")]
    return [0, *sorted(int(match[1]) for match in found if match)]
