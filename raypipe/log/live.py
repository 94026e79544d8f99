"""Live rows: the micro-batches in SQLite, how they are written, read and searched."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from raypipe.errors import IntegrityError
from raypipe.log import codec
from raypipe.log.database import PLACE_BITS, Database, translated
from raypipe.log.identity import Hashes, Keys, hash_keys, id_column, keys
from raypipe.log.port import Chunk, DuplicateId, check_kind

_PAGE_BYTES = 8_000_000
"""Payload that a read loads at a time."""

_PAGE_BATCHES = 1_024

_SAME_HASH = """
select j.key, i.place from json_each(?) j
cross join ids i on i.hash = j.value and i.place between ? and ?
order by j.key, i.place
"""


@dataclass(frozen=True)
class LiveBatch:
    """A batch about to be appended, with what is needed to know its rows again."""

    kind: str
    batch: pa.RecordBatch

    def __post_init__(self) -> None:
        check_kind(self.kind)

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    @cached_property
    def keys(self) -> Keys:
        """Tenants and ids."""
        return keys(self.kind, self.batch)

    @cached_property
    def hashes(self) -> Hashes:
        """Their hashes."""
        return hash_keys(self.kind, self.keys)

    def key(self, row: int) -> tuple[str, str]:
        """Tenant and id of one row."""
        return self.keys[0][row], self.keys[1][row]

    def duplicate(self, row: int, where: str) -> DuplicateId:
        """The error for a row whose id is taken."""
        tenant, id = self.key(row)
        return DuplicateId(
            f"{id_column(self.kind)} {id!r} of tenant {tenant!r} is {where}",
            hint="Look ids up with find() first; nothing of this append was written.",
        )


class Live:
    """Batches by place, an id index beside them."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._schemas: dict[int, pa.Schema] = {}
        self._schema_ids: dict[str, tuple[pa.Schema, int]] = {}

    def insert(
        self,
        db: sqlite3.Connection,
        place: int,
        live: LiveBatch,
        writer: tuple[str, int, int | None],
    ) -> None:
        """Write one batch and its ids inside the caller's transaction."""
        schema = self._schema_id(db, live)
        payload = codec.encode(live.batch)
        crc = codec.checksum(place, live.kind, schema, payload)
        db.execute(
            "insert into batch(place, n, kind, schema, crc, payload, producer, seq, epoch)"
            " values(?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (place, len(live), live.kind, schema, crc, payload, *writer),
        )
        # In the index's own order: neighbours fall on the same pages.
        rows = sorted(zip(_signed(live.hashes), range(place, place + len(live)), strict=True))
        db.executemany("insert into ids values(?, ?)", rows)

    def _schema_id(self, db: sqlite3.Connection, live: LiveBatch) -> int:
        schema = live.batch.schema
        known = self._schema_ids.get(live.kind)
        if known and known[0].equals(schema, check_metadata=True):
            return known[1]
        ipc, digest = codec.encode_schema(schema)
        query = "select id from schema where digest = ?"
        found = db.execute(query, (digest,)).fetchone()
        if found is None:
            # Remembered only from a later append on: this transaction may yet be undone.
            db.execute("insert into schema(digest, ipc) values(?, ?)", (digest, ipc))
            return int(db.execute(query, (digest,)).fetchone()[0])
        self._schema_ids[live.kind] = (schema, found[0])
        return int(found[0])

    def check_new(self, db: sqlite3.Connection, low: int, batches: Sequence[LiveBatch]) -> None:
        """Raise DuplicateId when an id is in the partition (from place ``low``) or comes twice."""
        rows = [(live, row) for live in batches for row in range(len(live))]
        hashes = [h for live in batches for h in _signed(live.hashes)]
        if len(set(hashes)) < len(hashes):
            seen = set()
            for live, row in rows:
                name = (live.kind, *live.key(row))
                if name in seen:
                    raise live.duplicate(row, "twice in this append")
                seen.add(name)
        bounds = (low, low + (1 << PLACE_BITS) - 1)
        for i, place in db.execute(_SAME_HASH, (json.dumps(hashes), *bounds)).fetchall():
            live, row = rows[i]
            if self.row(db, live.kind, place, *live.key(row)) is not None:
                raise live.duplicate(row, f"at offset {place - low}")

    def find(
        self, low: int, kind: str, hashes: Hashes, tenant: str, id: str
    ) -> tuple[int, pa.RecordBatch] | None:
        """The first row with that id as (offset, batch of one)."""
        with translated():
            db = self._db.connection
            places = db.execute(
                "select place from ids where hash = ? and place between ? and ? order by place",
                (*_signed(hashes), low, low + (1 << PLACE_BITS) - 1),
            ).fetchall()
            for (place,) in places:
                row = self.row(db, kind, place, tenant, id)
                if row is not None:
                    return place - low, row
        return None

    def row(
        self, db: sqlite3.Connection, kind: str, place: int, tenant: str, id: str
    ) -> pa.RecordBatch | None:
        """The row at this place as a batch of one, if it bears that kind, tenant and id."""
        stored = db.execute(
            "select place, n, kind, schema, crc, payload from batch"
            " where place <= ? order by place desc limit 1",
            (place,),
        ).fetchone()
        if stored is None or place - stored[0] >= stored[1]:
            raise IntegrityError(f"offset {_offset(place)} is in the id index but not in the log")
        if stored[2] != kind:
            return None
        row = self._decode(db, stored).slice(place - stored[0], 1)
        return row if keys(kind, row) == ([tenant], [id]) else None

    def read(self, low: int, offset: int, limit: int) -> Iterator[Chunk]:
        """Live rows from ``offset`` on without a gap, at most ``limit``; stops at a sealed range.

        No transaction stays open between chunks, so a slow reader never holds up a checkpoint.
        """
        while limit > 0:
            chunks = self._page(low + offset, limit)
            for chunk in chunks:
                yield chunk
                offset += len(chunk)
                limit -= len(chunk)
            if not chunks:
                return

    def _page(self, place: int, limit: int) -> list[Chunk]:
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
            stored = db.execute(
                "select place, n, kind, schema, crc, payload from batch"
                " where place >= ? and place < ? order by place",
                (first[0], expected),
            ).fetchall()
            return [self._chunk(db, s, place, place + limit) for s in stored]

    def _chunk(
        self, db: sqlite3.Connection, stored: tuple[int, int, str, int, int, bytes], a: int, b: int
    ) -> Chunk:
        place, n = stored[:2]
        start, stop = max(a, place), min(b, place + n)
        batch = self._decode(db, stored)
        offset = _offset(start)
        return Chunk(
            stored[2],
            np.arange(offset, offset + stop - start, dtype=np.int64),
            batch if stop - start == n else batch.slice(start - place, stop - start),
        )

    def _decode(
        self, db: sqlite3.Connection, stored: tuple[int, int, str, int, int, bytes]
    ) -> pa.RecordBatch:
        place, n, kind, schema, crc, payload = stored
        if codec.checksum(place, kind, schema, payload) != crc:
            raise IntegrityError(
                f"the batch at offset {_offset(place)} of partition {place >> PLACE_BITS} "
                "doesn't match its checksum",
                hint="Restore the log from a backup; it doesn't go on over damaged rows.",
            )
        batch = codec.decode(payload, self._schema(db, schema))
        if batch.num_rows != n:
            raise IntegrityError(
                f"the batch at offset {_offset(place)} has {batch.num_rows} rows, not {n}"
            )
        return batch

    def _schema(self, db: sqlite3.Connection, id: int) -> pa.Schema:
        schema = self._schemas.get(id)
        if schema is None:
            row = db.execute("select ipc, digest from schema where id = ?", (id,)).fetchone()
            if row is None:
                raise IntegrityError(f"schema {id} of the log is missing")
            schema = self._schemas[id] = codec.decode_schema(*row)
        return schema


def _offset(place: int) -> int:
    return place & ((1 << PLACE_BITS) - 1)


def _signed(hashes: Hashes) -> list[int]:
    signed: list[int] = hashes.view(np.int64).tolist()
    return signed
