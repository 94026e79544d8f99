"""The one writer of a partition: its transactional id is the partition's write lock.

Kafka fences off whoever held it before, and ends that one's open transaction, so after taking it
nothing can be written behind our back: what the topic holds then is all there is. A transaction in
doubt, because the broker or this process went away, is settled by taking it again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from raypipe.aborts import reach
from raypipe.errors import Unavailable
from raypipe.log.kafka import record as records
from raypipe.log.kafka.address import KafkaAddress
from raypipe.log.kafka.errors import CLIENT_LOG, TakenOver, translated
from raypipe.log.kafka.index import Index
from raypipe.log.kafka.reader import place_of
from raypipe.log.kafka.record import Head, Record, State
from raypipe.log.kafka.topics import record_limit

Written = tuple[Head, bytes]
"""A record to be written: its head and its rows' bytes."""

Plan = Callable[[State], Iterable[Written] | None]
"""What to write after a state; None when it is there already. Called again when that moved."""

_QUEUE_KB = 65_536
_LONG_S = 120.0
LONGEST_MS = 900_000
"""Longest transaction that brokers allow by default (transaction.max.timeout.ms)."""


class Writer:
    """Writes transactions to one partition, for all threads of a process."""

    def __init__(self, address: KafkaAddress, partition: int, index: Index) -> None:
        self._address = address
        self._partition = partition
        self._index = index
        self._producer: Producer | None = None
        self._long = False
        self._closed = False
        self._lock = threading.RLock()

    def follow(self) -> None:
        """Bring the index up to the partition's end.

        While this process holds the write lock, the index has all there is. If another took the
        lock meanwhile, the next write finds out.
        """
        if self._producer is None:
            with self._lock:
                self._index.follow(self._partition)

    def current(self) -> State:
        """What the partition is, as far as the index goes after ``follow``."""
        self.follow()
        return self._index.state(self._partition)

    def write(self, plan: Plan, point: str, *, long: bool = False) -> None:
        """Write what ``plan`` says, in one transaction, durably.

        Args:
            point: prefix of the abort points around the commit.
            long: it may take minutes; rows are read back into the index afterwards.

        Raises:
            Unavailable: no answer in time. Nothing was acknowledged; whether it was written shows
                when the same plan runs again.
        """
        with self._lock:
            deadline = time.monotonic() + (LONGEST_MS / 1_000 if long else self._address.timeout)
            while True:
                if self._long != long:
                    self._drop()
                planned = plan(self.current())
                if planned is None:
                    return
                try:
                    if self._producer is None:
                        self._take(long=long)
                        continue
                    self._commit(self._producer, planned, point)
                except TakenOver:
                    self._drop()
                    if time.monotonic() > deadline:
                        raise Unavailable(
                            f"other writers keep taking partition {self._partition} of "
                            f"{self._address}",
                            hint="A partition has one writing process.",
                        ) from None
                except BaseException:
                    # Its open transaction ends when somebody takes the lock again.
                    self._drop()
                    raise
                else:
                    return

    def _take(self, *, long: bool) -> None:
        """Take the partition's write lock from whoever had it."""
        if self._closed:
            raise Unavailable(f"{self._address} was closed")
        patience = max(_LONG_S, self._address.timeout) if long else self._address.timeout
        config: dict[str, Any] = {
            **self._address.client(),
            "transactional.id": f"{self._address.topic}-{self._partition}",
            "acks": "all",
            "enable.idempotence": True,
            "linger.ms": 0,
            "compression.type": "zstd",
            "message.max.bytes": record_limit(self._address),
            "queue.buffering.max.kbytes": _QUEUE_KB,
            "message.timeout.ms": round(patience * 1_000),
            "transaction.timeout.ms": LONGEST_MS if long else _transaction_ms(patience),
        }
        producer = Producer(config, logger=CLIENT_LOG)
        with translated(self._address, "taking a partition of"):
            producer.init_transactions(self._address.timeout)
        # Up to here the last holder may have written.
        self._index.follow(self._partition)
        self._producer, self._long = producer, long

    def _commit(self, producer: Producer, planned: Iterable[Written], point: str) -> None:
        sending = _Sending()
        taken: list[tuple[Head, bytes]] = []
        patience = _LONG_S if self._long else self._address.timeout
        deadline = time.monotonic() + patience
        with translated(self._address, "writing to"):
            producer.begin_transaction()
            for head, payload in planned:
                self._produce(producer, records.encode(head, payload), sending)
                sending.check()
                if self._long:
                    deadline = time.monotonic() + patience
                else:
                    taken.append((head, payload))
            if producer.flush(max(0.1, deadline - time.monotonic())):
                producer.purge()
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
            sending.check()
            reach(f"{point}.before_commit")
            self._end(producer, deadline)
        reach(f"{point}.after_commit")
        self._wait_until_visible(sending.places[-1], deadline)
        if self._long:
            self._index.follow(self._partition)
        else:
            rows = zip(taken, sending.places, strict=True)
            self._index.take(self._partition, [Record(*written, place) for written, place in rows])

    def _wait_until_visible(self, place: int, deadline: float) -> None:
        """The coordinator answers when a commit is durable; its marker comes a moment later."""
        while self._index.end(self._partition) <= place:
            if time.monotonic() > deadline:
                raise Unavailable(f"a commit to {self._address} doesn't become visible")
            time.sleep(0.001)

    def _produce(
        self,
        producer: Producer,
        value: bytes,
        sending: _Sending,
    ) -> None:
        while True:
            try:
                producer.produce(
                    self._address.topic,
                    value,
                    partition=self._partition,
                    on_delivery=sending.delivered,
                )
            except BufferError:
                producer.poll(0.05)
            else:
                producer.poll(0)
                return

    def _end(self, producer: Producer, deadline: float) -> None:
        """Commit, asking again while the coordinator is away and time is left."""
        while True:
            try:
                producer.commit_transaction(max(0.1, deadline - time.monotonic()))
            except KafkaException as e:
                if not e.args[0].retriable() or time.monotonic() > deadline:
                    raise
            else:
                return

    def _drop(self) -> None:
        self._producer = None

    def close(self) -> None:
        """Give the producer up; the lock stays with the transactional id until another takes it."""
        with self._lock:
            self._closed = True
            self._drop()


class _Sending:
    """What became of a transaction's records, in their order."""

    def __init__(self) -> None:
        self.places: list[int] = []
        self._failed: list[KafkaError] = []

    def delivered(self, error: KafkaError | None, message: Message) -> None:
        place = place_of(message)
        if error is None and place >= 0:
            self.places.append(place)
        else:
            # Without its place a record is as good as lost: a new producer looks what is there.
            self._failed.append(error or KafkaError(KafkaError._STATE))

    def check(self) -> None:
        """Raise the first failure as KafkaException."""
        if self._failed:
            raise KafkaException(self._failed[0])


def _transaction_ms(patience: float) -> int:
    """After how long the brokers end a transaction whose writer is silent."""
    return min(LONGEST_MS, max(60_000, round(patience * 2_000)))
