"""Trials of an experiment without an effect, or with a planted one, looked at every day."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.trials.world import DAYS, Floats
from raypipe.experiments.cuped import adjust
from raypipe.experiments.effects import Effect, linearised
from raypipe.experiments.moments import Moments
from raypipe.experiments.sequential import FIRST_UNITS, Mixture

ALPHA = 0.05
CONTROL, ARM = "control", "arm"

Flags = npt.NDArray[np.bool_]
Arms = Mapping[str, Moments]


class Rate(NamedTuple):
    """A share of trials, with the exact interval of Clopper and Pearson (95 %)."""

    share: float
    low: float
    high: float


def rate(hits: int, trials: int) -> Rate:
    """Of so many trials."""
    from scipy.stats import binomtest

    found = binomtest(hits, trials).proportion_ci(0.95)
    return Rate(hits / trials, float(found.low), float(found.high))


def by_day(columns: Floats, treated: Flags) -> list[Arms]:
    """Moments of both arms at the end of each day.

    Args:
        columns: [k, days, n], of the units that came on each day.
        treated: [days, n].
    """
    k = len(columns)
    middle = columns.mean(axis=(1, 2))
    apart = columns - middle[:, None, None]
    found: list[dict[str, Moments]] = [{} for _ in range(treated.shape[0])]
    for name, mine in ((CONTROL, ~treated), (ARM, treated)):
        chosen = apart * mine
        n = np.cumsum(mine.sum(axis=1))
        sums = np.cumsum(chosen.sum(axis=2), axis=1)
        squares = np.empty((k, k, len(n)))
        for i in range(k):
            for j in range(i + 1):
                squares[i, j] = squares[j, i] = np.cumsum((chosen[i] * apart[j]).sum(axis=1))
        for day, arms in enumerate(found):
            mean = sums[:, day] / n[day]
            arms[name] = Moments(
                int(n[day]), mean + middle, squares[:, :, day] - np.outer(mean, mean) * n[day]
            )
    return list(found)


def coin(shape: tuple[int, int], rng: np.random.Generator) -> Flags:
    """Half of the units, each by itself, as a hash assigns them."""
    return rng.random(shape, np.float32) < 0.5


def comings(people: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """All people in a new order of coming, [days, n]; what does not fill a day is left over."""
    n = people // DAYS
    return rng.permutation(people)[: n * DAYS].reshape(DAYS, n)


class Shown(NamedTuple):
    """Whether any look showed something: by sequential intervals, and by a t-test at each."""

    ours: bool
    naive: bool


def effect_of(arms: Arms, *, ratio: bool = False) -> Effect:
    """As an analysis has it: linearised if a ratio, with the last column as CUPED's covariate."""
    pairs = {name: linearised(m) if ratio else m for name, m in arms.items()}
    if len(next(iter(pairs.values())).mean) == 1:
        pairs = {name: m.linear([[1.0], [0.0]]) for name, m in pairs.items()}
    found = adjust(pairs).arms
    return Effect(found[CONTROL], found[ARM])


def outside(looks: Sequence[Arms], mixture: Mixture, *, ratio: bool = False) -> Iterator[float]:
    """At each look the z value if it is outside the interval, else 0."""
    for arms in looks:
        effect = effect_of(arms, ratio=ratio)
        few = min(effect.control.n, effect.treated.n) < FIRST_UNITS
        z = 0.0 if few else effect.z()
        yield z if abs(z) > mixture.critical(effect.n, ALPHA) else 0.0


def naive(looks: Sequence[Arms]) -> bool:
    """Whether Welch's t-test of the first column, as a notebook does it, is below alpha at any."""
    from scipy.stats import ttest_ind_from_stats

    def told(name: str) -> tuple[Floats, Floats, Floats]:
        mine = [arms[name] for arms in looks]
        return (
            np.array([m.mean[0] for m in mine]),
            np.sqrt(np.array([m.covariance[0, 0] for m in mine])),
            np.array([m.n for m in mine], np.float64),
        )

    p = ttest_ind_from_stats(*told(ARM), *told(CONTROL), equal_var=False).pvalue
    return bool((p < ALPHA).any())
