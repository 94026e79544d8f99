"""What the log on Kafka does beyond the contract: records, topics, the index, damage."""

from __future__ import annotations

import random
import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource
from hypothesis import given
from hypothesis import strategies as st

from features.payments import CHARGEBACK, TRANSACTION, project
from raypipe.config import Settings
from raypipe.errors import (
    ConfigError,
    DeclarationError,
    IntegrityError,
    NotFound,
    RaypipeError,
    UsageError,
)
from raypipe.events.declarations import declare
from raypipe.log import codec, identity, writing
from raypipe.log.kafka import index
from raypipe.log.kafka import log as kafka_log
from raypipe.log.kafka.log import KafkaLog
from raypipe.log.kafka.record import pieces
from raypipe.log.kafka.writer import Writer
from raypipe.log.opening import open_log
from raypipe.log.port import DuplicateId, Fenced, Unavailable
from serving.run import require_readable_log
from tests.contract.kafka_server import KafkaServer, free_ports
from tests.contract.log_kit import (
    check_ids_are_compared,
    grouped,
    history,
    refunds,
    rows_in,
    rows_of,
    sales,
)

Opener = Callable[..., KafkaLog]


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    return f"t-{abs(hash(request.node.nodeid)):x}-{time.monotonic_ns():x}"


@pytest.fixture
def opener(kafka: KafkaServer, topic: str, tmp_path: Path) -> Iterator[Opener]:
    """Opens the test's log; options go into its URL, ``cache`` is another machine's folder."""
    opened: list[KafkaLog] = []

    def open(cache: str = "cache", **options: object) -> KafkaLog:
        opened.append(KafkaLog.open(kafka.url(topic, **options), tmp_path / cache))
        return opened[-1]

    yield open
    for log in opened:
        log.close()


# records


@given(layout=st.text("sr", min_size=1, max_size=60), limit=st.integers(1_500, 4_000))
def test_pieces_are_the_group_again_and_none_is_larger_than_a_record(
    layout: str, limit: int
) -> None:
    group, rows = grouped(layout, "g")
    found, base = [], 0
    for piece, payload, digests in pieces(group, limit):
        assert len(payload) <= limit
        assert len(digests) == len({p.kind for p in piece.parts})
        offsets = {
            int(o): row
            for c in codec.chunks(piece, base, base, base + len(piece))
            for o, row in zip(c.offsets, rows_of([(c.kind, c.batch)]), strict=True)
        }
        assert sorted(offsets) == list(range(base, base + len(piece)))
        found += [offsets[o] for o in sorted(offsets)]
        base += len(piece)
    assert found == rows


def test_an_append_over_many_records_is_one(opener: Opener) -> None:
    log, reader = opener(record_bytes=10_000), opener("other", record_bytes=10_000)
    kind, batch = sales(*(f"{n}-{'x' * 100}" for n in range(1_000)))
    group, rows = grouped("srrs" * 400, "g")
    seen: set[int] = set()
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.add(reader.end(0))

    watcher = threading.Thread(target=watch)
    watcher.start()
    given_ = log.append(0, [(kind, batch), group, refunds("z")], producer="p", seq=0)
    stop.set()
    watcher.join()
    assert seen <= {0, 2_601}
    assert [(int(o[0]), len(o)) for o in given_] == [(0, 1_000), (1_000, 1_600), (2_600, 1)]
    assert rows_in(reader) == [*rows_of([(kind, batch)]), *rows, *rows_of([refunds("z")])]
    assert rows_in(reader, 990, 20) == rows_in(reader)[990:1_010]
    again = opener("third", record_bytes=10_000).append(
        0, [(kind, batch), group, refunds("z")], producer="p", seq=0
    )
    assert [o.tolist() for o in again] == [o.tolist() for o in given_]
    assert log.end(0) == 2_601


