"""What a learner of orders is taught: groups of candidates, how good each was, what each weighs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raypipe.errors import StageError, UsageError
from training.recommend.ranking.features import Table
from training.recommend.rows import Integers, starts_of

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Lesson:
    """Groups of candidates that are compared with each other.

    ``x`` float32 [n, columns], ``grade`` float64 [n], ``group`` int64 [n] ascending from 0 without
    a gap; ``weight`` float64 [groups], None for all alike.
    """

    x: npt.NDArray[np.float32]
    grade: Doubles
    group: Integers
    weight: Doubles | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return f"Lesson({len(self)} candidates in {len(self.sizes)} groups)"

    @property
    def sizes(self) -> Integers:
        """Candidates of each group."""
        return np.bincount(self.group)

    @property
    def row_weight(self) -> Doubles | None:
        """The group's weight of each candidate, [n], with a mean of 1 over the groups."""
        if self.weight is None:
            return None
        found: Doubles = (self.weight / self.weight.mean())[self.group]
        return found


def by_moment(table: Table, weight: npt.NDArray[np.floating] | None = None) -> Lesson:
    """Each moment at which a candidate was taken is a group; ``weight`` [moments].

    Moments without anything taken teach nothing, and are left out. Raises StageError when no
    candidate was taken.
    """
    moment = table.moment
    taught = np.unique(moment[_taken(table)])
    rows = np.isin(moment, taught)
    own = None if weight is None else np.asarray(weight, np.float64)[taught]
    return Lesson(table.x[rows], table.grade[rows], np.searchsorted(taught, moment[rows]), own)


def by_click(table: Table, seen: npt.NDArray[np.floating], *, most: float) -> Lesson:
    """Each taken candidate is a group with those of its moment that were not taken.

    What stands low on a list is looked at by few: one click there stands for 1/``seen`` that would
    have come on top. Weighted so, the loss is in expectation that of a log in which all was looked
    at (Joachims, Swaminathan & Schnabel, Unbiased learning-to-rank with biased feedback, WSDM
    2017). A weight is at most ``most``: a little bias for much less variance.

    Args:
        table: lists as they were shown, graded by what was clicked.
        seen: chance that each candidate was looked at, [n].
        most: of a weight.

    Raises:
        UsageError: a chance is not above 0 and at most 1, or a weight would be below 1.
        StageError: no candidate was taken.
    """
    chance = np.asarray(seen, np.float64)
    if chance.shape != table.grade.shape or not ((chance > 0) & (chance <= 1)).all() or most < 1:
        raise UsageError(
            f"chances of shape {chance.shape} for {table}, weights up to {most:g}",
            hint="Give each candidate a chance above 0 and at most 1; weights of 1 or more.",
        )
    taken = _taken(table)
    left = np.flatnonzero(table.grade <= 0)
    moment = table.moment[taken]
    others = table.candidates.sizes - np.bincount(moment, minlength=len(table.candidates))
    first = starts_of(others)
    size = others[moment]
    ends = starts_of(size)
    entries = np.arange(ends[-1]) - np.repeat(ends[:-1] - first[moment], size)
    # A group's taken one, then those of its moment that were not.
    rows = np.insert(left[entries], ends[:-1], taken)
    group = np.repeat(np.arange(len(taken)), size + 1)
    weight = np.minimum(1.0 / chance[taken], most)
    return Lesson(table.x[rows], table.grade[rows], group, weight)


def _taken(table: Table) -> Integers:
    found = np.flatnonzero(table.grade > 0)
    if not len(found):
        raise StageError(
            f"none of {len(table)} candidates was taken", hint="Ask the retriever for more."
        )
    return found
