from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from features.store.packed.password import FILE_VARIABLE
from raypipe.config import load_settings
from raypipe.errors import ConfigError, InputError
from raypipe.runtime.launch.check import check
from raypipe.runtime.launch.credentials import MOUNTED
from raypipe.runtime.launch.files import NODE_ENV, variables
from serving.app import APPLICATION, DEPLOYMENT
from serving.recommend import versions
from serving.recommend.http import PREFIX
from tests.unit.launch_kit import CLUSTER, GONE, ROOT, checkout, documents, faults, put

SERVE = "deploy/serve.yaml"
SETTINGS = "deploy/cluster.toml"
ANSWER = "applications.0.deployments.0.ray_actor_options"


@pytest.mark.parametrize(
    ("path", "value", "place", "word"),
    [
        ("http_options.port", 8001, "/http_options/port", "http_port of the settings"),
        ("http_options.host", "127.0.0.1", "/http_options/host", "http_host of the settings"),
        ("http_options.port", "many", "/http_options/port", "integer"),
        ("proxy_location", "HeadOnly", "/proxy_location", "EveryNode"),
        ("proxy_location", "Nowhere", "/proxy_location", "Nowhere"),
        ("applications", [], "/applications", "serving.app:app"),
        ("applications.0.import_path", "other:app", "/applications", "serving.app:app"),
        ("proxy_locations", "EveryNode", "/proxy_locations", "the unknown name"),
        ("http_options.prot", 1, "/http_options/prot", "the unknown name"),
        ("applications.0.arg", {}, "/applications/0/arg", "the unknown name"),
        ("applications.0.deployments.0.nam", "x", "/deployments/0/nam", "the unknown name"),
        (f"{ANSWER}.num_cpu", 1, "/ray_actor_options/num_cpu", "the unknown name"),
        (f"{ANSWER}.num_cpus", 2, "/ray_actor_options/num_cpus", "replica_cpus"),
        (f"{ANSWER}.label_selector", GONE, "/label_selector/raypipe.io~1pool", "serve"),
        (f"{ANSWER}.label_selector", {"raypipe.io/pool": "batch"}, "raypipe.io~1pool", "batch"),
        ("applications.0.deployments", GONE, "raypipe.io~1pool", "serve"),
        ("applications.1.import_path", "other:app", "/applications", "serving.recommend.app:app"),
        ("applications.1.args.pool", "batch", "/applications/1/args/pool", "nodes that stay"),
        ("applications.1.args", GONE, "/applications/1/args/pool", "nodes that stay"),
        (
            "applications.1.deployments",
            [{"name": "recommendations", "ray_actor_options": {"num_cpus": 1}}],
            "/deployments/0/ray_actor_options",
            "embedded log",
        ),
    ],
)
def test_a_fault_of_the_serve_config_is_named(
    tmp_path: Path, path: str, value: Any, place: str, word: str
) -> None:
    root = checkout(tmp_path)
    put(root, SERVE, path, value)
    found = [f for f in faults(root, CLUSTER) if f.file == SERVE]
    assert [f for f in found if f.place.endswith(place) and word in str(f)], found


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ('"auto"', '"10.0.0.1:6379"', "/ray_address"),
        ('"~/.raypipe"', '".raypipe"', "/home"),
        ("s3://CHANGE-ME/raypipe", "/mnt/shared", "/lake_url"),
        ("rediss://CHANGE-ME:6379/0", "redis://10.0.0.9:6379/0", "/online_url"),
        ("rediss://CHANGE-ME:6379/0", "sqlite:////mnt/online.db", "/online_url"),
        ('online_url = "rediss://CHANGE-ME:6379/0"', "", "/online_url"),
        ('online_url = "rediss:', 'online_url = "rediss://u:hunter2@h/0" #', "/online_url"),
        ('tls_dir = "~/.raypipe/tls"', "", "/tls_dir"),
        ("http_port = 8000", 'api_key = "rp_live_1"', "/api_key"),
    ],
)
def test_a_fault_of_the_settings_file_is_named(
    tmp_path: Path, old: str, new: str, place: str
) -> None:
    root = checkout(tmp_path)
    file = root / SETTINGS
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    found = [f for f in faults(root, CLUSTER) if f.file == SETTINGS]
    assert place in [f.place for f in found]
    assert "hunter2" not in str(found)


def test_a_settings_file_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    (root / SETTINGS).write_text("home = ")
    with pytest.raises(InputError, match="is no TOML"):
        check(root / CLUSTER)


def test_recommendations_may_be_left_out_of_a_cluster(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    put(root, SERVE, "applications.1", GONE)
    assert not [f for f in faults(root, CLUSTER) if f.file == SERVE]


def test_the_serve_config_names_what_serving_declares() -> None:
    decisions, recommendations = documents(ROOT, SERVE)[0]["applications"]
    assert decisions["name"] == APPLICATION
    assert [d["name"] for d in decisions["deployments"]] == [DEPLOYMENT]
    assert recommendations["name"] == versions.APPLICATION
    assert recommendations["route_prefix"] == PREFIX


def test_the_certificates_are_mounted_where_the_settings_look_for_them() -> None:
    (line,) = [x for x in (ROOT / SETTINGS).read_text().splitlines() if x.startswith("tls_dir")]
    folder = line.split('"')[1]
    assert {f"{folder}/{name}" for name in ("ca.crt", "node.crt", "node.key")} <= MOUNTED.keys()


def test_the_password_is_mounted_where_the_environment_says() -> None:
    [line] = [v for v in variables(ROOT / NODE_ENV, NODE_ENV) if v.name == FILE_VARIABLE]
    assert MOUNTED[line.value.replace("$HOME", "~")].endswith("/online_password")


def test_a_node_can_read_the_settings_file_once_it_is_filled_in(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'CHANGE-ME' is no bucket"):
        load_settings(config=ROOT / SETTINGS)
    filled = tmp_path / "cluster.toml"
    filled.write_text((ROOT / SETTINGS).read_text().replace("CHANGE-ME", "our-bucket"))
    settings = load_settings(config=filled)
    assert settings.ray_address == "auto"
    assert settings.lake_url == "s3://our-bucket/raypipe"
    assert settings.online_url == "rediss://our-bucket:6379/0"
    assert settings.home == Path.home() / ".raypipe"
