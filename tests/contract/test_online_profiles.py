"""Profiles as a replica reads them: values, or nothing and soon, whatever becomes of the store."""

from __future__ import annotations

import asyncio
import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.profiles.lookup import ProfileReader, Profiles
from features.store.packed.backend import open_backend
from features.store.packed.codec import Column, encode
from features.store.packed.keys import key_prefix, one
from features.store.packed.layout import layout
from features.store.repo import settings
from raypipe.clock import DAY_MS, ManualClock, SystemClock
from serving.key_values import KeyValues
from serving.profiles import PAUSE_S, OnlineProfiles
from tests.contract.redis_server import RedisServer, needs_redis
from tests.domains.orchard import PROFILE, project

MIDNIGHT = SystemClock().now_ms() // DAY_MS * DAY_MS
LAYOUT = layout(tuple((name, "d") for name in PROFILE.column_names))
KNOWN = Profiles((1.5, 2.0), (MIDNIGHT,))


def put(url: str, tree: str, *, newer: int = 0, damaged: bool = False) -> None:
    """The values of ``KNOWN`` for a tree, as a day's job would write them."""
    at = np.array([MIDNIGHT * 1_000])
    columns = [Column(np.zeros(1, bool), np.array([v])) for v in KNOWN.values]
    [value] = encode(LAYOUT, at, np.array([newer]), at, columns)
    if damaged:
        value = value[:-1] + bytes([value[-1] ^ 1])
    key = one(key_prefix(settings(Path(), url)["project"], PROFILE.name, [PROFILE.key]), tree)
    backend = open_backend(url)
    backend.put([key], [value], LAYOUT.schema, LAYOUT.described)
    backend.close()


class Online:
    """What a replica has, and the clock by which it waits."""

    def __init__(self, url: str) -> None:
        self.clock = ManualClock(0)
        reader = ProfileReader(project.profiles, Path(), url)
        self.profiles = OnlineProfiles(reader, "us", lambda: self.clock.now_ms() / 1_000)

    async def ask(
        self, tree: str = "t1", times: int = 1, tenant: str = "us"
    ) -> list[Profiles | None]:
        """The same question several times at once; a hanging answer fails."""
        event = {"event_id": "h-1", "tenant": tenant, "tree": tree}
        async with asyncio.timeout(5):
            return await asyncio.gather(*(self.profiles.read(event) for _ in range(times)))

    def wait(self, seconds: float) -> None:
        self.clock.advance(round(seconds * 1_000))


def test_an_event_gets_what_is_known_of_its_keys(online_url: str) -> None:
    put(online_url, "t1")
    online = Online(online_url)
    assert asyncio.run(online.ask(times=9)) == [KNOWN] * 9
    for other in (online.ask("t2"), online.ask("t1", tenant="them")):
        [unknown] = asyncio.run(other)
        assert unknown is not None
        assert unknown.times == (-1,)
        assert all(map(math.isnan, unknown.values))


def test_an_embedded_store_is_read_on_the_spot(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/online.db"
    put(url, "t1")
    reading = Online(url).profiles.read({"event_id": "h-1", "tenant": "us", "tree": "t1"})
    with pytest.raises(StopIteration) as done:
        reading.send(None)  # type: ignore[attr-defined]
    assert done.value.value == KNOWN


def test_a_damaged_value_is_told_of_and_concerns_its_key_alone(
    online_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    put(online_url, "t1")
    put(online_url, "t2", damaged=True)
    online = Online(online_url)
    assert asyncio.run(online.ask("t2")) == [None]
    assert "no profiles for h-1" in caplog.text
    assert asyncio.run(online.ask("t1")) == [KNOWN]
    put(online_url, "t2", newer=1)
    assert asyncio.run(online.ask("t2")) == [KNOWN]


class Windows:
    """A worker, or a store of states, that knows no event of any key."""

    async def read(self, *_: object) -> dict[str, float]:
        return {}


@pytest.mark.parametrize(("tenant", "known"), [("us", list(KNOWN.values)), ("them", [None, None])])
def test_a_key_is_told_of_with_its_profiles(
    online_url: str, tenant: str, known: list[float | None]
) -> None:
    put(online_url, "t1")
    windows: Any = Windows()
    profiles = Online(online_url).profiles
    values = KeyValues(project, windows, windows, "us", SystemClock(), profiles)
    found = asyncio.run(values.read(tenant, "tree", "t1"))
    assert found.values == dict(zip(PROFILE.column_names, known, strict=True))
    assert not found.degraded


@needs_redis
def test_a_server_that_is_killed_is_missed_and_found_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = RedisServer(tmp_path, "appendonly yes", "appendfsync always")
    try:
        put(server.url(), "t1")
        online = Online(server.url())
        assert asyncio.run(online.ask(times=9)) == [KNOWN] * 9
        server.kill()
        assert asyncio.run(online.ask(times=9)) == [None] * 9
        assert f"{server.url()} is away" in caplog.text
        server.start()
        caplog.clear()
        online.wait(PAUSE_S - 0.001)
        assert asyncio.run(online.ask()) == [None]  # there again, but not asked
        assert not caplog.text
        online.wait(0.001)
        assert asyncio.run(online.ask(times=9)) == [KNOWN] * 9
    finally:
        server.kill()


@needs_redis
def test_a_server_that_hangs_is_not_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = RedisServer(tmp_path)
    try:
        put(server.url(), "t1")
        online = Online(server.url())
        assert asyncio.run(online.ask(times=9)) == [KNOWN] * 9
        server.process.send_signal(signal.SIGSTOP)
        # More than there are threads: none of them waits for another's timeout.
        assert asyncio.run(online.ask(times=9)) == [None] * 9
        assert "no answer in time" in caplog.text
        server.process.send_signal(signal.SIGCONT)
        assert asyncio.run(online.ask()) == [None]
        online.wait(PAUSE_S)
        assert asyncio.run(online.ask(times=9)) == [KNOWN] * 9
    finally:
        server.kill()
