"""A new project works as it comes: what it declares, its sample, its test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raypipe.cli._app import app
from raypipe.config import load_settings
from raypipe.errors import ConfigError
from serving.options import load_options

NAME = "shop"


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, as a user starts it in the folder."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAYPIPE_")}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("new")
    made = command(parent, "raypipe", "init", NAME, "--json")
    assert made.returncode == 0, made.stderr
    folder = parent / NAME
    assert json.loads(made.stdout)["folder"] == str(folder)
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == sorted(
        json.loads(made.stdout)["files"]
    )
    return folder


def test_its_own_test_passes(shop: Path) -> None:
    done = command(shop, "pytest", "-q", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_its_sample_loads_and_can_be_asked(shop: Path, tmp_path: Path) -> None:
    home = ("--home", str(tmp_path), "--json")
    tables = ("data/orders.csv", "data/refunds.csv", "--map", "mapping.toml")
    loaded = command(shop, "raypipe", "load", *tables, "-q", *home)
    assert loaded.returncode == 0, loaded.stderr
    accepted = json.loads(loaded.stdout)["accepted"]
    rows = [
        len((shop / f"data/{t}.csv").read_text().splitlines()) - 1 for t in ("orders", "refunds")
    ]
    assert list(accepted.values()) == rows
    asked = 'select count(*) from refund join "order" o on o.event_id = order_id'
    found = command(shop, "raypipe", "sql", asked, *home)
    assert json.loads(found.stdout)["rows"] == [[accepted["refund"]]]


def test_its_features_have_definitions_and_lineage(shop: Path) -> None:
    listed = json.loads(command(shop, "raypipe", "features", "--list", "--json").stdout)
    assert (listed["project"], listed["reference"]) == (NAME, f"{NAME}:project")
    found = {f["name"]: f for f in listed["features"]}
    assert found["amount_to_mean"]["inputs"] == ["amount", "buyer_amount_mean_30d"]
    assert found["buyer_count_1d"]["models"] == ["fraud"]


def test_its_settings_and_its_policy_are_read(shop: Path) -> None:
    settings = load_settings({}, shop / "raypipe.toml")
    assert settings.serving_options == shop / "serving.yaml"
    assert load_options(settings.serving_options) == load_options()
    changed = shop / "serving.yaml"
    text = changed.read_text()
    changed.write_text(text.replace("on_error: review ", "on_error: block "))
    try:
        assert load_options(settings.serving_options).policy.on_error == "block"
        changed.write_text(text.replace("on_error: review ", "on_error: approve "))
        with pytest.raises(ConfigError, match=r"serving\.yaml"):
            load_options(settings.serving_options)
    finally:
        changed.write_text(text)


def test_its_policy_is_clean_and_its_cases_come_out(shop: Path) -> None:
    linted = command(shop, "raypipe", "policy", "lint", "policy.yaml", "--json")
    assert json.loads(linted.stdout)["findings"] == []
    tried = json.loads(command(shop, "raypipe", "policy", "test", "policy.yaml", "--json").stdout)
    assert (tried["ok"], len(tried["cases"]), tried["untried_rules"]) == (True, 5, [])


def test_what_is_there_is_never_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / NAME
    mine.mkdir()
    (mine / "notes").write_text("mine")
    again = CliRunner().invoke(app, ["init", NAME])
    assert again.exit_code == 1
    assert "exists already" in again.stderr
    assert [p.name for p in mine.iterdir()] == ["notes"]
    (tmp_path / "file").write_text("mine")
    assert CliRunner().invoke(app, ["init", "file"]).exit_code == 1
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["shop-orders", "Shop", "class", "json", "../x", "", "1st", "a.b", "größe", "raypipe"]
)
def test_a_name_that_is_no_free_module_name_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["init", name]).exit_code == 2
    assert list(tmp_path.iterdir()) == []
