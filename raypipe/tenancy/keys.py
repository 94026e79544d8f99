"""API keys: `rp_<env>_<id>_<secret>`. The store keeps a hash; the secret is shown once."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from raypipe.clock import Clock, SystemClock
from raypipe.durable import make_directory
from raypipe.errors import NotFound, Unavailable, UsageError

LOCAL_TENANT = "default"
LOCAL_KEY_FILE = "api-key"
STORE_FILE = "tenants.db"

_KEY = re.compile(r"rp_([a-z]{1,10})_([0-9a-f]{12})_([0-9a-f]{64})")
_TENANT = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_CACHE_LIMIT = 10_000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS api_key (
    key_id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    scopes TEXT NOT NULL,
    digest BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT
"""


class Scope(StrEnum):
    """What a key may do. ADMIN does not imply the others."""

    DECISIONS_WRITE = "decisions:write"
    DECISIONS_READ = "decisions:read"
    EVENTS_WRITE = "events:write"
    FEATURES_READ = "features:read"
    RECOMMENDATIONS_READ = "recommendations:read"
    REVIEWS_READ = "reviews:read"
    REVIEWS_WRITE = "reviews:write"
    OUTCOMES_WRITE = "outcomes:write"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Credential:
    """A verified key: whose it is and what it may do."""

    tenant: str
    scopes: frozenset[Scope]
    key_id: str


@dataclass(frozen=True, slots=True)
class Presented:
    """A key that somebody showed, well-formed: its id, and the hash that proves its secret."""

    key_id: str
    digest: bytes

    @classmethod
    def parse(cls, text: str) -> Presented | None:
        """None for a text that can be no key."""
        parts = _KEY.fullmatch(text)
        return None if parts is None else cls(parts[2], _digest(text))


class KeyStore:
    """Keys in one SQLite file of mode 0600. Safe for threads and for many processes.

    A secret has 256 random bits, so one SHA-256 is enough: there is nothing to guess.
    Verified keys are cached until another process changes the file (``PRAGMA data_version``,
    microseconds) or this one revokes a key.
    """

    def __init__(self, path: Path, clock: Clock | None = None, busy_timeout_s: float = 2.0) -> None:
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._cache: dict[bytes, Credential] = {}
        make_directory(path.parent, 0o700)
        # The file exists with its mode before SQLite writes a byte, whatever the umask is; its
        # journals take the same mode from it.
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
        self._db = sqlite3.connect(
            path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False
        )
        # A commit ends with the removal of a journal; were that undone by a power cut, so would be
        # the commit: a key that was revoked would be good again.
        self._db.execute("PRAGMA synchronous=EXTRA")
        self._db.execute(_SCHEMA)
        self._version = self._data_version()

    def create(self, tenant: str, scopes: Iterable[str], env: str = "live") -> str:
        """Make a key and return its text, which is stored nowhere else.

        Raises UsageError for a bad tenant name, environment or scope.
        """
        if not _TENANT.fullmatch(tenant):
            raise UsageError(
                f"tenant {tenant!r} is no valid name",
                hint="Use 1 to 64 of a-z, 0-9, '.', '_', '-', starting with a letter or digit.",
            )
        key_id = secrets.token_hex(6)
        text = f"rp_{env}_{key_id}_{secrets.token_hex(32)}"
        if not _KEY.fullmatch(text):
            raise UsageError(
                f"environment {env!r} of a key is not valid", hint="Use 1 to 10 letters."
            )
        row = (key_id, tenant, _join(scopes), _digest(text), self._clock.now_ms())
        with self._lock:
            self._db.execute("INSERT INTO api_key VALUES (?, ?, ?, ?, ?, NULL)", row)
        return text

    def verify(self, shown: Presented | None) -> Credential | None:
        """The credential behind a key, or None when it is malformed, unknown, wrong or revoked.

        Raises Unavailable when the file can't be read now.
        """
        if shown is None:
            return None
        try:
            with self._lock:
                return self._verify(shown.key_id, shown.digest)
        except sqlite3.OperationalError as e:
            raise Unavailable(f"the key store does not answer: {e}", hint="Retry.") from e

    def _verify(self, key_id: str, digest: bytes) -> Credential | None:
        version = self._data_version()
        if version != self._version:
            self._cache.clear()
            self._version = version
        return self._cache.get(digest) or self._look_up(key_id, digest)

    def _look_up(self, key_id: str, digest: bytes) -> Credential | None:
        row = self._db.execute(
            "SELECT tenant, scopes, digest, revoked_at FROM api_key WHERE key_id = ?", (key_id,)
        ).fetchone()
        # An unknown id costs the same comparison as a wrong secret.
        stored = row[2] if row else bytes(32)
        if not hmac.compare_digest(stored, digest) or row is None or row[3] is not None:
            return None
        found = Credential(row[0], frozenset(Scope(s) for s in row[1].split()), key_id)
        if len(self._cache) < _CACHE_LIMIT:
            self._cache[digest] = found
        return found

    def revoke(self, key_id: str) -> None:
        """End a key now, in every process; revoking twice is harmless. Raises NotFound."""
        with self._lock:
            changed = self._db.execute(
                "UPDATE api_key SET revoked_at = coalesce(revoked_at, ?) WHERE key_id = ?",
                (self._clock.now_ms(), key_id),
            ).rowcount
            self._cache.clear()
        if not changed:
            raise NotFound(f"there is no API key {key_id!r}")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _data_version(self) -> int:
        version: int = self._db.execute("PRAGMA data_version").fetchone()[0]
        return version


def ensure_local_key(home: Path) -> Path:
    """The file that holds this machine's key (tenant `default`, every scope), made if needed.

    The file has mode 0600 from its first byte. A key that the store doesn't accept any more (the
    store was deleted, the key revoked), or that lacks a scope of a newer version, is replaced by a
    new one.
    """
    path = home / LOCAL_KEY_FILE
    store = KeyStore(home / STORE_FILE)
    try:
        if path.exists():
            path.chmod(0o600)
            found = store.verify(Presented.parse(path.read_text().strip()))
            if found is not None and found.scopes >= set(Scope):
                return path
        key = store.create(LOCAL_TENANT, Scope, env="local")
    finally:
        store.close()
    # A temporary name, so that a crash here never leaves half a key under the final one.
    temporary = home / f".{LOCAL_KEY_FILE}.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(key + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return path


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _join(scopes: Iterable[str]) -> str:
    given = list(scopes)
    known = {s.value for s in Scope}
    unknown = [str(s) for s in given if s not in known]
    if unknown or not given:
        raise UsageError(
            f"unknown scopes {unknown}" if unknown else "a key needs at least one scope",
            hint="Known: " + ", ".join(sorted(known)),
        )
    return " ".join(sorted(Scope(s).value for s in set(given)))
