"""Hosts as namespaces of one Linux machine, joined by a bridge that the machine itself is not on.

A host has its own network, processes, mounts, names and shared memory, so that ``ray stop`` on it
sees its own processes alone, and a power-off is one SIGKILL. No namespace has a name: whatever
ends the process that made them, they go with it, processes, links and mounts included.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

INIT = Path(__file__).with_name("init.sh")
TOOLS = (
    *("ip", "nsenter", "setpriv", "unshare", "ssh", "ssh-keygen", "rsync", "/usr/sbin/sshd"),
    "redis-server",
)
"""What hosts are made of, and what runs on them beside raypipe."""
PACKAGES = ("openssh-client", "openssh-server", "rsync", "iproute2", "redis-server")
START_S = 20.0

# The kernel ends the process when the one that started it has ended, however that was.
_WITH_ME = ("setpriv", "--pdeathsig", "KILL")
_SSHD = """\
ListenAddress {address}:22
HostKey {folder}/host_key
PidFile /run/sshd.pid
AuthorizedKeysFile {folder}/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
UseDNS no
MaxSessions 50
"""


def obstacle() -> str:
    """Why this machine can't have such hosts; "" if it can."""
    if sys.platform != "linux":
        return "namespaces need Linux"
    if os.geteuid() != 0:
        return "namespaces with networks need root"
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)} (apt-get install {' '.join(PACKAGES)})"
    flags = ("--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--mount-proc")
    trial = "ip link add x0 type veth peer name x1 && ip link add x2 type bridge"
    run = subprocess.run(
        ["unshare", *flags, "bash", "-c", trial], capture_output=True, text=True, check=False
    )
    return f"namespaces are refused: {run.stderr.strip()}" if run.returncode else ""


def require() -> None:
    """Install what is missing where that can be done; raises RuntimeError naming the obstacle."""
    if shutil.which("apt-get") and os.geteuid() == 0 and any(not shutil.which(t) for t in TOOLS):
        for words in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
            subprocess.run(["apt-get", "-qq", *words], capture_output=True, check=False)
    problem = obstacle()
    if problem:
        raise RuntimeError(problem)


@dataclass
class Host:
    """One host. ``home`` is its disk: it survives a power-off."""

    name: str
    address: str
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    init: int = 0
    """Process id of its PID 1, as the machine sees it."""

    @property
    def home(self) -> Path:
        """The home folder of root on this host, as the machine sees it."""
        return self.folder / "home"

    @property
    def up(self) -> bool:
        """Whether it is powered on."""
        return self.process is not None and self.process.poll() is None


