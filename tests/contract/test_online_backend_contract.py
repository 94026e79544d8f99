"""What every backend of the packed online store does. The model is a dict of the newest values."""

from __future__ import annotations

import multiprocessing
import resource
import shutil
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.store.packed.backend import Backend, open_backend
from features.store.packed.password import FILE_VARIABLE, PASSWORD_VARIABLE
from features.store.packed.sqlite import SqliteBackend
from raypipe.errors import ConfigError, IntegrityError, Unavailable
from tests.contract.redis_server import RedisServer, needs_redis

SCHEMAS = (b"schema_1", b"schema_2")


def value(major: int, minor: int = 0, schema: bytes = SCHEMAS[0], body: bytes = b"") -> bytes:
    """Bytes that a backend can order: it looks at nothing behind the schema."""
    sign = 1 << 63
    return (major + sign).to_bytes(8, "big") + (minor + sign).to_bytes(8, "big") + schema + body


@pytest.fixture
def backend(online_url: str) -> Iterator[Backend]:
    opened = open_backend(online_url)
    yield opened
    opened.close()


def put(backend: Backend, rows: dict[bytes, bytes]) -> int:
    return backend.put(list(rows), list(rows.values()), SCHEMAS[0], b"described")


def test_what_was_put_is_got_in_the_order_of_the_keys(backend: Backend) -> None:
    rows = {b"k%d" % i: value(i, body=bytes([0, i % 256, 255]) * (i % 50)) for i in range(1_300)}
    assert put(backend, rows) == len(rows)
    keys = [*reversed(rows), b"unknown", b"k7", b"k7", b""]
    assert backend.get(keys) == [rows.get(k) for k in keys]
    assert backend.get([]) == []
    assert backend.put([], [], SCHEMAS[0], b"described") == 0


def test_the_newer_of_two_values_stays(backend: Backend) -> None:
    for written, major, minor in [
        (1, 5, 5),
        (0, 5, 4),
        (0, 4, 9),
        (0, -(2**63), 2**63 - 1),
        (1, 5, 6),
        (1, 6, -(2**63)),
        (1, 2**40, 0),
        (0, 2**40 - 1, 2**62),
        (1, 2**63 - 1, 2**63 - 1),
    ]:
        assert put(backend, {b"k": value(major, minor, body=b"%d" % minor)}) == written
    assert backend.get([b"k"]) == [value(2**63 - 1, 2**63 - 1, body=b"%d" % (2**63 - 1))]


def test_of_equal_ones_the_first_stays_unless_the_schema_is_another(backend: Backend) -> None:
    assert put(backend, {b"k": value(1, 1, body=b"first")}) == 1
    assert put(backend, {b"k": value(1, 1, body=b"second")}) == 0
    assert put(backend, {b"k": value(1, 1, SCHEMAS[1], b"third")}) == 1
    assert put(backend, {b"k": value(1, 0, SCHEMAS[0], b"fourth")}) == 0
    assert backend.get([b"k"]) == [value(1, 1, SCHEMAS[1], b"third")]


writes = st.lists(
    st.tuples(
        st.sampled_from([b"a", b"b", b"c"]),
        st.integers(-3, 3) | st.integers(-(2**63), 2**63 - 1),
        st.integers(-3, 3) | st.integers(-(2**63), 2**63 - 1),
    ),
    max_size=30,
)


