"""`raypipe recommend` where nothing runs: versions in the lake, and which one a start has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from raypipe.cli._app import app
from tests.unit import recommend_home as home_kit

pytest_plugins = ["tests.unit.recommend_fixtures"]

SHOP = ("--set", "project=features.commerce:project")


@pytest.fixture
def home(shop_home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shop_home, tmp_path / "home"))


def recommend(home: Path, *arguments: str, code: int = 0) -> dict[str, Any]:
    given = ["recommend", *arguments, "--json", "--home", str(home), *SHOP]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == code, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_versions_are_listed_shown_and_promoted(home: Path) -> None:
    second = home_kit.fitted_again(home_kit.settings(home)).manifest
    first, other = recommend(home, "list")["versions"]
    assert (first["current"], other["current"]) == (True, False)
    assert other["version"] == second.reference
    shown = recommend(home, "show")
    assert (shown["reference"], shown["replicas"]) == (first["version"], [])
    assert shown["metrics"]["two_stage"]
    told = recommend(home, "promote", second.version)
    assert told == {"version": second.reference, "before": first["version"], "replicas": 0}
    assert [v["current"] for v in recommend(home, "list")["versions"]] == [False, True]
    assert recommend(home, "promote", first["version"])["before"] == second.reference
    problem = recommend(home, "promote", "nothing", code=1)
    assert "recommender 'shop' has no version 'nothing'" in json.dumps(problem)
    text = CliRunner().invoke(app, ["recommend", "list", "--home", str(home), *SHOP]).stdout
    assert text.splitlines()[1].startswith("*")


def test_without_a_shop_or_a_version_it_says_what_to_do(tmp_path: Path) -> None:
    assert recommend(tmp_path, "list") == {"versions": []}
    assert "raypipe recommend fit" in json.dumps(recommend(tmp_path, "show", code=1))
    result = CliRunner().invoke(app, ["recommend", "fit", "--json", "--home", str(tmp_path)])
    assert result.exit_code != 0
    assert "declares no page_view" in result.stdout
