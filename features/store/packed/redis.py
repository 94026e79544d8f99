"""The distributed online store: packed values as strings of one Redis."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import redis
from redis import exceptions
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from features.store.packed.layout import ORDER_BYTES, SCHEMA_BYTES
from features.store.packed.password import FILE_VARIABLE, PASSWORD_VARIABLE, password
from raypipe.errors import ConfigError, IntegrityError, Unavailable

CONNECT_TIMEOUT_S = 2.0
ANSWER_TIMEOUT_S = 10.0

_SCHEMAS = b"rp-schemas"
_KEYS_PER_CALL = 500
_BYTES_PER_CALL = 2 * 2**20
_CALLS_PER_TRIP = 16

# Redis runs a script as one step. Lua's own `<` on strings may follow the server's locale, and
# its numbers are doubles: four 32-bit words compare exactly.
_PUT = f"""
local written = 0
for i, key in ipairs(KEYS) do
  local new, take = ARGV[i], true
  local old = redis.call('GETRANGE', key, 0, {ORDER_BYTES + SCHEMA_BYTES - 1})
  if #old == {ORDER_BYTES + SCHEMA_BYTES} then
    local a, b, c, d = struct.unpack('>I4I4I4I4', new)
    local e, f, g, h = struct.unpack('>I4I4I4I4', old)
    if a ~= e then take = a > e
    elseif b ~= f then take = b > f
    elseif c ~= g then take = c > g
    elseif d ~= h then take = d > h
    else
      take = string.sub(new, {ORDER_BYTES + 1}, {ORDER_BYTES + SCHEMA_BYTES})
        ~= string.sub(old, {ORDER_BYTES + 1})
    end
  end
  if take then
    redis.call('SET', key, new)
    written = written + 1
  end
end
return written
"""


class RedisBackend:
    """Packed values in one Redis; see Backend. No Redis Cluster: a read is one MGET."""

    def __init__(self, connect: Callable[..., redis.Redis], place: str) -> None:
        self._connect = connect
        self._client: Any = connect()  # its methods are annotated for async use too
        self._place = place
        self._local = threading.local()

    @classmethod
    def open(cls, url: str) -> RedisBackend:
        """The store at ``redis[s]://[user@]host[:port][/db][?ssl_ca_certs=FILE]``.

        Nothing is sent yet.

        Raises:
            ConfigError: a password in the URL, a URL that Redis' client doesn't read, or see
                password.
        """
        split = urlsplit(url)
        if split.password is not None:
            raise ConfigError(
                f"the URL of the online store at {split.hostname!r} has a password in it",
                hint=f"Put it into {PASSWORD_VARIABLE}, or into a file that {FILE_VARIABLE} names.",
            )
        connect = partial(
            redis.Redis.from_url,
            url,
            password=password(),
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=ANSWER_TIMEOUT_S,
            # Every command here can be sent twice.
            retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), 2),
        )
        try:
            return cls(connect, urlunsplit((split.scheme, split.netloc, split.path, "", "")))
        except ValueError as e:
            raise ConfigError(f"{url!r} is no Redis URL: {e}") from e

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See Backend.get."""
        if not keys:
            return []
        with self._translated():
            found: list[bytes | None] = self._reader().execute_command("MGET", *keys)
        return found

    def put(
        self, keys: Sequence[bytes], values: Sequence[bytes], schema: bytes, described: bytes
    ) -> int:
        """See Backend.put. Each row is whole; rows before an error may have been written."""
        written, calls = 0, _calls(values)
        while some := list(islice(calls, _CALLS_PER_TRIP)):
            with self._translated(), self._client.pipeline(transaction=False) as pipe:
                pipe.hsetnx(_SCHEMAS, schema, described)
                for a, b in some:
                    pipe.eval(_PUT, b - a, *keys[a:b], *values[a:b])
                written += sum(pipe.execute()[1:])
        return written

    def described(self, schema: bytes) -> bytes | None:
        """See Backend.described."""
        with self._translated():
            found: bytes | None = self._client.hget(_SCHEMAS, schema)
        return found

    def delete(self, keys: Sequence[bytes]) -> int:
        """See Backend.delete."""
        gone = 0
        with self._translated():
            for i in range(0, len(keys), _KEYS_PER_CALL):
                gone += self._client.unlink(*keys[i : i + _KEYS_PER_CALL])
        return gone

    def scan(self, prefix: bytes) -> Iterator[bytes]:
        """See Backend.scan; walks through all keys of the database."""
        pattern = re.sub(rb"([*?\[\]\\])", rb"\\\1", prefix) + b"*"
        with self._translated():
            yield from self._client.scan_iter(match=pattern, count=1_000)

    def drop(self, prefix: bytes) -> int:
        """See Backend.drop."""
        gone, keys = 0, self.scan(prefix)
        while some := list(islice(keys, _KEYS_PER_CALL)):
            gone += self.delete(some)
        return gone

    def close(self) -> None:
        """See Backend.close; other threads' connections close with their threads."""
        self._client.close()
        self._local = threading.local()

    def _reader(self) -> Any:
        # A connection of the thread's own: the pool's bookkeeping costs as much as the round trip.
        process, client = getattr(self._local, "reader", (None, None))
        if process != os.getpid():
            client = self._connect(single_connection_client=True)
            self._local.reader = os.getpid(), client
        return client

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (exceptions.AuthenticationError, exceptions.NoPermissionError) as e:
            raise ConfigError(
                f"the online store {self._place} refuses us: {e}",
                hint=f"The user stands in the URL, the password in {PASSWORD_VARIABLE} or the file "
                f"that {FILE_VARIABLE} names.",
            ) from e
        except exceptions.ConnectionError as e:
            raise Unavailable(
                f"the online store {self._place} is away: {e}",
                hint="Check setting online_url and that Redis runs there.",
            ) from e
        except exceptions.TimeoutError as e:
            raise Unavailable(f"the online store {self._place} doesn't answer: {e}") from e
        except exceptions.ResponseError as e:
            said = str(e).rpartition(" caused error: ")[2]  # a pipeline repeats the whole script
            if said.startswith("WRONGTYPE"):
                raise IntegrityError(
                    f"the online store {self._place} holds something else under our keys: {said}",
                    hint="Give raypipe a database of its own: redis://HOST:PORT/DB.",
                ) from e
            raise Unavailable(
                f"the online store {self._place} refuses: {said}",
                hint="It may be full (maxmemory), a replica, or without scripts.",
            ) from e


def _calls(values: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Ranges of rows that one script call takes: other clients wait while it runs."""
    start = size = 0
    for i, value in enumerate(values):
        if i > start and (i - start == _KEYS_PER_CALL or size + len(value) > _BYTES_PER_CALL):
            yield start, i
            start, size = i, 0
        size += len(value)
    if len(values) > start:
        yield start, len(values)
