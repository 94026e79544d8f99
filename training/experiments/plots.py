"""Intervals as coordinates of SVG plots; the report's template draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from raypipe.clock import DAY_MS
from raypipe.experiments.results import Finding, Look
from training.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis

ROW, NAMES, MARGIN = 26.0, 220.0, 24.0
"""Of the plot of lifts: a row's height, the width of its names, and what is above and below."""


@dataclass(frozen=True, slots=True)
class Band:
    """An estimate with its interval over time; coordinates are pixels of the SVG."""

    title: str
    line: str
    band: str
    zero: float
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]

    width = WIDTH
    height = HEIGHT
    left = LEFT
    right = WIDTH - RIGHT
    top = TOP
    bottom = HEIGHT - BOTTOM


@dataclass(frozen=True, slots=True)
class Whisker:
    """A finding as a row: its name, the interval's ends, the estimate, and a colour's name."""

    name: str
    y: float
    low: float
    high: float
    at: float
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Whiskers:
    """Lifts one below the other, over one axis."""

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


def band(title: str, looks: Sequence[Look]) -> Band:
    """How the interval of one arm closed in, look by look."""
    start = looks[0].until_ms - DAY_MS
    days = [(look.until_ms - start) / DAY_MS for look in looks]
    x_axis = scale(0.0, max(*days, 1.0))
    # The first looks know little: their ends are cut, so that the last can be read.
    shown = looks[len(looks) // 4 :]
    y_axis = scale(min(0.0, *(k.low for k in shown)), max(0.0, *(k.high for k in shown)))

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            round(LEFT + x_axis.place(x) * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - y_axis.place(y) * (HEIGHT - TOP - BOTTOM), 1),
        )

    def points(values: Sequence[tuple[float, float]]) -> str:
        return " ".join("{},{}".format(*at(x, y)) for x, y in values)

    up = list(zip(days, (k.high for k in looks), strict=True))
    down = list(zip(days, (k.low for k in looks), strict=True))
    return Band(
        title,
        points(list(zip(days, (k.difference for k in looks), strict=True))),
        points([*up, *reversed(down)]),
        at(0.0, 0.0)[1],
        tuple((at(v, y_axis.low)[0], text) for v, text in x_axis.ticks),
        tuple((at(0.0, v)[1], text) for v, text in y_axis.ticks),
    )


def whiskers(findings: Sequence[Finding]) -> Whiskers | None:
    """Lifts with their intervals; findings without a lift are left to the tables.

    None if there is nothing to draw.
    """
    drawn = [
        (f, f.lift, f.lift_low, f.lift_high)
        for f in findings
        if f.lift is not None and f.lift_low is not None and f.lift_high is not None
    ]
    if not drawn:
        return None
    # An interval of thousands of percent would make all others points.
    reach = 3 * sorted(max(abs(low), abs(high)) for _, _, low, high in drawn)[len(drawn) // 2]
    axis = scale(
        max(min(0.0, *(low for _, _, low, _ in drawn)), -reach),
        min(max(0.0, *(high for *_, high in drawn)), reach),
        percent=True,
    )

    def x(value: float) -> float:
        return round(NAMES + axis.place(value) * (WIDTH * 2 - NAMES - RIGHT), 1)

    rows = tuple(
        Whisker(
            name(f),
            MARGIN + (i + 0.5) * ROW,
            x(low),
            x(high),
            x(lift),
            ("good" if f.good else "bad") if f.significant else "open",
            f"{100 * lift:+.2f} % ({100 * low:+.2f} to {100 * high:+.2f})",
        )
        for i, (f, lift, low, high) in enumerate(drawn)
    )
    ticks = tuple((x(v), text) for v, text in axis.ticks)
    return Whiskers(rows, ticks, x(0.0), 2 * MARGIN + ROW * len(rows))


def name(finding: Finding) -> str:
    """What a finding is of."""
    where = f" · {finding.segment} {finding.value}" if finding.segment else ""
    return f"{finding.metric} · {finding.arm}{where}"
