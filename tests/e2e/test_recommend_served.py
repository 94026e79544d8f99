"""Recommendations served by Ray beside a worker: clicks, versions, dead replicas and workers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from raypipe.clock import SystemClock
from raypipe.config import Settings
from raypipe.runtime.progress import Quiet
from raypipe.tenancy.keys import KeyStore, Scope
from serving.recommend.http import PREFIX
from tests.domains.greenhouse_line import free_port, raypipe
from tests.unit import recommend_home as home_kit
from training.recommend.ranking.fit import Fitted

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Fitted]:
    home = tmp_path_factory.mktemp("shop")
    settings = home_kit.settings(home).model_copy(
        update={"http_port": free_port(), "ingest_port": free_port(), "replica_cpus": 0.1}
    )
    return settings, home_kit.fitted(home)


@pytest.fixture(scope="module")
def client(ray_session: None, shop: tuple[Settings, Fitted]) -> Iterator[httpx.Client]:
    from ray import serve

    from raypipe.runtime.worker import actor
    from serving import ingest
    from serving.run import serve as start

    settings, made = shop
    try:
        about = start(settings, Quiet(), lambda *_: None)
        assert about["recommender"] == made.manifest.reference
        assert "model" not in about  # nothing decides here
        key = Path(about["api_key"]).read_text().strip()
        with httpx.Client(
            base_url=about["url"],
            headers={"Authorization": f"Bearer {key}"},
            timeout=150.0,  # while no replica is up the proxy waits for one
            trust_env=False,
        ) as client:
            yield client
    finally:
        ingest.stop()
        serve.shutdown()
        actor.stop()


def ask(client: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = client.post(PREFIX, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def items(found: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in found["items"]]


def click(client: httpx.Client, settings: Settings, item: str, session: str, name: str) -> None:
    row = {
        "event_id": name,
        "event_time": SystemClock().now_ms(),
        "session_id": session,
        "item_id": item,
    }
    answer = client.post(f"{settings.ingest_url}/v1/events?type=page_view", json=[row])
    assert answer.status_code == 200, answer.text


def test_an_acknowledged_click_is_in_the_next_list(
    client: httpx.Client, shop: tuple[Settings, Fitted]
) -> None:
    for number in range(10):
        session = f"visit-{number}"
        before = ask(client, session=session, k=5)
        assert (before["history"], before["degraded"]) == (0, False)
        click(client, shop[0], items(before)[0], session, f"click-{number}")
        after = ask(client, session=session, k=5)
        assert after["history"] == 1
        assert items(before)[0] not in items(after)
    known = ask(client, user="shopper_00000007", k=8)
    assert known["history"] > 0
    assert known["models"]["ranker"] == shop[1].manifest.reference


def test_routes_documents_and_refusals(client: httpx.Client, shop: tuple[Settings, Fitted]) -> None:
    first = items(ask(client))[0]
    assert len(client.get(f"{PREFIX}/similar/{first}").json()["items"]) == 10
    assert client.get(f"{PREFIX}/trending").status_code == 200
    assert client.get(f"{PREFIX}/similar/none").json()["code"] == "not_found"
    assert client.post(PREFIX, json={"k": 0}).json()["errors"][0]["pointer"] == "/k"
    assert client.get(f"{PREFIX}/nowhere").status_code == 404
    assert PREFIX in client.get(f"{PREFIX}/openapi.json").json()["paths"]
    assert "raypipe_recommend_offset" in client.get(f"{PREFIX}/metrics").text
    store = KeyStore(shop[0].home / "tenants.db")
    headers = {"Authorization": f"Bearer {store.create('other', Scope)}"}
    store.close()
    assert client.post(PREFIX, json={}, headers=headers).status_code == 404
    assert client.post(PREFIX, json={}, headers={"Authorization": "Bearer no"}).status_code == 401


def test_a_version_is_exchanged_under_load_and_back(
    client: httpx.Client, shop: tuple[Settings, Fitted]
) -> None:
    settings, first = shop
    second = home_kit.fitted_again(settings)
    assert not second.promoted
    over, statuses, versions = False, [], set()

    def visitor() -> None:
        while not over:
            answer = client.post(PREFIX, json={"user": "shopper_00000007"})
            statuses.append(answer.status_code)
            versions.add(answer.json()["models"]["ranker"])

    with ThreadPoolExecutor(2) as crowd:
        running = [crowd.submit(visitor) for _ in range(2)]
        try:
            told = raypipe(settings, "recommend", "promote", second.manifest.version, quiet=False)
            assert (told["version"], told["replicas"]) == (second.manifest.reference, 1)
            assert ask(client)["models"]["ranker"] == second.manifest.reference
            back = raypipe(settings, "recommend", "promote", first.manifest.version, quiet=False)
            assert back["before"] == second.manifest.reference
            assert ask(client)["models"]["ranker"] == first.manifest.reference
        finally:
            over = True
    for one in running:
        one.result()
    assert set(statuses) == {200}
    assert versions == {first.manifest.reference, second.manifest.reference}
    listed = raypipe(settings, "recommend", "list", quiet=False)["versions"]
    assert [v["current"] for v in listed] == [True, False]
    lost = raypipe(settings, "recommend", "promote", "nothing", quiet=False, code=1)
    assert ask(client)["models"]["ranker"] == first.manifest.reference, lost


def test_a_replica_and_a_worker_may_die(
    client: httpx.Client, shop: tuple[Settings, Fitted]
) -> None:
    import ray

    from raypipe.runtime.worker.actor import NAMESPACE, worker_name

    clicked = items(ask(client))[0]
    click(client, shop[0], clicked, "lasting", "lasting-click")
    assert ask(client, session="lasting", k=5)["history"] == 1
    process = next(
        p
        for p in psutil.Process().children(recursive=True)
        if "RecommendReplica" in " ".join(p.cmdline()) or "recommendations" in p.name()
    )
    os.kill(process.pid, signal.SIGKILL)
    until = time.monotonic() + 150
    while True:
        answer = client.post(PREFIX, json={"session": "lasting", "k": 5})
        if answer.status_code == 200:
            break
        assert answer.status_code == 503
        assert time.monotonic() < until
        time.sleep(0.2)
    # Its successor follows the log from the version on.
    assert answer.json()["history"] == 1
    assert clicked not in items(answer.json())
    worker = ray.get_actor(worker_name(0), namespace=NAMESPACE)
    os.kill(ray.get(worker.pid.remote()), signal.SIGKILL)
    found = ask(client, session="lasting", k=5)
    assert (found["history"], len(found["items"])) == (1, 5)
    assert set(found["degraded_by"]) <= {"record"}
    until = time.monotonic() + 150
    while ask(client, session="lasting")["degraded"]:  # Ray starts the worker again
        assert time.monotonic() < until
        time.sleep(0.2)
