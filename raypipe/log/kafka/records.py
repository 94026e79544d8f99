"""The records of a log's partitions: from any row offset on, the last one, and their rows."""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Generator
from contextlib import closing

from raypipe.errors import IntegrityError
from raypipe.log import codec
from raypipe.log.kafka import record as records
from raypipe.log.kafka.meta import Meta
from raypipe.log.kafka.reader import Readers, place_of
from raypipe.log.kafka.record import Record, State
from raypipe.log.port import Group

_NEAR = 64
"""Kafka offsets over which a scan is as good as another halving."""

_KNOWN = 4_096


class Places:
    """Where rows were seen: the record of row r is the first one at or after Kafka offset k.

    Kafka's own search by time stamp is of no use: the marker behind each transaction has the
    wall clock's.
    """

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._places: list[int] = []
        self._lock = threading.Lock()

    def note(self, record: Record) -> None:
        """Remember where a record, and the one after it, is."""
        with self._lock:
            for row, place in (
                (record.head.base, record.place),
                (record.head.after.end, record.place + 1),
            ):
                i = bisect_left(self._rows, row)
                if i == len(self._rows) or self._rows[i] != row:
                    self._rows.insert(i, row)
                    self._places.insert(i, place)
            if len(self._rows) > _KNOWN:
                del self._rows[1::2], self._places[1::2]

    def bounds(self, row: int, end: int) -> tuple[int, int]:
        """Kafka offsets low to high - 1 among which the row's record begins."""
        with self._lock:
            i = bisect_right(self._rows, row)
            low = self._places[i - 1] if i else 0
            if i and self._rows[i - 1] == row:
                return low, low
            return low, self._places[i] if i < len(self._rows) else end


class Records:
    """Reads the topic as records."""

    def __init__(self, readers: Readers, meta: Meta) -> None:
        self._readers = readers
        self._meta = meta
        self._topic = readers.address.topic
        self._places: dict[int, Places] = {}
        self._tails: dict[int, tuple[int, State]] = {}

    def end(self, partition: int) -> int:
        """The stable end, in Kafka's offsets."""
        return self._readers.end(self._topic, partition)

    def scan(
        self, partition: int, place: int, expected: int | None = None
    ) -> Generator[Record, None, None]:
        """Committed records from a Kafka offset to the stable end.

        Args:
            expected: the row offset that comes next, for what is wrong there.
        """
        messages = self._readers.scan(self._topic, partition, place, transactions=True)
        places = self._places.setdefault(partition, Places())
        with closing(messages):
            while True:
                try:
                    message = next(messages, None)
                    if message is None:
                        return
                    found = records.decode(message.value(), partition, place_of(message))
                except IntegrityError as e:
                    where = "" if expected is None else f"offset {expected}: "
                    raise IntegrityError(where + e.detail, hint=e.hint) from e
                places.note(found)
                expected = found.head.after.end
                yield found

    def from_row(self, partition: int, row: int) -> Generator[Record, None, None]:
        """Records that hold rows from ``row`` on; raises IntegrityError when some are missing."""
        place = self._locate(partition, row)
        for found in self.scan(partition, place, row):
            if found.head.after.end <= row:
                continue
            if found.head.base > row:
                raise IntegrityError(
                    f"offset {row} of partition {partition} is missing, "
                    f"{found.head.base} comes at Kafka offset {found.place}"
                )
            yield found
            row = found.head.after.end

    def _locate(self, partition: int, row: int) -> int:
        """A Kafka offset at which, or shortly after which, the record of the row begins."""
        places = self._places.setdefault(partition, Places())
        low, high = places.bounds(row, -1)
        if high < 0:
            high = self.end(partition)
        while high - low > _NEAR:
            middle = (low + high) // 2
            with closing(self.scan(partition, middle)) as probe:
                found = next(probe, None)
            if found is None or found.head.base > row:
                high = middle
            elif found.head.after.end <= row:
                low = found.place + 1
            else:
                return found.place
        return low

    def tail(self, partition: int) -> State:
        """What the partition is after its last committed record."""
        end = self.end(partition)
        known = self._tails.get(partition)
        if known is not None and known[0] == end:
            return known[1]
        state, back = State(), 2
        while state == State() and back // 8 < end:
            for found in self.scan(partition, max(0, end - back)):
                state = found.head.after
            back *= 8
        self._tails[partition] = end, state
        return state

    def group(self, record: Record) -> Group:
        """A record's rows."""
        return codec.decode_group(
            record.payload, lambda number: self._meta.schema(record.head.schemas[number])
        )
