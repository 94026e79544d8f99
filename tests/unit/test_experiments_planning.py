from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from raypipe.clock import DAY_MS
from raypipe.errors import StageError
from raypipe.experiments.power import Baseline, units_for
from raypipe.experiments.spec import Arm, Direction, Experiment, Kind, Metric
from training.experiments.planning import forecast

EXPERIMENT = Experiment(
    name="softer",
    version=1,
    unit="buyer_id",
    arms=(Arm("old", 0.3), Arm("new", 0.2)),
    metrics=(Metric("spent", "revenue", Kind.MEAN, Direction.UP),),
    horizon_ms=20 * DAY_MS,
    minimum_effect=0.06,
    holdout=0.1,
)
A_DAY, DAYS = 1_000, 40


def history(**columns: object) -> pa.Table:
    """A thousand units a day for forty days."""
    n = A_DAY * DAYS
    spent = np.random.default_rng(3).exponential(10.0, n)
    found = {
        "unit": [str(i) for i in range(n)],
        "arm": ["old"] * n,
        "exposed_at": 5 * DAY_MS + np.arange(n) // A_DAY * DAY_MS,
        "spent": spent,
        "spent__mature": np.ones(n, bool),
    }
    return pa.table({**found, **columns})


def test_a_plan_is_that_of_the_history_and_days_are_those_in_which_units_come() -> None:
    found = forecast(EXPERIMENT, history())
    spent = history()["spent"].to_numpy()
    assert (found.mean, found.variance) == pytest.approx((spent.mean(), spent.var(ddof=1)))
    assert found.variance_ratio is None
    (plan,) = found.arms
    expected = units_for(
        Baseline(found.mean, found.variance), 0.06, {"old": 0.3, "new": 0.2}, looks=20
    )
    assert (plan.units, plan.one_look_units) == (expected.units, expected.fixed_units)
    # Half of those who come are in both arms, less the holdout.
    a_day = A_DAY * 0.5 * 0.9
    assert plan.days == -(-plan.units // a_day)
    assert plan.units_in_horizon == 20 * a_day
    drift = plan.detectable * np.sqrt(plan.units_in_horizon)
    assert drift == pytest.approx(0.06 * np.sqrt(plan.units), rel=1e-3)
    assert found.planned_units == plan.units


def test_waiting_for_outcomes_takes_days_and_units() -> None:
    now, late = forecast(EXPERIMENT, history()), forecast(EXPERIMENT, history(), 5 * DAY_MS)
    assert now.arms[0].days is not None
    assert late.arms[0].days == now.arms[0].days + 5
    assert late.arms[0].units_in_horizon == 0.75 * now.arms[0].units_in_horizon


def test_what_was_so_before_needs_fewer_units() -> None:
    spent = history()["spent"].to_numpy()
    before = spent + np.random.default_rng(4).normal(0, 5, len(spent))
    found = forecast(EXPERIMENT, history(spent__before=before))
    assert found.variance_ratio == pytest.approx(0.2, abs=0.02)
    plain = forecast(EXPERIMENT, history())
    assert found.arms[0].units == pytest.approx(0.2 * plain.arms[0].units, rel=0.1)


def test_a_history_that_is_too_short_says_so() -> None:
    assert forecast(replace(EXPERIMENT, minimum_effect=0.01), history()).arms[0].days is None


def test_each_of_two_arms_is_planned_at_its_strictest_step() -> None:
    three = replace(EXPERIMENT, arms=(*EXPERIMENT.arms, Arm("newer", 0.2)))
    two = forecast(three, history()).arms
    assert two[0].units == two[1].units > forecast(EXPERIMENT, history()).arms[0].units


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (history().slice(0, 1), "1 units of history"),
        (history(spent=np.zeros(A_DAY * DAYS)), "is 0 for all units"),
    ],
)
def test_nothing_to_plan_from_is_refused(table: pa.Table, words: str) -> None:
    with pytest.raises(StageError, match=words):
        forecast(EXPERIMENT, table)
