"""Windows declared as data: spans and views over aggregates. Nothing here computes.

Semantics (nested sawtooth, in log order). For a reading event i of key k let
``T = max(t_i, newest event time of k in this view before i)``, floored to seconds. The value of
span W/h is the aggregate over the view's events j of k that precede i in the log and have
``floor(t_j / h) > floor(T / h) - W / h``. The head is exact to the event; the tail is quantised
by one hop h.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from raypipe.errors import DeclarationError
from raypipe.events.schema import canonical_json
from raypipe.windows.aggregates import (
    SINGLE,
    SUBTRACTIVE,
    Aggregate,
    Op,
    count,
    distinct,
    last,
    maximum,
    mean,
    minimum,
    since_last,
    std,
    total,
)
from raypipe.windows.conditions import Condition

__all__ = [
    "DEFAULT_SPANS",
    "Aggregate",
    "Column",
    "Filter",
    "Op",
    "Sketch",
    "Span",
    "WindowView",
    "count",
    "distinct",
    "last",
    "maximum",
    "mean",
    "minimum",
    "seconds",
    "since_last",
    "spans",
    "std",
    "total",
]

UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DURATION = re.compile(r"([1-9][0-9]*)([smhd])")
MOST_BITS = 65_536
"""Widest distinct sketch: every tile of many values carries it."""

MOST_REGISTERS = 16_384
MOST_FILTERS = 32
MOST_STEPS = 64

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


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events of a view an aggregate counts: of one type, under one condition."""

    of: str
    where: str


@dataclass(frozen=True, slots=True)
class Sketch:
    """How the different values of a column are counted: bits, or registers if not 0."""

    column: str
    bits: int
    registers: int

    @property
    def words(self) -> int:
        """Words of 64 bits in a tile; a register takes eight bits."""
        return self.registers // 8 or self.bits // 64


@dataclass(frozen=True, slots=True)
class Column:
    """One output of a view: an aggregate over one span, over the difference of two, or a step."""

    name: str
    aggregate: Aggregate
    span: int = 0
    minus: int = -1
    """Index of the span to subtract, -1 for none."""
    step: int = 1

    @property
    def op(self) -> Op:
        """What is computed."""
        return self.aggregate.op


