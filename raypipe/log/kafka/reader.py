"""Reading committed messages: consumers without a group, from a Kafka offset to the stable end."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from raypipe.errors import Unavailable
from raypipe.log.kafka.address import KafkaAddress
from raypipe.log.kafka.errors import CLIENT_LOG, is_damage, said

_FETCH_WAIT_MS = 10
"""How long a broker holds a fetch at the end; a consumer's next use waits for that, too."""

_TRIES = 4
"""Questions that fit into the time that brokers may take."""

_FINAL = {
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
}


class Readers:
    """The consumers of one log object; each scan borrows one, so scans may interleave."""

    def __init__(self, address: KafkaAddress) -> None:
        self.address = address
        self._free: list[Consumer] = []
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def _borrow(self) -> Iterator[Consumer]:
        with self._lock:
            if self._closed:
                raise Unavailable(f"{self.address} was closed")
            consumer = self._free.pop() if self._free else None
        if consumer is None:
            consumer = Consumer(self._config(), logger=CLIENT_LOG)
        try:
            yield consumer
        finally:
            self._give_back(consumer)

    def _give_back(self, consumer: Consumer) -> None:
        with self._lock:
            closed = self._closed
            if not closed:
                self._free.append(consumer)
        if closed:
            consumer.close()

    def _config(self) -> dict[str, Any]:
        return {
            **self.address.client(),
            # Required by the client; no group is ever joined and no offset kept there.
            "group.id": f"{self.address.topic}.unused",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "isolation.level": "read_committed",
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "fetch.wait.max.ms": _FETCH_WAIT_MS,
            "fetch.error.backoff.ms": 20,
            "queued.max.messages.kbytes": 16_384,
        }

    def end(self, topic: str, partition: int) -> int:
        """The stable end: before it every transaction is committed or aborted."""
        with self._borrow() as consumer:
            return self._end(consumer, topic, partition)

    def _end(self, consumer: Consumer, topic: str, partition: int) -> int:
        deadline = time.monotonic() + self.address.timeout
        while True:
            try:
                answer = consumer.get_watermark_offsets(
                    TopicPartition(topic, partition), timeout=self.address.timeout / _TRIES
                )
            except KafkaException as e:
                error = e.args[0]
            else:
                return answer[1]
            if error.code() in _FINAL or time.monotonic() > deadline:
                raise said(error, self.address, "reading the end of")
            self._refresh(consumer, topic)

    def _refresh(self, consumer: Consumer, topic: str) -> None:
        """Ask who leads the topic now: the client goes on asking a leader that is gone."""
        with suppress(KafkaException):
            consumer.list_topics(topic, timeout=self.address.timeout / _TRIES)
        time.sleep(0.02)

    def scan(
        self, topic: str, partition: int, start: int, *, transactions: bool
    ) -> Generator[Message, None, None]:
        """Committed messages from ``start`` to the stable end, which is asked for again there.

        Args:
            transactions: whether all of the topic is written in them. Each ends with a marker,
                which no consumer shows: so the end can be told without waiting for it.

        Raises:
            Unavailable: nothing came for the address's timeout.
            IntegrityError: stored bytes are broken or gone.
        """
        hidden = int(transactions)
        with self._borrow() as consumer:
            at, stop, assigned = start, -1, False
            try:
                while True:
                    if at >= stop:
                        stop = self._end(consumer, topic, partition) - hidden
                    if at >= stop:
                        return
                    if not assigned:
                        consumer.assign([TopicPartition(topic, partition, start)])
                        assigned = True
                    message = self._next(consumer, topic)
                    if message.error() is not None:
                        at = max(at, place_of(message))
                        continue
                    at = place_of(message) + 1
                    yield message
            finally:
                if assigned and not self._closed:
                    consumer.unassign()

    def _next(self, consumer: Consumer, topic: str) -> Message:
        """The next message, or the news that the end was reached."""
        deadline = time.monotonic() + self.address.timeout
        last = KafkaError(KafkaError._TIMED_OUT)
        while time.monotonic() < deadline:
            message = consumer.poll(0.1)
            if message is None:
                continue
            error = message.error()
            if error is None or error.code() == KafkaError._PARTITION_EOF:
                return message
            if is_damage(error) or error.code() in _FINAL:
                raise said(error, self.address, "reading")
            last = error
        raise said(last, self.address, "reading")

    def close(self) -> None:
        """Close the idle consumers; borrowed ones close when they come back."""
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
        for consumer in free:
            consumer.close()


def place_of(message: Message) -> int:
    """Kafka's offset of a message that was read or delivered; -1 when it wasn't told."""
    place = message.offset()
    return -1 if place is None else place
