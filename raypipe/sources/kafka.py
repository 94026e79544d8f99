"""A Kafka topic of JSON events, sent in the order of each partition.

What is about to be sent is noted in the consumer group first, as metadata of the committed offset:
whoever has the partition next sends that very range again under the same key. So a death between
an acknowledgement and its commit counts nothing twice, however much later the next one comes.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from raypipe.aborts import reach
from raypipe.errors import ConfigError, RaypipeError, Unavailable
from raypipe.ingest.media import Media
from raypipe.log.kafka.address import KafkaAddress
from raypipe.sources.batch import Batch, Send, Taken

ROWS = 2_000
"""Messages of a batch."""

BYTES = 8 * 2**20
"""From here on a batch takes no further message."""

POLL_S = 0.5

_NOTE = re.compile(r"raypipe:(\d+)")

_CONFIGURED = {
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._AUTHENTICATION,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
}

_log = logging.getLogger("raypipe.sources")


class _Came(NamedTuple):
    offset: int
    line: bytes


class KafkaSource:
    """One member of a consumer group; several share the topic's partitions.

    Args:
        address: brokers, topic and the client's configuration; other options have no meaning here.
        kind: the event type of all messages, None where each names its own.
    """

    def __init__(self, address: KafkaAddress, group: str, kind: str | None) -> None:
        self._address = address
        self._kind = kind
        self._waiting: dict[int, list[_Came]] = {}
        self._noted: dict[int, int] = {}
        self._ended: set[int] = set()
        self._consumer = Consumer(
            {
                **address.client(),
                "group.id": group,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                # While the system is away no other member could send either.
                "max.poll.interval.ms": 3_600_000,
            },
            logger=_log,
        )
        self._consumer.subscribe(
            [address.topic], on_assign=self._assigned, on_revoke=self._lost, on_lost=self._lost
        )

    def run(self, send: Send, *, once: bool) -> Iterator[tuple[Batch, Taken]]:
        """Send what comes; gives each batch when it is durable and committed.

        With ``once`` it ends when every partition of this member was read to its end. Raises what
        ``send`` raises, ConfigError for a topic that isn't there or not allowed, Unavailable when
        the brokers are away.
        """
        while True:
            for message in self._translated(lambda: self._consumer.consume(ROWS, POLL_S)):
                self._take(message)
            for partition in list(self._waiting):
                while (messages := self._next(partition)) is not None:
                    yield self._send(partition, messages, send)
            if once and self._waiting and self._ended >= self._waiting.keys():
                return

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close()

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for found in consumer.committed(partitions, timeout=self._address.timeout):
            note = _NOTE.fullmatch(found.metadata or "")
            self._waiting[found.partition] = []
            if note is not None and int(note[1]) >= found.offset:
                self._noted[found.partition] = int(note[1])

    def _lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for lost in partitions:
            self._waiting.pop(lost.partition, None)
            self._noted.pop(lost.partition, None)
            self._ended.discard(lost.partition)

    def _take(self, message: Message) -> None:
        error, partition = message.error(), message.partition() or 0
        if error is None:
            if partition in self._waiting:
                came = _Came(message.offset() or 0, _line(message.value()))
                self._waiting[partition].append(came)
                self._ended.discard(partition)
        elif error.code() == KafkaError._PARTITION_EOF:
            self._ended.add(partition)
        else:
            raise self._said(error)

    def _next(self, partition: int) -> list[_Came] | None:
        """The messages of the partition's next batch, None if there are none yet."""
        waiting = self._waiting.get(partition)
        if not waiting:
            return None
        end, count, size = self._noted.get(partition), 0, 0
        if end is not None:
            if waiting[-1].offset < end:
                return None
            count = sum(came.offset <= end for came in waiting)
        if not count:
            # Nothing was noted, or the topic no longer has it.
            self._noted.pop(partition, None)
            while count < min(len(waiting), ROWS) and size < BYTES:
                size += len(waiting[count].line)
                count += 1
        taken, self._waiting[partition] = waiting[:count], waiting[count:]
        return taken

    def _send(self, partition: int, messages: list[_Came], send: Send) -> tuple[Batch, Taken]:
        first, last = messages[0].offset, messages[-1].offset
        body = b"\n".join(came.line for came in messages)
        if self._noted.pop(partition, None) is None:
            self._commit(partition, first, f"raypipe:{last}")
        reach("kafka.noted")
        # A topic that was made anew has the same offsets and other bytes.
        digest = hashlib.sha256(body).hexdigest()[:16]
        key = f"kafka-{self._address.topic[-40:]}-{partition}-{first}-{last}-{digest}"
        batch = Batch(key, body, Media.LINES, self._kind, len(messages))
        taken = send(batch)
        reach("kafka.sent")
        self._commit(partition, last + 1, "")
        return batch, taken

    def _commit(self, partition: int, offset: int, note: str) -> None:
        place = TopicPartition(self._address.topic, partition, offset, note)
        self._translated(lambda: self._consumer.commit(offsets=[place], asynchronous=False))

    def _translated(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except KafkaException as e:
            raise self._said(e.args[0]) from e

    def _said(self, error: KafkaError) -> RaypipeError:
        text = f"reading {self._address}: {error.str()} ({error.name()})"
        if error.code() in _CONFIGURED:
            return ConfigError(text, hint="Check the topic's name and what this client may do.")
        return Unavailable(
            text, hint="Run the same again when the brokers can be reached: it goes on from there."
        )


def _line(value: bytes | None) -> bytes:
    """A message as one line; what is no event stays something that is refused with a reason."""
    line = (value or b"").replace(b"\n", b" ").replace(b"\r", b" ")
    return line if line and not line.isspace() else b"null"
