"""The log on three brokers, of which one is lost for good."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from raypipe.errors import Unavailable
from raypipe.log.kafka.log import KafkaLog
from tests.contract.kafka_server import MISSING, KafkaServer, free_ports
from tests.recovery.test_log_recovery import batches_of, check_prefix

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@pytest.fixture
def brokers(tmp_path: Path) -> Iterator[list[KafkaServer]]:
    found = free_ports(6)
    ports = list(zip(found[:3], found[3:], strict=True))
    servers = []
    for node in (1, 2, 3):
        folder = tmp_path / f"broker-{node}"
        folder.mkdir()
        servers.append(KafkaServer(folder, node, ports))
    for server in servers:
        server.wait()
    yield servers
    for server in servers:
        server.kill()


def append(log: KafkaLog, seq: int, within_s: float = 60) -> None:
    """Append, and again while the brokers choose new leaders."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            log.append(0, batches_of(seq), producer="p", seq=seq)
        except Unavailable:
            if time.monotonic() > deadline:
                raise
        else:
            return


def leader(server: KafkaServer, topic: str) -> int:
    """The node that leads partition 0."""
    topics = AdminClient({"bootstrap.servers": server.brokers}).list_topics(topic, 10).topics
    return topics[topic].partitions[0].leader


def test_what_was_acknowledged_outlives_the_broker_that_led(
    brokers: list[KafkaServer], tmp_path: Path
) -> None:
    names = ",".join(b.brokers for b in brokers)
    url = f"kafka://{names}/three?replication=3&min_insync=2&partitions=1&timeout_ms=3000"
    log = KafkaLog.open(url, tmp_path / "cache")
    for seq in range(10):
        append(log, seq)
    lost = brokers[leader(brokers[0], "three") - 1]
    lost.kill()
    for seq in range(10, 20):
        append(log, seq)
    fresh = KafkaLog.open(url, tmp_path / "fresh")
    assert check_prefix(fresh) == 20

    # One copy alone acknowledges nothing.
    left = [b for b in brokers if b is not lost]
    left[0].kill()
    with pytest.raises(Unavailable):
        append(log, 20, within_s=0)
    left[0].start()
    for seq in range(20, 25):
        append(log, seq)
    assert check_prefix(KafkaLog.open(url, tmp_path / "last")) == 25
