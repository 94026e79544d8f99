"""Curves as coordinates of an SVG plot; the report's template draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

WIDTH, HEIGHT = 440.0, 280.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 12.0, 40.0

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale from ``low`` to ``high``, linear or logarithmic, with labelled ticks."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies, 0 to 1; values outside sit on the edge.

        >>> Axis(0.01, 1.0, (), log=True).place(0.1)
        0.5
        """
        value = min(max(value, self.low), self.high)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


UNIT = Axis(0.0, 1.0, tuple((t / 4, f"{t * 25} %") for t in range(5)))
FPR = Axis(
    1e-4,
    1.0,
    ((1e-4, "0.01 %"), (1e-3, "0.1 %"), (1e-2, "1 %"), (1e-1, "10 %"), (1.0, "100 %")),
    log=True,
)


@dataclass(frozen=True, slots=True)
class Mark:
    """A named point on a curve; ``kind`` selects its colour."""

    x: float
    y: float
    kind: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A plot of one curve; coordinates are pixels of the SVG."""

    title: str
    x_label: str
    y_label: str
    line: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    marks: tuple[Mark, ...]
    baseline: float | None

    width = WIDTH
    height = HEIGHT
    left = LEFT
    right = WIDTH - RIGHT
    top = TOP
    bottom = HEIGHT - BOTTOM


def chart(
    title: str,
    labels: tuple[str, str],
    axes: tuple[Axis, Axis],
    points: Points,
    marks: Sequence[Mark] = (),
    *,
    baseline: float | None = None,
    steps: bool = False,
) -> Chart:
    """Lay a curve out.

    ``baseline`` is a y value drawn as a dashed line. With ``steps`` y keeps its value until the
    next x, as it does between the points of a step curve.
    """
    x_axis, y_axis = axes

    if steps:
        corners = [(x, y) for (_, y), (x, _) in pairwise(points)]
        points = [p for pair in zip(points, [*corners, points[-1]], strict=True) for p in pair]

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            round(LEFT + x_axis.place(x) * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - y_axis.place(y) * (HEIGHT - TOP - BOTTOM), 1),
        )

    return Chart(
        title,
        *labels,
        line=" ".join("{},{}".format(*at(x, y)) for x, y in points),
        x_ticks=tuple((at(v, y_axis.low)[0], text) for v, text in x_axis.ticks),
        y_ticks=tuple((at(x_axis.low, v)[1], text) for v, text in y_axis.ticks),
        marks=tuple(Mark(*at(m.x, m.y), m.kind) for m in marks),
        baseline=None if baseline is None else at(x_axis.low, baseline)[1],
    )
