"""A real Kafka for a test run: broker processes (KRaft) on free loopback ports."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
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
    """One broker that is a controller, too.

    Args:
        directory: for its data and its log.
        node: its place in ``ports``, from 1.
        ports: (broker, controller) of all brokers of the cluster; by default it is alone.
    """

    def __init__(
        self, directory: Path, node: int = 1, ports: Sequence[tuple[int, int]] = ()
    ) -> None:
        alone = not ports
        if alone:
            broker, controller = free_ports(2)
            ports = [(broker, controller)]
        copies = len(ports)
        self._directory = directory
        self._config = directory / "server.properties"
        self.data = directory / "data"
        self.port, controller = ports[node - 1]
        voters = ",".join(f"{n}@127.0.0.1:{c}" for n, (_, c) in enumerate(ports, 1))
        lines = [
            "process.roles=broker,controller",
            f"node.id={node}",
            f"listeners=PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{controller}",
            "controller.listener.names=CONTROLLER",
            f"controller.quorum.bootstrap.servers=127.0.0.1:{controller}"
            if alone
            else f"controller.quorum.voters={voters}",
            f"log.dirs={self.data}",
            "auto.create.topics.enable=false",
            f"offsets.topic.replication.factor={copies}",
            f"transaction.state.log.replication.factor={copies}",
            f"transaction.state.log.min.isr={max(1, copies - 1)}",
            "transaction.state.log.num.partitions=4",
            # A killed broker is let in again when its old session has ended.
            "broker.session.timeout.ms=2000",
            "broker.heartbeat.interval.ms=300",
        ]
        self._config.write_text("\n".join(lines) + "\n")
        tool = ["kafka.tools.StorageTool", "format", "-t", CLUSTER, "-c", str(self._config)]
        kind = ["--standalone"] if alone else []
        subprocess.run([*JAVA, *tool, *kind], check=True, capture_output=True)
        self.launch()
        if alone:
            self.wait()

    @property
    def brokers(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, topic: str, **options: object) -> str:
        """A log of eight partitions on this one broker."""
        given = {"replication": 1, "partitions": 8, **options}
        return f"kafka://{self.brokers}/{topic}?" + "&".join(f"{k}={v}" for k, v in given.items())

    def start(self) -> None:
        """Start it again on its data."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start the process."""
        with (self._directory / "kafka.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*TIED, *JAVA, "kafka.Kafka", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> None:
        """Wait until it answers."""
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
