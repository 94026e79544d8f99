"""A learned order of candidates by XGBoost.

LambdaMART (Burges, From RankNet to LambdaRank to LambdaMART, MSR-TR-2010-82) by ``rank:ndcg``:
pairs of a moment's candidates, weighted by what swapping them does to NDCG.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from raypipe.errors import UsageError
from training.recommend.ranking.features import Table
from training.recommend.ranking.lessons import Lesson, by_click, by_moment
from training.recommend.ranking.port import Growth, Parameters, best
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

MOST = 10.0
"""Of a weight of one over a chance, where nothing else is asked for."""


@dataclass(frozen=True)
class Ranker:
    """A fitted order; ``names`` are its columns."""

    booster: xgboost.Booster
    names: tuple[str, ...]
    learner: ClassVar[str] = "xgboost"
    file: ClassVar[str] = "model.ubj"

    @classmethod
    def of_model(cls, data: bytes) -> Ranker:
        """From the bytes of ``model``; scores on one thread."""
        import xgboost

        booster = xgboost.Booster({"nthread": 1})
        booster.load_model(bytearray(data))
        # What was set before the model came is gone with it.
        booster.set_param({"nthread": 1})
        return cls(booster, tuple(booster.feature_names or ()))

    @property
    def trees(self) -> int:
        """How many were grown."""
        return int(self.booster.num_boosted_rounds())

    def ordered(self, table: Table, k: int) -> Rows:
        """The k best candidates of each moment, best first, equal ones as they stood.

        Raises StageError for a table of other columns.
        """
        # A table of other columns is refused before the library stumbles over it.
        known = table.names == self.names
        score = self.booster.inplace_predict(table.x) if known else np.zeros(len(table))
        return best(table, self.names, score, k)

    def scores(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """As the port says."""
        found: npt.NDArray[np.float32] = self.booster.inplace_predict(rows, validate_features=False)
        return found

    def model(self) -> bytes:
        """UBJSON."""
        return bytes(self.booster.save_raw("ubj"))


@dataclass(frozen=True, slots=True)
class XGBoost:
    """Learns by ``rank:ndcg``."""

    name: ClassVar[str] = Ranker.learner

    def learn(
        self, lesson: Lesson, names: tuple[str, ...], parameters: Parameters, growth: Growth
    ) -> Ranker:
        """As the port says."""
        import xgboost

        class Teller(xgboost.callback.TrainingCallback):
            def after_iteration(self, model: xgboost.Booster, epoch: int, evals_log: Any) -> bool:
                if growth.told is not None and growth.due(epoch + 1):
                    growth.told(epoch + 1, Ranker(model, names))
                return False

        booster = xgboost.train(
            {**FIXED, **parameters, "seed": growth.seed, **_threads(growth)},
            _matrix(lesson, names),
            growth.rounds,
            callbacks=[Teller()],
            verbose_eval=False,
        )
        return Ranker(booster, names)


def fit(
    table: Table,
    *,
    validation: Table | None = None,
    rounds: int = 300,
    parameters: Mapping[str, Any] = FIRST_POINT,
    weights: npt.NDArray[np.floating] | None = None,
    seen: npt.NDArray[np.floating] | None = None,
    most: float = MOST,
    seed: int = 0,
) -> Ranker:
    """Learn from the moments whose candidates hold something that was taken.

    Args:
        table: candidates of moments, with grades.
        validation: later moments; the rounds with the best NDCG@20 on them are kept.
        rounds: trees at most.
        parameters: of XGBoost, beside ``FIXED``.
        weights: one for each moment, such as one over the chance that it was logged.
        seen: of lists as they were shown, the chance that each candidate was looked at [n]; a
            taken one then counts one over it, at most ``most``. See ``lessons.by_click``.
        most: see ``seen``.
        seed: of row and column sampling.

    Raises:
        StageError: no candidate was taken.
        UsageError: both ``weights`` and ``seen``, or chances that are none.
    """
    import xgboost

    if weights is not None and seen is not None:
        raise UsageError("weights of moments and chances of looks", hint="Give one of them.")
    lesson = by_moment(table, weights) if seen is None else by_click(table, seen, most=most)
    held = None
    if validation is not None and (validation.grade > 0).any():
        held = _matrix(by_moment(validation), table.names)
    booster = xgboost.train(
        {**FIXED, **parameters, "seed": seed},
        _matrix(lesson, table.names),
        rounds,
        evals=[] if held is None else [(held, "validation")],
        early_stopping_rounds=None if held is None else 30,
        verbose_eval=False,
    )
    if held is not None:
        booster = booster[: booster.best_iteration + 1]
    return Ranker(booster, table.names)


def _threads(growth: Growth) -> dict[str, int]:
    return {} if growth.threads is None else {"nthread": growth.threads}


def _matrix(lesson: Lesson, names: tuple[str, ...]) -> xgboost.DMatrix:
    import xgboost

    return xgboost.DMatrix(
        lesson.x,
        lesson.grade,
        qid=lesson.group,
        weight=lesson.weight,
        feature_names=list(names),
    )
