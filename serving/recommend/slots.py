"""The kernel that fills a list place by place, under caps, sponsored places, diversity and chance.

Each place depends on the items above it alone, so the probability of each is known whatever stands
there. All compiled code is in this file: a cached kernel does not notice changes of other ones. It
does not sort: compiled in different processes, NumPy's ``argsort`` and ``sort`` get one name, and a
process that loads both from numba's cache runs the wrong one of them.
"""

from __future__ import annotations

import numpy as np
from numba import njit

NEAREST = 100
"""Neighbours of an item that are looked at; what is further is as far as anything."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_UNIT = 2.0**-53


@njit(cache=True, nogil=True)
def fill(  # type: ignore[no-untyped-def]
    codes, order, good, organic, category, brand, sponsored, paid, free, caps, strict, weight,
    weights, starts, columns, values, temperature, seed, explored, given, places, chance, best,
):  # fmt: skip
    """Fill ``places`` [k] with places of the pool in order; how many.

    Args:
        codes, order, good, organic, category, brand: [m], the pool; ``order`` sorts ``codes``,
            ``organic`` may stand anywhere.
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
                total = _weigh(value, open_, top, temperature, drawing)
        chosen = top
        if len(given):
            chosen = given[t]
        elif explored and total > 0.0:
            chosen = _drawn(drawing, total, uniform(seed, t + 1))
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
            _raise_likeness(
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


@njit(cache=True, nogil=True)
def _raise_likeness(  # type: ignore[no-untyped-def]
    likeness, place, codes, order, category, brand, weights, starts, columns, values
):
    """Raise each candidate's largest similarity to the list, after the one at ``place`` came in.

    ``likeness`` float64 [m]; ``order`` sorts ``codes``; ``weights`` of category, brand, neighbours.
    """
    near = np.zeros(len(codes), np.float64)
    if weights[2] > 0.0 and codes[place] + 1 < len(starts):
        first, last = starts[codes[place]], starts[codes[place] + 1]
        for entry in range(first, min(last, first + NEAREST)):
            if values[entry] <= 0.0:
                break
            at = _found(codes, order, columns[entry])
            if at >= 0:
                near[at] = np.float64(values[entry]) / np.float64(values[first])
    for i in range(len(codes)):
        alike = weights[2] * near[i]
        if category[i] >= 0 and category[i] == category[place]:
            alike += weights[0]
        if brand[i] >= 0 and brand[i] == brand[place]:
            alike += weights[1]
        likeness[i] = max(likeness[i], alike)


@njit(cache=True, nogil=True)
def _found(codes, order, wanted):  # type: ignore[no-untyped-def]
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        if codes[order[middle]] < wanted:
            low = middle + 1
        else:
            high = middle
    if low < len(order) and codes[order[low]] == wanted:
        return order[low]
    return -1


@njit(cache=True, nogil=True)
def uniform(seed, number):  # type: ignore[no-untyped-def]
    """Number ``number`` of a seed's sequence, in [0, 1).

    Splitmix64: Steele, Lea & Flood, *Fast splittable pseudorandom number generators*, OOPSLA 2014.
    """
    mixed = np.uint64(seed) + np.uint64(number + 1) * _GOLDEN
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _FIRST
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _SECOND
    mixed ^= mixed >> np.uint64(31)
    return np.float64(mixed >> np.uint64(11)) * _UNIT


@njit(cache=True, nogil=True)
def _weigh(values, open_, best, temperature, weights):  # type: ignore[no-untyped-def]
    """Fill ``weights`` float64 [m] with exp((value - best) / temperature) of what is open; the sum.

    The best has weight 1, so the sum is never 0.
    """
    total = 0.0
    for i in range(len(values)):
        weights[i] = np.exp((values[i] - values[best]) / temperature) if open_[i] else 0.0
        total += weights[i]
    return total


@njit(cache=True, nogil=True)
def _drawn(weights, total, luck):  # type: ignore[no-untyped-def]
    """The place in which ``luck`` * ``total`` falls; never one of weight 0."""
    left = luck * total
    last = -1
    for i in range(len(weights)):
        if weights[i] > 0.0:
            last = i
            left -= weights[i]
            if left < 0.0:
                break
    return last
