"""Full-ranking evaluation of a retriever on a split, for all users and by segment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from raypipe.errors import UsageError
from training.recommend.intervals import LEVEL, REPEATS, Interval, bootstrap
from training.recommend.measures import beyond_accuracy, by_user
from training.recommend.port import Retriever
from training.recommend.rows import Rows

Doubles = npt.NDArray[np.float64]

LENGTHS = (0, 1, 5, 20)
"""Default segments: histories of 0, 1 to 4, 5 to 19, 20 or more items."""


@dataclass(frozen=True)
class Evaluation:
    """Figures of each evaluated user at each k, and what all lists do to the catalogue.

    ``users`` int64 [n] are rows of the split's matrices; ``figures[k][name]`` float64 [n];
    ``segment`` [n] are places in ``segments``.
    """

    users: npt.NDArray[np.int64]
    figures: Mapping[int, Mapping[str, Doubles]]
    beyond: Mapping[int, Mapping[str, float]]
    segment: npt.NDArray[np.int64]
    segments: tuple[str, ...]

    def mean(self, name: str, k: int) -> float:
        """A figure's mean over all users."""
        return float(self.figures[k][name].mean())

    def interval(self, name: str, k: int, **options: Any) -> Interval:
        """With its confidence interval; options as of ``bootstrap``."""
        return bootstrap(self.figures[k][name], **options)

    def gain(self, other: Evaluation, name: str, k: int, **options: Any) -> Interval:
        """By how much this is better than the other, paired by user.

        Raises UsageError when they are not of the same users.
        """
        if not np.array_equal(self.users, other.users):
            raise UsageError("two evaluations of different users can't be compared")
        return bootstrap(self.figures[k][name] - other.figures[k][name], **options)

    def only(self, segment: str) -> Evaluation:
        """Of the users of one segment; what all lists do to the catalogue stays that of all.

        Raises UsageError for a segment that it has none of.
        """
        number = self.segments.index(segment) if segment in self.segments else -1
        rows = np.flatnonzero(self.segment == number)
        if not len(rows):
            raise UsageError(
                f"nobody is of segment {segment!r}", hint="Segments: " + ", ".join(self.segments)
            )
        figures = {k: {n: v[rows] for n, v in f.items()} for k, f in self.figures.items()}
        return Evaluation(self.users[rows], figures, self.beyond, self.segment[rows], self.segments)

    def describe(self, *, repeats: int = REPEATS, level: float = LEVEL) -> dict[str, Any]:
        """Means with intervals at each k, for all users and by segment, as plain data."""
        out: dict[str, Any] = {"users": len(self.users)}
        for k, figures in self.figures.items():
            everyone = np.arange(len(self.users))
            groups = {"all": everyone} | {
                name: everyone[self.segment == number] for number, name in enumerate(self.segments)
            }
            out[f"at_{k}"] = {
                "segments": {
                    group: {
                        name: bootstrap(values[rows], repeats=repeats, level=level).describe()
                        for name, values in figures.items()
                    }
                    for group, rows in groups.items()
                    if len(rows)
                },
                **self.beyond[k],
            }
        return out


def evaluate(
    retriever: Retriever,
    train: Rows,
    truth: Rows,
    *,
    ks: Sequence[int] = (20,),
    seen: Rows | None = None,
    histories: Rows | None = None,
    segment: tuple[npt.NDArray[np.integer], Sequence[str]] | None = None,
) -> Evaluation:
    """Rank all items for every user with something to guess, without those of ``train``.

    Args:
        retriever: fitted on ``train`` or on less.
        train: [users, items]; the histories, and the items that are not ranked.
        truth: [users, items] to guess.
        ks: lengths of lists.
        seen: items that are not ranked, where they are others than those of ``train``.
        histories: what is known of each user, where it is other than ``train``.
        segment: [users] places in a list of names; by default by the length of the history.

    Raises UsageError for lists without length.
    """
    if not ks or min(ks) < 1:
        raise UsageError(f"lists of {list(ks)} items", hint="Give lengths of 1 or more.")
    users = np.flatnonzero(truth.sizes > 0)
    known = (train if histories is None else histories).take(users)
    barred = (train if seen is None else seen).take(users)
    ranked = retriever.retrieve(known, max(ks), seen=barred)
    wanted = truth.take(users)
    codes, names = by_length(known.sizes) if segment is None else segment
    return Evaluation(
        users,
        {k: by_user(ranked, wanted, k) for k in ks},
        {k: beyond_accuracy(ranked, train, k) for k in ks},
        np.asarray(codes if segment is None else codes[users], np.int64),
        tuple(names),
    )


def by_length(
    sizes: npt.NDArray[np.int64], edges: Sequence[int] = LENGTHS
) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Segments by the number of items in the history.

    >>> by_length(np.array([0, 4, 5, 300]))
    (array([0, 1, 2, 3]), ('0', '1 to 4', '5 to 19', '20 and more'))
    """
    names = [
        str(low) if high == low + 1 else f"{low} to {high - 1}" for low, high in pairwise(edges)
    ]
    return np.searchsorted(edges, sizes, side="right") - 1, (*names, f"{edges[-1]} and more")
