"""Rules of what runs on a node: mounts, set-up, and the start of Ray."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raypipe.runtime.launch.clear_text import is_secret
from raypipe.runtime.launch.credentials import MOUNTED, SECRET
from raypipe.runtime.launch.files import NODE_ENV
from raypipe.runtime.launch.node import Finding, Node

LOOPBACK = ("127.0.0.1", "localhost", "::1")
CHECKOUT = "~/raypipe"
"""Where the checkout lies on a node."""

PARTS = (
    *("pyproject.toml", "uv.lock", "requirements.lock", "README.md", "LICENSE"),
    *("scripts", "deploy", "raypipe", "features", "training", "serving"),
)
"""What of the checkout a node needs to install and run."""

_LOADS = re.compile(r"set -a; \. (\S+); set \+a;")
_INLINE = re.compile(r"(?:^|[\s;])(?:export )?([A-Za-z_][A-Za-z0-9_]*)=(\S*?);?(?=\s|$)")
_HOST = re.compile(r"--dashboard-host[= ](\S+)")


def mount_findings(cluster: Node) -> Iterator[Finding]:
    """The checkout; the credentials, each where it belongs, never the key of the authority."""
    mounts = cluster["file_mounts"]
    for part in PARTS:
        mount = mounts[f"{CHECKOUT}/{part}"]
        if mount.text.rstrip("/") != part:
            yield mount.wrong(part, f"Nodes install and run raypipe from {CHECKOUT}.")
    for remote, local in MOUNTED.items():
        if mounts[remote].text != local:
            yield mounts[remote].wrong(local, "`raypipe cluster secrets` makes it; mount it there.")
    secret = [*MOUNTED.values(), *SECRET]
    for remote, node in mounts.children():
        path = node.text.rstrip("/")
        if path in SECRET or any(s.startswith(f"{path}/") for s in secret):
            yield node.wrong(
                "the files of `raypipe cluster secrets` one by one",
                "Who has the authority's ca.key can make nodes: it stays on this machine.",
            )
        if path in ("", "."):
            yield node.wrong(
                "the parts of the checkout by name",
                "Ray hashes every file of a mount, also .venv, .git and local data.",
                f"{remote}: {node.value!r}",
            )


def setup_findings(cluster: Node) -> Iterator[Finding]:
    """raypipe comes from the lock file; boto3 for the autoscaler too."""
    for key, needed in (
        ("setup_commands", f"{CHECKOUT}/scripts/setup"),
        ("head_setup_commands", "--require-hashes -r ~/raypipe/deploy/aws.lock"),
    ):
        if not any(needed in command.text for command in cluster[key].items()):
            yield cluster[key].wrong(
                f"a command with {needed}", "Nodes install what the lock files pin."
            )
    for _, node_type in cluster["available_node_types"].children():
        own = node_type["worker_setup_commands"]
        if own.value is not None:
            yield own.wrong(
                "no commands of its own", "They would replace setup_commands on such nodes."
            )


def start_findings(cluster: Node) -> Iterator[Finding]:
    """How Ray is started: one environment, a private dashboard, no second raylet."""
    head, worker = cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]
    loaded = {}
    for node, flag in ((head, "--head"), (worker, "--address=$RAY_HEAD_IP")):
        starts = [c for c in node.items() if re.search(r"\bray start\b", c.text)]
        if len(starts) != 1 or flag not in starts[0].text:
            yield node.wrong(f"one command with ray start {flag}", "As in the shipped file.")
            continue
        start = starts[0]
        before = start.text.partition("ray start")[0]
        files = _LOADS.findall(before)
        loaded[flag] = (files, sorted(_INLINE.findall(_LOADS.sub("", start.text))))
        if files != [f"{CHECKOUT}/{NODE_ENV}"]:
            yield start.wrong(
                f"set -a; . {CHECKOUT}/{NODE_ENV}; set +a; before ray start",
                "Load the environment that all nodes share.",
            )
        for host in _HOST.findall(start.text):
            if host not in LOOPBACK:
                yield start.wrong(
                    "--dashboard-host=127.0.0.1",
                    "Who reaches the dashboard runs code; use `ray dashboard`, a tunnel.",
                    f"--dashboard-host={host}",
                )
    if len(loaded) == 2 and len({repr(v) for v in loaded.values()}) == 2:
        mine, theirs = loaded.values()
        yield worker.wrong(
            f"the environment of the head: {_words(mine)}",
            f"Set variables in {NODE_ENV}, for all nodes.",
            _words(theirs),
        )
    yield from _restart(cluster, head, worker)


def _restart(cluster: Node, head: Node, worker: Node) -> Iterator[Finding]:
    if not any("--autoscaling-config=" in c.text for c in head.items()):
        yield head.wrong("--autoscaling-config=~/ray_bootstrap_config.yaml", "Else no node starts.")
    for command in worker.items():
        if re.search(r"\bray stop\b", command.text):
            yield command.wrong(
                "no ray stop", "It ends replicas that outlived a restart of the head."
            )
        elif "ray start" in command.text and "pgrep -x raylet" not in command.text:
            yield command.wrong(
                "pgrep -x raylet >/dev/null || ray start ...",
                "Without `ray stop` a second raylet could start beside a living one.",
            )
    if not cluster["auth"]["ssh_user"].text:
        yield cluster["auth"]["ssh_user"].wrong("the image's user", "ubuntu on Ubuntu.")


def _words(environment: tuple[list[str], list[tuple[str, str]]]) -> str:
    files, values = environment
    told = (f"{name}={'...' if is_secret(name, value) else value}" for name, value in values)
    return ", ".join([*files, *told]) or "nothing"
