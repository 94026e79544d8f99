"""A raypipe cluster on such hosts, driven as a user drives one: `ray up`, jobs, `serve deploy`.

What is launched is the project's own cluster.yaml: its mounts and its start commands. Replaced are
what a cloud gives (nodes, their addresses and labels) and the installation: the hosts see the
environment of the machine instead of each building its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.hosts.network import Host, Network

ROOT = Path(__file__).resolve().parents[2]
VENV = Path(sys.prefix)
PARTS = (
    *("cluster.yaml", "pyproject.toml", "uv.lock", "requirements.lock", "README.md", "LICENSE"),
    *("scripts", "deploy", "raypipe", "features", "training", "serving"),
)
"""What a user's checkout holds that a cluster needs."""

OBJECT_STORE = 100_000_000
HTTP_PORT = 8000
DASHBOARD_PORT = 8265
ONLINE_PORT = 6380
"""Of the Redis on the head: Ray's own port is a Redis' usual one."""
POLL_S = 2.0
"""Each look at the nodes starts a process on the head."""
ANSWER = "answer: "
SETTINGS = """\
home = "~/.raypipe"
lake_url = "{lake}"
online_url = "redis://{online}/0"
tls_dir = "~/.raypipe/tls"
ray_address = "auto"
http_host = "0.0.0.0"
http_port = {port}
min_replicas = 2
max_replicas = 2
features_blocks = 4
"""


class CommandFailed(Exception):
    """A command on a host ended with an error; carries the end of what it wrote."""

    def __init__(self, command: str, code: int, output: str) -> None:
        super().__init__(f"`{command}` ended with {code}:\n{output[-6000:]}")


