"""Kafka's errors in raypipe's words."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from confluent_kafka import KafkaError, KafkaException

from raypipe.errors import ConfigError, IntegrityError, RaypipeError, Unavailable
from raypipe.log.kafka.address import KafkaAddress
from raypipe.log.port import LogUnwritable

CLIENT_LOG = logging.getLogger("raypipe.log.kafka")
"""Where librdkafka's own lines go."""


_PRODUCER_ENDED = {
    KafkaError._FENCED,
    KafkaError._FATAL,
    KafkaError._STATE,
    KafkaError._PURGE_QUEUE,
    KafkaError._PURGE_INFLIGHT,
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.INVALID_PRODUCER_ID_MAPPING,
    KafkaError.UNKNOWN_PRODUCER_ID,
    KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER,
    KafkaError.INVALID_TXN_STATE,
    KafkaError.TRANSACTION_ABORTABLE,
}

_REFUSED = {
    KafkaError.NOT_ENOUGH_REPLICAS,
    KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    KafkaError.KAFKA_STORAGE_ERROR,
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.POLICY_VIOLATION,
}

_FORBIDDEN = {
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    KafkaError.INVALID_REPLICATION_FACTOR,
    KafkaError._INVALID_ARG,
}

_DAMAGED = {
    KafkaError._BAD_MSG,
    KafkaError._BAD_COMPRESSION,
    KafkaError.INVALID_MSG,
    KafkaError._AUTO_OFFSET_RESET,
    KafkaError.OFFSET_OUT_OF_RANGE,
}


class TakenOver(Exception):
    """The producer can't go on, mostly because another took the partition since it did.

    Whoever writes looks again at what is there, with a new producer.
    """


def is_damage(error: KafkaError) -> bool:
    """Whether stored bytes are broken or gone, and no retry brings them back."""
    return error.code() in _DAMAGED


def said(error: KafkaError, address: KafkaAddress, doing: str) -> RaypipeError:
    """The error to raise when ``doing`` failed."""
    code, text = error.code(), f"{doing} {address}: {error.str()} ({error.name()})"
    if code in _FORBIDDEN:
        return ConfigError(
            text, hint="Check log_url, its options and what the brokers allow this client."
        )
    if is_damage(error):
        return IntegrityError(text, hint="Restore the topic from a copy.")
    if code in _REFUSED:
        return LogUnwritable(
            f"{text}; nothing was acknowledged",
            hint="Check the brokers' disks, replicas and limits, then retry.",
        )
    return Unavailable(
        f"{text}; waited {address.timeout:g} s",
        hint="Check that the brokers run and can be reached, then retry: a repeated seq is "
        "written once.",
    )


@contextmanager
def translated(address: KafkaAddress, doing: str) -> Iterator[None]:
    """Say Kafka's exceptions in raypipe's words; TakenOver for those that a new producer cures."""
    try:
        yield
    except SystemError as e:
        # A producer's fatal error while it calls back: the client trips over its own exception.
        raise TakenOver from e
    except KafkaException as e:
        if e.args[0].code() in _PRODUCER_ENDED:
            raise TakenOver from e
        raise said(e.args[0], address, doing) from e
