"""A recommender deployed before anything was fitted, as Serve's config file of a cluster does."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from raypipe.config import Settings
from raypipe.tenancy.keys import LOCAL_KEY_FILE
from serving.recommend import versions
from serving.recommend.app import app
from serving.recommend.http import PREFIX
from tests.domains.greenhouse_line import free_port, raypipe
from tests.unit import recommend_home as home_kit

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def settings(ray_session: None, tmp_path: Path) -> Iterator[Settings]:
    from ray import serve

    from raypipe.runtime.worker import actor
    from serving.app import start_http

    made = home_kit.settings(tmp_path).model_copy(update={"http_port": free_port()})
    home_kit.append(tmp_path, range(home_kit.DAYS))  # before the worker owns the log
    try:
        actor.ensure(made)
        start_http(made)
        told = {
            "home": str(tmp_path),
            "project": made.project,
            "replica_cpus": "0.1",
            "http_port": str(made.http_port),
            "pool": "serve",
        }
        serve.run(app(told), name=versions.APPLICATION, route_prefix=PREFIX)
        yield made
    finally:
        serve.shutdown()
        actor.stop()


def test_a_recommender_without_a_version_starts_and_answers_by_the_first_one(
    settings: Settings,
) -> None:
    key = (settings.home / LOCAL_KEY_FILE).read_text().strip()
    with httpx.Client(
        base_url=settings.http_url,
        headers={"Authorization": f"Bearer {key}"},
        timeout=60.0,
        trust_env=False,
    ) as client:
        assert client.get(f"{PREFIX}/healthz").status_code == 200
        assert client.get(f"{PREFIX}/readyz").status_code == 503
        refused = client.post(PREFIX, json={"k": 3})
        assert refused.status_code == 503
        assert "raypipe recommend fit" in refused.json()["hint"]
        assert client.get(f"{PREFIX}/metrics").status_code == 200
        assert versions.served(settings) == []
        first = home_kit.fitted_again(settings).manifest
        until = time.monotonic() + 150
        while client.get(f"{PREFIX}/readyz").status_code != 200:
            assert time.monotonic() < until
            time.sleep(0.2)
        assert client.post(PREFIX, json={"k": 3}).json()["models"]["ranker"] == first.reference
        other = dataclasses.replace(home_kit.PLAN, candidates=50)
        second = home_kit.fitted_again(settings, other, days=2).manifest
        told = raypipe(settings, "recommend", "promote", second.version, quiet=False)
        assert (told["before"], told["replicas"]) == (first.reference, 1)
        assert client.post(PREFIX, json={"k": 3}).json()["models"]["ranker"] == second.reference
