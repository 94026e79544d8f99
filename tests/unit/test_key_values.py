"""Values of a key as of now: read from windows without a trace, or from the store with its age."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.online import OnlineRow
from features.profiles.lookup import Profiles
from raypipe.clock import HOUR_MS, MINUTE_MS, ManualClock
from raypipe.errors import Unavailable
from raypipe.tenancy.keys import Credential, KeyStore, Presented, Scope
from raypipe.windows.engine import WindowEngine
from raypipe.windows.spec import WindowView, count, last, since_last, spans
from serving.credentials import AWAY_S, FRESH_S, Credentials
from serving.key_values import KeyValues, aged
from tests.domains.greenhouse import project
from tests.domains.orchard import project as orchard
from tests.unit import served_home as served
from tests.unit.serving_kit import NOW, MemoryStore, Service, body, train
from tests.unit.test_serving_credentials import Clock, Holder

VALVE_VIEWS = [v for v in project.views if v.entity == "valve"]


# The windows


def engine() -> WindowEngine:
    return WindowEngine(project.views, project.decision)


def test_a_read_gives_what_a_decision_at_that_time_would_see() -> None:
    one = engine()
    for i in range(120):
        now = served.opening(i)["event_time"]
        asked = one.read("default", "valve", served.opening(i)["valve"], now)
        seen = np.frombuffer(one.observe("opening", served.opening(i), i))
        decided = dict(zip(project.window_names, seen.tolist(), strict=True))
        assert list(asked) == [n for v in VALVE_VIEWS for n in v.column_names]
        assert np.array_equal(list(asked.values()), [decided[n] for n in asked], equal_nan=True)


def test_reads_at_any_time_change_no_later_value_and_no_state() -> None:
    asked, left_alone = engine(), engine()
    for i in range(2_000):  # enough for one valve to keep sums between reads
        event = served.opening(i) | {"valve": "v-1"}
        for ahead in (0, HOUR_MS, 60 * HOUR_MS, -HOUR_MS) if i % 10 == 0 else ():
            asked.read("default", "valve", "v-1", event["event_time"] + ahead)
            asked.read("default", "valve", f"new-{i}", event["event_time"] + ahead)
        assert asked.observe("opening", event, i) == left_alone.observe("opening", event, i)
    assert asked.keys == left_alone.keys
    assert all(a.equals(b) for a, b in zip(asked.snapshot(), left_alone.snapshot(), strict=True))


def test_windows_empty_as_time_passes_and_tenants_are_apart() -> None:
    one = engine()
    one.observe("opening", served.opening(1), 0)
    then = served.opening(1)["event_time"]
    assert one.read("default", "valve", "v-1", then)["valve_count_10m"] == 1
    assert one.read("default", "valve", "v-1", then + HOUR_MS)["valve_count_10m"] == 0
    assert one.read("default", "valve", "v-1", then + HOUR_MS)["valve_count_2d"] == 1
    assert one.read("other", "valve", "v-1", then)["valve_count_2d"] == 0
    assert math.isnan(one.read("default", "valve", "v-2", then)["valve_litres_mean_2d"])
    assert one.read("default", "shed", "v-1", then) == {}


# The route


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    train(folder)
    return folder


@pytest.fixture
def service(home: Path, tmp_path: Path) -> Service:
    return Service(home, tmp_path / "tenants.db")


def test_the_route_answers_now_without_counting(service: Service) -> None:
    service.post(body())
    for _ in range(2):
        answer = service.get("/v1/features/sensor/s-1")
        assert answer.status_code == 200
        assert answer.json() == {
            "entity": "sensor",
            "key": "s-1",
            "as_of": NOW,
            "values": {"sensor_count_1h": 1.0},
            "degraded": False,
            "age_ms": None,
            "definition_hash": service.judge.definition_hash,
        }
    service.clock.advance(2 * HOUR_MS)
    assert service.get("/v1/features/sensor/s-1").json()["values"] == {"sensor_count_1h": 0.0}


@pytest.mark.parametrize(
    ("path", "key"), [("nobody", "nobody"), ("a%2Fb/c", "a/b/c"), ("%C3%BC%20", "ü ")]
)
def test_any_key_has_values(service: Service, path: str, key: str) -> None:
    answer = service.get(f"/v1/features/sensor/{path}")
    assert (answer.status_code, answer.json()["key"]) == (200, key)
    assert answer.json()["values"] == {"sensor_count_1h": 0.0}


def test_unknown_entities_keys_without_scope_and_no_key_are_refused(service: Service) -> None:
    unknown = service.get("/v1/features/oven/s-1")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")
    assert "sensor" in unknown.json()["hint"]
    assert service.get("/v1/features/sensor/").status_code == 404
    assert service.get("/v1/features/sensor/s-1", key=None).status_code == 401
    weak = service.keys.create("default", [Scope.DECISIONS_READ])
    assert service.get("/v1/features/sensor/s-1", key=weak).status_code == 403
    assert service.get("/v1/features/sensor/s-1", method="POST").status_code == 405


def test_a_tenant_reads_its_own_windows(service: Service) -> None:
    service.post(body())
    other = service.keys.create("acme", [Scope.FEATURES_READ])
    answer = service.get("/v1/features/sensor/s-1", key=other)
    assert answer.json()["values"] == {"sensor_count_1h": 0.0}


class Away:
    """Where keys were, while the worker is away."""

    def verify(self, shown: Presented | None) -> Credential | None:
        raise Unavailable("gone")


def leave(service: Service) -> None:
    """The worker answers nothing from now on."""
    service.worker.failure = Unavailable("gone")
    service.worker.keys = Away()  # type: ignore[assignment]


def test_while_the_worker_is_away_the_store_answers_with_its_age(service: Service) -> None:
    assert service.get("/v1/features/sensor/s-1").status_code == 200
    leave(service)
    service.stored.rows["s-1"] = OnlineRow("s-1", NOW - MINUTE_MS, {"sensor_count_1h": 3.0})
    answer = service.get("/v1/features/sensor/s-1").json()
    assert (answer["degraded"], answer["age_ms"]) == (True, MINUTE_MS)
    assert answer["values"] == {"sensor_count_1h": 3.0}


def test_another_tenant_gets_nothing_from_the_store(service: Service) -> None:
    other = service.keys.create("acme", [Scope.FEATURES_READ])
    assert service.get("/v1/features/sensor/s-1", key=other).status_code == 200
    leave(service)
    service.stored.rows["s-1"] = OnlineRow("s-1", NOW, {"sensor_count_1h": 3.0})
    answer = service.get("/v1/features/sensor/s-1", key=other)
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


def test_a_key_that_the_worker_never_confirmed_waits_for_it(service: Service) -> None:
    leave(service)
    assert service.get("/v1/features/sensor/s-1").status_code == 503
    assert service.get("/v1/features/sensor/s-1", key="rp_x").status_code == 401


# Profiles


class Slow:
    """The online store of one tenant's profiles, with one tree in it."""

    answers = True

    async def read(self, event: Mapping[str, Any]) -> Profiles | None:
        known = (event["tenant"], event["tree"]) == ("default", "t1")
        if not self.answers:
            return None
        return Profiles((7.5, 1.0), (NOW,)) if known else Profiles((math.nan, math.nan), (-1,))


