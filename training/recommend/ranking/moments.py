"""Moments at which somebody came to the shop, and what was new to him and taken then."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raypipe.errors import StageError, UsageError
from training.recommend.events import guests_of
from training.recommend.interactions import CART, ORDER, VIEW, Interactions, Weights
from training.recommend.rows import Codes, Integers, Rows, empty, starts_of

VISIT_GAP_MS = 30 * 60_000
"""A pause after which a new visit begins, as web analytics counts them."""

GRADES: Mapping[str, float] = {VIEW: 1.0, CART: 2.0, ORDER: 3.0}
"""How relevant an item was by the best that was done with it; the gain of NDCG is 2^grade - 1."""


@dataclass(frozen=True)
class Moments:
    """Beginnings of visits, or later moments of them, in log order.

    ``user`` int32 [m], ``time`` int64 ms [m], ``offset`` int64 [m] of the visit's next event:
    what is known then has a lower one. ``truth`` [m, items] has the grade of each item that the
    visit took from then on and the user had not met before.
    """

    user: Codes
    time: Integers
    offset: Integers
    truth: Rows

    def __len__(self) -> int:
        return len(self.user)

    def at(self, rows: Integers) -> Moments:
        """Those at some places, in their order."""
        return Moments(self.user[rows], self.time[rows], self.offset[rows], self.truth.take(rows))

    def in_log_order(self) -> Moments:
        """The same, by their places in the log."""
        return self.at(np.argsort(self.offset, kind="stable"))

    @classmethod
    def joined(cls, parts: Sequence[Moments]) -> Moments:
        """One after the other; not in log order, unless the parts are."""
        return cls(
            np.concatenate([p.user for p in parts]),
            np.concatenate([p.time for p in parts]),
            np.concatenate([p.offset for p in parts]),
            Rows.joined([p.truth for p in parts]),
        )

    def __repr__(self) -> str:
        return f"Moments({len(self)} visits, {len(self.truth.columns)} items taken)"


def moments(
    interactions: Interactions,
    start_ms: int,
    end_ms: int,
    *,
    gap_ms: int = VISIT_GAP_MS,
    grades: Mapping[str, float] = GRADES,
    after: int = 0,
) -> Moments:
    """The visits that begin in ``start_ms <= time < end_ms`` and take something new.

    A visit's interactions count until ``end_ms``. Kinds without a grade don't count. ``after`` so
    many different items of the visit: the moment of the last event that is known then.

    Raises:
        UsageError: the interactions were never in a log, so nothing says what was known when.
        StageError: there is no such visit.
    """
    visits = _visits(interactions, gap_ms)
    user, item, time, offset, kind = (
        column[visits.order]
        for column in (
            interactions.user,
            interactions.item,
            interactions.time,
            interactions.offset,
            interactions.kind,
        )
    )
    visit, first = visits.visit, visits.first
    nth = _nth(visit, interactions.item[visits.order], interactions.shape[1])
    pair = user.astype(np.int64) * interactions.shape[1] + item
    _, met, which = np.unique(pair, return_index=True, return_inverse=True)
    # New in the visit in which it was first met, whatever is done with it later in that visit.
    new = visit == visit[met[which]]
    grade = np.array([grades.get(k, 0.0) for k in interactions.kinds])[kind]
    counts = new & (grade > 0) & (time < end_ms)
    inside = (time[first] >= start_ms) & (time[first] < end_ms)
    counts &= inside[visit] & (nth >= after)
    kept = np.unique(visit[counts])
    if not len(kept):
        raise StageError(
            f"no visit that begins from {start_ms} to {end_ms} takes anything new",
            hint="Take a longer span of time.",
        )
    if after:
        # Where the next different item comes; of the visit's rows it is the first with its number.
        comes = np.flatnonzero(nth == after)
        first = first.copy()
        first[visit[comes[::-1]]] = comes[::-1]
    kept = kept[np.argsort(offset[first[kept]], kind="stable")]
    row = np.full(len(first), -1, np.int64)
    row[kept] = np.arange(len(kept))
    shape = (len(kept), interactions.shape[1])
    truth = _best(row[visit[counts]], item[counts], grade[counts], shape)
    at = first[kept]
    return Moments(user[at], time[at - 1 if after else at], offset[at], truth)


def with_first_looks(
    interactions: Interactions,
    start_ms: int,
    end_ms: int,
    *,
    looks: Sequence[int] = (1, 2),
    **options: Any,
) -> Moments:
    """The same, and of sessions that name nobody also the moments after their first items.

    What to learn from: most lists are asked for in the middle of a visit and by somebody unknown,
    and a beginning of a visit has no such history. ``options`` as of ``moments``; raises as it.
    """
    found = [moments(interactions, start_ms, end_ms, **options)]
    guests = guests_of(interactions)
    for after in looks if guests.any() else ():
        with contextlib.suppress(StageError):  # nobody looked at so many
            later = moments(interactions, start_ms, end_ms, after=after, **options)
            found.append(later.at(np.flatnonzero(guests[later.user])))
    return Moments.joined(found).in_log_order()


def arrivals(
    interactions: Interactions, start_ms: int, end_ms: int, *, gap_ms: int = VISIT_GAP_MS
) -> Moments:
    """All visits that begin in ``start_ms <= time < end_ms``, whatever they take; without truth.

    Raises as ``moments``.
    """
    visits = _visits(interactions, gap_ms)
    first = visits.order[visits.first]
    time = interactions.time[first]
    first = first[(time >= start_ms) & (time < end_ms)]
    if not len(first):
        raise StageError(
            f"no visit begins from {start_ms} to {end_ms}", hint="Take a longer span of time."
        )
    first = first[np.argsort(interactions.offset[first], kind="stable")]
    return Moments(
        interactions.user[first],
        interactions.time[first],
        interactions.offset[first],
        empty(len(first), interactions.shape[1]),
    )


@dataclass(frozen=True, slots=True)
class _Visits:
    """``order`` sorts interactions by user and place in the log; then ``visit`` is each one's
    number [n], and ``first`` the place of each visit's first.
    """

    order: Integers
    visit: Integers
    first: Integers


def _visits(interactions: Interactions, gap_ms: int) -> _Visits:
    if len(interactions) and int(interactions.offset.min()) < 0:
        raise UsageError(
            "these interactions have no places in a log", hint="Load the table, then read events."
        )
    order = np.lexsort((interactions.offset, interactions.user))
    user, time = interactions.user[order], interactions.time[order]
    begins = np.ones(len(user), np.bool_)
    begins[1:] = (user[1:] != user[:-1]) | (time[1:] - time[:-1] > gap_ms)
    return _Visits(order, np.cumsum(begins) - 1, np.flatnonzero(begins))


def histories(interactions: Interactions, at: Moments, weights: Weights) -> Rows:
    """[m, items]: what each visitor had done before, weighted and faded as of then."""
    order = np.lexsort((interactions.offset, interactions.user))
    user, offset = interactions.user[order], interactions.offset[order]
    starts = np.searchsorted(user, np.arange(interactions.shape[0] + 1))
    size = _earlier(user, offset, at)
    entries = np.arange(int(size.sum())) - np.repeat(starts_of(size)[:-1], size)
    rows = order[entries + np.repeat(starts[at.user], size)]
    by_kind = np.array([weights.kinds.get(k, 0.0) for k in interactions.kinds])
    each = by_kind[interactions.kind[rows]]
    if weights.half_life_ms is not None:
        age = np.repeat(at.time, size) - interactions.time[rows]
        each = each * np.exp2(-np.maximum(age, 0) / weights.half_life_ms)
    moment = np.repeat(np.arange(len(at)), size)
    kept = each > 0
    found = Rows.of(
        moment[kept], interactions.item[rows][kept], each[kept], (len(at), interactions.shape[1])
    )
    if weights.cap is not None:
        found = found.with_values(np.minimum(found.values, weights.cap))
    return found


def _earlier(user: Codes, offset: Integers, at: Moments) -> Integers:
    """Number of interactions of each moment's user before it; ``user`` and ``offset`` sorted."""
    known = np.unique(offset)
    width = len(known) + 1
    places = user.astype(np.int64) * width + np.searchsorted(known, offset)
    wanted = at.user.astype(np.int64) * width
    upto = np.searchsorted(places, wanted + np.searchsorted(known, at.offset))
    return upto - np.searchsorted(places, wanted)


def _nth(visit: Integers, item: Codes, items: int) -> Integers:
    """The number, from 0, of each row's item among the different ones of its visit, [n]."""
    _, met, which = np.unique(
        visit * np.int64(items) + item, return_index=True, return_inverse=True
    )
    opens = np.zeros(len(visit), np.int64)
    opens[met] = 1
    so_far = np.cumsum(opens) - 1
    begins = np.searchsorted(visit, visit)
    number: Integers = (so_far - so_far[begins])[met[which]]
    return number


def _best(row: Integers, column: Codes, value: np.ndarray, shape: tuple[int, int]) -> Rows:
    """Entries, of those of one place the largest."""
    order = np.lexsort((-value, column, row))
    row, column, value = row[order], column[order], value[order]
    first = np.ones(len(row), np.bool_)
    first[1:] = (row[1:] != row[:-1]) | (column[1:] != column[:-1])
    return Rows.of(row[first], column[first], value[first], shape)
