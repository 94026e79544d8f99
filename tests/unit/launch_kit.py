"""A copy of the launch files in a folder of the test's own, to put faults into."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from raypipe.runtime.launch.check import check
from raypipe.runtime.launch.node import Finding

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = "cluster.yaml"
SERVICE = "deploy/kuberay/rayservice.yaml"
JOB = "deploy/kuberay/rayjob.yaml"
FILES = (CLUSTER, SERVICE, JOB)
GONE = object()
"""In ``put``: the key is removed."""


def checkout(folder: Path) -> Path:
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    for name in (CLUSTER, "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def documents(root: Path, name: str) -> list[Any]:
    """What the file holds, without the sharing of YAML's aliases."""
    return json.loads(json.dumps(list(yaml.safe_load_all((root / name).read_text()))))


def edit(root: Path, name: str, change: Callable[[list[Any]], None]) -> None:
    found = documents(root, name)
    change(found)
    (root / name).write_text(yaml.safe_dump_all(found, sort_keys=False))


def put(root: Path, name: str, path: str, value: Any, document: int = -1) -> None:
    """Set, or remove, what a dotted path names; numbers are places in lists."""

    def change(found: list[Any]) -> None:
        node = found[document]
        *way, last = [int(s) if s.isdigit() else s.replace("~", ".") for s in path.split(".")]
        for step in way:
            node = node[step] if isinstance(step, int) else node.setdefault(step, {})
        if value is GONE:
            del node[last]
        else:
            node[last] = value

    edit(root, name, change)


def faults(root: Path, name: str) -> list[Finding]:
    """What the check finds, but for values that are still to be filled in."""
    return [f for f in check(root / name) if f.kind == "fault"]
