"""What a view may compute, as data: operations, their columns, conditions and spans."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum


class Op(IntEnum):
    """What is computed over a span; LAST and SINCE_LAST look at single events instead."""

    COUNT = 0
    SUM = 1
    MEAN = 2
    MIN = 3
    MAX = 4
    STD = 5
    DISTINCT = 6
    SINCE_LAST = 7
    LAST = 8


SUBTRACTIVE = frozenset({Op.COUNT, Op.SUM, Op.MEAN})
"""Aggregates that a difference of two spans can carry."""

SINGLE = frozenset({Op.SINCE_LAST, Op.LAST})
"""Aggregates that look at one event, however long ago; they have steps instead of spans."""


@dataclass(frozen=True, slots=True)
class Aggregate:
    """One operation over one column for some spans of its view.

    ``over`` names spans by label (all when empty). ``lags`` are pairs (long, short): the value
    over the long span without the short one, "the week before today". ``bits`` is the width of
    the distinct sketch, ``registers`` (not 0) makes it a HyperLogLog. ``steps`` are places among
    the last events, 1 for the newest.

    ``of`` names the one event type that counts (all of the view's when empty), ``where`` is a
    condition on its columns (see raypipe.windows.conditions); ``name`` tells the feature from the
    one without.
    """

    op: Op
    column: str = ""
    over: tuple[str, ...] = ()
    lags: tuple[tuple[str, str], ...] = ()
    bits: int = 64
    registers: int = 0
    steps: tuple[int, ...] = (1,)
    where: str = ""
    of: str = ""
    name: str = ""

    @property
    def stem(self) -> str:
        """The middle of the feature's name."""
        words = (self.name or self.of, self.column, self.op.name.lower())
        return "_".join(w for w in words if w)


Lags = Iterable[tuple[str, str]]
Names = Iterable[str]


def count(
    over: Names = (), lags: Lags = (), *, where: str = "", of: str = "", name: str = ""
) -> Aggregate:
    """Number of events; 0 when there are none."""
    return _aggregate(Op.COUNT, "", over, lags, where, of, name)


def total(
    column: str,
    over: Names = (),
    lags: Lags = (),
    *,
    where: str = "",
    of: str = "",
    name: str = "",
) -> Aggregate:
    """Sum of an integer column; 0 when there are no events."""
    return _aggregate(Op.SUM, column, over, lags, where, of, name)


def mean(
    column: str,
    over: Names = (),
    lags: Lags = (),
    *,
    where: str = "",
    of: str = "",
    name: str = "",
) -> Aggregate:
    """Sum divided by count; NaN when there are no events."""
    return _aggregate(Op.MEAN, column, over, lags, where, of, name)


def minimum(
    column: str, over: Names = (), *, where: str = "", of: str = "", name: str = ""
) -> Aggregate:
    """Smallest value; NaN when there are no events."""
    return _aggregate(Op.MIN, column, over, (), where, of, name)


def maximum(
    column: str, over: Names = (), *, where: str = "", of: str = "", name: str = ""
) -> Aggregate:
    """Largest value; NaN when there are no events."""
    return _aggregate(Op.MAX, column, over, (), where, of, name)


def std(
    column: str, over: Names = (), *, where: str = "", of: str = "", name: str = ""
) -> Aggregate:
    """Population standard deviation; NaN when there are no events."""
    return _aggregate(Op.STD, column, over, (), where, of, name)


def distinct(
    column: str,
    over: Names = (),
    bits: int = 64,
    *,
    registers: int = 0,
    where: str = "",
    of: str = "",
    name: str = "",
) -> Aggregate:
    """Estimated number of different values; 0 when there are none.

    By linear counting on ``bits`` bits. Standard error for n values on m bits:
    sqrt(m * (exp(n/m) - n/m - 1)) / n (Whang et al. 1990). That holds up to n of about m; the true
    error is 12 % larger at 2 m and 24 % at 3 m, and from 4 m on the sketch is full: declare
    ``bits`` of at least the largest number that matters. A full sketch reads as m * ln(2m).

    Or, with ``registers``, by HyperLogLog with the estimator of Ertl (2017): for any n a standard
    error of 1.04 / sqrt(registers), less for few values: 6.5 % with 256, 1.6 % with 4,096.
    """
    return Aggregate(
        Op.DISTINCT,
        column,
        tuple(over),
        (),
        bits,
        registers,
        where=where,
        of=of,
        name=name,
    )


def last(
    column: str, steps: Iterable[int] = (1,), *, where: str = "", of: str = "", name: str = ""
) -> Aggregate:
    """Value of the newest event (step 1), of the one before it (step 2), and so on.

    Newest by event time, of equal times the one that arrived last, however long ago; NaN where
    there were not so many.
    """
    return Aggregate(Op.LAST, column, steps=tuple(steps), where=where, of=of, name=name)


def since_last(
    steps: Iterable[int] = (1,), *, where: str = "", of: str = "", name: str = ""
) -> Aggregate:
    """Seconds since the key's newest event in this view, or an earlier one; NaN without it."""
    return Aggregate(Op.SINCE_LAST, steps=tuple(steps), where=where, of=of, name=name)


def _aggregate(
    op: Op, column: str, over: Names, lags: Lags, where: str, of: str, name: str
) -> Aggregate:
    return Aggregate(op, column, tuple(over), tuple(lags), where=where, of=of, name=name)
