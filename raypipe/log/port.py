"""The event log as the rest of raypipe sees it.

A log has partitions; a partition is one sequence of rows with offsets 0, 1, 2, ... shared by all
kinds. A *kind* is an event type's name, ``decision`` or ``declaration``; each batch holds rows of
one kind. Rows arrive live (``append``) or as history (``seal``); a reader sees one sequence.
Retention may delete events from the front of it; offsets go on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe.errors import Conflict, IntegrityError, NotFound, Unavailable, UsageError
from raypipe.lake import Place

Offsets = npt.NDArray[np.int64]

DECISION = "decision"
"""The kind of decision records; its rows are identified by ``decision_id``."""

DECLARATION = "declaration"
"""The kind of recorded declarations of event types: raypipe.events.declarations."""

OWNERSHIP = "ownership"
"""The kind of records of the workers that a log belongs to: raypipe.ownership.claim."""

OWN_KINDS = frozenset(
    {DECISION, DECLARATION, OWNERSHIP, "receipt", "alert", "patterns", "clock", "told"}
    | {"outcome", "claim", "exposure"}
)
"""Names that no event type may have."""

POSITION = "_position"
"""Leading column of a batch to be sealed: the row's place in its range, 0 to count - 1."""

OFFSET = "offset"
"""Leading column of every Parquet file that a log writes."""

_KIND = re.compile(r"^[a-z][a-z0-9_]{0,63}$")


class Fenced(IntegrityError):
    """A writer of another epoch owns the partition; this one must end."""

    code = "fenced"
    headline = "Fenced off"
    status = 503


class DuplicateId(Conflict):
    """An appended row's (kind, tenant, id) is in the log already; nothing was written."""

    code = "duplicate_id"
    headline = "Id already logged"


class Expired(NotFound):
    """The rows were there and retention deleted them."""

    code = "expired"
    headline = "No longer in the log"
    status = 410


class LogUnwritable(Unavailable):
    """The medium refused a write (full, quota, I/O error); nothing was acknowledged."""

    code = "log_unwritable"
    headline = "The log can't be written"


@dataclass(frozen=True)
class Chunk:
    """Rows of one kind with ascending offsets."""

    kind: str
    offsets: Offsets
    batch: pa.RecordBatch

    def __len__(self) -> int:
        return len(self.offsets)

    def __repr__(self) -> str:
        return f"Chunk({self.kind}, {self.offsets[0]}..{self.offsets[-1]})"


@dataclass(frozen=True)
class Part:
    """The rows of one kind in a group: int32 ``positions`` [rows] in the group, ascending."""

    kind: str
    batch: pa.RecordBatch
    positions: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Group:
    """Rows of several kinds in one order, as a bulk request brings them.

    Over all parts the positions are exactly 0 to rows - 1. The rows' ids are not indexed: whoever
    appends a group knows its rows to be new, and ``find`` doesn't see them.
    """

    parts: tuple[Part, ...]

    def __len__(self) -> int:
        return sum(p.batch.num_rows for p in self.parts)

    @classmethod
    def of(cls, kind: str, batch: pa.RecordBatch) -> Group:
        """A group of one kind."""
        return cls((Part(kind, batch, np.arange(batch.num_rows, dtype=np.int32)),))

    def keep(self, kept: npt.NDArray[np.bool_]) -> Group:
        """The rows at some of the positions [rows], numbered anew."""
        places = (np.cumsum(kept) - 1).astype(np.int32)
        return Group(
            tuple(
                Part(p.kind, p.batch.filter(pa.array(mine)), places[p.positions[mine]])
                for p in self.parts
                if (mine := kept[p.positions]).any()
            )
        )


Appended = tuple[str, pa.RecordBatch] | Group
"""One element of an append: rows of one kind that ``find`` will know, or a group."""


def chunks_of(appended: Appended, offsets: Offsets) -> list[Chunk]:
    """An element of an append as a reader gets it, by the offsets that the append returned."""
    if isinstance(appended, Group):
        return [Chunk(p.kind, offsets[p.positions], p.batch) for p in appended.parts]
    return [Chunk(appended[0], offsets, appended[1])]


def merged(chunks: Sequence[Chunk]) -> list[Chunk]:
    """Chunks with the same columns as one: what is done for each costs more than its rows."""
    alike: list[list[Chunk]] = []
    for chunk in chunks:
        for some in alike:
            if some[0].kind == chunk.kind and some[0].batch.schema.equals(chunk.batch.schema):
                some.append(chunk)
                break
        else:
            alike.append([chunk])
    return [
        some[0]
        if len(some) == 1
        else Chunk(
            some[0].kind,
            np.concatenate([c.offsets for c in some]),
            pa.concat_batches([c.batch for c in some]),
        )
        for some in alike
    ]


