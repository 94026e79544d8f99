"""What a log keeps count of in SQLite, inside the transaction that writes the rows."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from raypipe.errors import Conflict, IntegrityError
from raypipe.log import port
from raypipe.log.database import PLACE_BITS

_ENDS = """
(select total(rows) from kind where partition = :p),
(select place + n from batch where place >= :low and place < :high order by place desc limit 1),
(select max(end) from sealed_range where partition = :p),
(select first from horizon where partition = :p)
"""

_STANDING = f"""
select m.version, e.epoch, f.seq, a.base_offset, a.sizes, a.sealed, {_ENDS}
from manifest m
left join epoch e on e.partition = :p
left join forgotten f on f.partition = :p and f.producer = :producer
left join ack a on a.partition = :p and a.producer = :producer and a.seq = :seq
"""  # noqa: S608 - constants of this module


class Standing:
    """What an append must know of the log before it writes, read at once: a question for each would
    cost a small commit as much as its rows."""

    def __init__(self, db: sqlite3.Connection, partition: int, producer: str, seq: int) -> None:
        asked = {"producer": producer, "seq": seq, **_bounds(partition)}
        self.manifest, epoch, self._forgotten, *self._rest = db.execute(_STANDING, asked).fetchone()
        self._epoch = 0 if epoch is None else int(epoch)
        self._of = partition, producer, seq

    def given(self, sizes: list[int]) -> int | None:
        """The base offset that this (producer, seq) got before, if it did; raises Conflict for
        another append than then."""
        ack = None if self._rest[0] is None else self._rest[:3]
        return _same_append(ack, *self._of[1:], sizes, sealed=False)

    def check_writer(self, epoch: int | None) -> None:
        """Raise Conflict for a seq that came so long ago that its offsets were dropped, Fenced for
        a writer of another epoch; None is outside of fencing."""
        partition, producer, seq = self._of
        if self._forgotten is not None and seq <= self._forgotten:
            raise Conflict(
                f"producer {producer!r} wrote seq {seq} long ago; the offsets up to its seq "
                f"{self._forgotten} are no longer remembered",
                hint="Nothing was written again. What is new takes a seq above that.",
            )
        port.check_epoch(epoch, self._epoch, partition)

    @property
    def end(self) -> int:
        """See next_offset."""
        return _counted(self._of[0], *self._rest[3:])


def next_offset(db: sqlite3.Connection, partition: int) -> int:
    """The number of rows ever, as offsets have no gap; IntegrityError when the last are away."""
    row = db.execute(f"select {_ENDS}", _bounds(partition)).fetchone()
    return _counted(partition, *row)


def _bounds(partition: int) -> dict[str, int]:
    low = partition << PLACE_BITS
    return {"p": partition, "low": low, "high": low + (1 << PLACE_BITS)}


def _counted(
    partition: int, total: float, live: int | None, sealed: int | None, horizon: int | None
) -> int:
    low = partition << PLACE_BITS
    rows, last = int(total), max((live or low) - low, sealed or 0, horizon or 0) - 1
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
    return _same_append(row, producer, seq, sizes, sealed=sealed)


def _same_append(
    row: Sequence[Any] | None, producer: str, seq: int, sizes: list[int], *, sealed: bool
) -> int | None:
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
