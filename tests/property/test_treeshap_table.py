"""Tabulated TreeSHAP beside the libraries' own, on models of many shapes."""

from __future__ import annotations

from typing import Any

import lightgbm
import numpy as np
import pytest
import xgboost
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.scoring import forest
from serving.scoring.cut import cut
from serving.scoring.table import Table

TOLERANCE = 1e-5
FLOAT32 = 1e-6
"""Contributions of a hundred log-odds have coarser last bits than the tolerance."""


def data(rng: np.random.Generator, features: int, missing: float) -> tuple[np.ndarray, np.ndarray]:
    """400 rows, some columns of few values, some cells missing."""
    x = rng.normal(size=(400, features)).astype(np.float32)
    x[:, ::3] = np.round(x[:, ::3])
    strength = x.sum(axis=1) + x[:, 0] * x[:, -1] + rng.normal(0, 0.5, 400)
    x[rng.random(x.shape) < missing] = np.nan
    return x, (strength > np.quantile(strength, 0.8)).astype(np.float32)


def asked(rng: np.random.Generator, x: np.ndarray, trees: list[forest.Tree]) -> np.ndarray:
    """Rows of the training data with cells moved to thresholds, to missing and far away."""
    rows = x[rng.choice(len(x), 40)].copy()
    for tree in trees:
        for node in tree.splits:
            row = rng.integers(0, len(rows))
            rows[row, tree.feature[node]] = tree.threshold[node]
    rows[rng.random(rows.shape) < 0.1] = np.nan
    rows[rng.random(rows.shape) < 0.05] = 3e38
    rows[rng.random(rows.shape) < 0.05] = -3e38
    rows[0] = np.nan
    return rows


def tabulated(trees: list[forest.Tree], rows: np.ndarray) -> np.ndarray:
    table = Table(cut(trees), rows.shape[1])
    return np.array([table.shares(row) for row in rows])


def of_xgboost(booster: xgboost.Booster, rows: np.ndarray) -> np.ndarray:
    return booster.predict(xgboost.DMatrix(rows), pred_contribs=True)[:, :-1]


SHAPES = st.fixed_dictionaries(
    {
        "max_depth": st.integers(1, 8),
        "learning_rate": st.sampled_from([0.05, 0.3, 1.0]),
        "base_score": st.sampled_from([0.02, 0.5, 0.9]),
        "min_child_weight": st.sampled_from([0.1, 1.0, 5.0]),
        "reg_lambda": st.sampled_from([0.3, 1.0]),
        "colsample_bytree": st.sampled_from([0.5, 1.0]),
        "grow_policy": st.sampled_from(["depthwise", "lossguide"]),
        "tree_method": st.sampled_from(["hist", "exact"]),
        "gamma": st.sampled_from([0.0, 0.0, 1.0, 1e6]),  # the last one grows constant trees
    }
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    shape=SHAPES,
    features=st.integers(1, 9),
    rounds=st.integers(1, 12),
    missing=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 2**16),
)
def test_the_table_gives_xgboosts_exact_contributions(
    shape: dict[str, Any], features: int, rounds: int, missing: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x, y = data(rng, features, missing)
    if shape["tree_method"] == "exact":
        shape = shape | {"grow_policy": "depthwise"}
    booster = xgboost.train(
        {"objective": "binary:logistic", "nthread": 1, "seed": seed, **shape},
        xgboost.DMatrix(x, y),
        rounds,
    )
    trees = forest.of_xgboost(booster)
    rows = asked(rng, x, trees)
    np.testing.assert_allclose(
        tabulated(trees, rows), of_xgboost(booster, rows), rtol=FLOAT32, atol=TOLERANCE
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    features=st.integers(1, 9),
    rounds=st.integers(1, 12),
    leaves=st.sampled_from([2, 7, 31]),
    missing=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 2**16),
)
def test_the_table_gives_lightgbms_exact_contributions(
    features: int, rounds: int, leaves: int, missing: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x, y = data(rng, features, missing)
    trained = lightgbm.train(
        {"objective": "binary", "num_leaves": leaves, "verbosity": -1, "num_threads": 1},
        lightgbm.Dataset(x, y),
        rounds,
    )
    booster = lightgbm.Booster(model_str=trained.model_to_string())
    trees = forest.of_lightgbm(booster)
    rows = asked(rng, x, trees)
    expected = booster.predict(rows, pred_contrib=True, num_threads=1)[:, :-1]
    np.testing.assert_allclose(tabulated(trees, rows), expected, rtol=FLOAT32, atol=TOLERANCE)


@pytest.mark.parametrize("depth", range(3, 9))
def test_many_trees_of_each_depth_stay_within_the_tolerance(depth: int) -> None:
    rng = np.random.default_rng(depth)
    x, y = data(rng, 20, 0.1)
    booster = xgboost.train(
        {"objective": "binary:logistic", "max_depth": depth, "nthread": 1, "base_score": 0.1},
        xgboost.DMatrix(x, y),
        60,
    )
    trees = forest.of_xgboost(booster)
    rows = asked(rng, x, trees)
    pieces = cut(trees)
    table = Table(pieces, 20)
    assert table.size == sum(piece.size for piece in pieces)
    found = np.array([table.shares(row) for row in rows])
    assert np.abs(found - of_xgboost(booster, rows)).max() <= TOLERANCE


def test_an_infinite_value_is_explained_as_the_largest_one() -> None:
    rng = np.random.default_rng(0)
    x, y = data(rng, 4, 0.0)
    booster = xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(x, y), 5)
    table = Table(cut(forest.of_xgboost(booster)), 4)
    for infinite, large in ((np.inf, 3.4e38), (-np.inf, -3.4e38)):
        row = np.array([infinite, 0, 1, infinite], np.float32)
        same = np.array([[large, 0, 1, large]], np.float32)
        np.testing.assert_allclose(
            table.shares(row), of_xgboost(booster, same)[0], rtol=FLOAT32, atol=TOLERANCE
        )
