"""Keys as replicas verify them: asked of the worker, believed for a moment."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from raypipe.errors import Unavailable
from raypipe.tenancy.keys import Credential, KeyStore, Presented, Scope
from serving.credentials import FRESH_S, Credentials
from tests.unit.serving_kit import Service, body, train


class Holder:
    """A key store behind an await; counts how often it is asked."""

    def __init__(self, store: KeyStore) -> None:
        self.store = store
        self.asked = 0

    async def verify(self, shown: Presented) -> Credential | None:
        self.asked += 1
        return self.store.verify(shown)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "tenants.db")


def test_a_good_key_is_asked_for_once_a_moment(store: KeyStore) -> None:
    holder, clock = Holder(store), Clock()
    credentials = Credentials(holder, clock)
    key = store.create("acme", [Scope.ADMIN])

    async def verify() -> Credential | None:
        return await credentials.verify(key)

    first = asyncio.run(verify())
    assert first is not None
    assert (first.tenant, first.scopes) == ("acme", {Scope.ADMIN})
    clock.now += FRESH_S * 0.99
    assert asyncio.run(verify()) == first
    assert holder.asked == 1
    clock.now += FRESH_S * 0.02
    assert asyncio.run(verify()) == first
    assert holder.asked == 2


def test_a_revoked_key_is_refused_after_that_moment(store: KeyStore) -> None:
    clock = Clock()
    credentials = Credentials(Holder(store), clock)
    key = store.create("acme", [Scope.ADMIN])
    assert asyncio.run(credentials.verify(key)) is not None
    store.revoke(key.split("_")[2])
    clock.now += FRESH_S
    assert asyncio.run(credentials.verify(key)) is None
    clock.now -= FRESH_S  # forgotten altogether, not only stale
    assert asyncio.run(credentials.verify(key)) is None


def test_a_wrong_key_is_never_believed_and_a_malformed_one_never_asked(store: KeyStore) -> None:
    holder = Holder(store)
    credentials = Credentials(holder, Clock())
    right = store.create("acme", [Scope.ADMIN])
    wrong = right[:-1] + ("1" if right.endswith("0") else "0")
    for _ in range(2):
        assert asyncio.run(credentials.verify(wrong)) is None
    for text in ("", "rp_live_0123456789ab", "rp_live_0123456789ab_xyz", "Ünïcode", "rp_" * 99):
        assert asyncio.run(credentials.verify(text)) is None
    assert holder.asked == 2


def test_many_keys_do_not_pile_up(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.credentials._LIMIT", 3)
    holder = Holder(store)
    credentials = Credentials(holder, Clock())
    for key in [store.create("acme", [Scope.ADMIN]) for _ in range(20)]:
        assert asyncio.run(credentials.verify(key)) is not None
    assert len(credentials._known) <= 3


class Away:
    async def verify(self, shown: Presented) -> Credential | None:
        await asyncio.get_running_loop().create_future()
        return None


def test_without_the_worker_a_request_is_told_to_come_again(tmp_path: Path) -> None:
    train(tmp_path)
    service = Service(tmp_path, tmp_path / "keys.db", patience_s=0.05)
    service.app._keys = Credentials(Away())
    answer = service.post(body())
    assert answer.status_code == 503
    assert answer.json()["code"] == Unavailable.code
    assert not service.worker.seen
