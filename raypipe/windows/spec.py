"""Windows declared as data: spans, aggregates and views. Nothing here computes.

Semantics (nested sawtooth, in log order). For a reading event i of key k let
``T = max(t_i, newest event time of k in this view before i)``, floored to seconds. The value of
span W/h is the aggregate over the view's events j of k that precede i in the log and have
``floor(t_j / h) > floor(T / h) - W / h``. The head is exact to the event; the tail is quantised
by one hop h.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from itertools import pairwise
from typing import Any

from raypipe.errors import DeclarationError
from raypipe.events.schema import canonical_json

UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DURATION = re.compile(r"([1-9][0-9]*)([smhd])")
MOST_BITS = 65_536
"""Widest distinct sketch: every tile of the view carries it."""

_NAME = re.compile(r"[a-z][a-z0-9_]*")


def seconds(text: str) -> int:
    """Read a duration.

    >>> seconds("30m")
    1800
    """
    match = _DURATION.fullmatch(text)
    if not match:
        raise DeclarationError(
            f"{text!r} is not a duration", hint="Write a whole number and s, m, h or d: '30m'."
        )
    return int(match[1]) * UNITS[match[2]]


@dataclass(frozen=True, slots=True)
class Span:
    """A window length and its hop, both in seconds; the label is the length as declared."""

    label: str
    length: int
    hop: int

    @classmethod
    def parse(cls, text: str) -> Span:
        """Read ``length/hop``.

        >>> Span.parse("1d/30m")
        Span(label='1d', length=86400, hop=1800)
        """
        label, _, hop = text.partition("/")
        if not hop:
            raise DeclarationError(f"span {text!r} has no hop", hint="Write it as '1h/1m'.")
        span = cls(label, seconds(label), seconds(hop))
        if span.length % span.hop or span.length == span.hop:
            raise DeclarationError(
                f"span {text!r}: the length must be a multiple of the hop, at least twice it"
            )
        return span


def spans(*texts: str) -> tuple[Span, ...]:
    """Spans from fine to coarse. They must nest: each holds the one before at any time."""
    parsed = tuple(Span.parse(t) for t in texts)
    for a, b in pairwise(parsed):
        # A span may be as short as its length less its hop, just before the tail moves on.
        if a.length >= b.length or b.hop % a.hop or a.length - a.hop > b.length - b.hop:
            raise DeclarationError(
                f"spans {a.label} and {b.label} don't nest",
                hint="Each hop must divide the next one, and lengths grow as much as hops do.",
            )
    return parsed


DEFAULT_SPANS = spans("1m/1s", "5m/5s", "1h/1m", "1d/30m", "7d/3h", "30d/12h")


class Op(IntEnum):
    """What is computed over a span."""

    COUNT = 0
    SUM = 1
    MEAN = 2
    MIN = 3
    MAX = 4
    STD = 5
    DISTINCT = 6
    SINCE_LAST = 7


SUBTRACTIVE = frozenset({Op.COUNT, Op.SUM, Op.MEAN})
"""Aggregates that a difference of two spans can carry."""


@dataclass(frozen=True, slots=True)
class Aggregate:
    """One operation over one column for some spans of its view.

    ``over`` names spans by label (all when empty). ``lags`` are pairs (long, short): the value
    over the long span without the short one, "the week before today". ``bits`` is the width of
    the distinct sketch.
    """

    op: Op
    column: str = ""
    over: tuple[str, ...] = ()
    lags: tuple[tuple[str, str], ...] = ()
    bits: int = 64

    @property
    def stem(self) -> str:
        """The middle of the feature's name."""
        return "_".join(p for p in (self.column, self.op.name.lower()) if p)


Lags = Iterable[tuple[str, str]]


def count(over: Iterable[str] = (), lags: Lags = ()) -> Aggregate:
    """Number of events; 0 when there are none."""
    return Aggregate(Op.COUNT, "", tuple(over), tuple(lags))


def total(column: str, over: Iterable[str] = (), lags: Lags = ()) -> Aggregate:
    """Sum of an integer column; 0 when there are no events."""
    return Aggregate(Op.SUM, column, tuple(over), tuple(lags))


def mean(column: str, over: Iterable[str] = (), lags: Lags = ()) -> Aggregate:
    """Arithmetic mean; NaN when there are no events."""
    return Aggregate(Op.MEAN, column, tuple(over), tuple(lags))


def minimum(column: str, over: Iterable[str] = ()) -> Aggregate:
    """Smallest value; NaN when there are no events."""
    return Aggregate(Op.MIN, column, tuple(over))


def maximum(column: str, over: Iterable[str] = ()) -> Aggregate:
    """Largest value; NaN when there are no events."""
    return Aggregate(Op.MAX, column, tuple(over))


def std(column: str, over: Iterable[str] = ()) -> Aggregate:
    """Population standard deviation; NaN when there are no events."""
    return Aggregate(Op.STD, column, tuple(over))


