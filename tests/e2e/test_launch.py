"""A real `ray up` of three hosts: jobs, decisions, a doctor, and two power-offs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import launch
from benchmarks.hosts.cluster import ROOT, Cluster
from benchmarks.hosts.network import Host, Network, network, require
from features.payments import project

pytestmark = [pytest.mark.slow, pytest.mark.ray]

SIZES = launch.Sizes()

NETWORK = """
import sys, time
from pathlib import Path
from benchmarks.hosts.network import network
with network(Path(sys.argv[1]), [Path(sys.base_prefix)]) as net:
    hosts = [net.add("one", 1), net.add("two", 2)]
    print(*(host.init for host in hosts), flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module", autouse=True)
def _able() -> None:
    try:
        require()
    except RuntimeError as e:
        pytest.skip(f"this machine has no hosts of its own: {e}")


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Network]:
    with network(tmp_path / "net", [Path(sys.base_prefix)]) as net:
        yield net


def words(net: Network, host: Host, script: str) -> str:
    done = net.run(host, script)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_host_is_alone_with_its_disk_and_its_network(hosts: Network) -> None:
    one, two = hosts.add("one", 1), hosts.add("two", 2)
    client = hosts.add("client", 9, server=False)
    assert words(hosts, one, "hostname") == "one"
    words(hosts, one, "echo kept > ~/disk; echo gone > /tmp/memory; echo gone > /dev/shm/memory")
    assert words(hosts, two, "cat ~/disk /tmp/memory /dev/shm/memory 2>/dev/null; true") == ""
    ssh = f"ssh -o StrictHostKeyChecking=no -i {hosts.key} root@{two.address}"
    assert words(hosts, client, f"{ssh} hostname") == "two"
    # Nobody else's processes, and no way to the machine's own network.
    assert int(words(hosts, one, "ps -e --no-headers | wc -l")) < 12
    addresses = words(hosts, one, "ip -brief -4 address show").splitlines()
    assert [line.split()[2] for line in addresses] == ["127.0.0.1/8", "10.77.0.1/24"]
    hosts.power_off(one)
    assert hosts.run(client, f"ping -c1 -W1 {one.address} || exit 1").returncode != 0
    hosts.power_on(one)
    assert words(hosts, one, "cat ~/disk") == "kept"
    assert words(hosts, one, "ls /tmp /dev/shm | grep -c memory; true") == "0"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_hosts_go_with_the_process_that_made_them(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", NETWORK, str(tmp_path / "net")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    inits = [int(word) for word in process.stdout.readline().split()]
    assert len(inits) == 2
    process.send_signal(number)
    process.wait(30)
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{init}").exists() for init in inits):
        assert time.monotonic() < deadline, "hosts outlive their maker"
        time.sleep(0.05)


def diagnosis(cluster: Cluster) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code of `raypipe doctor` on the head, and its checks by name."""
    done = cluster.network.run(cluster.head, cluster.on_head("raypipe doctor --json"))
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert "checks" in found, found
    return done.returncode, {check["name"]: check for check in found["checks"]}


def doctor_finds_what_is_wrong(cluster: Cluster) -> None:
    """First nothing; then each of four faults on one node, by its address."""
    code, checks = diagnosis(cluster)
    assert [c for c in checks.values() if c["state"] == "fail"] == []
    assert code == 0
    assert "3 alive" in checks["nodes"]["found"]
    sick = cluster.nodes[0]
    faults = {
        "code": "echo '# changed' >> ~/raypipe/raypipe/clock.py",
        "token": "chmod 644 ~/.ray/auth_token",
        "online store": "chmod 644 ~/.raypipe/online_password",
        "certificates": "chmod 644 ~/.raypipe/tls/node.key",
    }
    cures = {
        "code": "sed -i '$d' ~/raypipe/raypipe/clock.py",
        "token": "chmod 600 ~/.ray/auth_token",
        "online store": "chmod 600 ~/.raypipe/online_password",
        "certificates": "chmod 600 ~/.raypipe/tls/node.key",
    }
    cluster.call(sick, " && ".join(faults.values()))
    code, checks = diagnosis(cluster)
    assert code == 1
    failed = {name: c for name, c in checks.items() if c["state"] == "fail"}
    assert failed.keys() == faults.keys()
    assert all(sick.address in c["found"] and c["cure"] for c in failed.values())
    cluster.call(sick, " && ".join(cures.values()))


@pytest.mark.timeout(2_400)
def test_a_cluster_is_launched_works_and_loses_hosts_but_nothing_acknowledged(
    tmp_path: Path,
) -> None:
    told: list[str] = []
    with launch.hosts(tmp_path) as cluster:
        story = launch.play(cluster, SIZES, told.append, doctor_finds_what_is_wrong)
        left = {
            host.name: cluster.network.run(host, "pgrep -c raylet")
            for host in cluster.nodes
            if host.up
        }
        assert {name: run.stdout.strip() for name, run in left.items()} == {"w1": "0"}

    assert story.features["definition_hash"] == project.definition_hash
    assert len(story.report["sweep"]) == SIZES.trials
    assert {trial["state"] for trial in story.report["sweep"]} <= {"finished", "stopped"}
    assert len(story.lines) == len(story.answered) == SIZES.decisions
    # What the worker was too slow for waits where it was made: on the disk of the host that is off.
    assert story.lost == []
    assert len(story.waiting) < SIZES.decisions / 4
    # Both hosts decided with profiles. A read that a starved machine answers late counts as none.
    assert {node.address for node in cluster.nodes} <= story.readers
    assert len(story.degraded) < SIZES.decisions / 20
    records = [r for found in story.stored.values() for r in found if not r.degraded]
    assert all(r.profile_times and min(r.profile_times) > 0 for r in records)
    # The host was lost while decisions were asked for, and some went to the one that stayed.
    assert story.times["decisions begin"] < story.times["host off"] < story.times["decisions"]
    assert sum(story.failures.values()) > 0
    print(*told, dict(story.failures), f"{len(story.waiting)} answers wait", sep="\n")
