"""Keys that the worker confirmed, for the replicas of a node that start while it is away."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest

from raypipe.errors import Unavailable
from raypipe.tenancy.keys import Credential, KeyStore, Presented, Scope
from serving import key_shelf
from serving.credentials import AWAY_S, Credentials
from serving.key_shelf import AGAIN_S, KeyShelf
from tests.unit.test_serving_credentials import Clock, Holder

KNOWN = Credential("acme", frozenset({Scope.DECISIONS_WRITE, Scope.DECISIONS_READ}), "k-1")


def test_a_key_is_believed_for_a_while_by_all_replicas_of_the_node(tmp_path: Path) -> None:
    clock = Clock()
    one, other = (KeyShelf(tmp_path / "keys", AWAY_S, clock) for _ in range(2))
    assert one.get(b"digest") is None
    one.put(b"digest", KNOWN)
    assert other.get(b"digest") == KNOWN
    assert other.get(b"another") is None
    clock.now += AWAY_S - 1
    assert other.get(b"digest") == KNOWN
    clock.now += 1
    assert other.get(b"digest") is None
    clock.now = -1
    assert other.get(b"digest") is None


def test_nothing_is_believed_after_the_machine_was_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    KeyShelf(tmp_path, AWAY_S).put(b"digest", KNOWN)
    assert KeyShelf(tmp_path, AWAY_S).get(b"digest") == KNOWN
    monkeypatch.setattr(key_shelf, "_boot", lambda: "another")
    assert KeyShelf(tmp_path, AWAY_S).get(b"digest") is None


def test_a_key_in_use_is_written_now_and_then(tmp_path: Path) -> None:
    clock = Clock()
    shelf = KeyShelf(tmp_path / "keys", AWAY_S, clock)
    for _ in range(20):
        shelf.put(b"digest", KNOWN)
        clock.now += AGAIN_S
        assert shelf.get(b"digest") == KNOWN
    [file] = (tmp_path / "keys").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert b"digest".hex() not in file.name
    file.write_bytes(b"\xff\xff")
    assert shelf.get(b"digest") is None
    shelf.drop(b"digest")
    shelf.drop(b"digest")
    assert not list((tmp_path / "keys").iterdir())


def test_a_folder_that_can_not_be_written_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a file")
    shelf = KeyShelf(tmp_path / "keys", AWAY_S)
    shelf.put(b"digest", KNOWN)
    assert shelf.get(b"digest") is None


def test_a_replica_that_starts_without_the_worker_knows_what_another_was_told(
    tmp_path: Path,
) -> None:
    store = KeyStore(tmp_path / "tenants.db")
    shelf = KeyShelf(tmp_path / "keys", AWAY_S)
    first = Credentials(Holder(store), Clock(), shelf)
    text = store.create("acme", [Scope.DECISIONS_WRITE])
    shown = Presented.parse(text)
    assert shown is not None

    async def story() -> None:
        known = await first.verify(text)
        fresh = Credentials(Holder(store), Clock(), shelf)
        assert await fresh.remembered.verify(text) == known
        store.revoke(shown.key_id)
        assert await first._ask(shown) is None
        with pytest.raises(Unavailable):
            await fresh.remembered.verify(text)

    asyncio.run(story())
