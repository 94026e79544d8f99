"""The suite `uplift` in a shop so small that it says little, but all of it runs."""

from __future__ import annotations

import pytest

from benchmarks.uplift import Sizes, measure

SMALL = Sizes(
    shoppers=1_800,
    items=250,
    history=20,
    days=8,
    gap=20,
    learn=5,
    choose=2,
    candidates=40,
    rounds=30,
)


@pytest.mark.slow  # a whole shop is fitted three times
def test_the_planted_uplift_is_found_and_a_new_fit_keeps_it() -> None:
    found = {name: float(value or 0) for name, value in measure(SMALL, 7).figures.items()}
    assert 0 < found["low"] < found["uplift_estimate"] < found["high"]
    assert found["low"] < found["uplift_true"] < found["high"]
    assert found["uplift_after_retrain_true"] > found["uplift_without_retrain_true"]
    for name in ("uplift_after_retrain", "uplift_without_retrain"):
        low, high = found[f"{name}_low"], found[f"{name}_high"]
        assert low < found[f"{name}_true"] < high
    assert found["units"] > 600