@given(batches=st.lists(writes, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_order_of_writes_leaves_the_newest(
    backend: Backend, batches: list[list[tuple[bytes, int, int]]]
) -> None:
    backend.drop(b"t:")
    newest: dict[bytes, tuple[int, int]] = {}
    for batch in batches:
        for key, *place in batch:
            newest[key] = max(newest.get(key, (place[0], place[1])), (place[0], place[1]))
        backend.put(
            [b"t:" + key for key, _, _ in batch],
            [value(major, minor) for _, major, minor in batch],
            SCHEMAS[0],
            b"described",
        )
    expected = [value(*newest[k]) if k in newest else None for k in (b"a", b"b", b"c")]
    assert backend.get([b"t:a", b"t:b", b"t:c"]) == expected


def test_writers_at_once_leave_the_newest(online_url: str) -> None:
    keys = [b"k%d" % i for i in range(50)]
    errors: list[BaseException] = []

    def write(writer: int) -> None:
        own = open_backend(online_url)
        try:
            for n in range(40):
                place = (n * 7 + writer * 13) % 40 * 4 + writer
                put(own, {k: value(place, body=b"%d" % place) for k in keys})
        except BaseException as e:
            errors.append(e)
        finally:
            own.close()

    threads = [threading.Thread(target=write, args=(w,)) for w in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert errors == []
    assert open_backend(online_url).get(keys) == [value(159, body=b"159")] * len(keys)


def test_deleting_counts_what_was_there(backend: Backend) -> None:
    put(backend, {b"k%d" % i: value(i) for i in range(700)})
    assert backend.delete([b"k%d" % i for i in range(650, 1_400)]) == 50
    assert backend.delete([b"k1", b"k1", b"unknown"]) == 1
    assert backend.delete([]) == 0
    assert backend.get([b"k1", b"k649", b"k650"]) == [None, value(649), None]


def test_a_prefix_is_no_pattern(backend: Backend) -> None:
    names = [b"a:1", b"a:2", b"ab:1", b"a*:1", b"a?:1", b"[a]:1", b"a\\:1", b"b:a:1", b"a"]
    put(backend, {n: value(1) for n in names})
    for prefix in (b"a:", b"a*:", b"a?:", b"[a]:", b"a\\:", b"c:"):
        expected = sorted(n for n in names if n.startswith(prefix))
        assert sorted(backend.scan(prefix)) == expected
    assert backend.drop(b"a*:") == 1
    assert backend.drop(b"a:") == 2
    left = [n for n in names if not n.startswith((b"a:", b"a*:"))]
    assert backend.get(names) == [value(1) if n in left else None for n in names]


def test_a_schema_is_described_once(backend: Backend) -> None:
    assert backend.described(SCHEMAS[0]) is None
    backend.put([b"k"], [value(1)], SCHEMAS[0], b"one")
    backend.put([b"k"], [value(2)], SCHEMAS[0], b"other")
    backend.put([b"k"], [value(3)], SCHEMAS[1], b"two")
    assert [backend.described(s) for s in SCHEMAS] == [b"one", b"two"]


def _child(backend: Backend, key: bytes, expected: bytes) -> None:
    if backend.get([key]) != [expected]:
        raise SystemExit(1)
    put(backend, {key: value(2)})


def test_a_forked_process_has_connections_of_its_own(backend: Backend) -> None:
    put(backend, {b"k": value(1)})
    assert backend.get([b"k"]) == [value(1)]
    children = [
        multiprocessing.get_context("fork").Process(target=_child, args=(backend, b"k", value(1)))
        for _ in range(1)
    ]
    for child in children:
        child.start()
        child.join()
    assert [c.exitcode for c in children] == [0]
    assert backend.get([b"k"]) == [value(2)]


# SQLite alone


def test_a_full_disk_is_told_and_takes_nothing(tmp_path: Path) -> None:
    backend = SqliteBackend(tmp_path / "online.db")
    put(backend, {b"k": value(1)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(Unavailable, match="doesn't answer"):
            put(backend, {b"k%d" % i: value(2, body=b"x" * 5_000) for i in range(200)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert backend.get([b"k", b"k0", b"k199"]) == [value(1), None, None]
    assert put(backend, {b"k0": value(2)}) == 1


def test_a_file_that_is_no_store_is_told(tmp_path: Path) -> None:
    (tmp_path / "online.db").write_bytes(b"no database " * 1_000)
    with pytest.raises(IntegrityError, match="damaged"):
        SqliteBackend(tmp_path / "online.db").get([b"k"])
    with pytest.raises(Unavailable, match="folder exists"):
        SqliteBackend(tmp_path / "missing" / "online.db").get([b"k"])


def test_a_writer_that_never_ends_is_told_of(tmp_path: Path) -> None:
    backend = SqliteBackend(tmp_path / "online.db", timeout_s=0.05)
    put(backend, {b"k": value(1)})
    other = sqlite3.connect(tmp_path / "online.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="SQLITE_BUSY"):
        put(backend, {b"k": value(2)})
    assert backend.get([b"k"]) == [value(1)]
    other.execute("ROLLBACK")
    assert put(backend, {b"k": value(2)}) == 1


def test_feasts_older_file_is_taken_over(tmp_path: Path) -> None:
    """Homes of before the packed store have Feast's tables in the same file."""
    with sqlite3.connect(tmp_path / "online.db") as db:
        db.execute("CREATE TABLE raypipe_card_state (entity_key BLOB, feature_name TEXT)")
    backend = SqliteBackend(tmp_path / "online.db")
    assert put(backend, {b"k": value(1)}) == 1
    assert backend.get([b"k"]) == [value(1)]


# Redis alone


@needs_redis
def test_a_server_that_is_away_is_told_and_comes_back(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    backend = open_backend(server.url())
    put(backend, {b"k": value(1)})
    server.kill()
    for call in (
        lambda: backend.get([b"k"]),
        lambda: put(backend, {b"k": value(2)}),
        lambda: backend.delete([b"k"]),
        lambda: backend.described(SCHEMAS[0]),
        lambda: list(backend.scan(b"k:")),
    ):
        with pytest.raises(Unavailable, match=f"redis://127.0.0.1:{server.port}/0 is away"):
            call()
    server.start()
    try:
        assert backend.get([b"k"]) == [None]
        assert put(backend, {b"k": value(1)}) == 1
        assert backend.described(SCHEMAS[0]) == b"described"
    finally:
        server.kill()


@needs_redis
def test_the_password_comes_from_the_environment_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = RedisServer(
        tmp_path,
        "requirepass right",
        "user reader on >other ~* +mget +hget",
    )
    try:
        for password in (None, "wrong"):
            if password is None:
                monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
            else:
                monkeypatch.setenv(PASSWORD_VARIABLE, password)
            with pytest.raises(ConfigError, match="refuses us") as e:
                open_backend(server.url()).get([b"k"])
            assert PASSWORD_VARIABLE in e.value.hint
            assert FILE_VARIABLE in e.value.hint
            assert "wrong" not in str(e.value)
        monkeypatch.setenv(PASSWORD_VARIABLE, "right")
        backend = open_backend(server.url())
        assert put(backend, {b"k": value(1)}) == 1
        assert backend.get([b"k"]) == [value(1)]
        monkeypatch.setenv(PASSWORD_VARIABLE, "other")
        named = open_backend(f"redis://reader@127.0.0.1:{server.port}/0")
        assert named.get([b"k"]) == [value(1)]
        with pytest.raises(ConfigError, match="refuses us"):
            put(named, {b"k": value(2)})
        monkeypatch.delenv(PASSWORD_VARIABLE)
        file = tmp_path / "password"
        file.touch(0o600)
        file.write_text("right\n")
        monkeypatch.setenv(FILE_VARIABLE, str(file))
        assert open_backend(server.url()).get([b"k"]) == [value(1)]
    finally:
        server.kill()


@needs_redis
@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make certificates")
def test_tls_is_checked(tmp_path: Path) -> None:
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            *subject,
            *files,
        ],
        check=True,
        capture_output=True,
    )
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    server = RedisServer(
        tmp_path,
        f"tls-port {port}",
        f"tls-cert-file {tmp_path}/cert.pem",
        f"tls-key-file {tmp_path}/key.pem",
        "tls-auth-clients no",
    )
    try:
        url = f"rediss://127.0.0.1:{port}/0"
        backend = open_backend(f"{url}?ssl_ca_certs={tmp_path}/cert.pem")
        assert put(backend, {b"k": value(1)}) == 1
        assert backend.get([b"k"]) == [value(1)]
        with pytest.raises(Unavailable, match="certificate verify failed"):
            open_backend(url).get([b"k"])
    finally:
        server.kill()


def test_a_password_in_the_url_is_refused() -> None:
    with pytest.raises(ConfigError, match="has a password in it") as e:
        open_backend("redis://user:secret@127.0.0.1:6379/0")
    assert "secret" not in str(e.value)


@pytest.mark.parametrize("url", ["http://host", "", "sqlite:///", "redis"])
def test_what_names_no_store_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        open_backend(url)


@needs_redis
def test_a_full_server_is_told_and_leaves_whole_values(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, "maxmemory 3mb", "maxmemory-policy noeviction")
    try:
        backend = open_backend(server.url())
        rows = {b"k%d" % i: value(i, body=b"x" * 2_000) for i in range(2_000)}
        with pytest.raises(Unavailable, match="maxmemory"):
            put(backend, rows)
        found = backend.get(list(rows))
        assert all(v in (None, expected) for v, expected in zip(found, rows.values(), strict=True))
        assert found[0] is not None
    finally:
        server.kill()


@needs_redis
def test_something_else_under_our_keys_is_told(redis_server: RedisServer) -> None:
    server = redis_server
    server.client().flushall()
    server.client().rpush("k", "a list")
    backend = open_backend(server.url())
    with pytest.raises(IntegrityError, match="something else under our keys"):
        put(backend, {b"k": value(1)})
    server.client().set("s", "short")
    assert put(backend, {b"s": value(1)}) == 1


def test_a_server_that_never_answers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features.store.packed.redis.ANSWER_TIMEOUT_S", 0.05)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        backend = open_backend(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        with pytest.raises(Unavailable, match="doesn't answer"):
            backend.get([b"k"])
