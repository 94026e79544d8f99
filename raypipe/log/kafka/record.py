"""One Kafka record: a head that says what it holds and what the partition is after it, and rows.

Layout: version (1 byte), crc32 of all that follows (4), length of the head (4), the head as JSON,
the rows as codec.encode_group's bytes. Integers are little-endian. The head names schemas by their
sha256; they lie in the meta topic.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from raypipe.errors import IntegrityError, UsageError
from raypipe.log import codec
from raypipe.log.port import Group, Part

_FRONT = struct.Struct("<BII")
_CRC_FROM = 5  # after version and crc
VERSION = 1


class State(msgspec.Struct, frozen=True):
    """What a partition is after a record: rows, the writers' epoch, rows by kind."""

    end: int = 0
    epoch: int = 0
    counts: Mapping[str, int] = {}

    def plus(self, group: Group) -> State:
        """After these rows."""
        counts = dict(self.counts)
        for part in group.parts:
            if part.batch.num_rows:
                counts[part.kind] = counts.get(part.kind, 0) + part.batch.num_rows
        return State(self.end + len(group), self.epoch, counts)

    def next_epoch(self) -> State:
        """After a new writer began."""
        return State(self.end, self.epoch + 1, self.counts)


class Ack(msgspec.Struct, frozen=True):
    """What a (producer, seq) was given; all records of its transaction say it."""

    producer: str
    seq: int
    base: int
    sizes: list[int]
    sealed: bool = False


class Head(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a record says about itself: its rows are those before ``after.end``."""

    partition: int
    rows: int
    after: State
    ack: Ack | None = None
    indexed: bool = False
    schemas: list[str] = msgspec.field(default_factory=list)

    @property
    def base(self) -> int:
        """Offset of its first row."""
        return self.after.end - self.rows


@dataclass(frozen=True)
class Record:
    """A record as it was read; ``place`` is its offset in Kafka."""

    head: Head
    payload: bytes = field(repr=False)
    place: int


def encode(head: Head, payload: bytes) -> bytes:
    """The record's value."""
    text = msgspec.json.encode(head)
    body = struct.pack("<I", len(text)) + text + payload
    return struct.pack("<BI", VERSION, zlib.crc32(body)) + body


def decode(value: bytes | str | None, partition: int, place: int) -> Record:
    """The record of a value; raises IntegrityError when it isn't what was written."""
    at = f"Kafka offset {place} of partition {partition}"
    if not isinstance(value, bytes) or len(value) < _FRONT.size:
        raise IntegrityError(f"what lies at {at} is no record of this log")
    version, crc, size = _FRONT.unpack_from(value)
    if version != VERSION:
        raise IntegrityError(
            f"the record at {at} has format {version}, this version reads {VERSION}",
            hint="Nothing else may write to the topic.",
        )
    if zlib.crc32(memoryview(value)[_CRC_FROM:]) != crc:
        raise IntegrityError(
            f"the record at {at} doesn't match its checksum",
            hint="Restore the topic from a copy; the log doesn't go on over damaged rows.",
        )
    head = msgspec.json.decode(value[_FRONT.size : _FRONT.size + size], type=Head)
    if head.partition != partition:
        raise IntegrityError(f"the record at {at} is of partition {head.partition}")
    return Record(head, value[_FRONT.size + size :], place)


def pieces(group: Group, limit: int) -> Iterator[tuple[Group, bytes, list[str]]]:
    """The group cut into runs of rows whose bytes fit into a record, with their schemas' sha256.

    Raises UsageError for positions with gaps, dictionary columns and a row that is too large.
    """
    digests = [codec.encode_schema(p.batch.schema)[1].hex() for p in group.parts]
    known = list(dict.fromkeys(digests))
    payload = codec.encode_group(group, [known.index(d) for d in digests])
    if len(payload) <= limit:
        yield group, payload, known
        return
    rows = len(group)
    if rows == 1:
        raise UsageError(
            f"a row of {group.parts[0].kind!r} takes {len(payload):,} bytes, a record "
            f"{limit:,} at most",
            hint="Raise record_bytes in log_url, and max.message.bytes of its topics.",
        )
    step = max(1, rows * limit // (len(payload) * 2) if len(payload) > 2 * limit else rows // 2)
    for low in range(0, rows, step):
        yield from pieces(_cut(group.parts, low, min(low + step, rows)), limit)


def _cut(parts: Sequence[Part], low: int, high: int) -> Group:
    """The rows with positions low to high - 1, as a group of their own."""
    found = []
    for part in parts:
        a, b = np.searchsorted(part.positions, [low, high]).tolist()
        if a < b:
            positions = (part.positions[a:b] - low).astype(np.int32)
            found.append(Part(part.kind, part.batch.slice(a, b - a), positions))
    return Group(tuple(found))
