"""The next shares of a bandit, from what its arms have earned so far."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa

from raypipe.errors import StageError
from raypipe.experiments.bandit import FLOOR, Posterior, Shares, thompson
from raypipe.experiments.offpolicy import Value, snips
from raypipe.experiments.sequential import FIRST_UNITS
from raypipe.experiments.spec import Direction, Experiment, Kind
from training.experiments.units import Units

PROPENSITY = "propensity"
"""The column of the table of units with the chance that a unit had to get its arm; without it the
experiment's shares are taken, which is right while they did not change."""


def arm_values(experiment: Experiment, table: pa.Table) -> dict[str, Value]:
    """What each arm would have earned, had all units been in it, by the primary metric.

    Units are weighted by their propensities: an arm that got its units late must not be praised
    for a better week.

    Raises:
        StageError: the metric is a ratio, or an arm has too few complete units.
    """
    primary = experiment.primary
    if primary.kind is Kind.RATIO:
        raise StageError(
            f"a bandit by {primary.name}, which is a ratio",
            hint="Choose a metric of kind mean or share; rewards belong to one unit each.",
        )
    units = Units(experiment, table)
    values = units.values(primary)
    counted = units.by_arm(values.rows)
    few = [name for name, n in counted.items() if n < FIRST_UNITS]
    if few:
        raise StageError(
            f"{', '.join(few)} of {experiment.id} have less than {FIRST_UNITS} complete units",
            hint="Keep the shares as they are until they have.",
        )
    arm = units.arm[values.rows]
    if PROPENSITY in table.column_names:
        chance = table[PROPENSITY].to_numpy()[values.rows]
    else:
        chance = np.array([a.share / experiment.share for a in experiment.arms])[arm]
    return {
        name: snips(values.columns[0], chance, (arm == place).astype(np.float64))
        for place, name in enumerate(units.arms)
    }


def next_shares(experiment: Experiment, table: pa.Table, *, floor: float = FLOOR) -> Shares:
    """By Thompson's rule; the next version of the experiment takes them, with the same salt."""
    posteriors = {
        name: Posterior("norm", v.value, max(v.error, math.ulp(1.0)))
        for name, v in arm_values(experiment, table).items()
    }
    lower = experiment.primary.direction is Direction.DOWN
    return thompson(posteriors, floor=floor, lower_is_better=lower)


def next_version(experiment: Experiment, found: Shares) -> Experiment:
    """The experiment with these shares of what its arms have together, under the next number."""
    *others, last = experiment.arms
    given = {a.name: round(found.share[a.name] * experiment.share, 4) for a in others}
    given[last.name] = round(experiment.share - sum(given.values()), 6)
    arms = tuple(replace(a, share=given[a.name]) for a in experiment.arms)
    return replace(experiment, version=experiment.version + 1, arms=arms)
