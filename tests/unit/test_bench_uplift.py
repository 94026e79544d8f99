"""The suite `uplift` in a shop so small that it says little, but all of it runs."""

from __future__ import annotations

import pytest

from benchmarks.uplift import Sizes, measure

SMALL = Sizes(
    shoppers=2_500,
    items=200,
    history=24,
    days=8,
    gap=20,
    learn=4,
    choose=2,
    candidates=30,
    rounds=20,
)


@pytest.mark.slow  # a shop's whole history is fitted twice
def test_experiments_know_the_planted_uplifts_and_a_new_fit_is_better() -> None:
    found = {name: float(value or 0) for name, value in measure(SMALL, 7).figures.items()}
    assert found["low"] < found["uplift_estimate"] < found["high"]
    assert found["low"] < found["uplift_true"] < found["high"]
    assert found["uplift_true"] > 0
    for name in ("uplift_after_retrain", "uplift_without_retrain"):
        low, high = found[f"{name}_low"], found[f"{name}_high"]
        assert low < found[f"{name}_true"] < high
    assert found["uplift_after_retrain_true"] > found["uplift_without_retrain_true"]
    assert found["retrain_gain_clicks_low"] > 0
    assert found["units"] > 1_000