class Worker:
    """Windows of any tree."""

    async def read(self, tenant: str, entity: str, key: str, now: int) -> dict[str, float]:
        return {"tree_count_1d": 2.0}


def test_profiles_of_the_key_stand_beside_its_windows() -> None:
    slow = Slow()
    reader = KeyValues(orchard, Worker(), MemoryStore(), "default", ManualClock(NOW), profiles=slow)

    def ask(tenant: str = "default", key: str = "t1") -> tuple[dict[str, float | None], bool]:
        found = asyncio.run(reader.read(tenant, "tree", key))
        return found.values, found.degraded

    names = ("tree_year_yield_mean", "tree_year_frosts_4d")
    nothing = {"tree_count_1d": 2.0} | dict.fromkeys(names)
    known = {"tree_count_1d": 2.0} | dict(zip(names, (7.5, 1.0), strict=True))
    assert ask() == (known, False)
    assert ask(key="t2") == (nothing, False)
    assert ask(tenant="acme") == (nothing, False)
    slow.answers = False
    assert ask() == (nothing, True)


# Age


def test_a_stored_window_that_has_moved_on_reads_as_missing() -> None:
    view = WindowView(
        "tap",
        "tap",
        "opening",
        "valve",
        (count(over=("10m", "2d"), lags=(("2d", "10m"),)), since_last(), last("litres")),
        spans("10m/10s", "2d/1h"),
    )
    names = view.column_names
    row = OnlineRow("v-1", NOW, dict(zip(names, (1.0, 2.0, 1.0, 0.0, 40.0), strict=True)))

    def known(age_ms: int) -> list[str]:
        return [n for n, v in aged(view, row, NOW + age_ms).items() if not math.isnan(v)]

    assert known(0) == list(names)
    assert known(5 * MINUTE_MS) == [n for n in names if n != "tap_since_last"]
    assert known(HOUR_MS) == ["tap_count_2d", "tap_litres_last"]
    nothing = aged(view, OnlineRow("v-1", None, {}), NOW)
    assert list(nothing) == list(names)
    assert all(map(math.isnan, nothing.values()))


def test_a_confirmed_key_is_remembered_for_reads_and_a_revoked_one_is_not(tmp_path: Path) -> None:
    store, clock = KeyStore(tmp_path / "tenants.db"), Clock()
    credentials = Credentials(Holder(store), clock)
    key, unseen = (store.create("acme", [Scope.FEATURES_READ]) for _ in range(2))

    async def check() -> None:
        first = await credentials.verify(key)
        clock.now += AWAY_S - 1
        assert await credentials.remembered.verify(key) == first
        assert await credentials.remembered.verify("nonsense") is None
        with pytest.raises(Unavailable):
            await credentials.remembered.verify(unseen)
        clock.now += 1
        with pytest.raises(Unavailable):
            await credentials.remembered.verify(key)
        await credentials.verify(key)
        assert first is not None
        store.revoke(first.key_id)
        clock.now += FRESH_S
        assert await credentials.verify(key) is None
        with pytest.raises(Unavailable):
            await credentials.remembered.verify(key)

    asyncio.run(check())
