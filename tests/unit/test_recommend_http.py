"""Recommendations over HTTP, with the core of a real worker and its log: no Ray."""

from __future__ import annotations

import asyncio
import functools
import json
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.commerce import project
from features.commerce_profiles import SHOPPER_PROFILE
from features.log_files import open_log
from features.profiles.lookup import ProfileReader, Profiles
from raypipe.clock import DAY_MS, ManualClock
from raypipe.errors import RaypipeError, Unavailable
from raypipe.tenancy.keys import KeyStore, Scope
from serving.credentials import Credentials
from serving.docs import render
from serving.entrance import Entrance
from serving.fairness import Gate
from serving.recommend import body as bodies
from serving.recommend.desk import Desk
from serving.recommend.exploration import Exploration
from serving.recommend.http import PREFIX, RecommendApp
from serving.recommend.metrics import RecommendMetrics
from serving.recommend.openapi import EXAMPLE, document
from serving.recommend.profile import StoredProfile
from serving.recommend.record import Recorder
from serving.recommend.selection import Selection
from serving.recommend.stage import Stage
from tests.unit import recommend_home as home_kit
from tests.unit.core_worker import CoreWorker
from training import registry
from training.recommend.ranking import artefact

pytest_plugins = ["tests.unit.recommend_fixtures"]

NOW = home_kit.NOW


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(**given: Any) -> None:
        asyncio.run(test(**given))

    return run


@pytest.fixture
def home(shop_home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shop_home, tmp_path / "home"))


@pytest.fixture
def worker(home: Path) -> Iterator[CoreWorker]:
    worker = CoreWorker(home, project, ManualClock(NOW))
    worker.keys = KeyStore(home / "tenants.db")
    with closing(worker.log):
        yield worker


@asynccontextmanager
async def served(
    home: Path,
    worker: CoreWorker,
    selection: Selection | None = None,
    profile: StoredProfile | None = None,
) -> AsyncIterator[httpx.AsyncClient]:
    settings = home_kit.settings(home)
    desk = Desk(Recorder(project, worker), ManualClock(NOW))
    keys = Credentials(worker)
    app = RecommendApp(
        desk=desk,
        keys=keys,
        entrance=Entrance(keys, Gate(10, 10), 5_000),
        metrics=RecommendMetrics("r1", lambda: {"recommend_offset": desk.stage.offset}),
        documents=render(document("commerce"), PREFIX, "../recommendations"),
        replica="r1",
        patience_s=5.0,
    )
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    key = worker.keys.create("default", Scope)
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://raypipe", headers=headers
    ) as client:
        early = await client.get(f"{PREFIX}/readyz")
        assert (early.status_code, early.json()["code"]) == (503, "unavailable")
        version = registry.locate(settings.lake / artefact.FOLDER, "shop")
        stage = Stage.open(settings, project, version, home_kit.PLAN, selection or Selection())
        if profile is not None:
            stage.profile = profile
        desk.use(stage)
        yield client
    desk.close()


