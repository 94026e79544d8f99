"""Where packed values are kept: one port, an adapter by URL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from raypipe.errors import ConfigError


class Backend(Protocol):
    """Keys and packed values. Calls are safe from all threads of a process.

    Every method raises Unavailable when the store is away, full or refuses writes, ConfigError
    when it refuses the credentials, IntegrityError when what it holds is none of ours.
    """

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value of each key, in the order of the keys."""

    def put(
        self, keys: Sequence[bytes], values: Sequence[bytes], schema: bytes, described: bytes
    ) -> int:
        """Write each value unless what is there is as new; returns how many were written.

        Each comparison and write is one step that no other writer gets between. Of two values of
        the same order the first stays, unless the second has another schema: then it was written
        again because its view has changed. The schema's description is stored before them.
        """

    def described(self, schema: bytes) -> bytes | None:
        """The description of a schema that was stored with values."""

    def delete(self, keys: Sequence[bytes]) -> int:
        """Delete exact keys; returns how many there were."""

    def scan(self, prefix: bytes) -> Iterator[bytes]:
        """All keys of a prefix, in no order; a key written meanwhile may be missed."""

    def drop(self, prefix: bytes) -> int:
        """Delete all keys of a prefix; returns how many there were."""

    def close(self) -> None:
        """Let go of connections and files."""


def open_backend(url: str) -> Backend:
    """The adapter that a URL names.

    Raises:
        ConfigError: no adapter has such a URL.
    """
    scheme = url.partition("://")[0]
    if scheme == "sqlite":
        from features.store.packed.sqlite import SqliteBackend

        return SqliteBackend.open(url)
    if scheme in ("redis", "rediss"):
        from features.store.packed.redis import RedisBackend

        return RedisBackend.open(url)
    raise ConfigError(
        f"{url!r} names no online store",
        hint="Write sqlite:///FILE, redis://HOST:PORT/DB or rediss://HOST:PORT/DB.",
    )
