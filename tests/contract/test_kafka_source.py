"""A topic's messages are taken once each, on a real broker, whatever breaks in between."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from raypipe.errors import ConfigError
from raypipe.log.kafka.address import KafkaAddress
from raypipe.sources import kafka as source_of
from raypipe.sources.batch import Batch, Send, Taken
from raypipe.sources.feed import Fed
from raypipe.sources.kafka import KafkaSource
from tests.contract.kafka_server import KafkaServer
from tests.unit.ingest_kit import Service, reading
from tests.unit.test_cli_events import Live

PARTITIONS = 2
_numbers = itertools.count()


class Killed(BaseException):
    """Stands for the end of the process."""


class Topic:
    def __init__(self, kafka: KafkaServer, service: Service) -> None:
        self.kafka = kafka
        self.service = service
        self.name = f"source-{next(_numbers)}"
        admin = AdminClient({"bootstrap.servers": kafka.brokers})
        topic = NewTopic(self.name, PARTITIONS, 1)
        admin.create_topics([topic])[self.name].result(30)

    def write(self, *values: bytes | None) -> None:
        producer = Producer({"bootstrap.servers": self.kafka.brokers})
        for number, value in enumerate(values):
            producer.produce(self.name, value, partition=number % PARTITIONS)
        producer.flush(30)

    def events(self, *ids: str) -> None:
        self.write(*(json.dumps(reading(i), indent=1).encode() for i in ids))

    def source(self) -> KafkaSource:
        return KafkaSource(KafkaAddress.parse(self.url), "g", None)

    @property
    def url(self) -> str:
        return f"kafka://{self.kafka.brokers}/{self.name}"

    def read(self, send: Send | None = None) -> Fed:
        source, fed = self.source(), Fed()
        try:
            for _, taken in source.run(send or self.service.sender().send, once=True):
                fed.count(taken)
        finally:
            source.close()
        return fed

    def logged(self) -> dict[str, int]:
        return Counter(name for kind, name in self.service.logged() if kind == "reading")


@pytest.fixture
def topic(kafka: KafkaServer, tmp_path: Path) -> Topic:
    return Topic(kafka, Service(tmp_path))


def test_messages_are_taken_once_and_the_group_goes_on(topic: Topic) -> None:
    topic.events("a", "b", "c")
    assert topic.read().accepted == 3
    topic.events("d")
    assert topic.read().accepted == 1
    assert topic.logged() == dict.fromkeys("abcd", 1)


def test_what_is_no_event_is_refused_and_kept(topic: Topic) -> None:
    topic.write(None, b"", b"nonsense", b'{"type": "reading"}')
    topic.events("a")
    fed = topic.read()
    assert (fed.accepted, fed.rejected) == (1, 4)
    assert len(topic.service.worker.quarantine) == 4


@pytest.mark.parametrize("moment", ["before", "after"])
def test_death_before_the_commit_counts_nothing_twice(topic: Topic, moment: str) -> None:
    topic.events("a", "b", "c", "d")
    sender = topic.service.sender()

    def send(batch: Batch) -> Taken:
        if moment == "after":
            sender.send(batch)
        raise Killed

    with pytest.raises(Killed):
        topic.read(send)
    # Much later: the ids are forgotten, and more messages have come behind.
    topic.service.clock.advance(3_600_000)
    topic.service.worker.start()
    topic.events("e", "f")
    assert topic.read().accepted == 6
    assert topic.logged() == dict.fromkeys("abcdef", 1)


def test_batches_are_bounded(topic: Topic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_of, "ROWS", 3)
    topic.events(*(f"r-{i}" for i in range(20)))
    sizes: list[int] = []
    sender = topic.service.sender()

    def send(batch: Batch) -> Taken:
        sizes.append(batch.rows)
        return sender.send(batch)

    assert topic.read(send).accepted == 20
    assert max(sizes) <= 3


def test_a_topic_that_is_not_there_is_named(topic: Topic) -> None:
    topic.name = "nowhere"
    with pytest.raises(ConfigError, match="nowhere"):
        topic.read()


def test_the_command_line_follows_a_topic(
    kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(Live(tmp_path / "home")) as live:
        monkeypatch.setenv("RAYPIPE_API_KEY", live.service.key)
        topic = Topic(kafka, live.service)
        topic.events("a", "b", "c")
        topic.write(b"nonsense")
        said = live.said("ingest", "--kafka", topic.url, "--once", code=3)
        assert (said["accepted"], said["refused"]) == (3, 1)
        assert live.said("ingest", "--kafka", topic.url, "--once")["accepted"] == 0
        assert topic.logged() == dict.fromkeys("abc", 1)
