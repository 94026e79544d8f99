"""API keys that the worker confirmed lately, for all replicas of a node: one that has just started
knows them while the worker is away."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil

from raypipe.tenancy.keys import Credential, Scope

AGAIN_S = 60.0
"""How often a key in use is written again."""

_log = logging.getLogger("raypipe.serving")


class _Kept(msgspec.Struct, array_like=True, frozen=True):
    boot: str
    confirmed_s: float
    tenant: str
    scopes: tuple[Scope, ...]
    key_id: str


class KeyShelf:
    """A file for each key, named by a hash of what proves it, so that it proves nothing itself.

    Nothing here is needed while the worker answers: what can't be read or written is absent.

    Args:
        folder: on the node, for this user alone.
        believed_s: for how long after its confirmation a key is believed.
        monotonic: seconds that all processes of the node count alike since it was started, whatever
            becomes of the time of day.
    """

    def __init__(
        self, folder: Path, believed_s: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder
        self._believed_s = believed_s
        self._monotonic = monotonic
        self._boot = _boot()
        self._written: dict[bytes, float] = {}

    def put(self, digest: bytes, credential: Credential) -> None:
        """The worker has confirmed a key."""
        now = self._monotonic()
        if now - self._written.get(digest, -AGAIN_S) < AGAIN_S:
            return
        scopes = tuple(sorted(credential.scopes))
        kept = _Kept(self._boot, now, credential.tenant, scopes, credential.key_id)
        file = self._file(digest)
        part = file.with_suffix(f".{os.getpid()}")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as f:
                f.write(msgspec.msgpack.encode(kept))
            part.replace(file)
        except OSError as e:
            _log.info("a confirmed key can't be kept for the other replicas: %s", e)
        self._written[digest] = now

    def get(self, digest: bytes) -> Credential | None:
        """The credential, if the worker has confirmed it lately."""
        try:
            kept = msgspec.msgpack.decode(self._file(digest).read_bytes(), type=_Kept)
        except (OSError, msgspec.MsgspecError):
            return None
        age_s = self._monotonic() - kept.confirmed_s
        if kept.boot != self._boot or not 0 <= age_s < self._believed_s:
            return None
        return Credential(kept.tenant, frozenset(kept.scopes), kept.key_id)

    def drop(self, digest: bytes) -> None:
        """The worker does not know the key, or not any more."""
        self._written.pop(digest, None)
        try:
            self._file(digest).unlink(missing_ok=True)
        except OSError as e:
            _log.warning("a revoked key stays believed here for a while: %s", e)

    def _file(self, digest: bytes) -> Path:
        return self._folder / hashlib.sha256(digest).hexdigest()


def _boot() -> str:
    """Tells one start of this machine from another."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{psutil.boot_time():.0f}"
