from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path

import pytest

from raypipe.clock import ManualClock
from raypipe.errors import NotFound, Unavailable, UsageError
from raypipe.tenancy.keys import Credential, KeyStore, Presented, Scope, ensure_local_key


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "tenants.db", ManualClock(1_000))


def test_a_created_key_verifies_to_its_tenant_scopes_and_id(store: KeyStore) -> None:
    key = store.create("shop-1", ["decisions:write", "decisions:read"])
    prefix, env, key_id, secret = key.split("_")
    assert (prefix, env, len(secret)) == ("rp", "live", 64)
    expected = Credential(
        "shop-1", frozenset({Scope.DECISIONS_WRITE, Scope.DECISIONS_READ}), key_id
    )
    assert store.verify(Presented.parse(key)) == expected
    assert store.verify(Presented.parse(key)) == expected  # from the cache


@pytest.mark.parametrize(
    "damage",
    [
        lambda k: "",
        lambda k: k[:-1],
        lambda k: k + "0",
        lambda k: k[:-1] + ("0" if k[-1] != "0" else "1"),
        lambda k: k.upper(),
        lambda k: k.replace("_live_", "_test_"),
        lambda k: "rp_live_" + "0" * 12 + k[20:],
        lambda k: k + "\n",
        lambda k: "ключ",
    ],
)
def test_any_other_text_is_no_key(store: KeyStore, damage: object) -> None:
    key = store.create("default", ["admin"])
    assert callable(damage)
    assert damage(key) != key
    assert store.verify(Presented.parse(damage(key))) is None


def test_the_file_is_private_whatever_the_umask_and_holds_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "home" / "tenants.db"
    before = os.umask(0)
    try:
        key = KeyStore(path).create("default", ["admin"])
    finally:
        os.umask(before)
    assert _mode(path) == 0o600
    assert _mode(path.parent) == 0o700
    content = path.read_bytes()
    secret = key.rsplit("_", 1)[1]
    assert secret.encode() not in content
    assert bytes.fromhex(secret) not in content
    assert b"default" in content


def test_revocation_reaches_another_open_store_at_once(tmp_path: Path) -> None:
    path = tmp_path / "tenants.db"
    one, other = KeyStore(path), KeyStore(path)
    key, kept = one.create("default", ["admin"]), one.create("default", ["admin"])
    assert other.verify(Presented.parse(key)) is not None
    one.revoke(key.split("_")[2])
    assert other.verify(Presented.parse(key)) is None
    assert one.verify(Presented.parse(key)) is None
    assert other.verify(Presented.parse(kept)) is not None


def test_revoking_twice_keeps_the_first_time_and_an_unknown_key_is_not_found(
    tmp_path: Path,
) -> None:
    clock = ManualClock(5)
    store = KeyStore(tmp_path / "tenants.db", clock)
    key_id = store.create("default", ["admin"]).split("_")[2]
    store.revoke(key_id)
    clock.set(9)
    store.revoke(key_id)
    with sqlite3.connect(tmp_path / "tenants.db") as db:
        assert db.execute("SELECT created_at, revoked_at FROM api_key").fetchall() == [(5, 5)]
    with pytest.raises(NotFound):
        store.revoke("feedfeedfeed")


@pytest.mark.parametrize(
    ("tenant", "scopes", "env", "word"),
    [
        ("", ["admin"], "live", "tenant"),
        ("../x", ["admin"], "live", "tenant"),
        ("Shop", ["admin"], "live", "tenant"),
        ("a" * 65, ["admin"], "live", "tenant"),
        ("shop", ["admn"], "live", "admn"),
        ("shop", [], "live", "scope"),
        ("shop", ["admin"], "li_ve", "environment"),
    ],
)
def test_a_bad_key_request_is_refused_and_stores_nothing(
    store: KeyStore, tmp_path: Path, tenant: str, scopes: list[str], env: str, word: str
) -> None:
    with pytest.raises(UsageError, match=word):
        store.create(tenant, scopes, env)
    with sqlite3.connect(tmp_path / "tenants.db") as db:
        assert db.execute("SELECT count(*) FROM api_key").fetchone() == (0,)


def test_the_local_key_is_made_once_private_and_with_every_scope(tmp_path: Path) -> None:
    home = tmp_path / "home"
    before = os.umask(0)
    try:
        path = ensure_local_key(home)
    finally:
        os.umask(before)
    assert path == home / "api-key"
    assert _mode(path) == 0o600
    first = path.read_text()
    assert ensure_local_key(home).read_text() == first
    found = KeyStore(home / "tenants.db").verify(Presented.parse(first.strip()))
    assert found is not None
    assert (found.tenant, found.scopes) == ("default", frozenset(Scope))
    assert sorted(p.name for p in home.iterdir()) == ["api-key", "tenants.db"]


def test_a_local_key_that_the_store_forgot_or_revoked_is_replaced(tmp_path: Path) -> None:
    path = ensure_local_key(tmp_path)
    first = path.read_text()
    KeyStore(tmp_path / "tenants.db").revoke(first.split("_")[2])
    second = ensure_local_key(tmp_path).read_text()
    assert second != first
    (tmp_path / "tenants.db").unlink()
    path.chmod(0o644)
    third = ensure_local_key(tmp_path).read_text()
    assert third not in (first, second)
    assert _mode(path) == 0o600
    store = KeyStore(tmp_path / "tenants.db")
    assert store.verify(Presented.parse(third.strip())) is not None
    assert store.verify(Presented.parse(first.strip())) is None


def test_a_store_that_is_locked_for_long_is_unavailable_not_a_wrong_key(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "tenants.db", busy_timeout_s=0.01)
    key = store.create("default", ["admin"])
    with sqlite3.connect(tmp_path / "tenants.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(Unavailable):
            store.verify(Presented.parse(key))
        other.execute("ROLLBACK")
    assert store.verify(Presented.parse(key)) is not None
