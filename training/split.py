"""Train, validation and test in time order, with gaps for labels that arrive late."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from raypipe.clock import DAY_MS
from raypipe.errors import StageError, UsageError

_LONGEST_GAPS = 0.5
"""Share of the history that both default gaps together may take."""


@dataclass(frozen=True, slots=True)
class Part:
    """Events with ``start_ms <= event_time < end_ms``."""

    name: str
    start_ms: int
    end_ms: int

    def rows(self, event_time: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Their places, ascending, int64."""
        return np.flatnonzero((event_time >= self.start_ms) & (event_time < self.end_ms))

    def __str__(self) -> str:
        first, last = (
            datetime.fromtimestamp(t / 1000, UTC).strftime("%Y-%m-%d %H:%M")
            for t in (self.start_ms, self.end_ms)
        )
        return f"{self.name} {first} to {last}"


@dataclass(frozen=True, slots=True)
class Split:
    """Three parts of the history. ``gap_ms`` lies between each two of them."""

    train: Part
    validation: Part
    test: Part
    gap_ms: int
    warning: str = ""

    @property
    def parts(self) -> tuple[Part, Part, Part]:
        """The parts in time order."""
        return self.train, self.validation, self.test


def time_split(
    event_time: npt.NDArray[np.int64],
    y: npt.NDArray[np.uint8],
    *,
    horizon_ms: int,
    gap_ms: int | None = None,
    validation_share: float = 0.2,
    test_share: float = 0.2,
) -> Split:
    """Split a history by time, never at random.

    The gap stands for the time after which labels are known: with a gap of one label horizon every
    label of train is known when validation begins, and every label of validation (which sets the
    thresholds) when test begins.

    Args:
        event_time: int64 ms [n], in any order.
        y: labels [n].
        horizon_ms: the label's horizon, the default gap. A history too short for it gets shorter
            gaps and a ``warning``.
        gap_ms: a demanded gap; a history too short for it is refused.
        validation_share: share of the time outside the gaps.
        test_share: likewise.

    Raises:
        UsageError: shares or gap that can't be.
        StageError: a part without positive or without negative rows.
    """
    if not (validation_share > 0 and test_share > 0 and validation_share + test_share < 1):
        raise UsageError(
            f"validation {validation_share} and test {test_share} leave nothing to train on",
            hint="Both must be above 0 and together below 1.",
        )
    start, end = int(event_time.min()), int(event_time.max()) + 1
    history = end - start
    gap, warning = _gap(history, horizon_ms, gap_ms)
    usable = history - 2 * gap
    test_from = end - int(usable * test_share)
    validation_to = test_from - gap
    validation_from = validation_to - int(usable * validation_share)
    split = Split(
        Part("train", start, validation_from - gap),
        Part("validation", validation_from, validation_to),
        Part("test", test_from, end),
        gap,
        warning,
    )
    for part in split.parts:
        of_part = y[part.rows(event_time)]
        for what, count in (
            ("positive", int(of_part.sum())),
            ("negative", len(of_part) - int(of_part.sum())),
        ):
            if not count:
                raise StageError(
                    f"{part} has no {what} row among {len(of_part)}",
                    hint="Load more history, or give this part a larger share.",
                )
    return split


def _gap(history: int, horizon_ms: int, gap_ms: int | None) -> tuple[int, str]:
    if gap_ms is not None:
        if gap_ms < 0 or 2 * gap_ms >= history:
            raise UsageError(
                f"two gaps of {gap_ms / DAY_MS:.1f} days don't fit into a labelled history of "
                f"{history / DAY_MS:.1f} days",
                hint="Load more history or ask for a shorter gap.",
            )
        return gap_ms, ""
    if 2 * horizon_ms <= history * _LONGEST_GAPS:
        return horizon_ms, ""
    gap = int(history * _LONGEST_GAPS / 2)
    return gap, (
        f"a labelled history of {history / DAY_MS:.1f} days is too short for gaps of the label "
        f"horizon ({horizon_ms / DAY_MS:.1f} days): they are {gap / DAY_MS:.1f} days. Some labels "
        "were not yet known when the next part begins, so the figures are optimistic"
    )
