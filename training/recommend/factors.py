"""iALS: latent factors of items, and a history's factors made from them on the spot.

Hu, Koren & Volinsky, Collaborative filtering for implicit feedback datasets, ICDM 2008. The fit is
by `implicit`, whose compiled conjugate-gradient solver (Takács, Pilászy & Tikk, RecSys 2011) is as
good as we could write; its users' factors are thrown away. A history is folded in: with item
factors Y and confidences c = 1 + alpha w of its items, x solves
``(Y'Y + sum (c - 1) y y' + reg I) x = sum c y``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from raypipe.errors import UsageError
from training.recommend.port import Arrays, batches
from training.recommend.products import Run, in_process
from training.recommend.rows import Floats, Rows, empty, starts_of

_CELLS = 16_000_000
"""Scores that are held at once: 64 MB."""


@dataclass(frozen=True)
class ItemFactors:
    """Factors float32 [items, f]; an item that no history had has zeros and never comes."""

    factors: Floats
    regularisation: float
    alpha: float
    kind: ClassVar[str] = "factors"

    def __repr__(self) -> str:
        return f"ItemFactors({self.width} items, {self.factors.shape[1]} factors)"

    @property
    def width(self) -> int:
        """Items of the catalogue."""
        return len(self.factors)

    @cached_property
    def _common(self) -> npt.NDArray[np.float64]:
        y = self.factors.astype(np.float64)
        return y.T @ y + self.regularisation * np.eye(y.shape[1])

    def fold_in(self, items: npt.NDArray[np.integer], weights: Floats) -> Floats:
        """The factors of a history, float32 [f]; zeros for an empty one."""
        y = self.factors[items].astype(np.float64)
        over = self.alpha * weights.astype(np.float64)
        left = self._common + (y.T * over) @ y
        return np.linalg.solve(left, y.T @ (1 + over)).astype(np.float32)

    def retrieve(self, histories: Rows, k: int, *, seen: Rows | None = None) -> Rows:
        """As the port says; scores are about 1 for what is surely liked."""
        histories.require_width(self.width, "a history")
        if not len(histories):
            return empty(0, self.width)
        parts = [
            self._ranked(batch.histories, batch.seen, min(k, self.width))
            for batch in batches(histories, seen, max(1, _CELLS // self.width))
        ]
        return Rows.joined(parts)

    def _ranked(self, histories: Rows, seen: Rows, k: int) -> Rows:
        people = np.stack([self.fold_in(*histories.row(r)) for r in range(len(histories))])
        scores = people @ self.factors.T
        scores[seen.row_of, seen.columns] = -np.inf
        # Equal scores stand by code: a stable sort of the best, in the order of codes.
        best = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
        found = np.take_along_axis(scores, best, axis=1)
        order = np.argsort(-found, axis=1, kind="stable")
        best, found = np.take_along_axis(best, order, 1), np.take_along_axis(found, order, 1)
        kept = found > 0
        return Rows(
            starts_of(kept.sum(axis=1)), best[kept].astype(np.int32), found[kept], self.width
        )

    def settings(self) -> dict[str, Any]:
        """What folding in needs beside the factors."""
        return {"regularisation": self.regularisation, "alpha": self.alpha}

    def arrays(self) -> Arrays:
        """The factors."""
        return {"factors": self.factors}

    @classmethod
    def of_arrays(cls, settings: dict[str, Any], arrays: Arrays) -> ItemFactors:
        """The retriever again, over the same memory."""
        return cls(arrays["factors"], **settings)


@dataclass(frozen=True, slots=True)
class Ials:
    """Alternating least squares; weights are confidences of ``1 + alpha w``."""

    factors: int = 128
    regularisation: float = 0.01
    alpha: float = 10.0
    iterations: int = 15
    seed: int = 0
    threads: int = 0
    """0: as many as there are cores. The result differs in the last bits with their number."""
    name: ClassVar[str] = "ials"

    def fit(self, train: Rows, run: Run = in_process) -> ItemFactors:
        """In this process, by threads; ``run`` is not used."""
        from implicit.als import AlternatingLeastSquares
        from scipy.sparse import csr_matrix
        from threadpoolctl import threadpool_limits

        if min(self.factors, self.iterations) < 1 or not self.alpha > 0 < self.regularisation:
            raise UsageError(
                f"{self} can't be fitted", hint="All but seed and threads must be above 0."
            )
        shape = (len(train), train.width)
        # implicit takes the values for the confidences themselves, and adds no 1.
        confidence = csr_matrix(
            (1 + self.alpha * train.values, train.columns.copy(), train.starts.copy()), shape=shape
        )
        # A pool of BLAS threads would fight those of the solver.
        with threadpool_limits(1, "blas"):
            model = AlternatingLeastSquares(
                factors=self.factors,
                regularization=self.regularisation,
                iterations=self.iterations,
                random_state=self.seed,
                num_threads=self.threads,
                use_gpu=False,
                alpha=1.0,
            )
            model.fit(confidence, show_progress=False)
        return ItemFactors(
            np.ascontiguousarray(model.item_factors, np.float32), self.regularisation, self.alpha
        )

    def describe(self) -> dict[str, Any]:
        """Parameters as plain data."""
        return asdict(self)
