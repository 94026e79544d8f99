"""What is learned and what is to be guessed: last item left out, split by time, or given.

Items to be guessed are those that a user had not met before: repeating a purchase is another
question. Ids are those of the whole table in all parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raypipe.errors import StageError, UsageError
from training.recommend.interactions import Interactions
from training.recommend.rows import Rows


@dataclass(frozen=True)
class Split:
    """Interactions to learn from, and for each user the items to guess, [users, items].

    A user without items to guess is not evaluated; one without interactions in ``train`` is new.
    """

    train: Interactions
    truth: Rows
    protocol: str

    def __post_init__(self) -> None:
        if self.truth.width != self.train.shape[1] or len(self.truth) != self.train.shape[0]:
            raise UsageError(f"{self.truth} is not over the ids of {self.train}")
        if not len(self.truth.columns):
            raise StageError(
                f"the split ({self.protocol}) leaves nothing to guess",
                hint="Give it more history, or another moment.",
            )


def given(train: Interactions, test: Interactions) -> Split:
    """A published split. Both are over the same ids; pairs of ``train`` are no task in ``test``."""
    if train.shape != test.shape:
        raise UsageError(
            f"train is over {train.shape} users and items, test over {test.shape}",
            hint="Make the second with `known=` the first.",
        )
    return Split(train, _new_pairs(train, test), "given")


def by_time(interactions: Interactions, at_ms: int, *, until_ms: int | None = None) -> Split:
    """Learn from before a moment, guess what comes from then on (before ``until_ms``)."""
    _need_times(interactions)
    end = int(interactions.time[-1]) + 1 if until_ms is None else until_ms
    train = interactions.between(int(interactions.time[0]), at_ms)
    return Split(train, _new_pairs(train, interactions.between(at_ms, end)), f"time {at_ms}")


def leave_last_out(interactions: Interactions) -> Split:
    """Each user's newest item is to be guessed from all that he did before he met it.

    A user with one item is learned from and not evaluated. Of items met in the same millisecond
    the one of highest code is taken. Users end at different times, so others' later interactions
    are learned from: figures are a little better than a system in use can have (Ji, Sun, Zhang &
    Li, A critical study on data leakage in recommender system offline evaluation, TOIS 2023). Where
    that matters, split by time.
    """
    _need_times(interactions)
    users, items = interactions.shape
    pair = interactions.user.astype(np.int64) * items + interactions.item
    _, first = np.unique(pair, return_index=True)  # in order of time: a pair's first row
    first = first[np.lexsort((interactions.item[first], interactions.time[first]))]
    user = interactions.user[first]
    met = np.bincount(user, minlength=users)
    newest = np.full(users, -1, np.int64)
    newest[user] = first  # the last one written stays
    newest[met < 2] = -1
    rows = newest[newest >= 0]
    moment = np.full(users, np.iinfo(np.int64).max)
    moment[interactions.user[rows]] = interactions.time[rows]
    own = np.full(users, -1, np.int64)
    own[interactions.user[rows]] = interactions.item[rows]
    kept = (interactions.time <= moment[interactions.user]) & (
        interactions.item != own[interactions.user]
    )
    truth = Rows.of(
        interactions.user[rows], interactions.item[rows], np.ones(len(rows)), interactions.shape
    )
    return Split(interactions.where(kept), truth, "leave last out")


def _new_pairs(train: Interactions, test: Interactions) -> Rows:
    width = train.shape[1]
    known = train.user.astype(np.int64) * width + train.item
    wanted = np.unique(test.user.astype(np.int64) * width + test.item)
    fresh = wanted[~np.isin(wanted, known)]
    user, item = np.divmod(fresh, max(width, 1))
    return Rows.of(user, item, np.ones(len(fresh)), train.shape)


def _need_times(interactions: Interactions) -> None:
    if not interactions.timed:
        raise UsageError(
            "these interactions have no times", hint="Only a given split suits a table without."
        )