@dataclass
class Network:
    """Hosts on one bridge.

    Args:
        folder: empty; receives the hosts' disks and keys.
        keep: paths that all hosts see as the machine has them (programs, shared folders).
        environment: of every command and login shell.
        subnet: first three numbers of the addresses; other networks may use the same.
    """

    folder: Path
    keep: Sequence[Path]
    environment: Mapping[str, str] = field(default_factory=dict)
    subnet: str = "10.77.0"
    hosts: dict[str, Host] = field(default_factory=dict)
    _switch: subprocess.Popen[bytes] | None = None

    @property
    def key(self) -> Path:
        """The private key that every host with an SSH server accepts."""
        return self.folder / "key"

    def start(self) -> None:
        """Make the bridge and the key."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._switch = subprocess.Popen(
            [*_WITH_ME, "unshare", "--net", "sleep", "infinity"], stdin=subprocess.DEVNULL
        )
        _await(lambda: _differs(self._switch_pid), "the switch")
        self._on_switch("ip link add br0 type bridge stp_state 0 forward_delay 0")
        self._on_switch("ip link set br0 up")
        _keygen(self.key)

    def add(self, name: str, number: int, *, server: bool = True) -> Host:
        """A powered-on host at ``subnet.number``; without ``server`` it accepts no SSH."""
        host = Host(name, f"{self.subnet}.{number}", self.folder / name)
        host.home.mkdir(parents=True, mode=0o700)
        lines = [f"export {name}={value}\n" for name, value in self.environment.items()]
        for shell in (".bashrc", ".bash_profile"):
            (host.home / shell).write_text("".join(lines))
        if server:
            _keygen(host.folder / "host_key")
            shutil.copy(self.key.with_suffix(".pub"), host.folder / "authorized_keys")
            config = _SSHD.format(address=host.address, folder=host.folder)
            (host.folder / "sshd_config").write_text(config)
        self.hosts[name] = host
        self.power_on(host)
        return host

    def power_on(self, host: Host) -> None:
        """Boot it with an empty memory and the disk that it had."""
        ready = host.folder / "ready"
        ready.unlink(missing_ok=True)
        flags = ("--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child=KILL")
        with (host.folder / "init.log").open("ab") as log:
            host.process = subprocess.Popen(
                [
                    *(*_WITH_ME, "unshare", *flags, "--mount-proc"),
                    *("bash", str(INIT), host.name, host.address, str(host.folder)),
                ],
                env={
                    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                    "HOME": str(Path.home()),
                    "KEEP": " ".join(map(str, [*self.keep, self.folder])),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process = host.process

        def booted() -> bool:
            if process.poll() is not None:
                text = (host.folder / "init.log").read_text()
                raise RuntimeError(f"host {host.name} did not start: {text[-2000:]}")
            return ready.exists()

        _await(booted, f"host {host.name}")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        host.init = int(children[0])
        port = f"p-{host.name}"
        self._on_switch(f"ip link add {port} type veth peer name eth0 netns {host.init}")
        self._on_switch(f"ip link set {port} master br0 up")
        within = ("nsenter", "-t", str(host.init), "-n")
        for words in (
            f"ip addr add {host.address}/24 dev eth0",
            "ip link set eth0 up",
            # Ray finds its address by asking for the way to this one; nothing is sent there.
            f"ip route add 8.8.8.8/32 via {self.subnet}.254",
        ):
            _run([*within, *words.split()])

    def power_off(self, host: Host) -> None:
        """Kill everything on it at once; of its connections the kernel may reset some."""
        if host.process is not None:
            host.process.kill()
            host.process.wait()
            # Its end of the cable goes with the namespace, and the other end with that one.
            _await(lambda: not Path(f"/proc/{host.init}").exists(), f"the end of {host.name}")

    def command(self, host: Host, *words: str) -> list[str]:
        """What runs ``words`` on a host, from here."""
        given = {
            "HOME": str(Path.home()),
            "USER": "root",
            "TERM": "dumb",
            "LANG": "C.UTF-8",
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            **self.environment,
        }
        enter = ("nsenter", "-t", str(host.init), "-m", "-u", "-i", "-n", "-p")
        environment = [f"{name}={value}" for name, value in given.items()]
        return [*enter, f"--wdns={Path.home()}", "env", "-i", *environment, *words]

    def run(
        self, host: Host, script: str, *, timeout_s: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell script on a host to its end."""
        return subprocess.run(
            self.command(host, "bash", "-c", script),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def popen(
        self, host: Host, script: str, output: IO[bytes] | int = subprocess.PIPE
    ) -> subprocess.Popen[bytes]:
        """Start a shell script on a host; stdout and stderr go to ``output``."""
        return subprocess.Popen(
            self.command(host, "bash", "-c", script),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def stop(self) -> None:
        """Power everything off; repeating it is harmless."""
        for host in self.hosts.values():
            self.power_off(host)
        if self._switch is not None:
            self._switch.kill()
            self._switch.wait()

    @property
    def _switch_pid(self) -> int:
        if self._switch is None:
            raise RuntimeError("the network was not started")
        return self._switch.pid

    def _on_switch(self, command: str) -> None:
        _run(["nsenter", "-t", str(self._switch_pid), "-n", *command.split()])


@contextmanager
def network(
    folder: Path, keep: Sequence[Path], environment: Mapping[str, str] | None = None
) -> Iterator[Network]:
    """A network while the block runs. SIGTERM counts as an error in the block."""
    made = Network(folder, keep, environment or {})
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        signal.signal(signal.SIGTERM, before)


def _terminated(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _keygen(path: Path) -> None:
    path.unlink(missing_ok=True)
    _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "throw-away", "-f", str(path)])


def _run(words: Sequence[str]) -> None:
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"{' '.join(words)}: {run.stderr.strip()}")


def _differs(pid: int) -> bool:
    """Whether a process has a network namespace other than ours already."""
    try:
        return Path(f"/proc/{pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    except FileNotFoundError:
        return False


def _await(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + START_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} took more than {START_S:g} s")
        time.sleep(0.01)
