"""Where the recommender's replicas run, and what they are told: by settings and Serve's config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raypipe.config import Settings
from raypipe.errors import NotFound
from raypipe.runtime import placement
from serving.recommend.app import app, build, start

SHOP = "features.commerce:project"


@pytest.fixture
def log_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """One node of the cluster has the log."""
    monkeypatch.setattr(placement, "_the_node", lambda: {"NodeID": "a"})


def deployed(application: Any) -> Any:
    return application._bound_deployment


def test_beside_an_embedded_log_replicas_take_no_cpu_that_its_node_does_not_offer(
    log_node: None, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path, project=SHOP, ray_address="auto", replica_cpus=2)
    told = deployed(build(settings, None, pool="serve")).ray_actor_options
    assert told["label_selector"] == {"raypipe.io/log": "true"}
    assert told["num_cpus"] == 0


def test_with_a_log_of_all_nodes_replicas_run_in_their_pool(tmp_path: Path) -> None:
    settings = Settings(
        home=tmp_path,
        project=SHOP,
        ray_address="auto",
        replica_cpus=2,
        log_url="kafka://127.0.0.1:9092/shop",
    )
    told = deployed(build(settings, None, pool="serve")).ray_actor_options
    assert told["label_selector"] == {"raypipe.io/pool": "serve"}
    assert told["num_cpus"] == 2
    assert not deployed(build(settings, None)).ray_actor_options.get("label_selector")


def test_on_one_machine_replicas_have_their_cpus(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, project=SHOP, replica_cpus=0.5)
    told = deployed(build(settings, None, pool="serve")).ray_actor_options
    assert told["num_cpus"] == 0.5
    assert not told.get("label_selector")


def test_a_config_file_starts_it_without_a_version_and_raypipe_serve_does_not(
    tmp_path: Path,
) -> None:
    made = deployed(app({"home": str(tmp_path), "project": SHOP, "pool": "serve"}))
    assert made.user_config == {"version": None}
    with pytest.raises(NotFound, match="no version of the recommender"):
        start(Settings(home=tmp_path, project=SHOP))