async def ask(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await client.post(PREFIX, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@in_loop
async def test_a_list_is_answered_and_recorded(home: Path, worker: CoreWorker) -> None:
    chance = Selection(name="shop", version=3, exploration=Exploration(share=1.0))
    async with served(home, worker, chance) as client:
        ready = (await client.get(f"{PREFIX}/readyz")).json()
        user = "shopper_00000007"
        found = await ask(client, user=user, session="s", k=7)
        assert len(found["items"]) == 7
        assert found["models"] == {n: ready[n] for n in ("retriever", "ranker", "policy")}
        assert found["models"]["policy"] == "shop@3"
        assert (found["explored"], found["degraded"], found["degraded_by"]) == (True, False, [])
        assert found["history"] > 0
        because = [i["reason"] for i in found["items"] if i["reason"]["kind"] == "because"]
        assert because
        assert {r["did"] for r in because} <= {"view", "cart", "order"}
        assert because[0]["text"].startswith("because you ")
        text = (await client.get(f"{PREFIX}/metrics")).text
        assert 'raypipe_recommendations_explored_total{replica="r1"} 1.0' in text
        assert 'raypipe_recommendation_seconds_count{replica="r1"} 1.0' in text
    with open_log(home_kit.settings(home), project) as files:
        rows = files.table("recommendation").to_table().to_pylist()
    assert [r["item_id"] for r in rows] == [i["item_id"] for i in found["items"]]
    assert [r["propensity"] for r in rows] == [i["propensity"] for i in found["items"]]
    assert {r["recommendation_id"] for r in rows} == {found["recommendation_id"]}
    assert [r["place"] for r in rows] == list(range(1, 8))
    assert {(r["customer_id"], r["session_id"], r["policy"]) for r in rows} == {
        (user, "s", "shop@3")
    }


class Online:
    """The home's online store as of NOW; away where it is told so."""

    def __init__(self, home: Path) -> None:
        self._reader = ProfileReader((SHOPPER_PROFILE,), home, None)
        self.asked: list[str] = []
        self.away = False

    async def read(self, event: Mapping[str, Any]) -> Profiles | None:
        assert event["tenant"] == "default"
        self.asked.append(event["customer_id"])
        return None if self.away else self._reader.read(event, NOW)

    def close(self) -> None:
        self._reader.close()


@in_loop
async def test_a_list_knows_the_profile_and_says_when_it_does_not(
    home: Path, worker: CoreWorker
) -> None:
    online = Online(home)
    newest = {key: (day + 1) * DAY_MS for key, day in home_kit.PROFILE}
    user, stranger = next(iter(newest)), "nobody"
    async with served(home, worker, profile=StoredProfile(SHOPPER_PROFILE, online)) as client:
        lists = [await ask(client, user=user), await ask(client, user=stranger)]
        lists.append(await ask(client, session="s"))
        assert online.asked == [user, stranger]  # a visit without an account has no profile
        assert not any(found["degraded"] for found in lists)
        online.away = True
        lists.append(await ask(client, user=user))
        assert (lists[3]["degraded"], lists[3]["degraded_by"]) == (True, ["profile"])
        assert len(lists[3]["items"]) == 10
        text = (await client.get(f"{PREFIX}/metrics")).text
        missing = 'raypipe_recommendations_degraded_total{missing="profile",replica="r1"} 1.0'
        assert missing in text
    with open_log(home_kit.settings(home), project) as files:
        rows = files.table("recommendation").to_table().to_pylist()
    times = {r["recommendation_id"]: r["profile_time"] for r in rows}
    assert [times[f["recommendation_id"]] for f in lists] == [newest[user], -1, -1, None]


@in_loop
async def test_a_visit_that_logged_in_has_its_customers_profile(
    home: Path, worker: CoreWorker
) -> None:
    online = Online(home)
    view = {"customer_id": "shopper_00000007", "session_id": "s", "item_id": "item_00000003"}
    row = {"tenant": "default", "event_id": "v", "event_time": NOW, "received_at": NOW} | view
    batch = pa.RecordBatch.from_pylist([row], project.event("page_view").arrow_schema)
    async with served(home, worker, profile=StoredProfile(SHOPPER_PROFILE, online)) as client:
        await ask(client, session="s")
        await worker.ingest(project, home_kit.bulk("page_view", batch, NOW))
        await ask(client, session="s")
    assert online.asked == ["shopper_00000007"]


@in_loop
async def test_without_a_record_there_is_no_chance(
    home: Path, worker: CoreWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = Selection(exploration=Exploration(share=1.0, temperature=1.0))

    async def away(*_: object) -> None:
        raise Unavailable("the worker is away")

    monkeypatch.setattr(worker, "ingest", away)
    async with served(home, worker, chance) as client:
        one, other = await ask(client, session="s"), await ask(client, session="s")
    assert one["degraded_by"] == ["record"]
    assert (one["recommendation_id"], one["explored"]) == (None, False)
    assert one["items"] == other["items"]
    assert {i["propensity"] for i in one["items"]} == {1.0}


@in_loop
async def test_an_acknowledged_click_is_in_the_next_answer(home: Path, worker: CoreWorker) -> None:
    async with served(home, worker) as client:
        before = await ask(client, session="anew", k=5)
        assert before["history"] == 0
        first = before["items"][0]["item_id"]
        row = {
            "tenant": "default",
            "event_id": "click",
            "event_time": NOW,
            "received_at": NOW,
            "customer_id": None,
            "session_id": "anew",
            "item_id": first,
        }
        schema = project.event("page_view").arrow_schema
        batch = pa.RecordBatch.from_pylist([row], schema)
        worker.core.ingest(home_kit.bulk("page_view", batch, NOW))
        worker.core.commit()
        after = await ask(client, session="anew", k=5)
        assert after["history"] == 1
        assert first not in [i["item_id"] for i in after["items"]]
        on_page = await ask(client, k=5, context={"item_id": first})
        assert on_page["history"] == 1
        assert [i["item_id"] for i in on_page["items"]] == [i["item_id"] for i in after["items"]]
        # A new item's page says nothing yet, and is no error.
        assert (await ask(client, k=5, context={"item_id": "brand new"}))["history"] == 0


@in_loop
async def test_similar_and_trending(home: Path, worker: CoreWorker) -> None:
    async with served(home, worker) as client:
        first = (await ask(client))["items"][0]["item_id"]
        found = (await client.get(f"{PREFIX}/similar/{first}", params={"k": 4})).json()
        assert len(found["items"]) == 4
        assert first not in [i["item_id"] for i in found["items"]]
        assert {i["reason"]["text"] for i in found["items"]} == {f"like {first}"}
        lost = await client.get(f"{PREFIX}/similar/no/such")
        assert (lost.status_code, lost.json()["code"]) == (404, "not_found")
        rising = await client.get(f"{PREFIX}/trending", params={"category": "category_0003"})
        assert rising.status_code == 200
        for query in ("k=0", "k=101", "k=x", "k=-1", "colour=red", "category="):
            answer = await client.get(f"{PREFIX}/trending?{query}")
            assert answer.status_code == 400, query
        page = await client.get(f"{PREFIX}/docs")
        assert "POST /v1/recommendations" in page.text
        paths = (await client.get(f"{PREFIX}/openapi.json")).json()["paths"]
        assert PREFIX in paths
        assert (await client.post(PREFIX, json=EXAMPLE)).status_code == 200


BAD = [
    (b"", 400, ""),
    (b"{", 400, ""),
    (b"[]", 422, ""),
    (b"null", 422, ""),
    (b'{"k": NaN}', 400, ""),
    (b'{"k": 0}', 422, "/k"),
    (b'{"k": 101}', 422, "/k"),
    (b'{"k": 1e99}', 422, "/k"),
    (b'{"k": 99999999999999999999999}', 422, "/k"),
    (b'{"k": "5"}', 422, "/k"),
    (b'{"k": 2.5}', 422, "/k"),
    (b'{"k": null}', 422, "/k"),
    (b'{"user": ""}', 422, "/user"),
    (b'{"user": 7}', 422, "/user"),
    (b'{"user": "%s"}' % (b"u" * 257), 422, "/user"),
    (b'{"diversity": 1.5}', 422, "/diversity"),
    (b'{"colour": "red"}', 422, ""),
    (b'{"filters": {"categories": []}}', 422, "/filters/categories"),
    (b'{"filters": {"categories": [""]}}', 422, "/filters/categories/0"),
    (b'{"filters": {"price_from": 5, "price_to": 4}}', 422, "/filters/price_to"),
    (b'{"filters": {"price_from": -1}}', 422, "/filters/price_from"),
    (b'{"filters": {"size": 4}}', 422, "/filters"),
    (b'{"context": 4}', 422, "/context"),
    (b'{"user": "a", "user": "b"}', 400, ""),
    (b'{"user": "\\ud800"}', 422, ""),
]


@in_loop
async def test_bad_requests_are_refused_by_name(home: Path, worker: CoreWorker) -> None:
    async with served(home, worker) as client:
        media = {"Content-Type": "application/json"}
        for data, status, pointer in BAD:
            answer = await client.post(PREFIX, content=data, headers=media)
            assert answer.status_code == status, (data, answer.text)
            problem = answer.json()
            assert problem["request_id"]
            if status == 422 and pointer:
                assert [e["pointer"] for e in problem["errors"]] == [pointer], data
        huge = json.dumps({"filters": {"exclude": ["x" * 200] * 400}})
        assert (await client.post(PREFIX, content=huge, headers=media)).status_code == 413
        assert (await client.post(PREFIX, content=b"{}")).status_code == 415
        assert (await client.get(PREFIX)).status_code == 405
        late = await client.post(PREFIX, json={}, headers={"X-Deadline-Ms": "0"})
        assert late.status_code == 400


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda deeper: (
        st.lists(deeper, max_size=3)
        | st.dictionaries(st.sampled_from(["user", "k", "filters", "brands", "context"]), deeper)
    ),
    max_leaves=8,
)


@given(anything | st.fixed_dictionaries({}, optional=dict.fromkeys(EXAMPLE, anything)))
def test_any_json_is_a_request_or_refused(value: object) -> None:
    refused: RaypipeError | None = None
    k = 1
    try:
        k = bodies.read(json.dumps(value).encode()).k
    except RaypipeError as e:
        refused = e
    assert refused is None or refused.status in (400, 422)
    assert 1 <= k <= bodies.MOST


@in_loop
async def test_keys_scopes_and_tenants(home: Path, worker: CoreWorker) -> None:
    async with served(home, worker) as client:

        async def status(key: str, path: str = "") -> int:
            headers = {"Authorization": f"Bearer {key}"}
            if path:
                return (await client.get(PREFIX + path, headers=headers)).status_code
            return (await client.post(PREFIX, json={}, headers=headers)).status_code

        store = worker.keys
        assert await status("rp_no") == 401
        assert await status(store.create("default", [Scope.DECISIONS_READ])) == 403
        assert await status(store.create("default", [Scope.RECOMMENDATIONS_READ])) == 200
        other = store.create("other", Scope)
        for path in ("", "/trending", "/similar/item_00000001"):
            assert await status(other, path) == 404
