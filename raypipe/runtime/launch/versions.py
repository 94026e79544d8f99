"""Versions that launch files may name: those of the lock file."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from raypipe.errors import IntegrityError
from raypipe.runtime.launch.files import LOCK, read
from raypipe.runtime.launch.node import Finding, Node

_LOCKED = re.compile(r"^ray(?:\[[^\]]*\])?==(\S+)", re.MULTILINE)
_RAY = re.compile(r"(?:\bray(?:\[[^\]]*\])?==|rayproject/ray[\w-]*:|-ray)(\d+\.\d+\.\d+\w*)")
_PYTHON = re.compile(r"(?:\bpython(?=3\.)|-py(?=3))(3)\.?(\d{1,2})\b")


def locked_ray(root: Path) -> str:
    """Ray's version in the lock file; raises IntegrityError when it names none."""
    found = _LOCKED.search(read(root / LOCK))
    if found is None:
        raise IntegrityError(f"{root / LOCK} pins no ray", hint="`make lock` writes it.")
    return found[1]


def supported_pythons(root: Path) -> range:
    """Minor versions of Python 3 for which the lock file was made."""
    wanted = tomllib.loads(read(root / "pyproject.toml"))["project"]["requires-python"]
    low, high = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", wanted).groups()  # type: ignore[union-attr]
    return range(int(low), int(high))


def strange_versions(tree: Node, root: Path) -> Iterator[Finding]:
    """Each image or command that names another Ray or Python than the lock file."""
    ray, pythons = locked_ray(root), supported_pythons(root)
    for _, leaf in tree.leaves():
        for version in _RAY.findall(leaf.text):
            if version != ray:
                yield leaf.wrong(
                    f"Ray {ray}, as in {LOCK}",
                    "Name the locked version: all nodes and this machine need the same.",
                    f"Ray {version}",
                )
        for _, minor in _PYTHON.findall(leaf.text):
            if int(minor) not in pythons:
                yield leaf.wrong(
                    f"Python 3.{pythons[0]} to 3.{pythons[-1]}, as in pyproject.toml",
                    "Name a Python for which the lock file was made.",
                    f"Python 3.{minor}",
                )
