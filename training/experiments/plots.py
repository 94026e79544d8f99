"""Intervals as coordinates of SVG plots; the report's template draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raypipe.clock import DAY_MS
from raypipe.experiments.results import Finding, Look
from training.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from training.whiskers import Row, Whiskers, laid_out, scale


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
    rows = [
        Row(
            name(f),
            lift,
            low,
            high,
            ("good" if f.good else "bad") if f.significant else "open",
            f"{100 * lift:+.2f} % ({100 * low:+.2f} to {100 * high:+.2f})",
        )
        for f, lift, low, high in drawn
    ]
    return laid_out(rows, percent=True)


def name(finding: Finding) -> str:
    """What a finding is of."""
    where = f" · {finding.segment} {finding.value}" if finding.segment else ""
    return f"{finding.metric} · {finding.arm}{where}"
