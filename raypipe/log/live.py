"""Live rows: the micro-batches in SQLite, how they are written, read and searched."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raypipe.errors import IntegrityError
from raypipe.log import codec
from raypipe.log.database import PLACE_BITS, Database, translated
from raypipe.log.identity import Hashes, hash_keys, keys
from raypipe.log.newcomers import SAME_HASH, NewIds, check_once, signed
from raypipe.log.port import Chunk, Group, check_kind

_PAGE_BYTES = 8_000_000
"""Payload that a read loads at a time."""

_PAGE_BATCHES = 1_024

Stored = tuple[int, int, str, int, int, bytes]
"""place, n, kind, schema id, checksum, payload."""

GROUP = ""
"""The kind of a stored batch that is a group: its parts have kinds of their own."""

_PLACES = "select place from ids where hash = ? and place between ? and ? order by place"

_STORED = "select place, n, kind, schema, crc, payload from batch"


@dataclass(frozen=True, eq=False)
class LiveBatch(NewIds):
    """A batch about to be appended: all that can be made ready before the write lock is taken."""

    schema: int
    payload: pa.Buffer

    @property
    def rows(self) -> dict[str, int]:
        """By kind."""
        return {self.kind: len(self)}


@dataclass(frozen=True, eq=False)
class LiveGroup:
    """A group about to be appended."""

    payload: bytes
    rows: dict[str, int]
    """By kind."""

    def __len__(self) -> int:
        return sum(self.rows.values())


class Live:
    """Batches by place, an id index beside them."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._schemas: dict[int, pa.Schema] = {}
        self._schema_ids: dict[str, list[tuple[pa.Schema, int]]] = {}
        """By kind: its rows may come alone and in bulk, with other columns, in turns."""

    def prepare(self, kind: str, batch: pa.RecordBatch) -> LiveBatch:
        """Make a batch ready for insert(); raises UsageError for what can't be logged."""
        check_kind(kind)
        names = keys(kind, batch)
        hashes = hash_keys(kind, names)
        schema = self._schema_id(kind, batch.schema)
        return LiveBatch(kind, names, hashes, schema, codec.encode(batch))

    def prepare_group(self, group: Group) -> LiveGroup:
        """Make a group ready for insert(); raises UsageError for what can't be logged."""
        for part in group.parts:
            check_kind(part.kind)
        schemas = [self._schema_id(p.kind, p.batch.schema) for p in group.parts]
        rows: dict[str, int] = {}
        for part in group.parts:
            rows[part.kind] = rows.get(part.kind, 0) + part.batch.num_rows
        return LiveGroup(codec.encode_group(group, schemas), rows)

    def _schema_id(self, kind: str, schema: pa.Schema) -> int:
        known = self._schema_ids.setdefault(kind, [])
        for other, number in known:
            if other.equals(schema, check_metadata=True):
                return number
        ipc, digest = codec.encode_schema(schema)
        # Its own transaction: an id remembered from one that is undone would name another schema.
        with self._db.write() as db:
            db.execute("insert or ignore into schema(digest, ipc) values(?, ?)", (digest, ipc))
            row = db.execute("select id from schema where digest = ?", (digest,)).fetchone()
        known.append((schema, int(row[0])))
        return int(row[0])

    def insert(
        self,
        db: sqlite3.Connection,
        place: int,
        appended: Sequence[LiveBatch | LiveGroup],
        writer: tuple[str, int, int | None],
    ) -> None:
        """Write batches and groups one after the other, and the ids of batches, inside the
        caller's transaction."""
        rows, ids = [], list[tuple[int, int]]()
        for one in appended:
            kind, schema = (GROUP, 0) if isinstance(one, LiveGroup) else (one.kind, one.schema)
            what = (place, len(one), kind, schema)
            rows.append((*what, codec.checksum(*what, one.payload), one.payload, *writer))
            if isinstance(one, LiveBatch):
                ids += zip(signed(one.hashes), range(place, place + len(one)), strict=True)
            place += len(one)
        db.executemany(
            "insert into batch(place, n, kind, schema, crc, payload, producer, seq, epoch)"
            " values(?, ?, ?, ?, ?, ?, ?, ?, ?)",
            rows,
        )
        # In the index's own order: neighbours fall on the same pages.
        db.executemany("insert into ids values(?, ?)", sorted(ids))

    def check_new(self, db: sqlite3.Connection, low: int, batches: Sequence[LiveBatch]) -> None:
        """Raise DuplicateId when an id is in the partition (from place ``low``) or comes twice."""
        check_once(batches)
        rows = [(live, row) for live in batches for row in range(len(live))]
        hashes = [h for live in batches for h in signed(live.hashes)]
        bounds = (low, low + (1 << PLACE_BITS) - 1)
        for i, place in db.execute(SAME_HASH, (json.dumps(hashes), *bounds)).fetchall():
            live, row = rows[i]
            if self.row(db, live.kind, place, *live.key(row)) is not None:
                raise live.duplicate(row, f"at offset {place - low}")

    def index_entries(self, stored: Stored) -> list[tuple[int, int]]:
        """The id index's (hash, place) of a stored batch, in the index's order."""
        if not indexed(stored):
            return []
        hashes = hash_keys(stored[2], keys(stored[2], self._decode(stored)))
        return sorted(zip(signed(hashes), range(stored[0], stored[0] + stored[1]), strict=True))

    def delete(
        self, db: sqlite3.Connection, stored: Stored, entries: Sequence[tuple[int, int]]
    ) -> tuple[str, int]:
        """Delete a batch and its index entries inside the caller's transaction; its append's
        (producer, seq)."""
        db.executemany("delete from ids where hash = ? and place = ?", entries)
        row = db.execute(
            "delete from batch where place = ? returning producer, seq", (stored[0],)
        ).fetchall()[0]
        return str(row[0]), int(row[1])

    def find(
        self, low: int, kind: str, hashes: Hashes, tenant: str, id: str
    ) -> tuple[int, pa.RecordBatch] | None:
        """The first row with that id as (offset, batch of one)."""
        values = (*signed(hashes), low, low + (1 << PLACE_BITS) - 1)
        with self._db.read() as db:
            for (place,) in db.execute(_PLACES, values).fetchall():
                row = self.row(db, kind, place, tenant, id)
                if row is not None:
                    return place - low, row
        return None

    def row(
        self, db: sqlite3.Connection, kind: str, place: int, tenant: str, id: str
    ) -> pa.RecordBatch | None:
        """The row at this place as a batch of one, if it bears that kind, tenant and id."""
        stored = db.execute(
            f"{_STORED} where place <= ? order by place desc limit 1", (place,)
        ).fetchone()
        if stored is None or place - stored[0] >= stored[1]:
            raise IntegrityError(f"offset {_offset(place)} is in the id index but not in the log")
        if stored[2] != kind:
            return None
        row = self._decode(stored).slice(place - stored[0], 1)
        return row if keys(kind, row) == ([tenant], [id]) else None

    def read(self, low: int, offset: int, limit: int) -> Iterator[Chunk]:
        """Live rows from ``offset`` on without a gap, at most ``limit``; stops at a sealed range.

        No transaction stays open between chunks, so a slow reader never holds up a checkpoint.
        """
        for _, chunks in self.batches(low, offset, limit):
            yield from chunks

    def batches(self, low: int, offset: int, limit: int) -> Iterator[tuple[Stored, list[Chunk]]]:
        """Stored batches and their rows, as ``read`` has them."""
        while limit > 0:
            page = self._page(low + offset, limit)
            for stored in page:
                if stored[0] > low + offset:
                    return  # rows before it were sealed since the page was measured
                chunks = self._chunks(stored, low + offset, low + offset + limit)
                yield stored, chunks
                came = sum(map(len, chunks))
                offset += came
                limit -= came
            if not page:
                return

    def first(self, low: int, offset: int) -> int | None:
        """The offset of the first live row at or after this one."""
        with translated():
            row = self._db.connection.execute(
                "select place from batch where place >= ? and place < ? order by place limit 1",
                (low + offset, low + (1 << PLACE_BITS)),
            ).fetchone()
        return None if row is None else int(row[0]) - low

    def _page(self, place: int, limit: int) -> list[Stored]:
        """The stored batches from the one that holds ``place`` on, a bounded number of bytes."""
        with translated():
            db = self._db.connection
            first = db.execute(
                "select place, n from batch where place <= ? order by place desc limit 1", (place,)
            ).fetchone()
            if first is None or first[0] + first[1] <= place:
                return []
            sizes = db.execute(
                "select place, n, length(payload) from batch where place >= ? order by place"
                " limit ?",
                (first[0], _PAGE_BATCHES),
            ).fetchall()
            expected, total = first[0], 0
            for at, n, size in sizes:
                total += size
                if at != expected or at >= place + limit or (total > _PAGE_BYTES and at > first[0]):
                    break
                expected = at + n
            return db.execute(
                f"{_STORED} where place >= ? and place < ? order by place", (first[0], expected)
            ).fetchall()

    def _chunks(self, stored: Stored, first: int, stop: int) -> list[Chunk]:
        """The stored rows with places in [first, stop)."""
        place, n, kind = stored[:3]
        low, high = max(first, place) - place, min(stop, place + n) - place
        base = _offset(place)
        if kind != GROUP:
            batch = self._decode(stored).slice(low, high - low)
            return [Chunk(kind, np.arange(base + low, base + high, dtype=np.int64), batch)]
        self._check(stored)
        group = codec.decode_group(stored[5], self._schema)
        return codec.chunks(group, base, base + low, base + high)

    def _decode(self, stored: Stored) -> pa.RecordBatch:
        self._check(stored)
        return codec.decode(stored[5], self._schema(stored[3]))

    def _check(self, stored: Stored) -> None:
        place, n, kind, schema, crc, payload = stored
        if codec.checksum(place, n, kind, schema, payload) != crc:
            raise IntegrityError(
                f"the batch at offset {_offset(place)} of partition {place >> PLACE_BITS} "
                "doesn't match its checksum",
                hint="Restore the log from a backup; it doesn't go on over damaged rows.",
            )

    def _schema(self, id: int) -> pa.Schema:
        schema = self._schemas.get(id)
        if schema is None:
            with translated():
                row = self._db.connection.execute(
                    "select ipc, digest from schema where id = ?", (id,)
                ).fetchone()
            if row is None:
                raise IntegrityError(f"schema {id} of the log is missing")
            schema = self._schemas[id] = codec.decode_schema(*row)
        return schema


def indexed(stored: Stored) -> bool:
    """Whether the batch's rows are in the id index."""
    return stored[2] != GROUP


def _offset(place: int) -> int:
    return place & ((1 << PLACE_BITS) - 1)
