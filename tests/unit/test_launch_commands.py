from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from raypipe.config import Settings
from raypipe.errors import InputError
from raypipe.runtime import session
from raypipe.runtime.launch.check import check
from raypipe.runtime.launch.commands import PARTS
from raypipe.runtime.launch.node_env import OF_ONE_MACHINE
from tests.unit.launch_kit import CLUSTER, GONE, ROOT, checkout, faults, put

LOAD = "set -a; . ~/raypipe/deploy/node.env; set +a;"


def shell_environment(root: Path) -> dict[str, str]:
    """node.env as a shell reads it, without our parser."""
    done = subprocess.run(
        ["bash", "-c", "set -a; . ./deploy/node.env; env -0"],
        cwd=root,
        env={"HOME": "/home/somebody"},
        capture_output=True,
        text=True,
        check=True,
    )
    pairs = (line.partition("=") for line in done.stdout.split("\0") if line)
    return {name: value for name, _, value in pairs if name.startswith(("RAY", "TUNE"))}


def test_node_env_agrees_with_a_session_where_they_overlap() -> None:
    given = shell_environment(ROOT)
    own = session.environment(Settings(ray_address="auto"))
    assert {n: v for n, v in own.items() if n not in OF_ONE_MACHINE}.items() <= given.items()
    assert int(given["RAY_num_workers_soft_limit"]) >= session.LEAST_WORKERS
    assert given["RAYPIPE_CONFIG"] == "/home/somebody/raypipe/deploy/cluster.toml"


