"""The one port of learned orders: a table of candidates in, the best of each moment out.

Libraries differ in how they grow trees. What they are taught, and how what they learned orders
candidates, is one and the same, so that a sweep may try all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from raypipe.errors import StageError
from training.recommend.ranking.features import Table
from training.recommend.ranking.lessons import Lesson
from training.recommend.rows import Rows

Parameters = Mapping[str, Any]
"""``max_depth, learning_rate, min_child_weight, subsample, colsample_bytree, reg_lambda``: names
that XGBoost and LightGBM both know; others go to the library as they are."""


class Order(Protocol):
    """A learned order of candidates; ``names`` are the columns that it knows.

    ``learner`` is the name of its library's ``Learner``, ``file`` what its bytes are called.
    """

    learner: ClassVar[str]
    file: ClassVar[str]

    @property
    def names(self) -> tuple[str, ...]:
        """Columns of the table, in order."""

    @property
    def trees(self) -> int:
        """How many were grown."""

    def ordered(self, table: Table, k: int) -> Rows:
        """The k best candidates of each moment, best first, equal ones as they stood.

        Raises StageError for a table of other columns.
        """

    def scores(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The score of each row [n, columns]; higher is better."""

    def model(self) -> bytes:
        """In the library's own format."""


Told = Callable[[int, Order], None]
"""Gets the number of trees so far and the order that they make; holds it no longer than it runs."""


@dataclass(frozen=True)
class Growth:
    """How an order grows: ``rounds`` trees; ``told`` is called after every ``every`` of them.

    ``threads`` None leaves their number to the library. One thread gives the same trees anywhere.
    """

    rounds: int
    seed: int = 0
    threads: int | None = None
    every: int = 0
    told: Told | None = None

    def due(self, round_: int) -> bool:
        """Whether to tell after so many trees."""
        return self.told is not None and (round_ % self.every == 0 or round_ == self.rounds)


class Learner(Protocol):
    """A library's way to learn an order."""

    name: ClassVar[str]

    def learn(
        self, lesson: Lesson, names: tuple[str, ...], parameters: Parameters, growth: Growth
    ) -> Order:
        """Grow trees from a lesson over these columns."""


def best(table: Table, names: tuple[str, ...], score: npt.NDArray[np.floating], k: int) -> Rows:
    """By score [rows of the table]; raises StageError for a table of other columns than names."""
    if table.names != names:
        raise StageError(f"the ranker knows {len(names)} other columns than {table}")
    candidates, rank = table.candidates, np.arange(len(table))
    order = np.lexsort((rank, -score, candidates.row_of))
    kept = order[rank - candidates.starts[candidates.row_of] < k]
    starts = np.concatenate([[0], np.cumsum(np.minimum(candidates.sizes, k))])
    return Rows(starts, candidates.columns[kept], score[kept], candidates.width)