class EventLog(Protocol):
    """What every adapter does; tests/contract/test_log_contract.py says it in cases."""

    def append(
        self,
        partition: int,
        batches: Sequence[Appended],
        *,
        producer: str,
        seq: int,
        epoch: int | None = None,
    ) -> list[Offsets]:
        """Write all batches in one durable transaction; return each one's offsets.

        Offsets follow each other in the given order, inside a group in that of its positions. The
        same (producer, seq) again returns the same offsets and writes nothing; with batches of
        other sizes, or long after, when the offsets are no longer remembered, it raises Conflict.
        So a producer's seqs ascend. Raises Fenced for an epoch that isn't the partition's,
        DuplicateId, LogUnwritable, UsageError for a group whose positions have gaps.
        ``epoch=None`` is a writer outside of fencing.
        """
        ...

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
        """Add ``count`` rows of history as one range; return its (start, end).

        Each kind's batches lead with ``_position``, ascending over the iterable, and are taken one
        kind after the other. Over all kinds the positions are exactly 0 to count - 1, otherwise
        IntegrityError. Nothing is visible before all is durable. A repeated (producer, seq)
        returns the same range and takes nothing from the iterables. Raises Unavailable when
        another writer appended meanwhile.
        """
        ...

    def sealed_range(self, partition: int, producer: str, seq: int) -> tuple[int, int] | None:
        """The range that this (producer, seq) sealed, if it did."""
        ...

    def read(
        self, partition: int, offset: int, max_events: int, wait_ms: int = 0
    ) -> Iterator[Chunk]:
        """Rows from ``offset`` on, at most ``max_events``, as they were written.

        Chunks come in offset order, but those of one group interleave: whoever needs the order
        over kinds merges them. All chunks of a call together cover its offsets without a gap, so
        the next call's offset is this one's plus the rows that came. With nothing there yet it
        waits up to ``wait_ms`` for an append, of any process. Raises IntegrityError that names the
        offset when stored bytes are damaged or missing, Expired for an offset before the first one.
        A call may decode a whole row group of
        history first, so read history in large steps.
        """
        ...

    def first(self, partition: int, kind: str | None = None) -> int:
        """The first offset that can be read; 0 until retention deletes some.

        Of a kind: the offset from which on all of its rows are there. Records, which retention
        keeps, are all there: ``find`` and ``export`` know them also before the first offset.
        """
        ...

    def end(self, partition: int) -> int:
        """The next offset to be given: the number of rows there ever were."""
        ...

    def find(
        self, partition: int, kind: str, tenant: str, id: str
    ) -> tuple[int, pa.RecordBatch] | None:
        """The offset and the row (a batch of one) of that id, live or sealed; the first wins.

        Rows that were appended in a Group are not found, live or sealed.
        """
        ...

    def commit(self, group: str, partition: int, offset: int, state_ref: str) -> None:
        """Record durably that ``group`` has used all rows before ``offset``, its state at ref."""
        ...

    def committed(self, group: str, partition: int) -> tuple[int, str] | None:
        """The last committed (offset, state_ref) of ``group``."""
        ...

    def begin_epoch(self, partition: int) -> int:
        """Raise the partition's epoch by one, fencing off earlier writers; return it."""
        ...

    @property
    def id(self) -> str:
        """Tells this log from any other: files of its rows are kept under it."""
        ...

    def export(
        self, partition: int, kind: str, directory: Place, start: int, end: int
    ) -> list[Place]:
        """Parquet files with the rows of ``kind`` in [start, end), led by an ``offset`` column.

        Files and the rows inside follow offset order. Sealed files that lie inside the range are
        returned where they are; the rest is written to ``directory``, under names that depend on
        what they hold alone, and is not written again by a later export. Schemas that grew are
        unified inside a file (missing columns null), not over files. Raises Expired when some of
        the kind's rows in the range were deleted.
        """
        ...

    def kinds(self, partition: int) -> list[str]:
        """The kinds that have rows, by name."""
        ...

    def counts(self, partition: int) -> dict[str, int]:
        """The rows that are there, by kind."""
        ...

    def close(self) -> None:
        """Give up all connections; the log is durable without it."""
        ...


def check_kind(kind: str) -> None:
    """Raise UsageError for a kind that can't name a file."""
    if not _KIND.match(kind):
        raise UsageError(
            f"{kind!r} can't be a kind of record",
            hint="A kind is up to 64 lower-case letters, digits and underscores.",
        )


def check_epoch(epoch: int | None, current: int, partition: int) -> None:
    """Raise Fenced for a writer of another epoch; None is outside of fencing."""
    if epoch is not None and epoch != current:
        raise Fenced(
            f"epoch {epoch} writes to partition {partition}, which is in epoch {current}",
            hint="Another writer took over; end this one and start again.",
        )
