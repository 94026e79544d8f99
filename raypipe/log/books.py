"""What a log keeps count of in SQLite, inside the transaction that writes the rows."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Iterable, Mapping

from raypipe.errors import Conflict, IntegrityError
from raypipe.log import port
from raypipe.log.database import PLACE_BITS

_NEXT_OFFSET = """
select (select total(rows) from kind where partition = :p),
       (select place + n from batch where place >= :low and place < :high
        order by place desc limit 1),
       (select max(end) from sealed_range where partition = :p),
       (select first from horizon where partition = :p)
"""


def next_offset(db: sqlite3.Connection, partition: int) -> int:
    """The number of rows ever, as offsets have no gap; IntegrityError when the last are away."""
    low = partition << PLACE_BITS
    high = low + (1 << PLACE_BITS)
    row = db.execute(_NEXT_OFFSET, {"p": partition, "low": low, "high": high}).fetchone()
    rows, last = int(row[0]), max((row[1] or low) - low, row[2] or 0, row[3] or 0) - 1
    if rows != last + 1:
        raise IntegrityError(
            f"partition {partition} counts {rows} rows but its last offset is {last}",
            hint="Restore the log from a backup.",
        )
    return rows


def identity(db: sqlite3.Connection) -> str:
    """A random name that the log keeps for good; logs made before there was one get it now."""
    db.execute("create table if not exists identity(id text not null)")
    found = db.execute("select id from identity").fetchone()
    if found is None:
        found = (secrets.token_hex(8),)
        db.execute("insert into identity values(?)", found)
    return str(found[0])


def first_offset(db: sqlite3.Connection, partition: int) -> int:
    """The first offset that retention left."""
    row = db.execute("select first from horizon where partition = ?", (partition,)).fetchone()
    return int(row[0]) if row else 0


def expire(
    db: sqlite3.Connection, partition: int, first: int, rows: Iterable[tuple[str, int]]
) -> None:
    """Take rows of each kind out of the counts; what is left begins at offset ``first``."""
    db.execute("insert or replace into horizon values(?, ?)", (partition, first))
    db.executemany(
        "insert into expired values(?, ?, ?) on conflict do update set rows = rows + excluded.rows",
        [(partition, kind, n) for kind, n in rows],
    )


def counts(db: sqlite3.Connection, partition: int) -> dict[str, int]:
    """The rows that are there, by kind."""
    rows = db.execute(
        "select kind, k.rows - coalesce(e.rows, 0) as n from kind k"
        " left join expired e using(partition, kind) where partition = ? and n order by kind",
        (partition,),
    )
    return dict(rows.fetchall())


def lost_rows(db: sqlite3.Connection, partition: int, kind: str) -> bool:
    """Whether retention took rows of this kind."""
    query = "select 1 from expired where partition = ? and kind = ?"
    return db.execute(query, (partition, kind)).fetchone() is not None


def current_epoch(db: sqlite3.Connection, partition: int) -> int:
    """The partition's epoch; 0 when none was begun."""
    row = db.execute("select epoch from epoch where partition = ?", (partition,)).fetchone()
    return int(row[0]) if row else 0


def check_epoch(db: sqlite3.Connection, partition: int, epoch: int | None) -> None:
    """Raise Fenced for a writer of another epoch; None is outside of fencing."""
    port.check_epoch(epoch, current_epoch(db, partition), partition)


def add_rows(db: sqlite3.Connection, partition: int, rows: Iterable[Mapping[str, int]]) -> None:
    """Add numbers of rows by kind."""
    db.executemany(
        "insert into kind values(?, ?, ?) on conflict do update set rows = rows + excluded.rows",
        [(partition, kind, count) for counts in rows for kind, count in counts.items()],
    )


def acknowledge(
    db: sqlite3.Connection,
    partition: int,
    producer: str,
    seq: int,
    base: int,
    sizes: list[int],
    *,
    sealed: bool,
) -> None:
    """Remember what this (producer, seq) was given."""
    values = (partition, producer, seq, base, json.dumps(sizes), sealed)
    db.execute("insert into ack values(?, ?, ?, ?, ?, ?)", values)


def acknowledged(
    db: sqlite3.Connection,
    partition: int,
    producer: str,
    seq: int,
    sizes: list[int],
    *,
    sealed: bool,
) -> int | None:
    """The base offset given to this (producer, seq) before, if it was."""
    row = db.execute(
        "select base_offset, sizes, sealed from ack"
        " where partition = ? and producer = ? and seq = ?",
        (partition, producer, seq),
    ).fetchone()
    if row is None:
        return None
    if json.loads(row[1]) != sizes or row[2] != sealed:
        raise Conflict(
            f"producer {producer!r} wrote seq {seq} as {'history' if row[2] else 'live'} batches "
            f"of {row[1]} rows and now sends {'history' if sealed else 'live'} of {sizes}",
            hint="A retry sends the same batches; something new takes the next seq.",
        )
    return int(row[0])


def sealed(
    db: sqlite3.Connection, partition: int, producer: str, seq: int
) -> tuple[int, int] | None:
    """The range that this (producer, seq) sealed, if it did."""
    row = db.execute(
        "select base_offset, sizes from ack"
        " where partition = ? and producer = ? and seq = ? and sealed",
        (partition, producer, seq),
    ).fetchone()
    return (row[0], row[0] + json.loads(row[1])[0]) if row else None


def forget(db: sqlite3.Connection, partition: int, appends: Iterable[tuple[str, int]]) -> None:
    """Drop what these (producer, seq) were given, but not that they came."""
    seqs: dict[str, list[int]] = {}
    for producer, seq in appends:
        seqs.setdefault(producer, []).append(seq)
    for producer, found in seqs.items():
        db.executemany(
            "delete from ack where partition = ? and producer = ? and seq = ? and not sealed",
            [(partition, producer, seq) for seq in set(found)],
        )
        db.execute(
            "insert into forgotten values(?, ?, ?)"
            " on conflict do update set seq = max(seq, excluded.seq)",
            (partition, producer, max(found)),
        )


def check_remembered(db: sqlite3.Connection, partition: int, producer: str, seq: int) -> None:
    """Raise Conflict for a seq that came so long ago that its offsets were dropped."""
    query = "select seq from forgotten where partition = ? and producer = ?"
    row = db.execute(query, (partition, producer)).fetchone()
    if row is not None and seq <= row[0]:
        raise Conflict(
            f"producer {producer!r} wrote seq {seq} long ago; the offsets up to its seq {row[0]} "
            "are no longer remembered",
            hint="Nothing was written again. What is new takes a seq above that.",
        )