@pytest.mark.parametrize(
    ("old", "new", "place", "word"),
    [
        ("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "line 6", "RAY_AUTH_MODE=token"),
        ("RAY_AUTH_MODE=token\n", "", "/", "no RAY_AUTH_MODE"),
        ("STATS_ENABLED=0", "STATS_ENABLED=1", "line 7", "RAY_USAGE_STATS_ENABLED=0"),
        ("period_ms=1000", "period_ms=3000", "line 12", "RAY_health_check_period_ms=1000"),
        ("threshold_ms=60000", "threshold_ms=1000", "line 17", "session.py"),
        ("RAYPIPE_CONFIG=", "RAYPIPE_OTHER=", "/", "no RAYPIPE_CONFIG"),
        ("RAYPIPE_ONLINE_PASSWORD_FILE", "RAYPIPE_X", "/", "no RAYPIPE_ONLINE_PASSWORD_FILE"),
        ("ONLINE_PASSWORD_FILE=", "ONLINE_PASSWORD=x", "line 35", "a secret in clear"),
        ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN=abc\nRAY_AUTH_MODE", "line 6", "a secret in clear"),
    ],
)
def test_a_variable_that_is_missing_or_wrong_is_named(
    tmp_path: Path, old: str, new: str, place: str, word: str
) -> None:
    root = checkout(tmp_path)
    file = root / "deploy/node.env"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    found = [f for f in faults(root, CLUSTER) if f.file == "deploy/node.env"]
    assert [f for f in found if f.place == place and word in str(f)], "\n".join(map(str, found))


@pytest.mark.parametrize(
    "line",
    ["export A=1", "A='1 2'", "A=$B", "A=$(id)", "A = 1", "A=`id`", "A=1; B=2", "A=${HOME}", "A"],
)
def test_a_line_that_shell_and_container_read_differently_is_refused(
    tmp_path: Path, line: str
) -> None:
    root = checkout(tmp_path)
    with (root / "deploy/node.env").open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(InputError, match=r"node\.env line \d+"):
        check(root / CLUSTER)


def test_a_variable_given_twice_is_refused(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    with (root / "deploy/node.env").open("a") as stream:
        stream.write("RAY_AUTH_MODE=disabled\n")
    with pytest.raises(InputError, match="came before"):
        check(root / CLUSTER)


HEAD_START = "head_start_ray_commands.1"
WORKER_START = "worker_start_ray_commands.0"
HEAD_LINE = f"{LOAD} ray start --head --autoscaling-config=~/ray_bootstrap_config.yaml"
WORKER_LINE = f"{LOAD} pgrep -x raylet || ray start --address=$RAY_HEAD_IP:6379"


@pytest.mark.parametrize(
    ("path", "value", "place", "word"),
    [
        (HEAD_START, f"{HEAD_LINE} --dashboard-host=0.0.0.0", "/head_start", "0.0.0.0"),
        (HEAD_START, f"{HEAD_LINE} --dashboard-host ::", "/head_start", "--dashboard-host=::"),
        (HEAD_START, HEAD_LINE.removeprefix(LOAD), "/head_start", "node.env"),
        (HEAD_START, HEAD_LINE.replace("node.env", "head.env"), "/head_start", "node.env"),
        (HEAD_START, f"{LOAD} ray start --head", "/head_start", "--autoscaling-config"),
        (HEAD_START, "echo", "/head_start_ray_commands", "one command with ray start"),
        (WORKER_START, WORKER_LINE.removeprefix(LOAD), "/worker_start", "node.env"),
        (
            WORKER_START,
            WORKER_LINE.replace("ray start", "RAY_AUTH_MODE=disabled ray start"),
            "/worker_start_ray_commands",
            "RAY_AUTH_MODE=disabled",
        ),
        (WORKER_START, f"ray stop; {WORKER_LINE}", "/worker_start", "no ray stop"),
        (WORKER_START, WORKER_LINE.replace("pgrep", "true"), "/worker_start", "second raylet"),
        (WORKER_START, f"{LOAD} ray start --address=10.0.0.1:6379", "/worker_start", "RAY_HEAD_IP"),
        ("setup_commands", ["pip install raypipe"], "/setup_commands", "scripts/setup"),
        ("head_setup_commands", ["pip install boto3"], "/head_setup_commands", "aws.lock"),
    ],
)
def test_a_fault_of_a_command_is_named_with_its_place(
    tmp_path: Path, path: str, value: Any, place: str, word: str
) -> None:
    root = checkout(tmp_path)
    put(root, CLUSTER, path, value)
    found = faults(root, CLUSTER)
    assert [f for f in found if f.place.startswith(place) and word in str(f)], found


def test_without_a_dashboard_host_ray_keeps_it_on_loopback(tmp_path: Path) -> None:
    """The check lets it be missing; this is why."""
    from ray.scripts.scripts import start

    option = next(p for p in start.params if p.name == "dashboard_host")
    assert option.default in ("127.0.0.1", "::1")
    root = checkout(tmp_path)
    put(root, CLUSTER, HEAD_START, (HEAD_LINE + ' export PATH="$HOME/raypipe/.venv/bin:$PATH"'))
    assert not [f for f in faults(root, CLUSTER) if "dashboard" in str(f)]


@pytest.mark.parametrize(
    ("remote", "local", "word"),
    [
        ("~/.ray/auth_token", GONE, "auth_token"),
        ("~/.ray/auth_token", "~/.ray/auth_token", "~/.raypipe/cluster/auth_token"),
        ("~/.raypipe/online_password", GONE, "online_password"),
        ("~/.raypipe/tls/node.key", GONE, "node.key"),
        ("~/ca.key", "~/.raypipe/cluster/ca.key", "stays on this machine"),
        ("~/.raypipe/cluster", "~/.raypipe/cluster/", "stays on this machine"),
        ("~/home", "~/.raypipe", "stays on this machine"),
        ("~/raypipe/deploy", GONE, "deploy"),
        ("~/raypipe/uv.lock", "other.lock", "uv.lock"),
        ("~/all", ".", "Ray hashes every file"),
    ],
)
def test_a_fault_of_the_mounts_is_named(tmp_path: Path, remote: str, local: Any, word: str) -> None:
    root = checkout(tmp_path)
    cluster = yaml.safe_load((root / CLUSTER).read_text())
    if local is GONE:
        del cluster["file_mounts"][remote]
    else:
        cluster["file_mounts"][remote] = local
    (root / CLUSTER).write_text(yaml.safe_dump(cluster))
    found = faults(root, CLUSTER)
    assert [f for f in found if f.place.startswith("/file_mounts/") and word in str(f)], found


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("provider.aws_credentials", {"aws_secret_access_key": "x" * 40}),
        ("provider.aws_credentials", {"aws_access_key_id": "AKIAABCDEFGHIJKLMNOP"}),
        ("setup_commands.0", "export AWS_SECRET_ACCESS_KEY=abc"),
        ("setup_commands.0", "echo " + "0123456789abcdef" * 4 + " > ~/.ray/auth_token"),
        ("setup_commands.0", "RAY_AUTH_TOKEN=abc ray status"),
        (HEAD_START, f"{HEAD_LINE} --redis-password=hunter2"),
        (HEAD_START, "RAY_AUTH_TOKEN=hunter2 ray start --head --dashboard-host=0.0.0.0"),
        ("metadata.url", "redis://user:hunter2@10.0.0.9:6379"),
        ("metadata.key", "-----BEGIN EC PRIVATE KEY-----\nMHcCAQ"),
        ("metadata.api_key", "rp_live_abc"),
    ],
)
def test_a_secret_in_clear_text_is_found_and_not_repeated(
    tmp_path: Path, path: str, value: Any
) -> None:
    root = checkout(tmp_path)
    put(root, CLUSTER, path, value)
    found = faults(root, CLUSTER)
    assert [f for f in found if "no secret" in f.expected]
    assert not [f for f in found if "hunter2" in str(f) or "abc" in str(f)]


LABELS = {"raypipe.io/log": "true"}

# What the commands do: run by a shell, with stand-ins for the programs that are not theirs ----


