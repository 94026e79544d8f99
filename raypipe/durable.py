"""What it takes for bytes and names to outlive a power cut.

A file's sync makes its bytes durable; its name is durable after a sync of the folder that it is in,
and that folder's name after one of the folder above.
"""

from __future__ import annotations

import os
from pathlib import Path

_PIECE = 1 << 20


def sync(path: Path) -> None:
    """Make a file's bytes durable."""
    _sync(path, os.O_RDONLY)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def make_directory(path: Path, mode: int = 0o777) -> None:
    """Make a directory and those above it, durably; one that is there already is left."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    for made in reversed(missing):
        made.mkdir(mode, exist_ok=True)
        sync_directory(made.parent)


def rewrite(path: Path) -> None:
    """Write the bytes of a file once more where they are, durably; nobody else may write meanwhile.

    A process that finds bytes in a file can't know whether they are on the disk: after a sync that
    failed Linux goes on showing them, and will not write them again.
    """
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        at = 0
        while data := os.pread(descriptor, _PIECE, at):
            at += os.pwrite(descriptor, data, at)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
