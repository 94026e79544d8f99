"""XGBoost for one row by a compiled walk through its trees.

XGBoost's own predictor is made for many rows: for one, most of its time is preparation. Here the
nodes of all trees lie in a few arrays. The sum and the logistic function are XGBoost's, operation
by operation in float32 (src/predictor/cpu_predictor.cc and src/common/math.h, release 3.2), so that
scores are the same bits; serving/scoring/scorer.py compares them when a model is loaded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from numba import njit

from serving.scoring.forest import Tree, Unsupported

if TYPE_CHECKING:
    import xgboost

Row = npt.NDArray[np.float32]

_LARGEST_EXPONENT = np.float32(88.7)
_ONE = np.float32(1)


class Walk:
    """Scores by the trees themselves.

    Args:
        features: of a row.
        trees: the booster's, as ``of_xgboost`` gives them.

    Raises Unsupported for an objective that isn't ``binary:logistic``.
    """

    name = "compiled_walk"

    def __init__(self, booster: xgboost.Booster, features: int, trees: Sequence[Tree]) -> None:
        learner = json.loads(booster.save_config())["learner"]
        if learner["objective"]["name"] != "binary:logistic":
            raise Unsupported(f"the objective is {learner['objective']['name']}")
        sizes = [len(tree.left) for tree in trees]
        starts = np.concatenate([[0], np.cumsum(sizes)])[:-1].astype(np.int32)
        first = np.repeat(starts, sizes)
        self._features = features
        self._roots = starts
        self._left, self._right = (
            np.where(children < 0, -1, children + first).astype(np.int32)
            for children in (_all(trees, "left", np.int32), _all(trees, "right", np.int32))
        )
        self._feature = _all(trees, "feature", np.int32)
        self._threshold = _all(trees, "threshold", np.float32)
        self._missing_left = _all(trees, "missing_left", np.bool_)
        self._base = _margin(learner["learner_model_param"]["base_score"])

    def __call__(self, row: Row) -> float:
        """The score of ``row``, float32 [features]."""
        if row.shape != (self._features,):
            raise ValueError(f"a row of shape {row.shape}, expected ({self._features},)")
        score: float = _score(
            row, self._roots, self._left, self._right, self._feature, self._threshold,
            self._missing_left, self._base,
        )  # fmt: skip
        return score


def _all(trees: Sequence[Tree], name: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    parts = [np.array(getattr(tree, name), dtype) for tree in trees]
    return np.concatenate([np.empty(0, dtype), *parts])


def _margin(base_score: str) -> np.float32:
    """The margin that all sums begin with; the model says it as a probability."""
    told = json.loads(base_score)
    base = np.float32(told[0] if isinstance(told, list) else told)
    return np.float32(-np.log(_ONE / base - _ONE))


@njit(cache=True, nogil=True)
def _score(row, roots, left, right, feature, threshold, missing_left, base):  # type: ignore[no-untyped-def]
    margin = base
    for root in roots:
        node = root
        while left[node] >= 0:
            value = row[feature[node]]
            if missing_left[node] if math.isnan(value) else value < threshold[node]:
                node = left[node]
            else:
                node = right[node]
        margin += threshold[node]  # a leaf's value
    return _ONE / (np.float32(math.exp(min(-margin, _LARGEST_EXPONENT))) + _ONE)