@dataclass
class Cluster:
    """A head, worker hosts and a client, with a checkout on the client."""

    network: Network
    workers: int = 2
    head: Host = field(init=False)
    nodes: list[Host] = field(init=False)
    client: Host = field(init=False)
    _tunnel: subprocess.Popen[bytes] | None = None

    @property
    def lake(self) -> Path:
        """The folder that all hosts share."""
        return self.network.folder / "lake"

    @property
    def checkout(self) -> Path:
        """The user's working directory."""
        return self.network.folder / "checkout"

    def boot(self) -> None:
        """Power the hosts on and lay out what `ray up` is called with."""
        self.lake.mkdir()
        self.head = self.network.add("head", 10)
        self.nodes = [self.network.add(f"w{n}", 10 + n) for n in range(1, self.workers + 1)]
        self.client = self.network.add("client", 99, server=False)
        self.checkout.mkdir()
        for part in PARTS:
            source, target = ROOT / part, self.checkout / part
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        online = f"{self.head.address}:{ONLINE_PORT}"
        settings = SETTINGS.format(lake=self.lake, online=online, port=HTTP_PORT)
        (self.checkout / "deploy" / "cluster.toml").write_text(settings)
        self.call(self.client, "raypipe cluster secrets")
        self._start_online_store()
        file = self.checkout / "cluster.local.yaml"
        file.write_text(yaml.safe_dump(self._file(), sort_keys=False))

    def _start_online_store(self) -> None:
        """A Redis on the head, with the password that all nodes are about to get."""
        password = self.client.home / ".raypipe" / "cluster" / "online_password"
        address, folder = self.head.address, self.head.folder
        config = folder / "redis.conf"
        config.write_text(
            f'bind {address}\nport {ONLINE_PORT}\nrequirepass {password.read_text()}\nsave ""\n'
            f"dir {folder}\nlogfile redis.log\ndaemonize yes\n"
        )
        answers = f"(exec 3<>/dev/tcp/{address}/{ONLINE_PORT}) 2>/dev/null"
        script = f"redis-server {config} && until {answers}; do sleep 0.05; done"
        self.call(self.head, script, timeout_s=30)

    def _file(self) -> dict[str, Any]:
        declared: dict[str, Any] = yaml.safe_load((self.checkout / "cluster.yaml").read_text())
        flags = f"--object-store-memory={OBJECT_STORE} --disable-usage-stats"

        def started(commands: list[str], role: str, label: str, cpus: int) -> list[str]:
            wanted = f"{role} --num-cpus={cpus} --labels={label} {flags}"
            return [c.replace(f"ray start {role}", f"ray start {wanted}") for c in commands]

        return {
            "cluster_name": declared["cluster_name"],
            "max_workers": self.workers,
            "idle_timeout_minutes": 60,
            "provider": {
                "type": "local",
                "head_ip": self.head.address,
                "worker_ips": [node.address for node in self.nodes],
            },
            "auth": {"ssh_user": "root", "ssh_private_key": os.fspath(self.network.key)},
            "file_mounts": declared["file_mounts"],
            "rsync_exclude": declared["rsync_exclude"],
            "setup_commands": [
                f"ln -sfn {VENV} ~/raypipe/.venv",
                # The shell's environment; this one reads no system-wide packages.
                *(c for c in declared["setup_commands"] if "bashrc" in c),
            ],
            "head_setup_commands": [],
            "initialization_commands": [],
            "worker_setup_commands": [],
            "head_start_ray_commands": started(
                declared["head_start_ray_commands"], "--head", "raypipe.io/log=true", 0
            ),
            "worker_start_ray_commands": started(
                declared["worker_start_ray_commands"],
                "--address=$RAY_HEAD_IP:6379",
                "raypipe.io/pool=serve",
                1,
            ),
        }

    def up(self) -> None:
        """`ray up`, and the dashboard's port on the client as `ray dashboard` forwards it."""
        # Version 2 of the autoscaler counts the head of a local cluster among its workers.
        self.user("RAY_UP_enable_autoscaler_v2=0 ray up -y cluster.local.yaml", timeout_s=240)
        words = f"{DASHBOARD_PORT}:127.0.0.1:{DASHBOARD_PORT} root@{self.head.address}"
        options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
        self._tunnel = self.network.popen(
            self.client,
            f"exec ssh -N {options} -i {self.network.key} -L {words}",
            subprocess.DEVNULL,
        )

    def await_nodes(self, timeout_s: float = 150.0) -> None:
        """Wait until every host that is up is a node, by the node's id that it has now."""
        wanted = {host.address for host in (self.head, *self.nodes) if host.up}
        self._until(
            lambda: {n["NodeManagerAddress"] for n in self.living()} == wanted,
            f"the nodes {sorted(wanted)}",
            timeout_s,
        )

    def await_return(self, host: Host, before: str, timeout_s: float = 150.0) -> None:
        """Wait until a host is a node again, with another id than ``before``."""
        self._until(
            lambda: any(
                n["NodeManagerAddress"] == host.address and n["NodeID"] != before
                for n in self.living()
            ),
            f"the return of {host.name}",
            timeout_s,
        )

    def await_loss(self, node: str, timeout_s: float = 90.0) -> None:
        """Wait until Ray counts a node out."""
        self._until(
            lambda: all(n["NodeID"] != node for n in self.living()), "a node's end", timeout_s
        )

    def node_id(self, host: Host) -> str:
        """Ray's id of a host that is a living node."""
        [found] = [n["NodeID"] for n in self.living() if n["NodeManagerAddress"] == host.address]
        return str(found)

    def living(self) -> list[dict[str, Any]]:
        """What Ray's control plane knows of each node that is alive."""
        return [node for node in self.ask("ray.nodes()") if node["Alive"]]

    def _until(self, true: Callable[[], bool], what: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not true():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout_s:g} s for {what}")
            time.sleep(POLL_S)

    def ask(self, expression: str) -> Any:
        """The value of an expression over ``ray`` on the head, through JSON."""
        script = (
            "import json, ray; ray.init(address='auto', log_to_driver=False, logging_level='ERROR')"
            f"; print({ANSWER!r} + json.dumps({expression}, default=str))"
        )
        # Ray's own warnings may stand before and behind the answer.
        lines = self.call(self.head, self.on_head(f'python -c "{script}"')).splitlines()
        [answer] = [line for line in lines if line.startswith(ANSWER)]
        return json.loads(answer.removeprefix(ANSWER))

    def online_readers(self) -> set[str]:
        """Addresses of living connections to the online store whose last command was a read."""
        ask = f"redis-cli -h {self.head.address} -p {ONLINE_PORT} client list"
        script = f"REDISCLI_AUTH=$(cat ~/.raypipe/online_password) {ask}"
        lines = self.call(self.head, script).splitlines()
        clients = [dict(word.split("=", 1) for word in line.split()) for line in lines]
        return {c["addr"].rpartition(":")[0] for c in clients if c["cmd"] == "mget"}

    def user(self, script: str, *, timeout_s: float = 180.0) -> str:
        """What the user types in the checkout on the client; its output."""
        return self.call(self.client, self.typed(script), timeout_s=timeout_s)

    def typed(self, script: str) -> str:
        """A script in the checkout, with the cluster's token."""
        before = "export RAY_AUTH_TOKEN_PATH=~/.raypipe/cluster/auth_token"
        return f"cd {self.checkout} && {before} && {script}"

    def submit(self, command: str) -> str:
        """The shell command that submits a job from the checkout and follows it to its end."""
        address = f"http://127.0.0.1:{DASHBOARD_PORT}"
        return f"ray job submit --address {address} --working-dir . -- {command}"

    def on_head(self, script: str) -> str:
        """A script as `ray exec` runs it on the head, with the cluster's environment."""
        return f"set -a && . ~/raypipe/deploy/node.env && set +a && {script}"

    def call(self, host: Host, script: str, *, timeout_s: float = 180.0) -> str:
        """Run a script on a host; raises CommandFailed."""
        done = self.network.run(host, script, timeout_s=timeout_s)
        if done.returncode:
            raise CommandFailed(script, done.returncode, done.stdout + done.stderr)
        return done.stdout

    def down(self) -> None:
        """Workers first: `ray down` leaves those of a local cluster running."""
        if self._tunnel is not None:
            self._tunnel.kill()
            self._tunnel.wait()
        for node in self.nodes:
            if node.up:
                self.call(node, "~/raypipe/.venv/bin/ray stop")
        self.user("ray down -y cluster.local.yaml")


def environment() -> dict[str, str]:
    """What the hosts' shells start with: the machine's programs, the code that was mounted."""
    places = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
    return {
        "PATH": os.pathsep.join([os.fspath(VENV / "bin"), *places]),
        # Before the environment's own way to the checkout that it was made in.
        "PYTHONPATH": os.fspath(Path.home() / "raypipe"),
        "RAY_AUTH_MODE": "token",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def kept() -> list[Path]:
    """Paths that hosts need as the machine has them."""
    return [ROOT, VENV, Path(sys.base_prefix)]
