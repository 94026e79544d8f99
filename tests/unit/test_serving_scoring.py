from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
import xgboost

from raypipe.errors import DeclarationError, IntegrityError, NotFound
from raypipe.lake import Place
from raypipe.policy.policy import Action
from serving.decide import Ways
from serving.metrics import Metrics
from serving.scoring import TreeScorer, feature_names, load_judge, load_scorer
from serving.scoring import scorer as scorer_module
from serving.scoring.cut import cut
from serving.scoring.forest import Unsupported, of_xgboost
from serving.scoring.xgb import DenseRow, DenseRows
from tests.unit.serving_kit import FEATURES, PROJECT, save_model, train
from training import artefact, registry

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    train(folder)
    return folder


@pytest.fixture
def loaded(home: Path) -> artefact.LoadedModel:
    models = Place.at(home) / "models"
    return artefact.load(registry.locate(models, "fault"), PROJECT)


def _rows(count: int = 300) -> np.ndarray:
    rng = np.random.default_rng(3)
    rows = rng.uniform(-50, 1000, (count, len(FEATURES))).astype(np.float32)
    rows[:, 1] *= 100
    rows[rng.random(rows.shape) < 0.1] = np.nan
    rows[0] = np.nan
    return rows


def _matrix(rows: np.ndarray) -> xgboost.DMatrix:
    return xgboost.DMatrix(rows, feature_names=list(FEATURES))


def _saved(folder: Path, model: bytes) -> artefact.LoadedModel:
    """Any model of FEATURES as a version."""
    place = save_model(folder, model)
    return artefact.load(place, PROJECT)


def _grown(rounds: int = 8, **parameters: Any) -> xgboost.Booster:
    x = np.nan_to_num(_rows(400))
    y = (x[:, 0] / 1000 + x[:, 1] / 100_000 > 1.2) * 1.0
    asked = {"objective": "binary:logistic", "nthread": 1, "seed": 1, **parameters}
    return xgboost.train(asked, _with_labels(x, y), rounds)


def _with_labels(x: np.ndarray, y: np.ndarray) -> xgboost.DMatrix:
    return xgboost.DMatrix(x, y, feature_names=list(FEATURES))


def _shares(scorer: TreeScorer, row: np.ndarray) -> dict[str, float]:
    return {r.feature: r.contribution for r in scorer.reasons(row)}


def _check_reasons(scorer: TreeScorer, rows: np.ndarray, exact: np.ndarray) -> None:
    for row, shares in zip(rows, exact, strict=True):
        positive = sorted((s for s in shares.tolist() if s > TOLERANCE), reverse=True)[:4]
        found = _shares(scorer, row)
        assert list(found.values())[: len(positive)] == pytest.approx(positive, abs=TOLERANCE)
        for feature, share in found.items():
            assert share == pytest.approx(shares[FEATURES.index(feature)], abs=TOLERANCE)


def test_a_row_scores_as_xgboost_scores_the_whole_matrix(loaded: artefact.LoadedModel) -> None:
    rows = _rows()
    expected = loaded.booster.predict(_matrix(rows))
    scorer = load_scorer(loaded)
    assert scorer.ways == ("compiled_walk", "table")
    assert [scorer.score(row) for row in rows] == expected.astype(float).tolist()


@pytest.mark.parametrize(
    "parameters",
    [
        {"base_score": 0.02, "max_depth": 10},
        # Margins from -60 to 60, where a probability is 1 in float32, and some 1e-26 or less.
        {"eta": 1.0, "reg_lambda": 0.0, "min_child_weight": 0.0, "max_depth": 8},
    ],
)
def test_the_walk_gives_the_bits_of_the_library(tmp_path: Path, parameters: dict[str, Any]) -> None:
    booster = _grown(rounds=120, **parameters)
    scorer = load_scorer(_saved(tmp_path, bytes(booster.save_raw("ubj"))))
    assert scorer.ways.scores == "compiled_walk"
    rows = _rows(2_000)
    assert [scorer.score(row) for row in rows] == booster.predict(_matrix(rows)).tolist()


