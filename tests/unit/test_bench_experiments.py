"""The suite `experiments` on so few trials that its rates say nothing, but all of it runs."""

from __future__ import annotations

import argparse

from benchmarks import experiments


def test_figures_have_the_agreed_names() -> None:
    found = experiments.run(argparse.Namespace(quick=True, trials=3, planted=3)).figures
    agreed = {
        "aa_false_positive_rate",
        "aa_alpha",
        "naive_false_positive_rate",
        "power_gap",
        "cuped_variance_ratio",
        "assign_us",
        "assignments_per_s",
    }
    assert agreed <= set(found)
    assert found["aa_alpha"] == 0.05
    rates = [name.removesuffix("_low") for name in found if name.endswith("_low")]
    assert {"aa_false_positive_rate", "power_measured", "offpolicy_coverage_dr"} <= set(rates)
    for name in rates:
        low, share, high = (float(found[n] or 0) for n in (f"{name}_low", name, f"{name}_high"))
        assert 0.0 <= low <= share <= high <= 1.0