def run_start(tmp_path: Path, commands: list[str], raylet: bool) -> dict[str, str] | None:
    """Run start commands as Ray does, and give the environment in which `ray start` ran.

    What stands before a command is Ray's own: ray/autoscaler/_private/updater.py sets the labels
    of the node type for head and workers, and the choice of `ray up` about usage statistics.
    """
    from ray.autoscaler._private.command_runner import _with_environment_variables
    from ray.autoscaler._private.util import with_envs

    home = tmp_path / ("living" if raylet else "none")
    programs = home / "raypipe/.venv/bin"
    programs.mkdir(parents=True)
    (home / "raypipe/deploy").symlink_to(ROOT / "deploy")
    for name, body in {
        "ray": '[ "$1" = start ] && env -0 > "$HOME/started"; true',
        "pgrep": f'[ "$*" = "-x raylet" ] && exit {0 if raylet else 1}; exit 2',
        "sleep": "true",
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    given = {"RAY_USAGE_STATS_ENABLED": 1, "RAY_OVERRIDE_LABELS": LABELS}
    for command in with_envs(commands, {"RAY_HEAD_IP": "10.0.0.1"}):
        line = f"({_with_environment_variables(command, given)})"
        environment = {"HOME": str(home), "PATH": os.environ["PATH"]}
        subprocess.run(["bash", "-c", line], env=environment, check=True)
    if not (home / "started").exists():
        return None
    pairs = (v.partition("=") for v in (home / "started").read_text().split("\0") if v)
    return {name: value for name, _, value in pairs if name not in ("_", "HOME", "SHLVL", "PWD")}


def test_the_labels_of_a_node_type_reach_ray_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private.resource_and_label_spec import ResourceAndLabelSpec

    for which in ("head_start_ray_commands", "worker_start_ray_commands"):
        started = run_start(tmp_path / which, start_commands(which), raylet=False)
        assert started is not None
        monkeypatch.setenv("RAY_OVERRIDE_LABELS", started["RAY_OVERRIDE_LABELS"])
        spec = ResourceAndLabelSpec(num_cpus=1, object_store_memory=10**8, memory=10**8)
        labels = spec.resolve(is_head=False).labels
        assert labels is not None
        assert LABELS.items() <= labels.items()


def start_commands(which: str) -> list[str]:
    commands: list[str] = yaml.safe_load((ROOT / CLUSTER).read_text())[which]
    return commands


def test_head_and_workers_start_ray_in_the_same_environment(tmp_path: Path) -> None:
    head = run_start(tmp_path / "head", start_commands("head_start_ray_commands"), raylet=False)
    worker = run_start(tmp_path / "work", start_commands("worker_start_ray_commands"), raylet=False)
    assert head is not None
    assert worker is not None
    assert head["RAY_AUTH_MODE"] == "token"
    assert head["RAY_USAGE_STATS_ENABLED"] == "0"  # over what `ray up` says
    own = {"PATH", "RAYPIPE_CONFIG", "RAYPIPE_ONLINE_PASSWORD_FILE"}  # they name the home
    assert {n: v for n, v in head.items() if n not in own} == {
        n: v for n, v in worker.items() if n not in own
    }


def test_a_worker_with_a_living_raylet_starts_no_second_one(tmp_path: Path) -> None:
    assert run_start(tmp_path, start_commands("worker_start_ray_commands"), raylet=True) is None


def test_the_image_holds_the_same_parts_as_a_node() -> None:
    copied = [
        line.split()[2:-1]
        for line in (ROOT / "deploy/Dockerfile").read_text().splitlines()
        if line.startswith("COPY")
    ]
    assert sorted(part for parts in copied for part in parts) == sorted(PARTS)


def test_a_shell_of_a_node_finds_the_commands_and_the_environment(tmp_path: Path) -> None:
    """Set-up is repeated by Ray; the shell's start-up file gets its line once."""
    programs = tmp_path / "raypipe/.venv/bin"
    programs.mkdir(parents=True)
    (tmp_path / "raypipe/deploy").symlink_to(ROOT / "deploy")
    for name in ("ray", "raypipe", "python"):
        (programs / name).write_text("#!/bin/bash\n")
        (programs / name).chmod(0o755)
    (line,) = [c for c in start_commands("setup_commands") if "bashrc" in c]
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    for _ in range(2):
        subprocess.run(["bash", "-c", line], env=environment, check=True)
    assert len((tmp_path / ".bashrc").read_text().splitlines()) == 1
    # As ray/autoscaler/_private/command_runner.py calls a shell.
    asked = "source ~/.bashrc; command -v ray raypipe python; echo $RAYPIPE_CONFIG"
    done = subprocess.run(
        ["bash", "--login", "-c", "-i", asked],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [
        *(str(programs / name) for name in ("ray", "raypipe", "python")),
        f"{tmp_path}/raypipe/deploy/cluster.toml",
    ]


def test_every_part_that_is_mounted_is_in_the_checkout() -> None:
    mounts = yaml.safe_load((ROOT / CLUSTER).read_text())["file_mounts"]
    local = [path for path in mounts.values() if not path.startswith("~/.raypipe/cluster/")]
    assert sorted(local) == sorted(PARTS)
    assert all((ROOT / part).exists() for part in PARTS)