def distinct(column: str, over: Iterable[str] = (), bits: int = 64) -> Aggregate:
    """Estimated number of different values by linear counting on ``bits`` bits; 0 when none.

    Standard error for n values on m bits: sqrt(m * (exp(n/m) - n/m - 1)) / n (Whang et al. 1990).
    That holds up to n of about m; the true error is 12 % larger at 2 m and 24 % at 3 m, and from
    4 m on the sketch is full: declare ``bits`` of at least the largest number that matters.
    A full sketch reads as m * ln(2m).
    """
    return Aggregate(Op.DISTINCT, column, tuple(over), (), bits)


def since_last() -> Aggregate:
    """Seconds since the key's newest event in this view; NaN for a new key."""
    return Aggregate(Op.SINCE_LAST)


@dataclass(frozen=True, slots=True)
class Column:
    """One output of a view: an operation on one span, or on the difference of two."""

    name: str
    op: Op
    column: str
    span: int
    minus: int
    """Index of the span to subtract, -1 for none."""


@dataclass(frozen=True)
class WindowView:
    """Aggregates of one event type by one key column: the unit of state and of registration."""

    name: str
    entity: str
    event: str
    key: str
    aggregates: tuple[Aggregate, ...]
    spans: tuple[Span, ...] = DEFAULT_SPANS
    description: str = ""
    owner: str = ""
    tags: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise DeclarationError(
                f"view name {self.name!r}", hint="Use lower case letters, digits, underscores."
            )
        if not self.aggregates:
            raise DeclarationError(f"view {self.name!r} declares no aggregate")
        if not self.spans or len(self.spans) > 16:
            raise DeclarationError(f"view {self.name!r} needs 1 to 16 spans")
        if spans(*(f"{s.label}/{s.hop}s" for s in self.spans)) != tuple(self.spans):
            raise DeclarationError(f"view {self.name!r}: a span's label is not its length")
        _ = self.sketches
        names = [c.name for c in self.columns]
        doubled = sorted({n for n in names if names.count(n) > 1})
        if doubled:
            raise DeclarationError(f"view {self.name!r} computes {doubled} more than once")

    @property
    def horizon(self) -> int:
        """The longest span in seconds: how far back history matters."""
        return self.spans[-1].length

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """Every output with its name, in declared order."""
        out: list[Column] = []
        for a in self.aggregates:
            if a.op is Op.SINCE_LAST:
                out.append(Column(f"{self.name}_since_last", a.op, "", 0, -1))
                continue
            if a.op is not Op.COUNT and not a.column:
                raise DeclarationError(f"view {self.name!r}: {a.op.name.lower()} needs a column")
            if a.lags and a.op not in SUBTRACTIVE:
                raise DeclarationError(
                    f"view {self.name!r}: {a.stem} can't be a difference of spans",
                    hint="Only count, sum and mean can.",
                )
            if not 64 <= a.bits <= MOST_BITS or a.bits & (a.bits - 1):
                raise DeclarationError(
                    f"view {self.name!r}: {a.stem} has {a.bits} bits",
                    hint=f"Use a power of two from 64 to {MOST_BITS}.",
                )
            for label in a.over or [s.label for s in self.spans]:
                out.append(
                    Column(f"{self.name}_{a.stem}_{label}", a.op, a.column, self._span(label), -1)
                )
            for long, short in a.lags:
                i, j = self._span(long), self._span(short)
                if j >= i:
                    raise DeclarationError(f"view {self.name!r}: lag {long} before {short}")
                name = f"{self.name}_{a.stem}_{long}_before_{short}"
                out.append(Column(name, a.op, a.column, i, j))
        return tuple(out)

    def _span(self, label: str) -> int:
        labels = [s.label for s in self.spans]
        if label not in labels:
            raise DeclarationError(
                f"view {self.name!r} has no span {label!r}", hint="It has: " + ", ".join(labels)
            )
        return labels.index(label)

    @cached_property
    def value_columns(self) -> tuple[str, ...]:
        """Integer columns that are summed, in first-use order."""
        ops = (Op.SUM, Op.MEAN, Op.MIN, Op.MAX, Op.STD)
        return tuple(dict.fromkeys(a.column for a in self.aggregates if a.op in ops))

    @cached_property
    def sketches(self) -> tuple[tuple[str, int], ...]:
        """(column, bits) of each distinct sketch, in first-use order."""
        found: dict[str, int] = {}
        for a in self.aggregates:
            if a.op is Op.DISTINCT and found.setdefault(a.column, a.bits) != a.bits:
                raise DeclarationError(f"view {self.name!r}: two widths for {a.column!r}")
        return tuple(found.items())

    @property
    def column_names(self) -> tuple[str, ...]:
        """Feature names in output order."""
        return tuple(c.name for c in self.columns)

    def describe(self) -> dict[str, Any]:
        """Plain data for hashes and documents; text that changes no value is left out."""
        return {
            "name": self.name,
            "entity": self.entity,
            "event": self.event,
            "key": self.key,
            "spans": [[s.label, s.length, s.hop] for s in self.spans],
            "columns": [[c.name, c.op.name, c.column, c.span, c.minus] for c in self.columns],
            "sketches": [list(s) for s in self.sketches],
        }

    @cached_property
    def definition_hash(self) -> str:
        """sha256 of what determines the values."""
        return hashlib.sha256(canonical_json(self.describe())).hexdigest()
