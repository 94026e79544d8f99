"""``raypipe patterns``: checks files, lists them, and tries them over the log of a home."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner, Result

from raypipe.cli._app import app
from raypipe.log.port import Chunk
from raypipe.patterns.engine import PatternEngine
from raypipe.patterns.spec import Pattern
from tests.domains.greenhouse import FLOOD, OPENING
from tests.unit import served_home as served

THIRST = """
- name: thirst
  owner: garden
  severity: high
  group_by: valve
  pattern:
    - {name: some, event: opening, where: litres < 40}
    - {name: more, event: opening, where: litres > 2 * some.litres}
  within: 30m
  reason: "{more.litres} litres {minutes} min after {some.litres}"
- name: flooded
  group_by: valve
  pattern:
    - {name: opened, event: opening, where: mode == 'spray'}
    - {name: flood, event: flood}
  within: 2h
  reason: "flood after {opened.litres} litres"
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    served.write(folder)
    return folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "garden.yaml"
    path.write_text(THIRST)
    return path


def call(*arguments: str | Path, home: Path) -> Result:
    options = ("--home", str(home), "--set", f"project={served.PROJECT}")
    return CliRunner().invoke(app, ["patterns", *map(str, arguments), *options])


def result_of(*arguments: str | Path, home: Path) -> dict[str, Any]:
    result = call(*arguments, "--json", home=home)
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_lint_passes_what_can_run(home: Path, file: Path) -> None:
    result = call("lint", file, home=home)
    assert (result.exit_code, result.stdout) == (0, "Patterns that can run: 2. Findings: 0.\n")


def test_lint_names_every_pattern_that_can_not_run(home: Path, file: Path, tmp_path: Path) -> None:
    file.write_text(THIRST.replace("litres < 40", "liters < 40").replace("flood}", "flod}"))
    other = tmp_path / "other.yaml"
    other.write_text("name: x\n")
    result = call("lint", file, other, tmp_path / "none.yaml", "--json", home=home)
    found = json.loads(result.stdout)
    assert (result.exit_code, found["ok"], found["patterns"]) == (1, False, [])
    details = [f["detail"] for f in found["findings"]]
    assert [d.startswith(f"{file}:") for d in details] == [True, True, False, False]
    assert "garden.yaml:7: pattern 'thirst': unknown column opening.liters" in details[0]
    assert "garden.yaml:15: pattern 'flooded': step 'flood' reads unknown event" in details[1]
    assert "other.yaml:1: the pattern lacks 'group_by'" in details[2]
    assert "none.yaml can't be read" in details[3]
    text = call("lint", file, home=home).stdout
    assert "Did you mean 'litres'?" in text
    assert text.endswith("Patterns that can run: 0. Findings: 2.\n")


def test_lint_finds_two_patterns_of_one_name(home: Path, file: Path, tmp_path: Path) -> None:
    (tmp_path / "copy.yaml").write_text(THIRST)
    result = call("lint", file, tmp_path / "copy.yaml", home=home)
    assert result.exit_code == 1
    assert "copy.yaml:2: pattern 'thirst': the name is taken" in result.stdout


def test_list_shows_files_or_what_lies_beside_the_project(home: Path, file: Path) -> None:
    lines = call("list", file, home=home).stdout.splitlines()
    assert lines[1].split() == [
        "thirst",
        "1",
        "high",
        "valve",
        "some",
        "->",
        "more",
        "30m",
        "garden",
    ]
    described = result_of("list", file, home=home)["patterns"]
    assert [Pattern.from_text(json.dumps(strip(d))).name for d in described] == [
        "thirst",
        "flooded",
    ]
    assert "has no patterns" in call("list", home=home).stdout
    shipped = CliRunner().invoke(app, ["patterns", "list", "--json"])
    assert "card_testing" in [p["name"] for p in json.loads(shipped.stdout)["patterns"]]


def strip(described: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in described.items() if k not in ("definition_hash", "file")}


def expected() -> list[Any]:
    """The alerts of the default tenant, from its rows in log order."""
    rows: list[tuple[str, dict[str, Any]]] = []
    for i in range(served.HISTORY + served.LIVE):
        if i >= served.HISTORY and i % 8 == 0:
            rows.append(("flood", served.flood(i)))
        rows.append(("opening", served.opening(i)))
    engine = PatternEngine(patterns(), [OPENING, FLOOD])
    alerts = []
    for offset, (kind, row) in enumerate(rows):
        schema = {"opening": OPENING, "flood": FLOOD}[kind].arrow_schema
        batch = pa.RecordBatch.from_pylist([row], schema)
        alerts += engine.apply([Chunk(kind, np.array([offset]), batch)])
    return alerts


