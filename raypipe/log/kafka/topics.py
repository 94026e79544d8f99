"""The two topics of a log: made with what a log needs, refused when they are kept otherwise."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from raypipe.errors import ConfigError, NotFound, Unavailable
from raypipe.log.kafka.address import KafkaAddress
from raypipe.log.kafka.errors import CLIENT_LOG, translated

_FRAME = 65_536
"""What Kafka and a record's head add to its rows, at most."""


@dataclass(frozen=True)
class Topics:
    """What the brokers say about a log: an id that no other topic ever has, and its partitions."""

    id: str
    partitions: int


def record_limit(address: KafkaAddress) -> int:
    """Largest message, in bytes, that the topics and clients let through."""
    return address.record_bytes + _FRAME


def settings(address: KafkaAddress) -> dict[str, dict[str, str]]:
    """Configuration of each topic: rows are kept for good, of what changes the last is kept."""
    common = {
        "min.insync.replicas": str(address.min_insync),
        "max.message.bytes": str(record_limit(address)),
        "unclean.leader.election.enable": "false",
    }
    kept = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
    compacted = {"cleanup.policy": "compact", "segment.ms": "3600000"}
    return {address.topic: common | kept, address.meta_topic: common | compacted}


def open_topics(address: KafkaAddress, *, create: bool) -> Topics:
    """Find the topics, or make them.

    Raises:
        NotFound: they aren't there and shall not be made.
        ConfigError: they would lose rows, or can't be made as asked.
        Unavailable: the brokers don't answer.
    """
    admin = AdminClient(
        {**address.client(), "socket.timeout.ms": address.timeout_ms}, logger=CLIENT_LOG
    )
    with translated(address, "looking for the topics of"):
        there = admin.list_topics(timeout=address.timeout).topics
    wanted = settings(address)
    absent = [name for name in wanted if name not in there]
    if absent and not create:
        raise NotFound(f"there is no topic {absent[0]} at {address}")
    if absent:
        _create(admin, address, {name: wanted[name] for name in absent})
    deadline = time.monotonic() + address.timeout
    while True:
        try:
            with translated(address, "describing"):
                _check(admin, address, wanted)
                return _describe(admin, address)
        except Unavailable:
            # A topic that was made a moment ago is not known to every part of a broker.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _create(admin: AdminClient, address: KafkaAddress, topics: Mapping[str, Any]) -> None:
    new = [
        NewTopic(
            name,
            num_partitions=address.partitions if name == address.topic else 1,
            replication_factor=address.replication,
            config=config,
        )
        for name, config in topics.items()
    ]
    try:
        with translated(address, "making the topics of"):
            for name, made in admin.create_topics(new, operation_timeout=address.timeout).items():
                _made(name, made, address)
    except ConfigError as e:
        raise ConfigError(
            e.detail, hint="replication in log_url is at most the number of brokers."
        ) from e


def _made(name: str, made: Future[Any], address: KafkaAddress) -> None:
    try:
        made.result(address.timeout * 2)
    except KafkaException as e:
        # Another process was first.
        if e.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise


def _check(
    admin: AdminClient, address: KafkaAddress, wanted: Mapping[str, Mapping[str, str]]
) -> None:
    """Raise ConfigError for topics that somebody keeps in a way that loses rows."""
    asked = [ConfigResource(ResourceType.TOPIC, name) for name in wanted]
    for resource, answer in admin.describe_configs(asked, request_timeout=address.timeout).items():
        found = answer.result(address.timeout * 2)
        for option, value in wanted[resource.name].items():
            is_ = found[option].value if option in found else None
            if not _keeps(option, value, is_):
                raise ConfigError(
                    f"topic {resource.name} has {option}={is_}, the log needs {value}",
                    hint=f"Alter the topic: {option}={value}; or write another value in log_url.",
                )


def _keeps(option: str, wanted: str, found: str | None) -> bool:
    if option == "segment.ms" or found is None:
        return True
    if option in {"min.insync.replicas", "max.message.bytes"}:
        return int(found) >= int(wanted)
    return found == wanted


def _describe(admin: AdminClient, address: KafkaAddress) -> Topics:
    answer = admin.describe_topics(
        TopicCollection([address.topic]), request_timeout=address.timeout
    )[address.topic]
    found = answer.result(address.timeout * 2)
    if found.topic_id is None:
        raise ConfigError(f"the brokers of {address} tell no topic id; Kafka 2.8 or later does")
    id = found.topic_id
    bits = [id.get_most_significant_bits(), id.get_least_significant_bits()]
    name = "".join(f"{part & (2**64 - 1):016x}" for part in bits)
    return Topics(name, len(found.partitions))
