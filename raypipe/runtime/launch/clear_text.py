"""Finds secrets that stand in a file in clear, and what was not filled in."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from raypipe.runtime.launch.node import PLACEHOLDER, Finding, Node

_NAMES = re.compile(r"(?i)(password|passwd|secret|token|api_?key|access_?key|private_?key)")
_POINTERS = re.compile(r"(?i)(name|ref|path|file|mode|ssh_private_key|tokens)$")
"""Names that end so say where a secret is, not what it is."""

_VALUES = (
    re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    re.compile(r"(?<![0-9a-f:])[0-9a-f]{64}(?![0-9a-f])"),
    re.compile(
        r"(?i)(?:^|[\s;])(?:export\s+)?\w*(?:PASSWORD|SECRET|AUTH_TOKEN|API_KEY|ACCESS_KEY\w*)"
        r"=(?!\$)[^\s;]+"
    ),
    re.compile(r"--redis-password[= ](?!\$)[^\s;]+"),
    re.compile(r"\w+://[^\s:/@$]*:[^\s@$]+@"),
)
_CURE = "Take it out, change the secret, and mount it as a file or name a secret of the platform."


def is_secret(name: str, value: str) -> bool:
    """Whether a value, by its name or by itself, is a secret."""
    named = _NAMES.search(name) is not None and _POINTERS.search(name) is None and "/" not in name
    return bool(value) and (named or any(pattern.search(value) for pattern in _VALUES))


def secrets_in(tree: Node) -> Iterator[Finding]:
    """Each secret in the tree. The finding doesn't repeat it."""
    for name, leaf in tree.leaves():
        if is_secret(name, leaf.text):
            yield leaf.wrong("no secret in the file", _CURE, "a secret in clear text")


def placeholders_in(tree: Node) -> Iterator[Finding]:
    """Each value that only the user can fill in."""
    for _, leaf in tree.leaves():
        if PLACEHOLDER in leaf.text:
            finding = leaf.wrong("a value of yours", f"Replace {PLACEHOLDER}.")
            yield dataclasses.replace(finding, kind="placeholder")
