from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from raypipe.cli._app import app
from tests.unit.launch_kit import CLUSTER, checkout, put


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(checkout(tmp_path))
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["cluster", *arguments])


def fill_in(root: Path) -> None:
    for name in (CLUSTER, "deploy/cluster.toml"):
        file = root / name
        file.write_text(file.read_text().replace("CHANGE-ME", "0123456789abcdef0"))


def test_a_check_without_findings_ends_with_0_and_says_that_nothing_was_launched(
    root: Path,
) -> None:
    fill_in(root)
    done = call("check")
    assert (done.exit_code, done.stdout) == (
        0,
        "cluster.yaml: nothing to correct. It was not launched.\n",
    )
    assert json.loads(call("check", "--json").stdout) == {
        "ok": True,
        "file": "cluster.yaml",
        "findings": [],
    }


def test_values_to_fill_in_end_with_1_and_are_counted_apart(root: Path) -> None:
    done = call("check")
    assert done.exit_code == 1
    assert done.stdout.endswith("cluster.yaml: faults 0, values to fill in 4.\n")


def test_a_fault_is_told_with_place_found_expected_and_cure(root: Path) -> None:
    fill_in(root)
    put(root, CLUSTER, "provider.use_internal_ips", False)
    done = call("check")
    assert done.exit_code == 1
    assert done.stdout == (
        "cluster.yaml /provider/use_internal_ips\n"
        "  found     false\n"
        "  expected  true\n"
        "  cure      Reach the nodes from inside the VPC, not by public addresses.\n"
        "\n"
        "cluster.yaml: faults 1, values to fill in 0.\n"
    )
    (finding,) = json.loads(call("check", "--json").stdout)["findings"]
    assert finding["place"] == "/provider/use_internal_ips"
    assert finding["kind"] == "fault"


def test_a_file_that_is_not_there_is_wrong_usage_also_as_json(root: Path) -> None:
    done = call("check", "nowhere.yaml", "--json")
    assert done.exit_code == 2
    assert json.loads(done.stdout)["error"]["code"] == "usage"


def test_a_file_that_is_no_yaml_fails(root: Path) -> None:
    (root / CLUSTER).write_text("a: [")
    assert call("check").exit_code == 1


def test_render_writes_what_it_would_print_and_overwrites_nothing(root: Path) -> None:
    printed = call("render", "--region", "eu-west-1")
    assert printed.exit_code == 0
    assert "region: eu-west-1" in printed.stdout
    assert call("render", "--region", "eu-west-1", "--output", "eu.yaml").exit_code == 0
    assert (root / "eu.yaml").read_text() == printed.stdout
    assert json.loads(call("render", "--region", "eu-west-1", "--json").stdout) == {
        "region": "eu-west-1",
        "output": None,
        "text": printed.stdout,
    }
    again = call("render", "--region", "us-west-2", "--output", "eu.yaml")
    assert again.exit_code == 1
    assert "eu.yaml exists already" in again.stderr
    assert (root / "eu.yaml").read_text() == printed.stdout


def test_render_needs_a_region(root: Path) -> None:
    assert call("render").exit_code == 2
    assert call("render", "--region", "moon").exit_code == 2


def test_secrets_are_made_once_and_never_printed(root: Path) -> None:
    done = call("secrets", "--dir", "keys")
    assert done.exit_code == 0
    for name in ("auth_token", "online_password"):
        assert (root / "keys" / name).read_text() not in done.output
    assert "PRIVATE" not in done.output
    assert json.loads(call("secrets", "--dir", "keys", "--json").stdout)["made"] == []
    (root / "keys/auth_token").chmod(0o644)
    spoiled = call("secrets", "--dir", "keys")
    assert spoiled.exit_code == 1
    assert "others can read it" in spoiled.stderr


@pytest.mark.parametrize(
    ("arguments", "usage"),
    [
        (["--help"], "Usage: raypipe cluster [OPTIONS] COMMAND"),
        (["render", "--help"], "Usage: raypipe cluster render [OPTIONS] [FILE]"),
        (["check", "x.yaml", "--help"], "Usage: raypipe cluster check [OPTIONS] [FILE]"),
    ],
)
def test_help_is_of_the_verb_that_is_named(arguments: list[str], usage: str) -> None:
    done = CliRunner().invoke(app, ["cluster", *arguments], prog_name="raypipe")
    assert done.exit_code == 0
    assert done.stdout.startswith(usage)
