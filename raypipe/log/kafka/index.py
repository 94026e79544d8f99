"""What a writer must know of a partition and Kafka doesn't tell: which ids and seqs are there.

An SQLite file that follows the topic. It holds nothing of its own: without it, it is made again
from the topic, which takes as long as reading that. Several processes may follow into one file.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np

from raypipe.errors import IntegrityError
from raypipe.log import books
from raypipe.log.database import PLACE_BITS, Damaged, Database, Layout, translated
from raypipe.log.identity import Hashes, hash_keys, keys
from raypipe.log.kafka.record import Record, State
from raypipe.log.kafka.records import Records
from raypipe.log.newcomers import SAME_HASH, signed

_LAYOUT = Layout(
    format=1,
    tables="""
create table progress(partition integer primary key, kafka integer not null, state blob not null);
create table ids(hash integer, place integer, primary key(hash, place)) without rowid;
create table record(place integer primary key, kafka integer not null);
create table ack(
  partition integer, producer text, seq integer, base_offset integer not null,
  sizes text not null, sealed integer not null,
  primary key(partition, producer, seq)) without rowid
""",
    # What a power cut takes away is followed again.
    durable=False,
)

_STEP_RECORDS = 512
_STEP_BYTES = 64_000_000


class Index:
    """The index file of one log, in a folder of this machine."""

    def __init__(self, directory: Path, records: Records, *, timeout_ms: int) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = directory / "index.db"
        self._records = records
        with self._rebuildable():
            self._db = Database(self._path, _LAYOUT, timeout_ms=timeout_ms)

    def follow(self, partition: int) -> State:
        """Take in what was committed since; returns what the partition is now.

        Raises IntegrityError when rows are missing from the topic.
        """
        place, state = self._progress(self._db.connection, partition)
        if self._records.end(partition) < place:
            raise IntegrityError(
                f"partition {partition} lost records: Kafka ends before offset {place}, which "
                f"{self._path} has seen",
                hint="Restore the topic from a copy; to go on without them remove that file.",
            )
        waiting: list[Record] = []
        size = 0
        for record in self._records.scan(partition, place, state.end):
            waiting.append(record)
            size += len(record.payload)
            if len(waiting) == _STEP_RECORDS or size > _STEP_BYTES:
                self.take(partition, waiting)
                waiting, size = [], 0
        self.take(partition, waiting)
        return self.state(partition)

    def end(self, partition: int) -> int:
        """The topic's stable end, in Kafka's offsets."""
        return self._records.end(partition)

    def state(self, partition: int) -> State:
        """What the partition was after the last record that was taken in."""
        with self._rebuildable():
            return self._progress(self._db.connection, partition)[1]

    def take(self, partition: int, records: Sequence[Record]) -> None:
        """Take in records that follow each other; those that are known already are passed over."""
        if not records:
            return
        with self._rebuildable(), self._db.write() as db:
            place, state = self._progress(db, partition)
            for record in records:
                if record.place < place:
                    continue
                if record.head.base != state.end:
                    raise IntegrityError(
                        f"offset {state.end} of partition {partition} is missing: "
                        f"{record.head.base} comes at Kafka offset {record.place}"
                    )
                self._add(db, partition, record)
                place, state = record.place + 1, record.head.after
            db.execute(
                "insert or replace into progress values(?, ?, ?)",
                (partition, place, msgspec.json.encode(state)),
            )

    def _add(self, db: sqlite3.Connection, partition: int, record: Record) -> None:
        head = record.head
        low = (partition << PLACE_BITS) + head.base
        if head.rows:
            db.execute("insert into record values(?, ?)", (low, record.place))
        ack = head.ack
        if ack is not None and ack.base == head.base:  # the first record of its transaction
            books.acknowledge(
                db, partition, ack.producer, ack.seq, ack.base, ack.sizes, sealed=ack.sealed
            )
        if not head.indexed:
            return
        found: list[tuple[int, int]] = []
        for part in self._records.group(record).parts:
            hashes = hash_keys(part.kind, keys(part.kind, part.batch))
            places = part.positions.astype(np.int64) + low
            found += zip(signed(hashes), places.tolist(), strict=True)
        # In the index's own order: neighbours fall on the same pages.
        db.executemany("insert into ids values(?, ?)", sorted(found))

    def rows(self, partition: int, hashes: Hashes) -> list[tuple[int, int]]:
        """(index into hashes, row offset) of rows whose id may be the one hashed, in that order."""
        low = partition << PLACE_BITS
        bounds = (low, low + (1 << PLACE_BITS) - 1)
        with self._rebuildable(), translated():
            found = self._db.connection.execute(
                SAME_HASH, (json.dumps(signed(hashes)), *bounds)
            ).fetchall()
        return [(i, place - low) for i, place in found]

    def place(self, partition: int, row: int) -> int:
        """Kafka's offset of the record that holds a row."""
        low = partition << PLACE_BITS
        with self._rebuildable(), translated():
            found = self._db.connection.execute(
                "select kafka from record where place between ? and ? order by place desc limit 1",
                (low, low + row),
            ).fetchone()
        if found is None:
            raise IntegrityError(f"offset {row} is in the index {self._path} but in no record")
        return int(found[0])

    def acknowledged(
        self, partition: int, producer: str, seq: int, sizes: list[int], *, sealed: bool
    ) -> int | None:
        """The base offset given to this (producer, seq); raises Conflict for other sizes."""
        with self._rebuildable(), translated():
            return books.acknowledged(
                self._db.connection, partition, producer, seq, sizes, sealed=sealed
            )

    def sealed(self, partition: int, producer: str, seq: int) -> tuple[int, int] | None:
        """See EventLog.sealed_range."""
        with self._rebuildable(), translated():
            return books.sealed(self._db.connection, partition, producer, seq)

    def _progress(self, db: sqlite3.Connection, partition: int) -> tuple[int, State]:
        """Kafka's offset that comes next, and the state there."""
        with translated():
            row = db.execute(
                "select kafka, state from progress where partition = ?", (partition,)
            ).fetchone()
        return (row[0], msgspec.json.decode(row[1], type=State)) if row else (0, State())

    @contextmanager
    def _rebuildable(self) -> Iterator[None]:
        """An index that is damaged is no loss."""
        try:
            yield
        except Damaged as e:
            raise IntegrityError(
                f"{self._path}: {e.detail}",
                hint="Stop what uses it and remove the file: it is made again from the topic.",
            ) from e

    def close(self) -> None:
        """Close the file."""
        self._db.close()
