"""``raypipe policy``: files, lists and a backtest over the log of a home."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner, Result

from raypipe.cli._app import app
from raypipe.clock import DAY_MS
from raypipe.lake import Place
from raypipe.ledger.record import DecisionRecord
from raypipe.policy.reading import parse_policy
from raypipe.policy.rules import RuleSet
from raypipe.vector.assemble import FEATURE_VALUE, Assembler
from tests.domains.greenhouse import project
from tests.property import workers_world
from tests.unit import served_home as served
from tests.unit.test_policy_files import CASES, WATER, changed
from training.artefact import MANIFEST, Manifest
from training.backtest_report import Decided, Truth, summarise

SOME = """
name: some
version: 1
lists: {leaky: deny}
segments:
  - {name: drip, when: mode == 'drip'}
thresholds:
  default: {review: 0.4}
  drip: {review: 0.9}
rules:
  - {name: much, when: litres >= 80, action: block, reason: a lot}
  - {name: leaky, when: 'in_list("leaky", valve)', action: step_up, reason: it leaks}
  - {name: alone, when: alone and litres < 10, action: approve, final: true, reason: nobody}
"""
AS_OF = f"label_as_of={served.START + 3 * DAY_MS}"


def by_two_workers(home: Path, change: served.Change) -> list[DecisionRecord]:
    """As served.write, by two workers: each has a log of its own, with offsets of its own."""
    world = workers_world.World(project, 2, home, seed=0)
    assembler = Assembler(project, served.MODEL)
    made = []

    def judged(
        _: object, event: dict[str, Any], windows: bytes, offsets: tuple[tuple[int, int], ...]
    ) -> DecisionRecord:
        row = assembler.row(event, windows, ()).astype(FEATURE_VALUE)
        record = served.decision(event, offsets[0][1], row.tobytes())
        record = msgspec.structs.replace(record, owner_offsets=offsets)
        if event["tenant"] == "default":
            record = change(record)
            made.append(record)
        return record

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers_world, "decision_of", judged)
        history = [("opening", served.opening(i)) for i in range(served.HISTORY)]
        world.run([world.bulk(history, None)], crashes=0)
        for i in range(served.HISTORY, served.HISTORY + served.LIVE):
            if i % 8 == 0:
                world.run([world.bulk([("flood", served.flood(i))], None)], crashes=0)
            for tenant in ("default", "other"):
                world.run([world.decide(served.opening(i, tenant))], crashes=0)
    world.log.close()
    assert {record.owner_offsets[0][0] for record in made} == {0, 1}
    return made


@pytest.fixture(scope="module", params=[served.write, by_two_workers])
def decided(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[Path, list[DecisionRecord]]:
    """Scores by number; every ninth decision has none, and was degraded; so was every fifth, made
    without the worker."""
    folder = tmp_path_factory.mktemp("home")

    def scored(record: DecisionRecord) -> DecisionRecord:
        number = int(record.event_id[2:])
        score = None if number % 9 == 0 else number % 10 / 10
        action = "review" if score is None or score > 0.6 else "approve"
        why = ("worker_away",) if number % 5 == 0 else ()
        return msgspec.structs.replace(
            record,
            score=score,
            action=action,
            degraded=score is None or bool(why),
            degraded_by=why,
        )

    made = request.param(folder, scored)
    manifest = Manifest(
        name="flooding",
        version="1",
        created_ms=0,
        project="greenhouse",
        sha256="",
        features=served.MODEL.features,
        definition_hash=project.definition_hash,
        training={},
        data_fingerprint="",
        parameters={},
        metrics={},
        thresholds={"review": 0.6},
        calibration=None,
        libraries={},
    )
    manifest = msgspec.structs.replace(manifest, manifest_sha256=manifest.digest())
    (Place.at(folder) / "models/flooding/1" / MANIFEST).write(msgspec.json.encode(manifest))
    return folder, made


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def call(*arguments: str | Path, home: Path) -> Result:
    options = ("--home", str(home), "--set", f"project={served.PROJECT}")
    return CliRunner().invoke(app, ["policy", *map(str, arguments), *options])


def result_of(*arguments: str | Path, home: Path, code: int = 0) -> dict[str, Any]:
    result = call(*arguments, "--json", home=home)
    assert result.exit_code == code, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def write(folder: Path, text: str, name: str = "water.yaml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_a_policy_goes_from_a_file_into_the_lake(home: Path, tmp_path: Path) -> None:
    file = write(tmp_path, WATER.split("overrides:")[0])
    assert call("lint", file, home=home).stdout == "Errors: 0. Warnings: 0.\n"
    published = result_of("publish", file, home=home)
    assert (published["policy"], published["new"]) == ("water@3", True)
    assert result_of("publish", file, home=home)["new"] is False
    assert result_of("show", "water", home=home)["sha256"] == published["sha256"]
    assert [p["policy"] for p in result_of("list", home=home)["policies"]] == ["water@3"]
    file.write_text(file.read_text().replace("0.9", "0.8"))
    refused = call("publish", file, home=home)
    assert refused.exit_code == 1
    assert "write version: 4" in refused.stderr
    changes = result_of("diff", "water@3", file, home=home)["changes"]
    assert changes == ["segment 'default': block above a score of 0.8 instead of 0.9 (stricter)"]
    assert "broken" in call("show", file, home=home).stdout


def test_lint_exits_with_1_on_a_finding(home: Path, tmp_path: Path) -> None:
    file = write(tmp_path, changed(("litres >= 1000", "litre >= 1000"), ("rank: 2", "rank: 1")))
    result = call("lint", file, home=home)
    assert result.exit_code == 1
    assert f"error: {file}:25:" in result.stdout
    assert "Did you mean 'litres'?" in result.stdout
    found = result_of("lint", file, home=home, code=1)["findings"]
    assert [f["code"] for f in found][:2] == ["condition", "conflict"]


def test_test_runs_the_cases_beside_the_policy(home: Path, tmp_path: Path) -> None:
    file = write(tmp_path, WATER)
    write(tmp_path, CASES, "water.cases.yaml")
    result = call("test", file, home=home)
    assert (result.exit_code, result.stdout) == (
        0,
        "No case has these rules fire: broken.\nCases: 4. Wrong: 0.\n",
    )
    write(tmp_path, CASES.replace("action: approve", "action: block"), "water.cases.yaml")
    result = call("test", file, home=home)
    assert result.exit_code == 1
    assert "water.cases.yaml:2: a trusted gardener: action approve, expected block" in result.stdout


def test_lists_are_kept_by_verbs(home: Path) -> None:
    unknown = call("lists", "add", "leaky", "v-1", "--why", "drips", home=home)
    assert unknown.exit_code == 2
    assert "--kind allow|deny|watch" in unknown.stderr
    why = ("--why", "drips", "--who", "ann")
    added = result_of("lists", "add", "leaky", "v-1", "v-2", "--kind", "deny", *why, home=home)
    later = result_of("lists", "add", "leaky", "v-3", "--until", "30d", *why, home=home)
    result_of("lists", "remove", "leaky", "v-2", *why, home=home)
    shown = result_of("lists", "show", "leaky", home=home)
    assert [(e["key"], e["who"]) for e in shown["entries"]] == [("v-1", "ann"), ("v-3", "ann")]
    assert shown["entries"][0]["expires_ms"] is None
    assert shown["entries"][1]["expires_ms"] - shown["entries"][1]["since_ms"] <= 30 * DAY_MS
    assert result_of("lists", "show", home=home)["lists"] == {
        "leaky": {"kind": "deny", "entries": 2}
    }
    history = result_of("lists", "history", home=home)["changes"]
    assert [c["version"] for c in history][:2] == [added["version"], later["version"]]
    assert [c["op"] for c in history] == ["add", "add", "remove"]
    assert call("lists", "show", "leeky", home=home).exit_code == 1


def expected(made: list[DecisionRecord], leaky_from: int) -> dict[str, tuple[str, str]]:
    """Old and new action by event id, said by hand."""
    out = {}
    for record in made:
        event = served.opening(int(record.event_id[2:]))
        values = dict(
            zip(served.MODEL.features, np.frombuffer(record.features, "<f4"), strict=True)
        )
        actions = []
        if event["litres"] >= 80:
            actions.append("block")
        if event["valve"] == "v-2" and record.decided_at >= leaky_from:
            actions.append("step_up")
        if record.score is None:
            actions.append("review")
        elif values["alone"] and event["litres"] < 10:
            pass
        elif record.score > (0.9 if event["mode"] == "drip" else 0.4):
            actions.append("review")
        severest = next((a for a in ("block", "review", "step_up") if a in actions), "approve")
        out[record.event_id] = (record.action, severest)
    return out


def test_a_backtest_counts_what_would_change(
    decided: tuple[Path, list[DecisionRecord]], tmp_path: Path
) -> None:
    home, made = decided
    from raypipe.clock import ManualClock
    from raypipe.policy.list_store import ListStore
    from raypipe.policy.lists import Kind

    leaky_from = made[40].decided_at
    store = ListStore(Place.at(home), "default", ManualClock(leaky_from))
    store.add("leaky", Kind.DENY, ["v-2"], who="ann", why="drips")
    file = write(tmp_path, SOME, "some.yaml")
    report = result_of("backtest", file, "--set", AS_OF, home=home)
    pairs = expected(made, leaky_from)
    counts = {(m["before"], m["after"]): m["count"] for m in report["moves"]}
    assert counts == {p: list(pairs.values()).count(p) for p in set(pairs.values())}
    assert len(counts) > 4
    assert report["decisions"] == len(made) == report["labelled"]
    assert report["changed"] == sum(a != b for a, b in pairs.values())

    flooded = {
        f"o-{i - 1}" for i in range(served.HISTORY, served.HISTORY + served.LIVE) if i % 8 == 0
    }
    for when, place in (("before", 0), ("after", 1)):
        flagged = {i for i, p in pairs.items() if p[place] != "approve"}
        assert report[when]["false_positives"] == len(flagged - flooded)
        assert report[when]["false_negatives"] == len((flooded & set(pairs)) - flagged)
    by_name = {s["segment"]: s for s in report["segments"]}
    drips = [r for r in made if served.opening(int(r.event_id[2:]))["mode"] == "drip"]
    assert by_name["drip"]["decisions"] == len(drips)
    assert sum(s["changed"] for s in report["segments"]) == report["changed"]
    assert report["rules"]["much"] == sum(
        served.opening(int(r.event_id[2:]))["litres"] >= 80 for r in made
    )
    text = call("backtest", file, home=home).stdout
    assert "would be others" in text
    assert "some@1 over 90 decisions" in text


def test_a_backtest_is_of_a_time_and_says_what_it_left_out(
    decided: tuple[Path, list[DecisionRecord]], tmp_path: Path
) -> None:
    home, made = decided
    file = write(tmp_path, SOME, "some.yaml")
    newest = made[-1].decided_at
    recent = [r for r in made if r.decided_at >= newest - 600_000]
    report = result_of("backtest", file, "--since", "10m", home=home)
    assert report["decisions"] == len(recent)
    assert report["labelled"] == 0  # their day is not over
    assert report["since"] < report["until"]
    empty = result_of("backtest", file, "--since", "2099-01-01", home=home)
    assert (empty["decisions"], empty["moves"]) == (0, [])
    manifest = home / "models/flooding/1/manifest.json"
    kept = manifest.read_bytes()
    manifest.unlink()
    try:
        report = result_of("backtest", file, home=home)
    finally:
        manifest.write_bytes(kept)
    assert report["decisions"] == 0
    assert report["left_out"] == {"of flooding@1, which is not in the lake": len(made)}
    assert call("backtest", file, home=tmp_path / "none").exit_code == 1


def test_a_backtest_knows_which_decisions_were_made_without_the_worker(
    decided: tuple[Path, list[DecisionRecord]], tmp_path: Path
) -> None:
    home, made = decided
    rule = "worker_away and litres >= 30, action: block, reason: Nobody is here."
    text = f"{{name: p, version: 1, rules: [{{name: careful, when: {rule}}}]}}"
    report = result_of("backtest", write(tmp_path, text, "careful.yaml"), home=home)
    numbers = [int(r.event_id[2:]) for r in made]
    fired = [n for n in numbers if n % 5 == 0 and served.opening(n)["litres"] >= 30]
    assert 3 < len(fired) < sum(n % 5 == 0 for n in numbers)
    assert report["rules"] == {"careful": len(fired)}
    assert sum(m["count"] for m in report["moves"] if m["after"] == "block") == len(fired)


def test_money_is_summed_by_currency() -> None:
    rules = RuleSet(
        parse_policy("{name: p, version: 1, thresholds: {default: {block: 0.5}}}"), project
    )
    decided = Decided(
        event_ids=pa.array(["a", "b", "c", "d"]),
        event_time=np.zeros(4, np.int64),
        before=np.array([0, 0, 3, 0]),
        after=np.array([3, 3, 0, 0]),
        segment=np.zeros(4, np.int64),
        amount=np.array([100, 20, 3, 7_000]),
        currency=np.array(["EUR", "USD", "EUR", "EUR"], object),
        hits=np.zeros((4, 0), np.bool_),
    )
    truth = Truth(np.array([False, True, True, True]), np.array([True, True, True, False]))
    report = summarise(rules, [decided], truth, {})
    moves = {
        (m.before, m.after): (m.count, m.amount, m.labelled, m.positives) for m in report.moves
    }
    assert moves == {
        ("approve", "approve"): (1, {"EUR": 7_000}, 0, 0),
        ("approve", "block"): (2, {"EUR": 100, "USD": 20}, 2, 1),
        ("block", "approve"): (1, {"EUR": 3}, 1, 1),
    }
    assert (report.before.false_negatives, report.before.false_negative_amount) == (1, {"USD": 20})
    assert (report.after.false_negatives, report.after.false_negative_amount) == (1, {"EUR": 3})
    assert (report.after.false_positives, report.after.false_positive_amount) == (1, {"EUR": 100})
    assert report.before.false_positives == 0