def test_a_row_larger_than_a_record_is_refused(opener: Opener) -> None:
    log = opener(record_bytes=10_000)
    with pytest.raises(UsageError, match="record_bytes"):
        log.append(0, [sales("a"), sales("b" * 20_000)], producer="p", seq=0)
    assert log.end(0) == 0


def test_rows_far_apart_are_found_by_a_reader_that_knows_nothing(opener: Opener) -> None:
    log = opener()
    model = []
    for seq in range(150):
        batches = [sales(*(f"{seq}-{i}" for i in range(seq % 3 + 1)))]
        log.append(0, batches, producer="p", seq=seq)
        model += rows_of(batches)
    for offset in (0, 1, len(model) // 3, len(model) // 2, len(model) - 1, len(model)):
        assert rows_in(opener(), offset, 5) == model[offset : offset + 5]
    assert opener().end(0) == len(model)


# writers


def test_a_zombie_is_fenced_by_the_brokers(opener: Opener) -> None:
    old = opener("old")
    epoch = old.begin_epoch(0)
    old.append(0, [sales("a")], producer="p", seq=0, epoch=epoch)
    new = opener("new")
    assert new.begin_epoch(0) == epoch + 1
    # It holds no newer knowledge: only the brokers can stop it.
    assert old._index.state(0).epoch == epoch
    with pytest.raises(Fenced):
        old.append(0, [sales("b")], producer="p", seq=1, epoch=epoch)
    assert new.end(0) == 1
    new.append(0, [sales("b")], producer="q", seq=0, epoch=epoch + 1)
    assert rows_in(new) == rows_of([sales("a", "b")])[:1] + rows_of([sales("b")])


def test_an_open_transaction_of_a_zombie_never_shows(opener: Opener, kafka: KafkaServer) -> None:
    log = opener()
    log.append(0, [sales("a")], producer="p", seq=0)
    producer = Producer(
        {
            "bootstrap.servers": kafka.brokers,
            "transactional.id": f"{log.address.topic}-0",
            "transaction.timeout.ms": 60_000,
        }
    )
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(log.address.topic, b"half", partition=0)
    producer.flush(30)
    other = opener("other")
    assert rows_in(other) == rows_of([sales("a")])
    other.append(0, [sales("b")], producer="q", seq=0)
    with pytest.raises(Exception, match=r"(?i)fenced"):
        producer.commit_transaction(30)
    assert log.append(0, [sales("c")], producer="p", seq=1)[0].tolist() == [2]
    assert len(rows_in(opener("third"))) == 3


def test_writers_without_an_epoch_take_turns(opener: Opener) -> None:
    logs = [opener("one"), opener("two")]
    for seq in range(4):
        for n, log in enumerate(logs):
            (offsets,) = log.append(0, [sales(f"{n}-{seq}")], producer=f"w{n}", seq=seq)
            assert offsets.tolist() == [2 * seq + n]
    with pytest.raises(DuplicateId, match="offset 1"):
        logs[0].append(0, [sales("1-0")], producer="w0", seq=9)
    assert len(rows_in(logs[1])) == 8


def test_what_is_written_just_before_a_writer_takes_over_counts(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = opener("one"), opener("two")
    first.append(0, [sales("a")], producer="p", seq=0)
    assert second.find(0, "sale", "t", "a") is not None
    take = Writer._take

    def late(writer: Writer, *, long: bool) -> None:
        monkeypatch.undo()
        first.append(0, [sales("b")], producer="p", seq=1)
        take(writer, long=long)

    monkeypatch.setattr(Writer, "_take", late)
    with pytest.raises(DuplicateId):
        second.append(0, [sales("b")], producer="q", seq=0)
    second.begin_epoch(0)
    assert second.append(0, [sales("c")], producer="q", seq=1)[0].tolist() == [2]
    assert rows_in(opener("three")) == [row for i in "abc" for row in rows_of([sales(i)])]


def test_colliding_hashes_never_confuse_two_rows(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (index, kafka_log, writing, identity):
        monkeypatch.setattr(
            module, "hash_keys", lambda kind, keys: np.full(len(keys[0]), 2**63 + 5, dtype="<u8")
        )
    check_ids_are_compared(opener())


# the index


def test_a_lost_index_is_made_again_from_the_topic(opener: Opener, tmp_path: Path) -> None:
    log = opener()
    epoch = log.begin_epoch(0)
    ordered, count, rows = history("srsrs", "h")
    log.seal(0, ordered, count, producer="l", seq=0)
    log.append(0, [sales("a", "b"), grouped("sr", "g")[0]], producer="p", seq=0, epoch=epoch)
    log.commit("g", 0, 7, "state")
    log.close()
    shutil.rmtree(tmp_path / "cache")
    again = opener()
    found = again.find(0, "sale", "t", "b")
    assert found is not None
    assert found[0] == 6
    assert again.find(0, "sale", "t", "g0") is None
    assert again.sealed_range(0, "l", 0) == (0, 5)
    with pytest.raises(DuplicateId):
        again.append(0, [sales("h0")], producer="p", seq=1)
    batches = [sales("a", "b"), grouped("sr", "g")[0]]
    repeated = again.append(0, batches, producer="p", seq=0)
    assert [o.tolist() for o in repeated] == [[5, 6], [7, 8]]
    assert again.counts(0) == {"refund": 3, "sale": 6}
    assert again.committed("g", 0) == (7, "state")
    assert again.begin_epoch(0) == epoch + 1
    assert rows_in(again)[:5] == rows


def test_an_index_that_knows_more_than_the_topic_stops_the_writer(
    opener: Opener, tmp_path: Path
) -> None:
    log = opener()
    log.append(0, [sales("a")], producer="p", seq=0)
    log.close()
    (file,) = (tmp_path / "cache").rglob("index.db")
    with sqlite3.connect(file) as db:
        db.execute("update progress set kafka = 1000")
    with pytest.raises(IntegrityError, match="lost records"):
        opener().append(0, [sales("b")], producer="p", seq=1)


def test_a_damaged_index_says_how_to_go_on(opener: Opener, tmp_path: Path) -> None:
    log = opener()
    log.append(0, [sales("a")], producer="p", seq=0)
    log.close()
    (file,) = (tmp_path / "cache").rglob("index.db")
    file.write_bytes(b"x" * 20_000)
    with pytest.raises(IntegrityError, match="made again"):
        opener()
    file.unlink()
    assert opener().find(0, "sale", "t", "a") is not None


# damage


def test_deleted_records_are_noticed(opener: Opener, kafka: KafkaServer) -> None:
    log = opener()
    for seq in range(5):
        log.append(0, [sales(f"{seq}")], producer="p", seq=seq)
    admin = AdminClient({"bootstrap.servers": kafka.brokers})
    for done in admin.delete_records([TopicPartition(log.address.topic, 0, 4)]).values():
        done.result(30)
    for offset in (0, 1, 4):
        with pytest.raises(IntegrityError, match=f"offset {offset}"):
            rows_in(opener("other"), offset)
    with pytest.raises(IntegrityError):
        opener("other").append(0, [sales("x")], producer="p", seq=9)


def test_a_strange_record_is_no_row(opener: Opener, kafka: KafkaServer) -> None:
    log = opener()
    log.append(0, [sales("a", "b")], producer="p", seq=0)
    producer = Producer({"bootstrap.servers": kafka.brokers})
    producer.produce(log.address.topic, b"from somebody else", partition=0)
    producer.flush(30)
    log.append(0, [sales("c")], producer="p", seq=1)
    with pytest.raises(IntegrityError, match="offset 2: "):
        rows_in(opener("other"))


def test_any_flipped_bit_gives_the_right_rows_or_an_error(
    opener: Opener, kafka: KafkaServer
) -> None:
    rng = random.Random(9)
    log = opener()
    fills = [rng.randbytes(300).hex() for _ in range(20)]
    for seq, fill in enumerate(fills):
        log.append(0, [sales(fill)], producer="p", seq=seq)
    right = rows_in(log)
    (segment,) = (kafka.data / f"{log.address.topic}-0").glob("*.log")
    size = segment.stat().st_size
    refused = named = 0
    for _ in range(40):
        at = rng.randrange(size)
        _flip(segment, at)
        reader = opener("other", timeout_ms=1_000)
        try:
            assert rows_in(reader) == right
        except RaypipeError as e:
            refused += 1
            named += "offset" in e.detail
        finally:
            reader.close()
            _flip(segment, at)
    assert refused > 20
    assert named > refused // 2
    assert rows_in(opener("other")) == right


def _flip(path: Path, at: int) -> None:
    with path.open("r+b") as f:
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ 0x10]))


