"""A real Kafka for a test run: one broker process (KRaft) on free loopback ports."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

ROOT = Path(__file__).parents[2]
LIB = ROOT / ".kafka" / "lib"
CLUSTER = "4L6g3nShT-eMCtK--X86sw"

MISSING = (
    "no java: apt-get install default-jre-headless"
    if shutil.which("java") is None
    else "no Kafka broker in .kafka: `make kafka` fetches it with Maven"
    if not LIB.is_dir()
    else ""
)
"""Why there is no broker here; empty when there is one."""

JAVA = [
    *("java", "-Xms128m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    *("-cp", f"{LIB}/*"),
]
# The broker must not outlive a test run that was killed.
TIED = [setpriv, "--pdeathsig", "KILL"] if (setpriv := shutil.which("setpriv")) else []


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class KafkaServer:
    """One broker that is its own controller; ``options`` are lines of its configuration."""

    def __init__(self, directory: Path, *options: str) -> None:
        self._directory = directory
        self._config = directory / "server.properties"
        self.data = directory / "data"
        self.port, controller = free_ports(2)
        lines = [
            "process.roles=broker,controller",
            "node.id=1",
            f"listeners=PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{controller}",
            "controller.listener.names=CONTROLLER",
            f"controller.quorum.bootstrap.servers=127.0.0.1:{controller}",
            f"log.dirs={self.data}",
            "auto.create.topics.enable=false",
            "offsets.topic.replication.factor=1",
            "transaction.state.log.replication.factor=1",
            "transaction.state.log.min.isr=1",
            "transaction.state.log.num.partitions=4",
            # A killed broker is let in again when its old session has ended.
            "broker.session.timeout.ms=2000",
            "broker.heartbeat.interval.ms=300",
            *options,
        ]
        self._config.write_text("\n".join(lines) + "\n")
        tool = ["kafka.tools.StorageTool", "format", "-t", CLUSTER, "-c", str(self._config)]
        subprocess.run([*JAVA, *tool, "--standalone"], check=True, capture_output=True)
        self.start()

    @property
    def brokers(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, topic: str, **options: object) -> str:
        """A log of eight partitions on this one broker."""
        given = {"replication": 1, "partitions": 8, **options}
        return f"kafka://{self.brokers}/{topic}?" + "&".join(f"{k}={v}" for k, v in given.items())

    def start(self) -> None:
        with (self._directory / "kafka.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*TIED, *JAVA, "kafka.Kafka", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + 120
        while not self._answers():
            assert self.process.poll() is None, (self._directory / "kafka.log").read_text()[-4_000:]
            assert time.monotonic() < deadline, "the broker doesn't answer"
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1):
                pass
            return bool(AdminClient({"bootstrap.servers": self.brokers}).list_topics("", 2).brokers)
        except (OSError, KafkaException):
            return False

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """End it in order."""
        self.process.terminate()
        self.process.wait(60)
