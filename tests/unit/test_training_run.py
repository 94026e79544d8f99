"""A training run around its sweep: what is published, what a resumed run keeps, what is refused.

The sweep itself needs Ray and is tested end to end; here one model takes its place.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost

from raypipe.clock import DAY_MS, ManualClock
from raypipe.errors import IntegrityError, UsageError
from raypipe.lake import Place
from raypipe.runtime.progress import Quiet
from raypipe.vector.expressions import Derived
from tests.unit.training_kit import HORIZON_MS, PROJECT, world
from training import artefact, fraud, pipeline, registry, report
from training.dataset import Dataset
from training.pipeline import run
from training.plan import FIRST_POINT, FIXED, Options, SweepPlan, SweepResult, Trial
from training.report import TrainReport

NOW_MS = 1_760_000_000_000
Sweep = Callable[..., SweepResult]


def one_model(folder: Place, work: pipeline.Work, *_: Any) -> SweepResult:
    data = Dataset.load(folder / "dataset")
    rows = work.split.train.rows(data.event_time)
    matrix = xgboost.DMatrix(data.x[rows], data.y[rows], feature_names=list(data.names), nthread=1)
    booster = xgboost.train({**FIXED, **FIRST_POINT, "seed": 1}, matrix, 40)
    trials = (
        Trial("a1", "finished", 0.8, 40, FIRST_POINT),
        Trial("b2", "stopped", 0.5, 20, FIRST_POINT),
        Trial("c3", "failed", None, 0, FIRST_POINT),
    )
    return SweepResult(trials, bytes(booster.save_raw("ubj")))


def killed(*_: Any) -> SweepResult:
    raise KeyboardInterrupt


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sweep], None]:
    return lambda f: monkeypatch.setattr(pipeline, "_sweep", f)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    world(4_000).write(tmp_path)
    return tmp_path


def train(home: Path, options: Options | None = None, **other: Any) -> TrainReport:
    clock = ManualClock(NOW_MS)
    return run(PROJECT, Place.at(home), options or Options(), Quiet(), clock=clock, **other)


@pytest.fixture
def trained(home: Path, sweep: Callable[[Sweep], None]) -> tuple[Path, TrainReport]:
    sweep(one_model)
    return home, train(home)


def test_the_new_version_is_current_and_loads(trained: tuple[Path, TrainReport]) -> None:
    home, made = trained
    loaded = artefact.load(registry.locate(Place.at(home) / "models", "fraud"), PROJECT)
    assert loaded.manifest.version == made.version
    assert loaded.manifest.created_ms == NOW_MS
    assert (
        loaded.manifest.data_fingerprint
        == Dataset.load(Place.at(home) / "tune/fraud/dataset").fingerprint()
    )
    assert loaded.manifest.parameters["rounds"] == 40
    assert loaded.manifest.metrics["test"]["average_precision"] == made.test["average_precision"]
    assert not (home / "tune" / "fraud" / "work.json").exists()


def test_thresholds_come_from_validation_and_figures_from_test(
    trained: tuple[Path, TrainReport],
) -> None:
    home, made = trained
    data = Dataset.load(Place.at(home) / "tune/fraud/dataset")
    booster = artefact.load(Place.at(made.artefact), PROJECT).booster
    score = booster.inplace_predict(data.x)
    parts = {p["name"]: p for p in made.split}

    def of(part: str, label: int) -> np.ndarray:
        p = parts[part]
        inside = (data.event_time >= p["start_ms"]) & (data.event_time < p["end_ms"])
        return np.asarray(score[inside & (data.y == label)])

    for name, limit in (("review", 0.005), ("block", 0.001)):
        point = made.operating_points[name]
        flagged = (of("validation", 0) > point["threshold"]).sum()
        assert flagged <= limit * len(of("validation", 0))
        assert point["fp"] == (of("test", 0) > point["threshold"]).sum()
        assert point["tp"] == (of("test", 1) > point["threshold"]).sum()
        assert point["fpr"] == point["fp"] / len(of("test", 0))
    assert (
        made.operating_points["block"]["threshold"] >= made.operating_points["review"]["threshold"]
    )
    assert made.test["roc_auc"] > 0.8
    assert made.test["rows"] == len(of("test", 0)) + len(of("test", 1))


def test_the_gap_is_the_label_horizon_and_young_rows_are_absent(
    trained: tuple[Path, TrainReport],
) -> None:
    _, made = trained
    assert made.gap_ms == HORIZON_MS
    assert made.split[-1]["end_ms"] - 1 <= made.data["as_of_ms"] - HORIZON_MS
    for earlier, later in zip(made.split, made.split[1:], strict=False):
        assert later["start_ms"] - earlier["end_ms"] == HORIZON_MS


def test_a_short_history_is_said_in_the_report(
    tmp_path: Path, sweep: Callable[[Sweep], None]
) -> None:
    world(1_500).write(tmp_path)
    sweep(one_model)
    made = train(tmp_path)
    assert made.gap_ms < HORIZON_MS
    assert "too short" in made.warnings[0]
    assert "too short" in Path(made.directory, "report.html").read_text()


def test_importance_is_shares_of_the_whole(trained: tuple[Path, TrainReport]) -> None:
    shares = [f["share"] for f in trained[1].importance]
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)
    assert {f["feature"] for f in trained[1].importance[:3]} == {
        "amount",
        "channel",
        "risk_count_1d",
    }


# -- resuming ----------------------------------------------------------------------------------


def test_a_resumed_run_keeps_its_data_and_what_it_was_told(
    home: Path, sweep: Callable[[Sweep], None]
) -> None:
    sweep(killed)
    told = Options(trials=3, review_fpr=0.02)
    with pytest.raises(KeyboardInterrupt):
        train(home, told)
    fingerprint = Dataset.load(Place.at(home) / "tune/fraud/dataset").fingerprint()
    world(2_000, seed=9).write(home)  # the features have moved on meanwhile
    resumed: list[bool] = []

    def go_on(folder: Place, work: pipeline.Work, progress: Any, again: bool) -> SweepResult:
        resumed.append(again)
        return one_model(folder, work)

    sweep(go_on)
    made = train(home, resume=True)
    assert resumed == [True]
    assert made.data["fingerprint"] == fingerprint
    assert made.operating_points["review"]["fpr_limit"] == 0.02


def test_a_resumed_run_can_not_be_told_otherwise(
    home: Path, sweep: Callable[[Sweep], None]
) -> None:
    sweep(killed)
    with pytest.raises(KeyboardInterrupt):
        train(home, Options(trials=3))
    with pytest.raises(UsageError, match="trials 5 instead of 3"):
        train(home, Options(trials=5), resume=True)
    sweep(one_model)
    assert train(home, Options(trials=3), resume=True).version


def test_changed_declarations_can_not_be_resumed(
    home: Path, sweep: Callable[[Sweep], None]
) -> None:
    sweep(killed)
    with pytest.raises(KeyboardInterrupt):
        train(home)
    more = (*PROJECT.derived, Derived("weekday", "day_of_week(event_time)"))
    other = dataclasses.replace(PROJECT, derived=more)
    with pytest.raises(UsageError, match=r"declarations .* changed"):
        run(other, Place.at(home), Options(), Quiet(), resume=True)


def test_a_damaged_dataset_can_not_be_resumed(home: Path, sweep: Callable[[Sweep], None]) -> None:
    sweep(killed)
    with pytest.raises(KeyboardInterrupt):
        train(home)
    path = home / "tune" / "fraud" / "dataset" / "y.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="is not the interrupted run's"):
        train(home, resume=True)


def test_with_nothing_to_resume_a_new_run_begins(
    trained: tuple[Path, TrainReport], sweep: Callable[[Sweep], None]
) -> None:
    home, first = trained
    resumed: list[bool] = []

    def fresh(folder: Place, work: pipeline.Work, progress: Any, again: bool) -> SweepResult:
        resumed.append(again)
        return one_model(folder, work)

    sweep(fresh)
    clock = ManualClock(NOW_MS + 1_000)
    second = run(PROJECT, Place.at(home), Options(), Quiet(), resume=True, clock=clock)
    assert resumed == [False]
    assert registry.versions(Place.at(home) / "models", "fraud") == [first.version, second.version]


# -- the report --------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects what could reach outside, and every opened and closed tag."""

    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.outside += [f"{tag} {k}" for k, _ in attrs if k in ("src", "href", "xlink:href")]
        if tag not in ("meta", "br", "circle", "line", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("circle", "line", "polyline"):
            assert self.open.pop() == tag


def test_the_page_stands_alone_and_is_well_formed(trained: tuple[Path, TrainReport]) -> None:
    text = Path(trained[1].directory, "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.outside == []
    assert "script" not in page.tags
    assert page.tags.count("polyline") == 2
    assert not re.search(r"https?://|@import|url\(", text)
    assert "prefers-color-scheme: dark" in text


def test_the_page_tells_the_figures_of_the_report(trained: tuple[Path, TrainReport]) -> None:
    made = trained[1]
    text = Path(made.directory, "report.html").read_text()
    review = made.operating_points["review"]
    for expected in (
        f"{made.test['average_precision']:.3f}",
        f"{made.test['roc_auc']:.3f}",
        f"{100 * review['recall']:.1f} %",
        f"{100 * review['accuracy']:.2f} %",
        f"{100 * review['base_accuracy']:.2f} %",
        made.sha256,
        made.data["fingerprint"],
        made.version,
        "risk_count_1d",
        "a1",
        "failed",
    ):
        assert expected in text


def test_report_json_is_the_report(trained: tuple[Path, TrainReport]) -> None:
    made = trained[1]
    stored = json.loads(Path(made.directory, "report.json").read_text())
    assert stored == json.loads(json.dumps(made.describe()))
    assert stored["test"]["at_fpr"][0]["limit"] == 0.001
    assert 0 < stored["test"]["key_precision"]["value"] <= 1
    assert stored["test"]["key_precision"]["key"] == "buyer_id"


def test_names_are_text_and_not_markup(trained: tuple[Path, TrainReport]) -> None:
    hostile = dataclasses.replace(trained[1], project="<script>alert(1)</script>")
    text = report.render(hostile)
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_a_point_that_flags_nothing_is_shown_without_precision(
    trained: tuple[Path, TrainReport],
) -> None:
    made = trained[1]
    nothing = {**made.operating_points["block"], "tp": 0, "fp": 0, "precision": None}
    points = {**made.operating_points, "block": nothing}
    assert "<td>–</td>" in report.render(dataclasses.replace(made, operating_points=points))
    assert "precision" in fraud.summary(made)


# -- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("review", "block"), [(0.001, 0.005), (0.0, 0.0), (1.0, 0.5), (0.005, -0.1)]
)
def test_operating_points_that_can_not_be_are_refused(review: float, block: float) -> None:
    with pytest.raises(UsageError, match="false positives"):
        Options(review_fpr=review, block_fpr=block)


@pytest.mark.parametrize("name", ["trials", "max_rounds", "grace_rounds", "report_every"])
def test_a_sweep_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        SweepPlan(**{name: 0})


def test_only_what_was_set_conflicts() -> None:
    planned = Options(trials=20, seed=3, gap_ms=DAY_MS)
    assert Options().conflicts(planned) == []
    assert Options(trials=20, gap_ms=DAY_MS).conflicts(planned) == []
    assert Options(trials=9).conflicts(planned) == ["trials 9 instead of 20"]


def test_a_wrong_flag_ends_with_the_usage_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fraud.main(["--home", str(tmp_path), "--trials", "0", "--quiet"]) == 2
    assert "trials" in capsys.readouterr().err
