"""One look at an experiment: from the table of its units to findings and a verdict.

Every interval and p value holds at this look and at all others together (``sequential``). Errors
are shared out like this: the primary metric has the experiment's alpha for all its arms (Holm);
so have all guardrails together (Bonferroni), because a broken one ends the experiment; secondary
metrics and segments are held to that share of false findings (e-BH), each of the two by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import pyarrow as pa

from raypipe.clock import DAY_MS
from raypipe.errors import UsageError
from raypipe.experiments.cuped import Adjusted, adjust
from raypipe.experiments.effects import Effect
from raypipe.experiments.moments import Moments
from raypipe.experiments.multiplicity import Corrected, benjamini_hochberg, holm
from raypipe.experiments.results import (
    Analysis,
    Counted,
    Finding,
    Guard,
    Guarding,
    Look,
    Ratio,
)
from raypipe.experiments.sequential import FIRST_UNITS, Mixture
from raypipe.experiments.spec import Direction, Experiment, Metric
from raypipe.experiments.srm import check_ratio
from raypipe.experiments.verdict import judge
from training.experiments.units import Units, Values

TUNED_UNITS = 10_000
"""Where intervals are tightest, in units of control and one arm, if no plan says otherwise."""

MOST_LOOKS = 60

_Lift = tuple[float | None, float | None, float | None]
_Correct = Callable[[Sequence[float], float], list[Corrected]]


def analyse(
    experiment: Experiment, table: pa.Table, now_ms: int, planned_units: int | None = None
) -> Analysis:
    """Read the table of units as of ``now_ms``.

    Args:
        table: as ``training.experiments.units`` describes it.
        planned_units: of the control and one arm at the horizon, from the plan that was made
            before the start; never from the data.

    Raises:
        StageError: the table is not one of this experiment.
    """
    return _Look(experiment, Units(experiment, table), now_ms, planned_units).analysis()


@dataclass(frozen=True)
class _Question:
    """An effect that is asked for, and what of."""

    metric: Metric
    arm: str
    effect: Effect
    p: float
    segment: str = ""
    value: str | None = None


class _Look:
    """One look; what it needs again and again."""

    def __init__(
        self, experiment: Experiment, units: Units, now_ms: int, planned_units: int | None
    ) -> None:
        if planned_units is not None and planned_units <= 0:
            raise UsageError(f"a plan for {planned_units} units", hint="Leave it out, or plan.")
        self.experiment = experiment
        self.units = units
        self.now_ms = now_ms
        self.tuned = planned_units or TUNED_UNITS
        self.mixture = Mixture.tuned(self.tuned, experiment.alpha)
        self.arms = units.arms[1:]

    def analysis(self) -> Analysis:
        """All of it."""
        e = self.experiment
        ratio = self._ratio()
        values = [self.units.values(m) for m in e.metrics]
        whole = [v.groups(self.units.arm, len(self.units.arms)) for v in values]
        adjusted = [self._adjusted(v, groups) for v, groups in zip(values, whole, strict=True)]
        asked = [self._questions(m, a) for m, a in zip(e.metrics, adjusted, strict=True)]
        primary = self._findings(asked[0], holm)
        others = [q for questions in asked[1:] for q in questions]
        guards = self._guards(dict(zip((m.name for m in e.metrics), adjusted, strict=True)))
        first = int(self.units.exposed.min()) if len(self.units) else None
        over = first is not None and self.now_ms >= first + e.horizon_ms
        return Analysis(
            experiment=e.id,
            sha256=e.sha256,
            as_of_ms=self.now_ms,
            first_ms=first,
            horizon_ms=e.horizon_ms,
            alpha=e.alpha,
            minimum_effect=e.minimum_effect,
            tuned_units=self.tuned,
            ratio=ratio,
            counted=[self._counted(v, a) for v, a in zip(values, adjusted, strict=True)],
            findings=[*primary, *self._findings(others, benjamini_hochberg)],
            guards=guards,
            segments=self._segments(values[0]),
            looks=self._looks(values[0]) if first is not None else [],
            verdict=judge(ratio, primary, guards, minimum_effect=e.minimum_effect, over=over),
        )

    def _ratio(self) -> Ratio:
        found = check_ratio(self.units.by_arm(), {a.name: a.share for a in self.experiment.arms})
        return Ratio(dict(found.units), dict(found.expected), found.p, found.p_now, found.mismatch)

    def _adjusted(self, values: Values, groups: Sequence[Moments]) -> Adjusted:
        pairs = (values.pair(m) for m in groups)
        return adjust(dict(zip(self.units.arms, pairs, strict=True)))

    def _counted(self, values: Values, adjusted: Adjusted) -> Counted:
        count = self.units.by_arm
        return Counted(
            values.metric.name,
            count(values.rows),
            count(values.immature),
            count(values.above),
            values.cap,
            adjusted.variance_ratio if values.covariate else None,
        )

    def _effect(self, adjusted: Adjusted, arm: str) -> Effect | None:
        """None while there are too few units."""
        effect = Effect(adjusted.arms[self.units.arms[0]], adjusted.arms[arm])
        return effect if min(effect.control.n, effect.treated.n) >= FIRST_UNITS else None

    def _questions(
        self, metric: Metric, adjusted: Adjusted, segment: str = "", value: str | None = None
    ) -> list[_Question]:
        found = []
        for arm in self.arms:
            effect = self._effect(adjusted, arm)
            if effect is not None:
                p = self.mixture.p_value(effect.z(), effect.n)
                found.append(_Question(metric, arm, effect, p, segment, value))
        return found

    def _findings(self, questions: Sequence[_Question], correct: _Correct) -> list[Finding]:
        corrected = correct([q.p for q in questions], self.experiment.alpha)
        return [self._finding(q, c) for q, c in zip(questions, corrected, strict=True)]

    def _finding(self, q: _Question, c: Corrected) -> Finding:
        width = self.mixture.critical(q.effect.n, c.level)
        low, high = q.effect.interval(width)
        lift, lift_low, lift_high = self._lift(q.effect, width)
        return Finding(
            metric=q.metric.name,
            arm=q.arm,
            direction=q.metric.direction,
            control=q.effect.control.value,
            treated=q.effect.treated.value,
            control_units=q.effect.control.n,
            treated_units=q.effect.treated.n,
            difference=q.effect.difference,
            low=low,
            high=high,
            lift=lift,
            lift_low=lift_low,
            lift_high=lift_high,
            p=c.p,
            adjusted=c.adjusted,
            level=c.level,
            significant=c.significant,
            segment=q.segment,
            value=q.value,
        )

    @staticmethod
    def _lift(effect: Effect, width: float) -> _Lift:
        low, high = effect.lift_interval(width)
        if not (math.isfinite(low) and math.isfinite(effect.lift)):
            return None, None, None
        return effect.lift, low, high

    def _guards(self, adjusted: Mapping[str, Adjusted]) -> list[Guard]:
        e = self.experiment
        level = e.alpha / max(len(e.guardrails) * len(self.arms), 1)
        found = []
        for name, tolerated in e.guardrails.items():
            metric = e.metric(name)
            for arm in self.arms:
                effect = self._effect(adjusted[name], arm)
                lift: _Lift = (None, None, None)
                state = Guarding.OPEN
                if effect is not None:
                    width = self.mixture.critical(effect.n, level)
                    lift = self._lift(effect, width)
                    state = _guarding(effect, metric.direction, tolerated, width)
                found.append(Guard(name, arm, metric.direction, tolerated, *lift, level, state))
        return found

    def _segments(self, primary: Values) -> list[Finding]:
        questions: list[_Question] = []
        size = len(self.units.arms)
        for name in self.experiment.segments:
            known, places = self.units.segment(name)
            codes = np.where(places < 0, -1, places * size + self.units.arm)
            groups = primary.groups(codes, len(known) * size)
            for i, value in enumerate(known):
                adjusted = self._adjusted(primary, groups[i * size : (i + 1) * size])
                questions += self._questions(primary.metric, adjusted, name, value)
        return self._findings(questions, benjamini_hochberg)

    def _looks(self, primary: Values) -> list[Look]:
        """Of the primary metric, by day of first exposure, at the level of one arm alone."""
        first = int(self.units.exposed.min())
        day = (self.units.exposed - first) // DAY_MS
        step = -(-(int(day.max()) + 1) // MOST_LOOKS)
        size, days = len(self.units.arms), int(day.max()) // step + 1
        groups = primary.groups(day // step * size + self.units.arm, days * size)
        so_far = [list(accumulate(groups[i::size], Moments.__add__)) for i in range(size)]
        level = self.experiment.alpha / len(self.arms)
        found = []
        for n in range(days):
            adjusted = self._adjusted(primary, [arm[n] for arm in so_far])
            until = first + (n + 1) * step * DAY_MS
            for arm in self.arms:
                effect = self._effect(adjusted, arm)
                if effect is not None:
                    low, high = effect.interval(self.mixture.critical(effect.n, level))
                    found.append(Look(until, arm, effect.n, effect.difference, low, high))
        return found


def _guarding(effect: Effect, direction: Direction, tolerated: float, width: float) -> Guarding:
    """Where the loss stands to the tolerated one, by Fieller's test of that ratio of the means."""
    loss = -1.0 if direction is Direction.UP else 1.0
    limit = 1.0 + loss * math.copysign(tolerated, effect.control.value)
    beyond = loss * effect.z(limit)
    if beyond > width:
        return Guarding.BROKEN
    return Guarding.KEPT if beyond < -width else Guarding.OPEN
