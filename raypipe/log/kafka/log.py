"""The event log on Kafka: one topic whose partitions are the log's, and a compacted one beside it.

docs/adr/0018-kafka-log.md says why it is built like this. An append is one transaction of records
that each hold rows of one batch; writer.py has the fencing, index.py what must be known to refuse
duplicates, records.py the way from a row's offset to Kafka's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa

from raypipe.aborts import reach
from raypipe.errors import Unavailable, UsageError
from raypipe.lake import Place
from raypipe.log import codec
from raypipe.log.export import export
from raypipe.log.identity import hash_keys, keys
from raypipe.log.kafka.address import KafkaAddress
from raypipe.log.kafka.index import Index
from raypipe.log.kafka.meta import Meta
from raypipe.log.kafka.reader import Readers
from raypipe.log.kafka.record import Ack, Head, State, pieces
from raypipe.log.kafka.records import Records
from raypipe.log.kafka.staging import remove_leftovers, staging
from raypipe.log.kafka.topics import open_topics
from raypipe.log.kafka.writer import Writer, Written
from raypipe.log.newcomers import NewIds, check_once
from raypipe.log.port import Appended, Chunk, Group, Offsets, check_epoch, check_kind

_POLL_S = 0.02
"""How often a waiting reader asks the broker for the appends of other processes."""


class KafkaLog:
    """The event log in one topic. A partition has one writing process; any number read.

    Args:
        cache: folder of this machine for the index of ids; lost, it is made again from the topic.
        create: make the topics if they aren't there; otherwise that is NotFound.
    """

    def __init__(self, address: KafkaAddress, cache: Path, *, create: bool = True) -> None:
        self.address = address
        self._topics = open_topics(address, create=create)
        self._cache = cache / self._topics.id
        self._readers = Readers(address)
        self._meta = Meta(self._readers)
        self._records = Records(self._readers, self._meta)
        self._index = Index(self._cache, self._records, timeout_ms=address.timeout_ms)
        remove_leftovers(self._cache)
        self._writers: dict[int, Writer] = {}
        self._lock = threading.Lock()
        self._grown = threading.Condition()

    @classmethod
    def open(cls, url: str, cache: Path, *, create: bool = True) -> KafkaLog:
        """The log at ``kafka://host:port/topic?options``."""
        return cls(KafkaAddress.parse(url), cache, create=create)

    def __repr__(self) -> str:
        return f"KafkaLog({str(self.address)!r})"

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
        writer = self._writer(partition)
        sizes = [len(b) if isinstance(b, Group) else b[1].num_rows for b in batches]
        rows = [b for b, size in zip(batches, sizes, strict=True) if size]
        ids = [_ids(*b) for b in rows if not isinstance(b, Group)]
        groups = [(b, False) if isinstance(b, Group) else (Group.of(*b), True) for b in rows]
        self._keep_schemas(group for group, _ in groups)
        cut = [
            (piece, indexed)
            for group, indexed in groups
            for piece in pieces(group, self.address.record_bytes)
        ]
        base = 0

        def plan(state: State) -> list[Written] | None:
            nonlocal base
            known = self._index.acknowledged(partition, producer, seq, sizes, sealed=False)
            base = state.end if known is None else known
            if known is not None:
                return None
            check_epoch(epoch, state.epoch, partition)
            self._check_new(partition, ids)
            ack = Ack(producer, seq, base, sizes)
            written = []
            for (group, payload, schemas), indexed in cut:
                state = state.plus(group)
                head = Head(partition, len(group), state, ack, indexed, schemas)
                written.append((head, payload))
            return written or [(Head(partition, 0, state, ack), b"")]

        writer.write(plan, "log.append")
        self._wake()
        ends = base + np.cumsum(sizes, dtype=np.int64)
        return [np.arange(e - n, e, dtype=np.int64) for e, n in zip(ends, sizes, strict=True)]

    def _keep_schemas(self, groups: Iterable[Group]) -> None:
        for group in groups:
            for part in group.parts:
                check_kind(part.kind)
                self._meta.keep(part.batch.schema)

    def _check_new(self, partition: int, batches: Sequence[NewIds]) -> None:
        """Raise DuplicateId when an id is in the partition or comes twice."""
        if not batches:
            return
        check_once(batches)
        rows = [(new, row) for new in batches for row in range(len(new))]
        hashes = np.concatenate([new.hashes for new in batches])
        for i, offset in self._index.rows(partition, hashes):
            new, row = rows[i]
            if self._row(partition, offset, new.kind, *new.key(row)) is not None:
                raise new.duplicate(row, f"at offset {offset}")

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
        """See EventLog.seal. All rows are one transaction, which may take 15 minutes."""
        writer = self._writer(partition)
        state = writer.current()
        done = self._index.acknowledged(partition, producer, seq, [count], sealed=True)
        if done is not None:
            return done, done + count
        check_epoch(epoch, state.epoch, partition)
        start = state.end
        with staging(self._cache, partition, start, ordered, count) as staged:
            reach("log.seal.after_temp_write")

            def written(state: State) -> Iterator[Written]:
                ack = Ack(producer, seq, start, [count], sealed=True)
                for group in staged.groups():
                    self._keep_schemas([group])
                    for piece, payload, schemas in pieces(group, self.address.record_bytes):
                        state = state.plus(piece)
                        yield Head(partition, len(piece), state, ack, True, schemas), payload

            def plan(state: State) -> Iterator[Written] | None:
                known = self._index.acknowledged(partition, producer, seq, [count], sealed=True)
                if known is not None:
                    return None
                check_epoch(epoch, state.epoch, partition)
                if state.end != start:
                    raise Unavailable(
                        f"partition {partition} grew while a range was sealed at {start}",
                        hint="Seal again; history goes in while nothing is appended.",
                    )
                return written(state)

            writer.write(plan, "log.seal", long=True)
        self._wake()
        return start, start + count

    def sealed_range(self, partition: int, producer: str, seq: int) -> tuple[int, int] | None:
        """See EventLog.sealed_range."""
        self._writer(partition).follow()
        return self._index.sealed(partition, producer, seq)

    def read(
        self, partition: int, offset: int, max_events: int, wait_ms: int = 0
    ) -> Iterator[Chunk]:
        """See EventLog.read."""
        self._check(partition)
        if offset < 0:
            raise UsageError(f"there is no offset {offset}; the first one is 0")
        deadline = time.monotonic() + wait_ms / 1_000
        stop = offset + max_events
        came = False
        while offset < stop and not came:
            end = self._records.end(partition)
            with closing(self._records.from_row(partition, offset)) as found:
                for record in found:
                    head = record.head
                    group = self._records.group(record)
                    yield from codec.chunks(group, head.base, offset, stop)
                    came, offset = True, min(head.after.end, stop)
                    if offset == stop:
                        return
            if not came and not self._wait(partition, end, deadline):
                return

    def _wait(self, partition: int, end: int, deadline: float) -> bool:
        """Wait until the partition's stable end is another; False at the deadline."""
        while self._records.end(partition) == end:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            with self._grown:
                self._grown.wait(min(left, _POLL_S))
        return True

    def _wake(self) -> None:
        with self._grown:
            self._grown.notify_all()

    def first(self, partition: int, kind: str | None = None) -> int:
        """See EventLog.first: a topic of ours keeps every row."""
        return 0

    def end(self, partition: int) -> int:
        """See EventLog.end."""
        return self._tail(partition).end

    def find(
        self, partition: int, kind: str, tenant: str, id: str
    ) -> tuple[int, pa.RecordBatch] | None:
        """See EventLog.find.

        The process that writes the partition answers from what it wrote, without the network.
        """
        self._writer(partition).follow()
        hashes = hash_keys(kind, ([tenant], [id]))
        for _, offset in self._index.rows(partition, hashes):
            row = self._row(partition, offset, kind, tenant, id)
            if row is not None:
                return offset, row
        return None

    def _row(
        self, partition: int, offset: int, kind: str, tenant: str, id: str
    ) -> pa.RecordBatch | None:
        """The row at this offset as a batch of one, if it bears that kind, tenant and id."""
        place = self._index.place(partition, offset)
        with closing(self._records.scan(partition, place, offset)) as found:
            record = next(found)
        group = self._records.group(record)
        (chunk,) = codec.chunks(group, record.head.base, offset, offset + 1)
        same = chunk.kind == kind and keys(kind, chunk.batch) == ([tenant], [id])
        return chunk.batch if same else None

    def commit(self, group: str, partition: int, offset: int, state_ref: str) -> None:
        """See EventLog.commit."""
        end = self.end(partition)
        if not 0 <= offset <= end:
            raise UsageError(
                f"group {group!r} can't have used the rows before {offset}: "
                f"partition {partition} ends at {end}"
            )
        self._meta.commit(group, partition, offset, state_ref)

    def committed(self, group: str, partition: int) -> tuple[int, str] | None:
        """See EventLog.committed."""
        return self._meta.committed(group, partition)

    def begin_epoch(self, partition: int) -> int:
        """See EventLog.begin_epoch. Kafka itself fences off the writers before it."""
        begun = 0

        def plan(state: State) -> list[Written]:
            nonlocal begun
            begun = state.epoch + 1
            return [(Head(partition, 0, state.next_epoch()), b"")]

        self._writer(partition).write(plan, "log.begin_epoch")
        return begun

    @property
    def id(self) -> str:
        """See EventLog.id: Kafka's id of the topic, which no later topic of the name has."""
        return self._topics.id

    def export(
        self, partition: int, kind: str, directory: Place, start: int, end: int
    ) -> list[Place]:
        """See EventLog.export; all rows are written, as none lie in files."""
        check_kind(kind)
        return export(
            lambda offset, rows: self.read(partition, offset, rows),
            (partition, kind),
            directory,
            start,
            min(end, self.end(partition)),
        )

    def kinds(self, partition: int) -> list[str]:
        """See EventLog.kinds."""
        return sorted(self.counts(partition))

    def counts(self, partition: int) -> dict[str, int]:
        """See EventLog.counts."""
        return dict(sorted(self._tail(partition).counts.items()))

    def close(self) -> None:
        """See EventLog.close."""
        with self._lock:
            writers = list(self._writers.values())
        for writer in writers:
            writer.close()
        self._readers.close()
        self._index.close()

    def _tail(self, partition: int) -> State:
        self._check(partition)
        return self._records.tail(partition)

    def _writer(self, partition: int) -> Writer:
        self._check(partition)
        with self._lock:
            if partition not in self._writers:
                self._writers[partition] = Writer(self.address, partition, self._index)
            return self._writers[partition]

    def _check(self, partition: int) -> None:
        if not 0 <= partition < self._topics.partitions:
            raise UsageError(
                f"partition {partition} is not in 0..{self._topics.partitions - 1}",
                hint="Kafka can give a topic more partitions, never fewer.",
            )


def _ids(kind: str, batch: pa.RecordBatch) -> NewIds:
    check_kind(kind)
    found = keys(kind, batch)
    return NewIds(kind, found, hash_keys(kind, found))
