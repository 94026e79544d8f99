"""Popularity: what most people took, in the shortest window that has seen enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from raypipe.errors import UsageError
from training.recommend.port import Arrays, batches
from training.recommend.products import Run, in_process
from training.recommend.rows import Floats, Rows, empty, starts_of

if TYPE_CHECKING:
    from training.recommend.interactions import Interactions


@dataclass(frozen=True)
class Popularity:
    """A score for each item, float32 [items], the same for every history."""

    scores: Floats
    kind: ClassVar[str] = "popularity"

    def __repr__(self) -> str:
        return f"Popularity({self.width} items)"

    @property
    def width(self) -> int:
        """Items of the catalogue."""
        return len(self.scores)

    @cached_property
    def order(self) -> npt.NDArray[np.int64]:
        """Items with a score, the best first, equal ones by code."""
        order = np.argsort(-self.scores, kind="stable")
        return order[: int((self.scores > 0).sum())]

    @cached_property
    def _rank(self) -> npt.NDArray[np.int64]:
        """The place of each item in ``order``, [items]; behind all of them without a score."""
        rank = np.full(self.width, self.width, np.int64)
        rank[self.order] = np.arange(len(self.order))
        return rank

    def retrieve(self, histories: Rows, k: int, *, seen: Rows | None = None) -> Rows:
        """As the port says."""
        histories.require_width(self.width, "a history")
        rank, parts = self._rank, []
        for batch in batches(histories, seen):
            # Nobody needs more of the list than k and what he has seen of it.
            reach = min(len(self.order), k + int(batch.seen.sizes.max(initial=0)))
            free = np.ones((len(batch.seen), reach), np.bool_)
            known = rank[batch.seen.columns]
            inside = known < reach
            free[batch.seen.row_of[inside], known[inside]] = False
            free &= np.cumsum(free, axis=1) <= k
            items = self.order[np.nonzero(free)[1]].astype(np.int32)
            parts.append(Rows(starts_of(free.sum(axis=1)), items, self.scores[items], self.width))
        return Rows.joined(parts) if parts else empty(0, self.width)

    def settings(self) -> dict[str, Any]:
        """Nothing but the scores."""
        return {}

    def arrays(self) -> Arrays:
        """The scores."""
        return {"scores": self.scores}

    @classmethod
    def of_arrays(cls, settings: dict[str, Any], arrays: Arrays) -> Popularity:
        """The retriever again, over the same memory."""
        return cls(arrays["scores"])


@dataclass(frozen=True, slots=True)
class MostPopular:
    """Each item's number of users."""

    name: ClassVar[str] = "popularity"

    def fit(self, train: Rows, run: Run = in_process) -> Popularity:
        """Counts entries; weights don't matter, so one busy user is one user."""
        counts = np.bincount(train.columns, minlength=train.width)
        return Popularity(counts.astype(np.float32))

    def describe(self) -> dict[str, Any]:
        """It has no parameter."""
        return {}


def popular_in_window(
    interactions: Interactions, as_of_ms: int, windows_ms: Sequence[int], *, least: int = 10
) -> tuple[Popularity, int]:
    """Popularity before ``as_of_ms`` in the shortest window with enough interactions; its length.

    ``least``: interactions of the mean item that was met in it. The order of items with few is
    mostly chance, and how few that is depends on how many items there are. The longest window
    counts however little is in it. Raises UsageError for no window.
    """
    if not windows_ms or min(windows_ms) <= 0:
        raise UsageError(f"windows {list(windows_ms)} are none", hint="Give lengths above 0 ms.")
    for window in sorted(windows_ms):
        part = interactions.between(as_of_ms - window, as_of_ms)
        met = len(np.unique(part.item))
        if (met and len(part) >= least * met) or window == max(windows_ms):
            break
    return MostPopular().fit(part.matrix()), window
