from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import serving.options
from raypipe.config import Settings
from raypipe.errors import ConfigError, NotFound
from serving.app import app
from serving.options import deployment_options, load_options
from serving.release import Release
from tests.unit.serving_kit import train

KIT = "tests.unit.serving_kit:PROJECT"
PACKAGED = Path(serving.options.__file__).with_name("config.yaml")


def test_settings_and_packaged_options_make_the_deployment() -> None:
    made = deployment_options(
        Settings(min_replicas=2, max_replicas=5, replica_cpus=0.5), load_options()
    )
    scaling = made["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (2, 5)
    assert 0 <= scaling["upscale_delay_s"] <= 5
    assert made["ray_actor_options"] == {"num_cpus": 0.5}
    assert made["max_ongoing_requests"] > 100 + 200  # those that wait do so in the replica
    assert made["max_queued_requests"] > 0
    assert made["logging_config"] == {"enable_access_log": False, "log_level": "WARNING"}


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        (("policy", "on_error"), "approve", "on_error"),
        (("autoscaling", "upscale_delay_s"), -1, "upscale_delay_s"),
        (("autoscaling", "metrics_interval_s"), 0, "metrics_interval_s"),
        (("autoscaling", "upscale_dely_s"), 1, "upscale_dely_s"),
        (("graceful_shutdown_timeout_s",), "long", "graceful_shutdown_timeout_s"),
    ],
)
def test_a_wrong_option_is_refused_by_name(
    tmp_path: Path, path: tuple[str, ...], value: object, word: str
) -> None:
    data = yaml.safe_load(PACKAGED.read_text())
    place = data
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError, match=word):
        load_options(file)


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "policy: {on_error: review}"])
def test_a_file_that_is_not_the_whole_options_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError):
        load_options(file)
    with pytest.raises(ConfigError, match="read"):
        load_options(tmp_path / "none.yaml")


def test_the_builder_takes_settings_as_arguments_and_refuses_others(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hom_e"):
        app({"hom_e": str(tmp_path)})
    with pytest.raises(NotFound, match="train"):
        app({"home": str(tmp_path), "project": KIT})


def test_the_builder_names_the_current_release(tmp_path: Path) -> None:
    version = train(tmp_path)
    made = app({"home": str(tmp_path), "project": KIT, "max_replicas": "3"})
    deployment = made._bound_deployment
    first = Release(f"fault@{version}", number=1)
    assert deployment.user_config == first.describe()
    assert deployment.name == "decisions"
    settings, _ = deployment.init_args
    assert (settings.home, settings.max_replicas) == (tmp_path, 3)


def test_a_start_serves_the_release_and_not_the_newest_model_unless_told(tmp_path: Path) -> None:
    old, new = train(tmp_path), None
    arguments = {"home": str(tmp_path), "project": KIT}
    app(arguments)
    new = train(tmp_path, rounds=20)

    def served(**more: str) -> object:
        return app(arguments | more)._bound_deployment.user_config

    assert served() == Release(f"fault@{old}", number=1).describe()
    assert served(version=new) == served(model="fault") == Release(f"fault@{new}").describe()
