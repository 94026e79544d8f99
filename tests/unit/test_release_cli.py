from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from raypipe.cli._app import app
from tests.unit.serving_kit import train

KIT = "tests.unit.serving_kit:PROJECT"


class Shell:
    """The command line over a home on which nothing runs."""

    def __init__(self, home: Path) -> None:
        self._given = ["--home", str(home), "--set", f"project={KIT}"]

    def run(self, *words: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, [*words, *self._given])
        assert result.exit_code == code, result.output
        return result.output

    def json(self, *words: str, code: int = 0) -> dict[str, Any]:
        result = CliRunner().invoke(app, [*words, "--json", *self._given])
        assert result.exit_code == code, result.output
        found: dict[str, Any] = json.loads(result.stdout)
        return found


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_releases_are_made_told_and_undone(shell: Shell, tmp_path: Path) -> None:
    assert shell.json("release", "show", code=1)["error"]["code"] == "not_found"
    old = train(tmp_path)
    new = train(tmp_path, rounds=20)
    tried = shell.json("release", "challenge", f"fault@{old}", "--share", "0.2", "--salt", "s1")
    assert (tried["number"], tried["serves"]) == (2, False)
    assert tried["release"]["challengers"] == [{"model": f"fault@{old}", "share": 0.2}]
    shell.run("release", "promote", f"fault@{old}", "--reason", "the new one is worse", "--by", "a")
    told = shell.run("release", "show")
    assert f"champion    fault@{old}" in told
    assert "the next start serves" in told
    history = shell.json("release", "history")["releases"]
    assert [(r["number"], r["by"]) for r in history][-1] == (3, "a")
    text = shell.run("release", "history")
    assert f"champion: fault@{new} -> fault@{old}" in text
    assert "the new one is worse" in text
    back = shell.json("release", "rollback", "--to", "1")
    assert back["release"]["champion"] == f"fault@{new}"
    assert shell.json("release", "show")["agree"] is True


def test_what_is_wrong_is_told_by_exit_code(shell: Shell, tmp_path: Path) -> None:
    train(tmp_path)
    assert shell.json("release", "promote", "fault@none", code=1)["error"]["code"] == "not_found"
    assert shell.json("release", "promote", "flood", code=2)["error"]["code"] == "usage"
    assert shell.json("release", "promote", "fault", code=2)["error"]["code"] == "usage"
    assert shell.json("release", "compare", code=1)["error"]["code"] == "not_found"
    assert shell.json("policy", "use", "strict", code=1)["error"]["code"] == "not_found"
    assert shell.json("policy", "use", "none", code=2)["error"]["code"] == "usage"
    assert shell.json("reviews", "list", code=1)["error"]["code"] == "not_found"
    (tmp_path / "api-key").write_text("rp_x\n")
    nobody = ("--url", "http://127.0.0.1:9")
    assert shell.json("reviews", "list", *nobody, code=1)["error"]["code"] == "unavailable"
    assert shell.run("reviews", "verdict", "dec_x", "maybe", "--reason", "x", code=2)
