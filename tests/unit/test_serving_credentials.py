"""Keys as replicas verify them: asked of the worker, believed for a moment."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from raypipe.errors import Unavailable
from raypipe.tenancy.keys import Credential, KeyStore, Presented, Scope
from serving.credentials import AGAIN_S, FRESH_S, Credentials
from serving.entrance import Entrance
from tests.unit.serving_kit import Service, body, train


class Holder:
    """A key store behind an await; counts how often it is asked."""

    def __init__(self, store: KeyStore) -> None:
        self.store = store
        self.asked = 0
        self.away = False

    async def verify(self, shown: Presented) -> Credential | None:
        self.asked += 1
        if self.away:
            raise Unavailable("the worker restarts")
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
    clock.now += AGAIN_S * 0.99
    assert asyncio.run(verify()) == first
    assert holder.asked == 1
    clock.now += FRESH_S
    assert asyncio.run(verify()) == first
    assert holder.asked == 2


def test_a_key_in_use_is_asked_for_again_beside_the_requests(store: KeyStore) -> None:
    holder, clock = Holder(store), Clock()
    credentials = Credentials(holder, clock)
    key = store.create("acme", [Scope.ADMIN])

    async def use() -> None:
        first = await credentials.verify(key)
        for asked in range(2, 6):
            clock.now += AGAIN_S
            for _ in range(3):
                assert await credentials.verify(key) == first
                assert holder.asked == asked - 1  # no request waited for it
            await asyncio.sleep(0)
            assert holder.asked == asked
            await asyncio.sleep(0)
        store.revoke(key.split("_")[2])
        clock.now += AGAIN_S
        assert await credentials.verify(key) == first
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert await credentials.verify(key) is None

    asyncio.run(use())


def test_a_worker_that_is_away_is_noticed_when_the_moment_is_over(store: KeyStore) -> None:
    holder, clock = Holder(store), Clock()
    credentials = Credentials(holder, clock)
    key = store.create("acme", [Scope.ADMIN])

    async def use() -> None:
        first = await credentials.verify(key)
        holder.away = True
        clock.now += AGAIN_S
        assert await credentials.verify(key) == first
        await asyncio.sleep(0)
        clock.now += AGAIN_S
        with pytest.raises(Unavailable):
            await credentials.verify(key)

    asyncio.run(use())


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
    service = Service(tmp_path, tmp_path / "keys.db")
    service.app._entrance = Entrance(Credentials(Away()), service.gate, 50)
    answer = service.post(body())
    assert answer.status_code == 503
    assert answer.json()["code"] == Unavailable.code
    assert not service.worker.seen
