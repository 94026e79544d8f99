"""URLs of logs on Kafka, and the client's own file."""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka import KafkaError

from raypipe.config import load_settings
from raypipe.errors import ConfigError, IntegrityError, RaypipeError, Unavailable
from raypipe.log.kafka.address import KafkaAddress
from raypipe.log.kafka.errors import said
from raypipe.log.port import LogUnwritable


def test_a_url_names_brokers_topic_and_options() -> None:
    address = KafkaAddress.parse(
        "kafka://a.example:9092,b:9093/shop.log?partitions=4&replication=5"
    )
    assert (address.brokers, address.topic) == ("a.example:9092,b:9093", "shop.log")
    assert address.meta_topic == "shop.log.meta"
    assert (address.partitions, address.replication, address.min_insync) == (4, 5, 4)
    assert str(address) == "kafka://a.example:9092,b:9093/shop.log"
    assert KafkaAddress.parse("kafka://[::1]:9092/t").min_insync == 2
    assert KafkaAddress.parse("kafka://a:1/t?replication=1").min_insync == 1


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("kafka://a/t", "no Kafka log"),
        ("kafka://a:1,/t", "no Kafka log"),
        ("kafka://user:secret@a:1/t", "no Kafka log"),
        ("redis://a:1/t", "no Kafka log"),
        ("kafka://a:1/", "topic"),
        ("kafka://a:1/one/two", "topic"),
        ("kafka://a:1/.", "topic"),
        ("kafka://a:1/t?replicas=3", "replicas"),
        ("kafka://a:1/t?partitions=0", "partitions"),
        ("kafka://a:1/t?partitions=", "partitions"),
        ("kafka://a:1/t?replication=2&min_insync=3", "min_insync"),
    ],
)
def test_what_is_wrong_in_a_url_is_named(url: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        KafkaAddress.parse(url)


def test_the_client_file_is_handed_on_and_must_be_private(tmp_path: Path) -> None:
    file = tmp_path / "client.properties"
    file.write_text("# comment\n\nsecurity.protocol = SASL_SSL\nsasl.password=a=b\n")
    file.chmod(0o600)
    client = KafkaAddress.parse(f"kafka://a:1/t?config={file}").client()
    assert client["security.protocol"] == "SASL_SSL"
    assert client["sasl.password"] == "a=b"
    assert client["bootstrap.servers"] == "a:1"
    file.chmod(0o604)
    with pytest.raises(ConfigError, match="others can read"):
        KafkaAddress.parse(f"kafka://a:1/t?config={file}").client()


@pytest.mark.parametrize("line", ["acks=0", "sasl.password", "secret words"])
def test_a_client_file_sets_nothing_else_and_is_not_printed(tmp_path: Path, line: str) -> None:
    file = tmp_path / "client.properties"
    file.write_text(f"ssl.ca.location=/ca\n{line}\n")
    file.chmod(0o600)
    with pytest.raises(ConfigError, match="line 2") as refused:
        KafkaAddress.parse(f"kafka://a:1/t?config={file}").client()
    assert line not in str(refused.value)


def test_settings_take_the_url_and_say_what_needs_a_folder(tmp_path: Path) -> None:
    url = "kafka://a:9092/shop?replication=3"
    settings = load_settings({"home": tmp_path, "log_url": url})
    assert settings.log_url == url
    assert settings.log_place == "kafka://a:9092/shop"
    with pytest.raises(ConfigError, match="folder"):
        _ = settings.log_directory
    with pytest.raises(ConfigError, match="partitions"):
        load_settings({"home": tmp_path, "log_url": f"{url}&partitions=x"})


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (KafkaError.NOT_ENOUGH_REPLICAS, LogUnwritable),
        (KafkaError.KAFKA_STORAGE_ERROR, LogUnwritable),
        (KafkaError._TRANSPORT, Unavailable),
        (KafkaError._MSG_TIMED_OUT, Unavailable),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, ConfigError),
        (KafkaError.OFFSET_OUT_OF_RANGE, IntegrityError),
    ],
)
def test_kafkas_errors_become_ours(code: int, error: type[RaypipeError]) -> None:
    found = said(KafkaError(code), KafkaAddress("a:1", "t"), "writing to")
    assert type(found) is error
    assert "kafka://a:1/t" in found.detail
