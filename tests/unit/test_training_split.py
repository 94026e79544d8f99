"""Time order, gaps, and parts that can't be used."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.clock import DAY_MS, HOUR_MS
from raypipe.errors import StageError, UsageError
from tests.unit.training_kit import START_MS
from training.split import time_split

DAY_ONE = START_MS // DAY_MS * DAY_MS


def hourly(days: int) -> tuple[np.ndarray, np.ndarray]:
    times = DAY_ONE + HOUR_MS * np.arange(days * 24, dtype=np.int64)
    return times, (np.arange(len(times)) % 5 == 0).astype(np.uint8)


def test_parts_follow_each_other_with_the_horizon_between_them() -> None:
    times, y = hourly(100)
    split = time_split(times, y, horizon_ms=7 * DAY_MS)
    assert split.gap_ms == 7 * DAY_MS
    assert split.warning == ""
    rows = [p.rows(times) for p in split.parts]
    for (earlier, a), (later, b) in pairwise(zip(split.parts, rows, strict=True)):
        assert later.start_ms - earlier.end_ms == 7 * DAY_MS
        assert times[b].min() - times[a].max() > 7 * DAY_MS
    assert times[rows[0]].min() == times.min()
    assert times[rows[2]].max() == times.max()


def test_every_training_label_is_known_when_validation_begins() -> None:
    times, y = hourly(60)
    split = time_split(times, y, horizon_ms=5 * DAY_MS)
    newest = times[split.train.rows(times)].max()
    assert newest + 5 * DAY_MS < split.validation.start_ms


def test_shares_are_of_the_time_outside_the_gaps() -> None:
    times, y = hourly(100)
    split = time_split(times, y, horizon_ms=5 * DAY_MS, validation_share=0.1, test_share=0.3)
    days = [round((p.end_ms - p.start_ms) / DAY_MS) for p in split.parts]
    assert days == [54, 9, 27]


def test_a_part_has_its_start_and_not_its_end() -> None:
    times, y = hourly(100)
    split = time_split(times, y, horizon_ms=0)
    for earlier, later in pairwise(split.parts):
        assert earlier.end_ms == later.start_ms
    assert sum(len(p.rows(times)) for p in split.parts) == len(times)


def test_order_of_rows_does_not_matter() -> None:
    times, y = hourly(100)
    mixed = np.random.default_rng(0).permutation(len(times))
    split = time_split(times, y, horizon_ms=DAY_MS)
    assert time_split(times[mixed], y[mixed], horizon_ms=DAY_MS) == split
    assert sorted(times[mixed][split.test.rows(times[mixed])]) == list(
        times[split.test.rows(times)]
    )


def test_a_short_history_gets_shorter_gaps_and_a_warning() -> None:
    times, y = hourly(20)
    split = time_split(times, y, horizon_ms=7 * DAY_MS)
    assert split.gap_ms == pytest.approx(5 * DAY_MS, rel=0.01)
    assert "20.0 days" in split.warning
    assert "optimistic" in split.warning


def test_a_demanded_gap_that_does_not_fit_is_refused() -> None:
    times, y = hourly(20)
    assert time_split(times, y, horizon_ms=DAY_MS, gap_ms=6 * DAY_MS).gap_ms == 6 * DAY_MS
    with pytest.raises(UsageError, match=r"10\.0 days don't fit"):
        time_split(times, y, horizon_ms=DAY_MS, gap_ms=10 * DAY_MS)


@pytest.mark.parametrize(("validation", "test"), [(0.0, 0.2), (0.2, 0.0), (0.5, 0.5), (-1.0, 0.5)])
def test_shares_that_leave_nothing_are_refused(validation: float, test: float) -> None:
    times, y = hourly(20)
    with pytest.raises(UsageError, match="leave nothing"):
        time_split(times, y, horizon_ms=0, validation_share=validation, test_share=test)


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize(("value", "lacking"), [(0, "positive"), (1, "negative")])
def test_a_part_with_one_class_is_refused_by_name(part: str, value: int, lacking: str) -> None:
    times, y = hourly(100)
    split = time_split(times, y, horizon_ms=DAY_MS)
    y[getattr(split, part).rows(times)] = value
    with pytest.raises(StageError, match=f"{part} .* has no {lacking} row"):
        time_split(times, y, horizon_ms=DAY_MS)


@given(
    st.lists(st.integers(0, 90 * DAY_MS), min_size=3, max_size=60),
    st.integers(0, 20 * DAY_MS),
    st.floats(0.05, 0.45),
    st.floats(0.05, 0.45),
)
def test_no_row_is_in_two_parts_and_gaps_are_empty(
    times: list[int], horizon: int, validation: float, test: float
) -> None:
    at = np.array(times, np.int64)
    y = (np.arange(len(at)) % 2).astype(np.uint8)
    try:
        split = time_split(at, y, horizon_ms=horizon, validation_share=validation, test_share=test)
    except StageError:
        return
    edges = [e for p in split.parts for e in (p.start_ms, p.end_ms)]
    assert edges == sorted(edges)
    for p in split.parts:
        expected = [i for i, t in enumerate(times) if p.start_ms <= t < p.end_ms]
        assert p.rows(at).tolist() == expected
    assert split.gap_ms <= horizon
