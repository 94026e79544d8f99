from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xgboost

from raypipe.errors import DeclarationError, IntegrityError, NotFound
from raypipe.lake import Place
from raypipe.policy.policy import Action
from serving.scorer import BoosterScorer, feature_names, load_judge
from tests.unit.serving_kit import FEATURES, PROJECT, train


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    train(folder)
    return folder


@pytest.fixture
def booster(home: Path) -> xgboost.Booster:
    (path,) = (home / "models" / "fault").glob("*/model.ubj")
    return xgboost.Booster(model_file=path)


def _rows() -> np.ndarray:
    rng = np.random.default_rng(3)
    rows = rng.uniform(-50, 1000, (300, len(FEATURES))).astype(np.float32)
    rows[:, 1] *= 100
    rows[rng.random(rows.shape) < 0.1] = np.nan
    rows[0] = np.nan
    return rows


def test_a_row_scores_as_xgboost_scores_the_whole_matrix(booster: xgboost.Booster) -> None:
    rows = _rows()
    expected = booster.predict(xgboost.DMatrix(rows, feature_names=list(FEATURES)))
    scorer = BoosterScorer(booster, FEATURES)
    assert [scorer.score(row) for row in rows] == expected.astype(float).tolist()


def test_an_infinite_feature_still_gets_a_probability(booster: xgboost.Booster) -> None:
    row = np.array([20, 100, 1, 0, np.inf, 0], np.float32)
    assert 0 <= BoosterScorer(booster, FEATURES).score(row) <= 1


def test_reasons_are_the_largest_positive_exact_contributions(booster: xgboost.Booster) -> None:
    rows = _rows()
    matrix = xgboost.DMatrix(rows, feature_names=list(FEATURES))
    exact = booster.predict(matrix, pred_contribs=True)[:, :-1]
    scorer = BoosterScorer(booster, FEATURES)
    for row, shares in zip(rows, exact, strict=True):
        positive = {f: float(s) for f, s in zip(FEATURES, shares, strict=True) if s > 0}
        found = {r.feature: r.contribution for r in scorer.reasons(row)}
        assert len(found) == min(4, len(positive))
        assert sorted(found.values(), reverse=True) == sorted(positive.values(), reverse=True)[:4]
        assert all(positive[f] == c for f, c in found.items())


@pytest.mark.parametrize("shape", [(len(FEATURES) - 1,), (1,), (1, len(FEATURES)), ()])
def test_a_row_of_another_shape_is_refused_not_stretched(
    booster: xgboost.Booster, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="shape"):
        BoosterScorer(booster, FEATURES).score(np.zeros(shape, np.float32))


def test_the_judge_is_the_current_version_with_its_manifests_thresholds(home: Path) -> None:
    judge = load_judge(Place.at(home) / "models", PROJECT, "fault", None, "block")
    assert judge.model == "fault@" + (home / "models" / "fault" / "current").read_text().strip()
    assert (judge.policy.review_threshold, judge.policy.block_threshold) == (0.3, 0.99)
    assert judge.policy.on_error is Action.BLOCK
    assert judge.definition_hash == PROJECT.definition_hash
    assert feature_names(Place.at(home) / "models", judge.model) == FEATURES
    assert feature_names(Place.at(home) / "models", "fault@gone") is None


def test_a_model_that_is_absent_changed_or_has_no_threshold_is_not_loaded(
    tmp_path: Path,
) -> None:
    models = tmp_path / "models"
    with pytest.raises(NotFound):
        load_judge(Place.at(models), PROJECT, "fault", None, "review")
    version = train(tmp_path, {"flag": 0.5})
    with pytest.raises(DeclarationError, match="threshold"):
        load_judge(Place.at(models), PROJECT, "fault", version, "review")
    model = models / "fault" / version / "model.ubj"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    with pytest.raises(IntegrityError, match="sha256"):
        load_judge(Place.at(models), PROJECT, "fault", version, "review")
    manifest = models / "fault" / version / "manifest.json"
    text = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(text | {"version": "x"}))
    with pytest.raises(IntegrityError):
        load_judge(Place.at(models), PROJECT, "fault", version, "review")


def test_a_model_that_gives_no_probabilities_is_not_loaded(tmp_path: Path) -> None:
    train(tmp_path, objective="reg:squarederror", scale=100.0)
    with pytest.raises(IntegrityError, match="probabilities"):
        load_judge(Place.at(tmp_path) / "models", PROJECT, "fault", None, "review")
