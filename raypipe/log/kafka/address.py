"""``kafka://HOST:PORT[,HOST:PORT]/TOPIC[?options]``: where a log is and how it is kept there."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from raypipe.errors import ConfigError

SCHEME = "kafka"

ALLOWED = "kafka://HOST:PORT[,HOST:PORT]/TOPIC[?replication=3&min_insync=2&partitions=16&...]"

_BROKERS = re.compile(r"^([\w.-]+|\[[0-9a-fA-F:]+\]):\d{1,5}$")
_TOPIC = re.compile(r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}$")
_CLIENT = ("security.", "sasl.", "ssl.")

_BOUNDS = {
    "partitions": (1, 1 << 15),
    "replication": (1, 100),
    "min_insync": (1, 100),
    "timeout_ms": (100, 600_000),
    "record_bytes": (10_000, 64 * 2**20),
}


@dataclass(frozen=True)
class KafkaAddress:
    """A log on Kafka.

    Args:
        brokers: where to begin, as ``host:port,host:port``.
        topic: rows go to it, what is small and changes to ``TOPIC.meta``.
        partitions: of a topic that isn't there yet.
        replication: copies of each row, of a topic that isn't there yet.
        min_insync: copies that an acknowledged row has at least.
        timeout_ms: after how long a silent broker is an error.
        record_bytes: the largest record; more rows are several records of one transaction.
        config: file of ``security.*``, ``sasl.*`` and ``ssl.*`` lines for librdkafka.
    """

    brokers: str
    topic: str
    partitions: int = 16
    replication: int = 3
    min_insync: int = 2
    timeout_ms: int = 10_000
    record_bytes: int = 4 * 2**20
    config: Path | None = None

    @property
    def meta_topic(self) -> str:
        """The compacted topic beside the log's own."""
        return f"{self.topic}.meta"

    @property
    def timeout(self) -> float:
        """Seconds."""
        return self.timeout_ms / 1_000

    def __str__(self) -> str:
        return f"{SCHEME}://{self.brokers}/{self.topic}"

    @classmethod
    def parse(cls, url: str) -> KafkaAddress:
        """The address that a URL names; raises ConfigError with the part that is wrong."""
        parts = urlsplit(url)
        topic = parts.path.removeprefix("/")
        brokers = parts.netloc.split(",")
        if parts.scheme != SCHEME or not all(map(_BROKERS.match, brokers)) or parts.fragment:
            raise ConfigError(f"{url!r} names no Kafka log", hint=f"Write {ALLOWED}.")
        if not _TOPIC.match(topic):
            raise ConfigError(
                f"{topic!r} can't be a Kafka topic",
                hint="A topic is up to 200 of a-z, A-Z, 0-9, `.`, `_`, `-`.",
            )
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        config = options.pop("config", None)
        numbers = {name: _number(name, value) for name, value in options.items()}
        if "min_insync" not in numbers and "replication" in numbers:
            numbers["min_insync"] = max(1, numbers["replication"] - 1)
        address = cls(parts.netloc, topic, config=Path(config) if config else None, **numbers)
        if address.min_insync > address.replication:
            raise ConfigError(
                f"min_insync {address.min_insync} is over replication {address.replication}"
            )
        return address

    def client(self) -> dict[str, str]:
        """What every client of the brokers is configured with.

        Raises ConfigError for a config file that is absent, open to others or sets other things.
        """
        common = {
            "bootstrap.servers": self.brokers,
            "client.id": "raypipe",
            "reconnect.backoff.ms": "20",
            "reconnect.backoff.max.ms": "500",
            "retry.backoff.ms": "20",
            "socket.timeout.ms": str(self.timeout_ms),
        }
        return common | (_client_file(self.config) if self.config else {})


def _number(name: str, value: str) -> int:
    if name not in _BOUNDS:
        known = ", ".join([*_BOUNDS, "config"])
        raise ConfigError(f"a Kafka log has no option {name!r}", hint=f"Options: {known}.")
    low, high = _BOUNDS[name]
    if not value.isascii() or not value.isdigit() or not low <= int(value) <= high:
        raise ConfigError(f"option {name} is {value!r}, expected {low} to {high}")
    return int(value)


def _client_file(path: Path) -> dict[str, str]:
    try:
        with path.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"the log's client configuration {path} can't be read: {e}") from None
    if mode & stat.S_IRWXO:
        raise ConfigError(
            f"{path} has mode {mode:04o}: others can read it", hint=f"`chmod 600 {path}`."
        )
    found = {}
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not name.startswith(_CLIENT):
            # Not the line itself: it may hold a password.
            raise ConfigError(
                f"line {number} of {path} is no security.*, sasl.* or ssl.* property",
                hint="Write one `name=value` a line, as librdkafka calls them.",
            )
        found[name] = value
    return found
