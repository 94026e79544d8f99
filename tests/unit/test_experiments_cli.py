"""``raypipe experiment`` over a home on which nothing runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from raypipe.lake import Place
from raypipe.policy.reading import parse_policy
from raypipe.policy.registry import publish
from tests.unit.serving_kit import NOW, PROJECT, train
from tests.unit.test_experiments_served import POLICIES, STRICT
from tests.unit.test_release_cli import Shell

TEXT = POLICIES.replace("  loose: {share: 0.2, policy: loose@1}\n", "")


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    publish(Place.at(tmp_path), parse_policy(STRICT), STRICT.encode(), PROJECT, NOW)
    (tmp_path / "limits.yaml").write_text(TEXT)
    return Shell(tmp_path)


def test_an_experiment_is_run_changed_and_ended_by_releases(shell: Shell, tmp_path: Path) -> None:
    model = train(tmp_path)
    file = str(tmp_path / "limits.yaml")
    assert shell.json("experiment", "validate", file)["experiment"] == "limits@1"
    assert shell.json("experiment", "publish", file)["new"] is True
    assert "is the same" in shell.run("experiment", "publish", file)
    started = shell.json("experiment", "start", "limits", "--reason", "fewer reviews?")
    assert started["release"]["experiments"] == ["limits@1"]
    assert shell.json("experiment", "start", "limits", code=2)["error"]["code"] == "usage"
    assert "limits@1    running" in shell.run("experiment", "list")
    assert "experiments limits@1" in shell.run("release", "show")
    told = shell.json("experiment", "status", "limits@1")
    assert told["running"] is True
    assert told["arms"]["control"] == {"exposures": 0, "units": 0}

    # The next version takes the place of this one, and what won becomes the release's.
    (tmp_path / "limits.yaml").write_text(TEXT.replace("version: 1", "version: 2"))
    shell.run("experiment", "publish", file)
    assert shell.json("experiment", "start", "limits")["release"]["experiments"] == ["limits@2"]
    assert shell.json("experiment", "stop", "limits@1", code=1)["error"]["code"] == "not_found"
    assert shell.json("experiment", "promote", "limits", "stric", code=2)["error"]["hint"]
    won = shell.json("experiment", "promote", "limits", "strict", "--reason", "it won")
    assert won["release"]["policy"] == "strict@1"
    assert won["release"]["champion"] == f"fault@{model}"
    assert "experiments" not in won["release"] or won["release"]["experiments"] == []
    back = shell.json("release", "rollback")
    assert (back["release"]["experiments"], back["release"]["policy"]) == (["limits@2"], None)
    assert shell.json("experiment", "stop", "limits")["release"]["experiments"] == []
    history = shell.run("release", "history")
    assert "experiments: none -> limits@1" in history
    assert "experiments: limits@1 -> limits@2" in history
    assert "policy: none -> strict@1; experiments: limits@2 -> none" in history


def test_what_is_wrong_is_told_with_its_line(shell: Shell, tmp_path: Path) -> None:
    train(tmp_path)
    file = tmp_path / "limits.yaml"
    file.write_text(TEXT.replace("sensor_id", "senser_id"))
    found = shell.json("experiment", "publish", str(file), code=2)["error"]
    assert f"{file}:4: " in found["detail"]
    assert "Did you mean 'sensor_id'" in found["hint"]
    file.write_text(TEXT.replace("strict@1", "strict@7"))
    shell.run("experiment", "publish", str(file))
    assert shell.json("experiment", "start", "limits", code=1)["error"]["code"] == "not_found"
    assert shell.json("experiment", "stop", "limits", code=1)["error"]["code"] == "not_found"
    assert shell.json("experiment", "report", "lost", code=1)["error"]["code"] == "not_found"
    assert shell.json("experiment", "report", "limits", code=1)["error"]["code"] == "not_found"
