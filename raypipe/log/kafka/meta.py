"""The compacted topic beside the rows: schemas by their sha256, and how far each group is."""

from __future__ import annotations

import struct
import threading
import zlib
from typing import Any

import msgspec
import pyarrow as pa
from confluent_kafka import KafkaError, Message, Producer

from raypipe.errors import IntegrityError
from raypipe.log import codec
from raypipe.log.kafka.errors import CLIENT_LOG, TakenOver, said, translated
from raypipe.log.kafka.reader import Readers, place_of
from raypipe.log.kafka.topics import record_limit

_CRC = struct.Struct("<I")
_WRITING = "writing to the meta topic of"


class Meta:
    """Keys and their newest values, followed as far as somebody asked."""

    def __init__(self, readers: Readers) -> None:
        self._readers = readers
        self._address = readers.address
        self._values: dict[bytes, bytes] = {}
        self._next = 0
        self._schemas: dict[str, pa.Schema] = {}
        self._producer: Producer | None = None
        self._lock = threading.Lock()

    def keep(self, schema: pa.Schema) -> None:
        """Make a schema durable under its sha256, if it isn't."""
        ipc, digest = codec.encode_schema(schema)
        if digest.hex() in self._schemas:
            return
        key = _schema_key(digest.hex())
        if self._get(key) is None:
            self._put(key, ipc)
        self._schemas[digest.hex()] = schema

    def schema(self, digest: str) -> pa.Schema:
        """The schema of that sha256; raises IntegrityError when it is missing or another."""
        if digest not in self._schemas:
            ipc = self._get(_schema_key(digest))
            if ipc is None:
                raise IntegrityError(f"schema {digest} of {self._address} is missing")
            self._schemas[digest] = codec.decode_schema(ipc, bytes.fromhex(digest))
        return self._schemas[digest]

    def commit(self, group: str, partition: int, offset: int, state_ref: str) -> None:
        """See EventLog.commit."""
        self._put(_group_key(group, partition), msgspec.json.encode((offset, state_ref)))

    def committed(self, group: str, partition: int) -> tuple[int, str] | None:
        """See EventLog.committed."""
        value = self._get(_group_key(group, partition), newest=True)
        return msgspec.json.decode(value, type=tuple[int, str]) if value is not None else None

    def _get(self, key: bytes, *, newest: bool = False) -> bytes | None:
        with self._lock:
            if newest or key not in self._values:
                self._follow()
            return self._values.get(key)

    def _follow(self) -> None:
        topic = self._address.meta_topic
        for message in self._readers.scan(topic, 0, self._next, transactions=False):
            key, value = _checked(message)
            self._values[key] = value
            self._next = place_of(message) + 1

    def _put(self, key: bytes, value: bytes) -> None:
        """Write durably: returns when all replicas in sync have it."""
        failed: list[KafkaError] = []

        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                failed.append(error)

        with self._lock:
            producer = self._connected()
            crc = _CRC.pack(zlib.crc32(value, zlib.crc32(key)))
            try:
                with translated(self._address, _WRITING):
                    producer.produce(
                        self._address.meta_topic, crc + value, key, 0, on_delivery=delivered
                    )
                    left = producer.flush(self._address.timeout * 1.5)
            except TakenOver:
                left = 1
            if left or failed:
                # What is still queued must not be written later, behind a newer value.
                producer.purge()
                self._producer = None
                error = failed[0] if failed else KafkaError(KafkaError._TIMED_OUT)
                raise said(error, self._address, _WRITING)

    def _connected(self) -> Producer:
        if self._producer is None:
            config: dict[str, Any] = {
                **self._address.client(),
                "acks": "all",
                "enable.idempotence": True,
                "linger.ms": 0,
                "message.timeout.ms": self._address.timeout_ms,
                "message.max.bytes": record_limit(self._address),
            }
            self._producer = Producer(config, logger=CLIENT_LOG)
        return self._producer


def _schema_key(digest: str) -> bytes:
    return f"schema/{digest}".encode()


def _group_key(group: str, partition: int) -> bytes:
    return f"group/{group}/{partition}".encode()


def _checked(message: Message) -> tuple[bytes, bytes]:
    key, value = message.key(), message.value()
    if isinstance(key, bytes) and isinstance(value, bytes) and len(value) >= _CRC.size:
        (crc,) = _CRC.unpack_from(value)
        if zlib.crc32(value[_CRC.size :], zlib.crc32(key)) == crc:
            return key, value[_CRC.size :]
    raise IntegrityError(
        f"what lies at Kafka offset {message.offset()} of {message.topic()} is not what was written"
    )
