"""Estimates with their intervals, one below the other, as coordinates of an SVG plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from training.charts import RIGHT, WIDTH, Axis

ROW, NAMES, MARGIN = 26.0, 220.0, 24.0
"""A row's height, the width of its names, and what is above and below the rows."""


@dataclass(frozen=True, slots=True)
class Row:
    """An estimate to draw; ``kind`` is a colour's name, ``text`` what pointing at it says."""

    name: str
    value: float
    low: float
    high: float
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Whisker:
    """A row: its name, the interval's ends, the estimate, and a colour's name."""

    name: str
    y: float
    low: float
    high: float
    at: float
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Whiskers:
    """Rows one below the other, over one axis."""

    rows: tuple[Whisker, ...]
    ticks: tuple[tuple[float, str], ...]
    zero: float
    height: float

    width = WIDTH * 2
    left = NAMES
    right = WIDTH * 2 - RIGHT


def scale(low: float, high: float, *, percent: bool = False) -> Axis:
    """A linear axis that holds both ends, with about five round ticks.

    >>> [text for _, text in scale(-0.013, 0.021, percent=True).ticks]
    ['-2 %', '-1 %', '0 %', '1 %', '2 %', '3 %']
    """
    span = high - low or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next(f for f in (1, 2, 5, 10) if span / (step * f) <= 5)
    first = math.floor(low / step)
    last = max(math.ceil(high / step), first + 1)
    values = [n * step for n in range(first, last + 1)]
    texts = [f"{100 * v:.6g} %" if percent else f"{v:.6g}" for v in values]
    return Axis(values[0], values[-1], tuple(zip(values, texts, strict=True)))


def laid_out(rows: Sequence[Row], *, percent: bool = False) -> Whiskers:
    """At least one row, over an axis that holds zero."""
    # An interval of thousands of percent would make all others points.
    reach = 3 * sorted(max(abs(r.low), abs(r.high)) for r in rows)[len(rows) // 2]
    axis = scale(
        max(min(0.0, *(r.low for r in rows)), -reach),
        min(max(0.0, *(r.high for r in rows)), reach),
        percent=percent,
    )

    def x(value: float) -> float:
        return round(NAMES + axis.place(value) * (WIDTH * 2 - NAMES - RIGHT), 1)

    drawn = tuple(
        Whisker(r.name, MARGIN + (i + 0.5) * ROW, x(r.low), x(r.high), x(r.value), r.kind, r.text)
        for i, r in enumerate(rows)
    )
    ticks = tuple((x(v), text) for v, text in axis.ticks)
    return Whiskers(drawn, ticks, x(0.0), 2 * MARGIN + ROW * len(rows))
