"""The kernel that fills a list place by place, under caps, sponsored places, diversity and chance.

Each place depends on the items above it alone, so the probability of each is known whatever stands
there.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from serving.recommend.diversity import raise_likeness
from serving.recommend.exploration import drawn, uniform, weigh


@njit(cache=True, nogil=True)
def fill(  # type: ignore[no-untyped-def]
    codes, good, organic, category, brand, sponsored, paid, free, caps, strict, weight, weights,
    starts, columns, values, temperature, seed, explored, given, places, chance, best,
):  # fmt: skip
    """Fill ``places`` [k] with places of the pool in order; how many.

    Args:
        codes, good, organic, category, brand: [m], the pool; ``organic`` may stand anywhere.
        sponsored: [s], places of what may stand where ``paid``, the first choice first.
        paid: bool [k]; becomes whether each holds a sponsored item.
        free: bool [k], where a request that explores may differ from the best.
        caps: int64 [2], of a category and of a brand, 0 for none; ``strict`` if they always hold.
        weight: lambda; ``weights`` float64 [3] of the parts of similarity.
        starts, columns, values: the neighbour table.
        temperature, seed, explored: of chance.
        given: int64 [k], the list whose probability is asked for; empty: choose one.
        places, chance, best: [k], out: the pool's places; the probability of each in a request
            that explores; whether it is what other requests take.
    """
    count = len(codes)
    left, open_ = np.ones(count, np.bool_), np.zeros(count, np.bool_)
    value, likeness, drawing = np.zeros(count), np.zeros(count), np.zeros(count)
    above = np.zeros((count, 2), np.int64)
    order = np.argsort(codes)
    for t in range(len(places)):
        top, total = -1, 0.0
        if paid[t]:
            top = _next_sponsored(sponsored, left, above, caps)
            paid[t] = top >= 0
        if top < 0:
            for i in range(count):
                value[i] = weight * good[i] - (1.0 - weight) * likeness[i]
            top = _open_up(organic, left, above, caps, False, value, open_)
            if top < 0 and not strict:
                top = _open_up(organic, left, above, caps, True, value, open_)
            if top < 0:
                return t
            if free[t]:
                total = weigh(value, open_, top, temperature, drawing)
        chosen = top
        if len(given):
            chosen = given[t]
        elif explored and total > 0.0:
            chosen = drawn(drawing, total, uniform(seed, t + 1))
        best[t] = chosen == top
        if total > 0.0 and chosen < count:
            chance[t] = drawing[chosen] / total
        else:
            chance[t] = 1.0 if best[t] else 0.0
        if chance[t] <= 0.0 and not best[t]:
            return t + 1
        places[t] = chosen
        left[chosen] = False
        for i in range(count):
            above[i, 0] += category[i] >= 0 and category[i] == category[chosen]
            above[i, 1] += brand[i] >= 0 and brand[i] == brand[chosen]
        if weight < 1.0:
            raise_likeness(
                likeness, chosen, codes, order, category, brand, weights, starts, columns, values
            )
    return len(places)


@njit(cache=True, nogil=True)
def _next_sponsored(sponsored, left, above, caps):  # type: ignore[no-untyped-def]
    for place in sponsored:
        if left[place] and not _full(above, caps, place):
            return place
    return -1


@njit(cache=True, nogil=True)
def _open_up(organic, left, above, caps, lifted, value, open_):  # type: ignore[no-untyped-def]
    """Mark in ``open_`` what may stand at the next place; the best of it, -1 for nothing."""
    top = -1
    for i in range(len(organic)):
        open_[i] = organic[i] and left[i] and (lifted or not _full(above, caps, i))
        if open_[i] and (top < 0 or value[i] > value[top]):
            top = i
    return top


@njit(cache=True, nogil=True)
def _full(above, caps, i):  # type: ignore[no-untyped-def]
    """Whether the list so far has as many of i's category or brand as it may."""
    return (caps[0] > 0 and above[i, 0] >= caps[0]) or (caps[1] > 0 and above[i, 1] >= caps[1])