def patterns() -> list[Pattern]:
    import yaml

    return [Pattern.from_text(yaml.safe_dump(p)) for p in yaml.safe_load(THIRST)]


def test_test_finds_what_the_rows_say_one_by_one(home: Path, file: Path) -> None:
    report = result_of("test", file, "--limit", "1000", home=home)
    alerts = expected()
    assert len(alerts) > 20
    found = [(a["pattern"], a["key"], a["event_time"], a["reason"]) for a in report["alerts"]]
    assert found == [(a.pattern, a.key, a.event_time, a.reason) for a in alerts]
    for pattern in report["patterns"]:
        mine = [a for a in alerts if a.pattern == pattern["pattern"]]
        assert mine
        assert (pattern["alerts"], pattern["keys"]) == (len(mine), len({a.key for a in mine}))
        assert sum(pattern["days"].values()) == len(mine)
    floods = sum(i % 8 == 0 for i in range(served.HISTORY, served.HISTORY + served.LIVE))
    assert report["events"] == served.HISTORY + served.LIVE + floods
    assert not list(home.glob(".rows-*"))


def test_test_since_counts_matches_that_began_before(home: Path, file: Path) -> None:
    whole = result_of("test", file, "--limit", "1000", home=home)["alerts"]
    last = served.opening(served.HISTORY + served.LIVE - 1)["received_at"]
    report = result_of("test", file, "--limit", "1000", "--since", "20m", home=home)
    since = last - 20 * 60_000
    assert report["since"] == "2026-09-21T16:22:20+00:00"
    assert [ids(a) for a in report["alerts"]] == [
        ids(a) for a in whole if a["received_at"] >= since
    ]
    assert any(a["first_time"] < since for a in report["alerts"])
    before = result_of(
        "test", file, "--limit", "1000", "--until", "2026-09-21T16:22:20Z", home=home
    )
    ended = [ids(a) for a in before["alerts"] + report["alerts"]]
    assert ended == [ids(a) for a in whole]


def ids(alert: dict[str, Any]) -> tuple[Any, ...]:
    return alert["pattern"], tuple(alert["events"]), alert["event_time"]


def test_test_shows_tables_days_and_the_first_alerts(home: Path, file: Path) -> None:
    result = call("test", file, "--limit", "1", home=home)
    assert result.exit_code == 0
    text = result.stdout
    assert text.startswith("161 events that arrived from 2026-09-21T14:13:20+00:00 to ")
    assert "PATTERN  SEVERITY  ALERTS  KEYS  DROPPED" in text
    assert "DAY         thirst  flooded" in text
    assert text.count(" valve=v-") == 1
    assert "patterns" in result.stderr  # progress
    assert call("test", file, "--quiet", home=home).stderr == ""


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--since", "soon"], 2, "--since 'soon' is neither a duration nor a time"),
        (["--until", "2026-13-01"], 2, "--until '2026-13-01"),
        (["--home", "nowhere"], 1, "there is no event log"),
    ],
)
def test_test_says_what_is_wrong(
    home: Path, file: Path, arguments: list[str], code: int, says: str, tmp_path: Path
) -> None:
    options = ["--home", str(home), "--set", f"project={served.PROJECT}"]
    arguments = [a.replace("nowhere", str(tmp_path / "nowhere")) for a in arguments]
    result = CliRunner().invoke(app, ["patterns", "test", str(file), *options, *arguments])
    assert result.exit_code == code
    assert says in result.stderr


def test_test_refuses_a_file_that_can_not_run(home: Path, file: Path) -> None:
    file.write_text(THIRST.replace("litres < 40", "liters < 40"))
    result = call("test", file, home=home)
    assert result.exit_code == 2
    assert "garden.yaml:7: pattern 'thirst': unknown column opening.liters" in result.stderr


def test_test_reads_one_tenant(home: Path, file: Path) -> None:
    report = result_of("test", file, "--set", "tenant=other", home=home)
    assert report["events"] == served.LIVE
    assert result_of("test", file, "--set", "tenant=nobody", home=home)["events"] == 0