@dataclass(frozen=True)
class WindowView:
    """Aggregates of events by one key column: the unit of state and of registration.

    Events of type ``event`` count, and of the types in ``also``; all of them have the key.
    """

    name: str
    entity: str
    event: str
    key: str
    aggregates: tuple[Aggregate, ...]
    spans: tuple[Span, ...] = DEFAULT_SPANS
    description: str = ""
    owner: str = ""
    tags: tuple[tuple[str, str], ...] = ()
    also: tuple[str, ...] = ()

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
        if len(set(self.events)) != len(self.events):
            raise DeclarationError(f"view {self.name!r} names an event type more than once")
        for a in self.aggregates:
            self._check(a)
        _ = self.sketches
        if len(self.filters) > MOST_FILTERS:
            raise DeclarationError(
                f"view {self.name!r} has {len(self.filters)} conditions",
                hint=f"At most {MOST_FILTERS}; spread them over several views.",
            )
        names = [c.name for c in self.columns]
        doubled = sorted({n for n in names if names.count(n) > 1})
        if doubled:
            raise DeclarationError(
                f"view {self.name!r} computes {doubled} more than once",
                hint="Give one of them a name=.",
            )

    def _check(self, a: Aggregate) -> None:
        if a.op not in {Op.COUNT, Op.SINCE_LAST} and not a.column:
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
        if a.registers and (
            not 64 <= a.registers <= MOST_REGISTERS or a.registers & (a.registers - 1)
        ):
            raise DeclarationError(
                f"view {self.name!r}: {a.stem} has {a.registers} registers",
                hint=f"Use a power of two from 64 to {MOST_REGISTERS}.",
            )
        if not a.steps or not all(1 <= step <= MOST_STEPS for step in a.steps):
            raise DeclarationError(
                f"view {self.name!r}: {a.stem} has steps {a.steps}",
                hint=f"Steps count back from 1, the newest event, to at most {MOST_STEPS}.",
            )
        if a.of and a.of not in self.events:
            raise DeclarationError(
                f"view {self.name!r}: {a.stem} is of {a.of!r}, which the view doesn't count",
                hint="It counts: " + ", ".join(self.events),
            )
        if a.name and not _NAME.fullmatch(a.name):
            raise DeclarationError(
                f"view {self.name!r}: name {a.name!r}",
                hint="Use lower case letters, digits, underscores.",
            )
        if a.where:
            if not a.name:
                raise DeclarationError(
                    f"view {self.name!r}: {a.stem} where {a.where!r} needs a name",
                    hint="The condition is not part of a feature's name: add name='...'.",
                )
            Condition(a.where)

    @cached_property
    def events(self) -> tuple[str, ...]:
        """The event types that count."""
        return (self.event, *self.also)

    @property
    def horizon(self) -> int:
        """The longest span in seconds: how far back history matters."""
        return self.spans[-1].length

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """Every output with its name, in declared order."""
        out: list[Column] = []
        for a in self.aggregates:
            stem = f"{self.name}_{a.stem}"
            if a.op in SINGLE:
                out += [
                    Column(stem if step == 1 else f"{stem}_{step}", a, step=step)
                    for step in a.steps
                ]
                continue
            for label in a.over or [s.label for s in self.spans]:
                out.append(Column(f"{stem}_{label}", a, self._span(label)))
            for long, short in a.lags:
                i, j = self._span(long), self._span(short)
                if j >= i:
                    raise DeclarationError(f"view {self.name!r}: lag {long} before {short}")
                out.append(Column(f"{stem}_{long}_before_{short}", a, i, j))
        return tuple(out)

    def _span(self, label: str) -> int:
        labels = [s.label for s in self.spans]
        if label not in labels:
            raise DeclarationError(
                f"view {self.name!r} has no span {label!r}", hint="It has: " + ", ".join(labels)
            )
        return labels.index(label)

    @cached_property
    def summed_columns(self) -> tuple[str, ...]:
        """Integer columns that enter tiles, in first-use order."""
        return tuple(
            dict.fromkeys(
                a.column for a in self.aggregates if a.column and a.op not in {Op.DISTINCT, *SINGLE}
            )
        )

    @cached_property
    def value_columns(self) -> tuple[str, ...]:
        """Every integer column that is read: those that enter tiles first."""
        remembered = (a.column for a in self.aggregates if a.op is Op.LAST)
        return tuple(dict.fromkeys((*self.summed_columns, *remembered)))

    @cached_property
    def sketches(self) -> tuple[Sketch, ...]:
        """Every distinct sketch, in first-use order; a column has one."""
        found: dict[str, Sketch] = {}
        for a in self.aggregates:
            if a.op is Op.DISTINCT:
                sketch = Sketch(a.column, 0 if a.registers else a.bits, a.registers)
                if found.setdefault(a.column, sketch) != sketch:
                    raise DeclarationError(f"view {self.name!r}: two widths for {a.column!r}")
        return tuple(found.values())

    def filter(self, a: Aggregate) -> Filter:
        """Which events an aggregate of this view counts."""
        return Filter("" if len(self.events) == 1 else a.of, a.where)

    @cached_property
    def filters(self) -> tuple[Filter, ...]:
        """Every filter that leaves events out, in first-use order."""
        found = dict.fromkeys(self.filter(a) for a in self.aggregates)
        found.pop(Filter("", ""), None)
        return tuple(found)

    @property
    def column_names(self) -> tuple[str, ...]:
        """Feature names in output order."""
        return tuple(c.name for c in self.columns)

    def describe(self) -> dict[str, Any]:
        """Plain data for hashes and documents; text that changes no value is left out."""
        return {
            "name": self.name,
            "entity": self.entity,
            "events": list(self.events),
            "key": self.key,
            "spans": [[s.label, s.length, s.hop] for s in self.spans],
            "columns": [
                [
                    c.name,
                    c.op.name,
                    c.aggregate.column,
                    c.span,
                    c.minus,
                    c.step,
                    c.aggregate.of,
                    c.aggregate.where,
                ]
                for c in self.columns
            ],
            "sketches": [[s.column, s.bits, s.registers] for s in self.sketches],
        }

    @cached_property
    def definition_hash(self) -> str:
        """sha256 of what determines the values."""
        return hashlib.sha256(canonical_json(self.describe())).hexdigest()