# topics and brokers


def test_topics_are_made_as_a_log_needs_them(opener: Opener, kafka: KafkaServer) -> None:
    log = opener(partitions=3)
    admin = AdminClient({"bootstrap.servers": kafka.brokers})
    assert len(admin.list_topics(log.address.topic).topics[log.address.topic].partitions) == 3
    with pytest.raises(UsageError, match=r"0\.\.2"):
        log.end(3)
    # What is there counts, not what the URL says.
    assert opener(partitions=5)._topics.partitions == 3


def alter(kafka: KafkaServer, topic: str, option: str, value: str) -> None:
    """Change a topic's configuration and wait until the broker says so."""
    admin = AdminClient({"bootstrap.servers": kafka.brokers})
    entry = ConfigEntry(option, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource("TOPIC", topic, incremental_configs=[entry])
    for done in admin.incremental_alter_configs([resource]).values():
        done.result(30)
    found = ""
    while found != value:
        (answer,) = admin.describe_configs([ConfigResource("TOPIC", topic)]).values()
        found = answer.result(30)[option].value


@pytest.mark.parametrize(
    ("option", "value"),
    [("retention.ms", "86400000"), ("cleanup.policy", "compact"), ("max.message.bytes", "5000")],
)
def test_a_topic_that_would_lose_rows_is_refused(
    opener: Opener, kafka: KafkaServer, option: str, value: str
) -> None:
    log = opener()
    alter(kafka, log.address.topic, option, value)
    with pytest.raises(ConfigError, match=option):
        opener()


def test_more_copies_than_brokers_are_refused(opener: Opener) -> None:
    with pytest.raises(ConfigError, match="replication"):
        opener(replication=3)


def test_a_log_that_is_not_there_is_made_or_missed(
    kafka: KafkaServer, topic: str, tmp_path: Path
) -> None:
    url = kafka.url(topic)
    with pytest.raises(NotFound, match="no event log"):
        open_log(url, tmp_path, create=False)
    open_log(url, tmp_path).close()
    open_log(url, tmp_path, create=False).close()


def test_a_broker_that_is_away_is_reported_in_time(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    started = time.monotonic()
    with pytest.raises(Unavailable, match=f"127.0.0.1:{port}"):
        open_log(f"kafka://127.0.0.1:{port}/t?replication=1&timeout_ms=1000", tmp_path)
    assert time.monotonic() - started < 5


def test_a_server_that_is_no_broker_is_reported_in_time(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        started = time.monotonic()
        with pytest.raises(Unavailable):
            open_log(f"kafka://127.0.0.1:{port}/t?replication=1&timeout_ms=1000", tmp_path)
        assert time.monotonic() - started < 5


def test_serving_looks_at_the_declarations_of_a_log_on_kafka(
    kafka: KafkaServer, topic: str, opener: Opener, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path, log_url=kafka.url(topic))
    require_readable_log(settings, project)
    declare(opener(), project, 0, None)
    require_readable_log(settings, project)
    narrower = replace(TRANSACTION, fields=TRANSACTION.fields[:-1])
    with pytest.raises(DeclarationError, match="country"):
        require_readable_log(settings, replace(project, events=(narrower, CHARGEBACK)))
