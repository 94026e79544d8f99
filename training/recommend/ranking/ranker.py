"""A learned order of candidates, and both stages as one retriever of a moment.

LambdaMART (Burges, From RankNet to LambdaRank to LambdaMART, MSR-TR-2010-82) by XGBoost's
``rank:ndcg``: pairs of a moment's candidates, weighted by what swapping them does to NDCG.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from raypipe.errors import StageError
from training.recommend.ranking.features import Table
from training.recommend.rows import Rows

if TYPE_CHECKING:
    import xgboost

FIXED: Mapping[str, Any] = {
    "objective": "rank:ndcg",
    "eval_metric": "ndcg@20",
    "tree_method": "hist",
    # The highest grade is 3: a gain of 7.
    "ndcg_exp_gain": True,
    "lambdarank_pair_method": "topk",
    "lambdarank_num_pair_per_sample": 50,
}
FIRST_POINT: Mapping[str, Any] = {
    "max_depth": 5,
    "learning_rate": 0.04,
    "min_child_weight": 20.0,
    "subsample": 0.8,
    "colsample_bytree": 0.8,
}


@dataclass(frozen=True)
class Ranker:
    """A fitted order; ``names`` are its columns."""

    booster: xgboost.Booster
    names: tuple[str, ...]

    def ordered(self, table: Table, k: int) -> Rows:
        """The k best candidates of each moment, best first, equal ones as they stood.

        Raises StageError for a table of other columns.
        """
        if table.names != self.names:
            raise StageError(f"the ranker knows {len(self.names)} other columns than {table}")
        score = self.booster.inplace_predict(table.x)
        candidates, rank = table.candidates, np.arange(len(table))
        order = np.lexsort((rank, -score, candidates.row_of))
        kept = order[rank - candidates.starts[candidates.row_of] < k]
        starts = np.concatenate([[0], np.cumsum(np.minimum(candidates.sizes, k))])
        return Rows(starts, candidates.columns[kept], score[kept], candidates.width)


def fit(
    table: Table,
    *,
    validation: Table | None = None,
    rounds: int = 300,
    parameters: Mapping[str, Any] = FIRST_POINT,
    weights: npt.NDArray[np.floating] | None = None,
    seed: int = 0,
) -> Ranker:
    """Learn from the moments whose candidates hold something that was taken.

    Args:
        table: candidates of moments, with grades.
        validation: later moments; the rounds with the best NDCG@20 on them are kept.
        rounds: trees at most.
        parameters: of XGBoost, beside ``FIXED``.
        weights: one for each moment, such as one over the chance that it was logged.
        seed: of row and column sampling.

    Raises StageError when no candidate was taken.
    """
    import xgboost

    matrix = _matrix(table, weights)
    if matrix is None:
        raise StageError(
            f"none of {len(table)} candidates was taken", hint="Ask the retriever for more."
        )
    held = None if validation is None else _matrix(validation, None)
    booster = xgboost.train(
        {**FIXED, **parameters, "seed": seed},
        matrix,
        rounds,
        evals=[] if held is None else [(held, "validation")],
        early_stopping_rounds=None if held is None else 30,
        verbose_eval=False,
    )
    if held is not None:
        booster = booster[: booster.best_iteration + 1]
    return Ranker(booster, table.names)


def _matrix(table: Table, weights: npt.NDArray[np.floating] | None) -> xgboost.DMatrix | None:
    """Moments without anything taken teach nothing, and are left out."""
    import xgboost

    moment = table.moment
    taught = np.unique(moment[table.grade > 0])
    rows = np.isin(moment, taught)
    if not rows.any():
        return None
    return xgboost.DMatrix(
        table.x[rows],
        table.grade[rows],
        qid=moment[rows],
        weight=None if weights is None else weights[taught],
        feature_names=list(table.names),
    )
