"""A learned order of candidates by LightGBM's ``lambdarank``: the same method, other trees.

LightGBM grows leaf by leaf (Ke et al., LightGBM: a highly efficient gradient boosting decision
tree, NIPS 2017); a depth bounds it as it bounds XGBoost's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

from training.recommend.ranking.features import Table
from training.recommend.ranking.lessons import Lesson
from training.recommend.ranking.port import Growth, Parameters, best
from training.recommend.rows import Rows

if TYPE_CHECKING:
    import lightgbm

FIXED: Mapping[str, Any] = {
    "objective": "lambdarank",
    "metric": "None",
    "lambdarank_truncation_level": 50,
    "bagging_freq": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


@dataclass(frozen=True)
class LightGBMRanker:
    """A fitted order; ``names`` are its columns."""

    booster: lightgbm.Booster
    names: tuple[str, ...]
    learner: ClassVar[str] = "lightgbm"
    file: ClassVar[str] = "model.txt"

    @classmethod
    def of_model(cls, data: bytes) -> LightGBMRanker:
        """From the bytes of ``model``."""
        import lightgbm

        booster = lightgbm.Booster(model_str=data.decode())
        return cls(booster, tuple(booster.feature_name()))

    @property
    def trees(self) -> int:
        """How many were grown."""
        return int(self.booster.current_iteration())

    def ordered(self, table: Table, k: int) -> Rows:
        """The k best candidates of each moment, best first, equal ones as they stood.

        Raises StageError for a table of other columns.
        """
        known = table.names == self.names
        score = self.booster.predict(table.x) if known else np.zeros(len(table))
        return best(table, self.names, np.asarray(score, np.float64), k)

    def scores(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """As the port says; on one thread."""
        return np.asarray(self.booster.predict(rows, num_threads=1), np.float32)

    def model(self) -> bytes:
        """LightGBM's text."""
        return self.booster.model_to_string().encode()


@dataclass(frozen=True, slots=True)
class LightGBM:
    """Learns by ``lambdarank``. Grades must be whole numbers."""

    name: ClassVar[str] = LightGBMRanker.learner

    def learn(
        self, lesson: Lesson, names: tuple[str, ...], parameters: Parameters, growth: Growth
    ) -> LightGBMRanker:
        """As the port says."""
        import lightgbm

        def tell(env: lightgbm.callback.CallbackEnv) -> None:
            if growth.told is not None and growth.due(env.iteration + 1):
                growth.told(
                    env.iteration + 1, LightGBMRanker(cast("lightgbm.Booster", env.model), names)
                )

        given = {**FIXED, **parameters, "seed": growth.seed}
        if "max_depth" in parameters:
            given["num_leaves"] = 2 ** int(parameters["max_depth"])
        if growth.threads is not None:
            given["num_threads"] = growth.threads
        # Its weights are of rows: alike within a group, they are the group's.
        data = lightgbm.Dataset(
            lesson.x,
            lesson.grade,
            group=lesson.sizes,
            weight=lesson.row_weight,
            feature_name=list(names),
            params={"verbosity": -1},
        )
        booster = lightgbm.train(given, data, growth.rounds, callbacks=[tell])
        return LightGBMRanker(booster, names)