def test_another_objective_is_scored_by_the_library(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    booster = _grown(objective="reg:logistic")
    scorer = load_scorer(_saved(tmp_path, bytes(booster.save_raw("ubj"))))
    assert scorer.ways.scores == "xgboost_c_api"
    assert "reg:logistic" in caplog.text
    rows = _rows(50)
    assert [scorer.score(row) for row in rows] == booster.predict(_matrix(rows)).tolist()


def test_an_infinite_feature_still_gets_a_probability_and_reasons(
    loaded: artefact.LoadedModel,
) -> None:
    row = np.array([900, 90_000, 1, 0, np.inf, 0], np.float32)
    scorer = load_scorer(loaded)
    assert 0 <= scorer.score(row) <= 1
    assert {"heat", "cost"} <= _shares(scorer, row).keys()


def test_reasons_are_the_largest_positive_exact_contributions(
    loaded: artefact.LoadedModel,
) -> None:
    rows = _rows()
    exact = loaded.booster.predict(_matrix(rows), pred_contribs=True)[:, :-1]
    _check_reasons(load_scorer(loaded), rows, exact)


@pytest.mark.parametrize("shape", [(len(FEATURES) - 1,), (1,), (1, len(FEATURES)), ()])
def test_a_row_of_another_shape_is_refused_not_stretched(
    loaded: artefact.LoadedModel, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="shape"):
        load_scorer(loaded).score(np.zeros(shape, np.float32))


def test_a_table_over_the_limit_is_not_made_and_the_library_explains(
    loaded: artefact.LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    size = sum(piece.size for piece in cut(of_xgboost(loaded.booster)))
    assert load_scorer(loaded, table_bytes=size).ways.reasons == "table"
    scorer = load_scorer(loaded, table_bytes=size - 1)
    assert scorer.ways == ("compiled_walk", "xgboost_contributions")
    assert f"{size} bytes" in caplog.text
    rows = _rows(50)
    exact = loaded.booster.predict(_matrix(rows), pred_contribs=True)[:, :-1]
    _check_reasons(scorer, rows, exact)


def test_the_size_of_a_table_that_could_never_be_made_is_told_at_once() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3_000, 40))
    parameters = {"max_depth": 30, "min_child_weight": 0.01, "objective": "binary:logistic"}
    booster = xgboost.train(parameters, xgboost.DMatrix(x, rng.random(3_000) > 0.5), 4)
    assert sum(piece.size for piece in cut(of_xgboost(booster))) > 2**20


