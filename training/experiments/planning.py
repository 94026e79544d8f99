"""How long an experiment has to run, from the history of those who would be in it.

The table of units is made over a past period of at least the horizon, with everyone who would have
been exposed in the control arm: ``exposed_at`` is when each would have come.
"""

from __future__ import annotations

import msgspec
import numpy as np
import pyarrow as pa

from raypipe.clock import DAY_MS
from raypipe.errors import StageError
from raypipe.experiments.cuped import adjust
from raypipe.experiments.power import Baseline, detectable, units_for
from raypipe.experiments.spec import Arm, Experiment, Kind
from training.experiments.units import Units


class ArmPlan(msgspec.Struct, frozen=True):
    """What the control and one arm need.

    ``units`` are of both, so that ``minimum_effect`` is found with ``power`` by the horizon, looked
    at daily; ``expected_units`` is the mean number at which it is found, if it is as large;
    ``one_look_units`` is what a test with a single look would need. ``days`` is when ``units`` have
    come and are complete, None if the history is too short to say; ``detectable`` is the relative
    effect that those who come within the horizon find.
    """

    arm: str
    units: int
    expected_units: int
    one_look_units: int
    days: int | None
    units_in_horizon: int
    detectable: float


class Forecast(msgspec.Struct, frozen=True):
    """A plan by arm, and what it was made of: ``units`` a history, of ``history_days`` days.

    ``mean`` and ``variance`` are those of the primary metric of a unit, capped as declared;
    ``variance_ratio`` is what CUPED leaves of it, None without a past.
    """

    experiment: str
    metric: str
    minimum_effect: float
    alpha: float
    power: float
    history_days: int
    history_units: int
    mean: float
    variance: float
    variance_ratio: float | None
    arms: list[ArmPlan]

    @property
    def planned_units(self) -> int:
        """What ``analyse`` is to be tuned for: the largest need of an arm and the control."""
        return max(a.units for a in self.arms)


def forecast(experiment: Experiment, table: pa.Table, maturity_ms: int = 0) -> Forecast:
    """Plan for the primary metric.

    Args:
        table: the history, as ``training.experiments.units`` describes it.
        maturity_ms: from a unit's exposure until its metric is complete.

    Raises:
        StageError: nobody was there, or the metric did not vary.
    """
    units = Units(experiment, table)
    values = units.values(experiment.primary)
    if len(values.rows) < 2:
        raise StageError(
            f"{len(values.rows)} units of history can't plan {experiment.id}",
            hint="Choose a period in which the events came that make a unit eligible.",
        )
    whole = values.groups(np.zeros(len(units), np.int64), 1)[0]
    if values.metric.kind is Kind.RATIO and not whole.mean[1]:
        raise StageError(f"{values.metric.name} has no rows in the history", hint="Check it.")
    found = adjust({"all": values.pair(whole)})
    one = found.arms["all"]
    baseline = Baseline(one.value, one.variance * one.n)
    if not (baseline.mean and baseline.variance > 0.0):
        raise StageError(
            f"{values.metric.name} is {baseline.mean:g} for all units of the history",
            hint="What never varies can't be tested: check `of`, `where` and `value`.",
        )
    come = np.sort((units.exposed - units.exposed.min()) // DAY_MS)
    return Forecast(
        experiment=experiment.id,
        metric=values.metric.name,
        minimum_effect=experiment.minimum_effect,
        alpha=experiment.alpha,
        power=experiment.power,
        history_days=int(come[-1]) + 1,
        history_units=len(units),
        mean=baseline.mean,
        variance=baseline.variance,
        variance_ratio=found.variance_ratio if values.covariate else None,
        arms=[
            _arm_plan(experiment, arm, baseline, np.bincount(come).cumsum(), maturity_ms)
            for arm in experiment.arms[1:]
        ],
    )


def _arm_plan(
    experiment: Experiment, arm: Arm, baseline: Baseline, come: np.ndarray, maturity_ms: int
) -> ArmPlan:
    e = experiment
    shares = {e.control.name: e.control.share, arm.name: arm.share}
    days = -(-e.horizon_ms // DAY_MS)
    # Beside others an arm is judged at its step of Holm's; the strictest is planned for.
    alpha = e.alpha / (len(e.arms) - 1)
    plan = units_for(
        baseline, e.minimum_effect, shares, alpha=alpha, power=e.power, looks=int(days)
    )
    of_both = come * sum(shares.values()) * (1.0 - e.holdout)
    waiting = -(-maturity_ms // DAY_MS)
    enough = int(np.searchsorted(of_both, plan.units)) + 1
    counted = int(of_both[min(max(int(days - waiting), 1), len(come)) - 1])
    return ArmPlan(
        arm.name,
        plan.units,
        plan.expected_units,
        plan.fixed_units,
        enough + int(waiting) if enough <= len(come) else None,
        counted,
        detectable(baseline, max(counted, 1), shares, alpha=alpha, power=e.power, looks=int(days)),
    )