def test_a_booster_that_a_table_cant_say_is_explained_by_its_library(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    booster = _grown(booster="dart", rate_drop=0.5)
    scorer = load_scorer(_saved(tmp_path, bytes(booster.save_raw("ubj"))))
    assert scorer.ways == ("xgboost_c_api", "xgboost_contributions")
    assert "dart" in caplog.text
    rows = _rows(50)
    exact = booster.predict(_matrix(rows), pred_contribs=True)[:, :-1]
    _check_reasons(scorer, rows, exact)


def test_a_tree_with_a_node_that_no_row_covers_is_not_tabulated() -> None:
    model = json.loads(_grown(rounds=1).save_raw("json"))
    model["learner"]["gradient_booster"]["model"]["trees"][0]["sum_hessian"][1] = 0.0
    booster = xgboost.Booster()
    booster.load_model(bytearray(json.dumps(model).encode()))
    with pytest.raises(Unsupported, match="cover"):
        of_xgboost(booster)


def test_an_early_stopped_model_is_scored_and_explained_with_all_its_rounds(
    tmp_path: Path,
) -> None:
    x = np.nan_to_num(_rows(400))
    rng = np.random.default_rng(5)
    train_set, evals = (_with_labels(x, rng.random(400) > 0.5) for _ in range(2))
    booster = xgboost.train(
        {"objective": "binary:logistic", "nthread": 1},
        train_set,
        50,
        evals=[(evals, "other")],
        early_stopping_rounds=5,
        verbose_eval=False,
    )
    assert booster.best_iteration + 1 < booster.num_boosted_rounds()
    scorer = load_scorer(_saved(tmp_path, bytes(booster.save_raw("ubj"))))
    assert scorer.ways == ("compiled_walk", "table")
    rows = _rows(50)
    assert [scorer.score(row) for row in rows] == booster.predict(_matrix(rows)).tolist()
    exact = booster.predict(_matrix(rows), pred_contribs=True)[:, :-1]
    _check_reasons(scorer, rows, exact)


def test_some_rows_at_once_have_the_scores_of_the_public_way(loaded: artefact.LoadedModel) -> None:
    scored = DenseRows(loaded.booster, len(FEATURES), 64)
    rows = _rows(64)
    found = [scored(rows[:count]) for count in (64, 1, 7, 64)]
    expected = loaded.booster.predict(_matrix(rows))
    for count, scores in zip((64, 1, 7, 64), found, strict=True):
        assert scores.tolist() == expected[:count].tolist()


class _OffByOneBit(DenseRow):
    def __call__(self, row: np.ndarray) -> float:
        return float(np.nextafter(np.float32(super().__call__(row)), np.float32(2)))


class _Gone(DenseRow):
    def __init__(self, booster: xgboost.Booster, features: int) -> None:
        raise ImportError("cannot import name '_LIB'")


@pytest.mark.parametrize(("way", "why"), [(_OffByOneBit, "64 of 64 rows"), (_Gone, "ImportError")])
def test_a_fast_way_that_is_gone_or_off_by_one_bit_is_not_used(
    loaded: artefact.LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    way: type[DenseRow],
    why: str,
) -> None:
    changed = dataclasses.replace(
        scorer_module._XGBOOST, fast=(lambda booster, features, _: way(booster, features),)
    )
    monkeypatch.setattr(scorer_module, "_XGBOOST", changed)
    scorer = load_scorer(loaded)
    assert scorer.ways == ("xgboost_inplace", "table")
    assert why in caplog.text
    rows = _rows(50)
    expected = loaded.booster.predict(_matrix(rows))
    assert [scorer.score(row) for row in rows] == expected.astype(float).tolist()


def _lightgbm_text() -> bytes:
    x = np.nan_to_num(_rows(400))
    y = (x[:, 0] / 1000 + x[:, 1] / 100_000 > 1.2) * 1.0
    x[::7, 2] = np.nan
    trained = lightgbm.train(
        {"objective": "binary", "num_leaves": 15, "verbosity": -1, "num_threads": 1, "seed": 1},
        lightgbm.Dataset(x, y, feature_name=list(FEATURES)),
        20,
    )
    return trained.model_to_string().encode()


def test_a_lightgbm_model_is_saved_checked_scored_and_explained(tmp_path: Path) -> None:
    text = _lightgbm_text()
    loaded = _saved(tmp_path, text)
    assert (Path(loaded.place.url) / "model.txt").read_bytes() == text
    judge = load_judge(Place.at(tmp_path) / "models", PROJECT, "fault", None, "review")
    scorer = judge.scorer
    assert scorer.ways == ("lightgbm_single_row_fast", "table")
    own = lightgbm.Booster(model_str=text.decode())
    rows = _rows()
    assert [scorer.score(row) for row in rows] == own.predict(rows).tolist()
    _check_reasons(scorer, rows, own.predict(rows, pred_contrib=True)[:, :-1])
    model = Path(loaded.place.url) / "model.txt"
    model.write_bytes(text.replace(b"leaf_value", b"leaf_vague", 1))
    with pytest.raises(IntegrityError, match=r"model\.txt has sha256"):
        artefact.load(loaded.place, PROJECT)


def test_a_lightgbm_model_with_categories_is_explained_by_lightgbm(tmp_path: Path) -> None:
    x = np.nan_to_num(_rows(400))
    x[:, 3] = np.arange(400) % 5
    trained = lightgbm.train(
        {"objective": "binary", "verbosity": -1, "num_threads": 1, "min_data_per_group": 1},
        lightgbm.Dataset(
            x,
            np.isin(x[:, 3], [1, 3]) * 1.0,
            feature_name=list(FEATURES),
            categorical_feature=["side"],
        ),
        5,
    )
    scorer = load_scorer(_saved(tmp_path, trained.model_to_string().encode()))
    assert scorer.ways == ("lightgbm_single_row_fast", "lightgbm_contributions")
    _check_reasons(scorer, x[:20], trained.predict(x[:20], pred_contrib=True)[:, :-1])


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


def test_the_metric_names_the_ways_of_the_models_that_are_loaded_now() -> None:
    metrics = Metrics("r1")
    metrics.loaded({"fault@1": Ways("xgboost_inplace", "table")})
    metrics.loaded({"fault@2": Ways("xgboost_c_api", "table")})
    shown = [x for x in metrics.render([None]).decode().splitlines() if x.startswith("raypipe_mod")]
    assert shown == [
        'raypipe_model_ways{model="fault@2",reasons="table",replica="r1",scores="xgboost_c_api"} '
        "1.0"
    ]
