"""Experiments that are looked at every day, beside a t-test at each look: false alarms and power.

Units are the customers of a simulated world with what they spent; each trial draws their order and
their arms anew. ``aa_*`` are trials without an effect, of which the t-test's share is the damage of
looking; power is of a planted effect, beside what the plan said. Rates come with their exact 95 %
intervals.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.harness import Result, check

if TYPE_CHECKING:
    from benchmarks.trials.looks import Rate
    from benchmarks.trials.world import Floats, People

SUITE = "experiments"
SEED = 41
CUSTOMERS = 20_000
CAP = 0.999
EFFECT, POWER, TOLERANCE = 0.08, 0.8, 0.02
CLAIMED = 0.95


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes; the defaults are those of committed results."""
    parser.add_argument("--trials", type=int, help="experiments without an effect")
    parser.add_argument("--planted", type=int, help="experiments with one")


def run(args: argparse.Namespace) -> Result:
    """Simulate, and compare what was found with what is claimed."""
    from benchmarks import assignment
    from benchmarks.trials.world import people

    trials = args.trials or (200 if args.quick else 1_000)
    planted = args.planted or (1_000 if args.quick else 20_000)
    world = people(CUSTOMERS // 4 if args.quick else CUSTOMERS, SEED)
    figures: dict[str, float] = {}
    figures |= _without_effect(world, trials)
    figures |= _growing(world, trials)
    figures |= _with_effect(world, planted)
    figures |= _off_policy(world, trials)
    _agrees_with_analysis(world)
    cost = assignment.measure(100_000 if args.quick else assignment.UNITS)
    figures |= {"assign_us": cost.assign_us, "assignments_per_s": cost.assignments_per_s}
    return Result(
        SUITE,
        figures,
        cost.samples,
        (
            f"{trials:,} trials without an effect, {planted:,} with one; 28 daily looks in each",
            f"{len(world.daily):,} customers of a simulated world: spending of 28 days, capped at "
            f"quantile {CAP}, with the 28 days before as CUPED's covariate",
            "an assignment is of three arms, with a holdout and a condition; one thread",
            "naive: Welch's t-test of what was spent at each look, as it is; no cap, no CUPED",
        ),
    )


def _without_effect(world: People, trials: int) -> dict[str, float]:
    """False alarms of the three kinds of metrics, and what CUPED saves."""
    from benchmarks.trials import looks
    from raypipe.experiments.capping import capped
    from raypipe.experiments.cuped import adjust
    from raypipe.experiments.effects import Effect, estimate
    from raypipe.experiments.sequential import Mixture

    rng = np.random.default_rng(SEED)
    spent, before = (capped(v, quantile=CAP).values for v in (world.spent, world.before))
    many = (world.payments > np.median(world.payments)).astype(np.float64)
    kinds: dict[str, tuple[Floats, bool]] = {
        "mean": (np.array([spent, before]), False),
        "share": (np.array([many, before]), False),
        "ratio": (np.array([spent, world.payments, before]), True),
    }
    mixture = Mixture.tuned(len(spent), looks.ALPHA)
    hits = dict.fromkeys([*kinds, "naive"], 0)
    left, raw, adjusted = [], [], []
    for _ in range(trials):
        order = looks.comings(len(spent), rng)
        treated = looks.coin(order.shape, rng)
        for kind, (columns, ratio) in kinds.items():
            seen = looks.by_day(columns[:, order], treated)
            hits[kind] += any(looks.outside(seen, mixture, ratio=ratio))
            if kind == "mean":
                found = adjust(seen[-1])
                left.append(found.variance_ratio)
                last = Effect(*(found.arms[a] for a in (looks.CONTROL, looks.ARM)))
                adjusted.append(last.difference)
                plain = (estimate(seen[-1][a]) for a in (looks.CONTROL, looks.ARM))
                raw.append(Effect(*plain).difference)
        hits["naive"] += looks.naive(looks.by_day(world.spent[None, order], treated))
    rates = {kind: looks.rate(n, trials) for kind, n in hits.items()}
    for kind in kinds:
        check(rates[kind].low <= looks.ALPHA, f"false alarms of a {kind}: {rates[kind]}")
    cut = float(np.var(adjusted) / np.var(raw))
    claimed = float(np.median(left))
    check(abs(cut / claimed - 1.0) < 4.0 * np.sqrt(2.0 / trials), f"{cut} left, {claimed} claimed")
    return {
        **_named("aa_false_positive_rate", rates["mean"]),
        "aa_alpha": looks.ALPHA,
        **_named("naive_false_positive_rate", rates["naive"]),
        **_named("aa_share_false_positive_rate", rates["share"]),
        **_named("aa_ratio_false_positive_rate", rates["ratio"]),
        "cuped_variance_ratio": cut,
        "cuped_variance_ratio_claimed": claimed,
    }


def _growing(world: People, trials: int) -> dict[str, float]:
    """The same with a metric that has no end: every look counts what all spent until then."""
    from benchmarks.trials import looks
    from benchmarks.trials.world import BEFORE, DAYS
    from raypipe.experiments.sequential import Mixture

    rng = np.random.default_rng(SEED + 1)
    total = np.cumsum(world.daily, axis=1)
    mixture = Mixture.tuned(len(total), looks.ALPHA)
    hits = 0
    for _ in range(trials):
        order = looks.comings(len(total), rng)
        treated = looks.coin(order.shape, rng)
        start = BEFORE + np.arange(DAYS)[:, None]
        for day in range(DAYS):
            rows = order[: day + 1]
            value = total[rows, BEFORE + day] - total[rows, start[: day + 1] - 1]
            whole = looks.by_day(value.reshape(1, 1, -1), treated[: day + 1].reshape(1, -1))
            if any(looks.outside(whole, mixture)):
                hits += 1
                break
    return _named("aa_growing_false_positive_rate", looks.rate(hits, trials))


def _with_effect(world: People, trials: int) -> dict[str, float]:
    """Planted effects, on as many units as the plan wants."""
    from benchmarks.trials import looks
    from benchmarks.trials.world import DAYS
    from raypipe.experiments.capping import capped
    from raypipe.experiments.power import Baseline, units_for
    from raypipe.experiments.sequential import Mixture

    rng = np.random.default_rng(SEED + 2)
    spent = capped(world.spent, quantile=CAP).values
    baseline = Baseline(float(spent.mean()), float(spent.var(ddof=1)))
    shares = {looks.CONTROL: 0.5, looks.ARM: 0.5}
    plan = units_for(baseline, EFFECT, shares, alpha=looks.ALPHA, power=POWER, looks=DAYS)
    mixture = Mixture.tuned(plan.units, looks.ALPHA)
    size, a_day = EFFECT * baseline.mean, plan.units // DAYS
    found, units = 0, []
    for _ in range(trials):
        treated = looks.coin((DAYS, a_day), rng)
        values = spent[rng.integers(0, len(spent), (DAYS, a_day))] + size * treated
        z = list(looks.outside(looks.by_day(values[None], treated), mixture))
        first = next((i for i, v in enumerate(z) if v), None)
        found += first is not None and z[first] > 0
        units.append(a_day * (DAYS if first is None else first + 1))
    power = looks.rate(found, trials)
    near = power.low - TOLERANCE <= POWER <= power.high + TOLERANCE
    check(near, f"a power of {POWER} was planned, {power} was measured")
    return {
        "power_planned": POWER,
        **_named("power_measured", power),
        "power_gap": abs(power.share - POWER),
        "plan_units": plan.units,
        "plan_units_one_look": plan.fixed_units,
        "plan_units_expected": plan.expected_units,
        "mean_units_until_found": float(np.mean(units)),
    }


def _off_policy(world: People, trials: int) -> dict[str, float]:
    """How often the intervals of the three estimates hold the world's truth."""
    from benchmarks.trials import looks
    from benchmarks.trials.offpolicy import Payments

    hits = Payments(world).coverage(20_000, trials, np.random.default_rng(SEED + 3))
    figures = {"offpolicy_claimed_coverage": CLAIMED}
    for method, n in hits.items():
        held = looks.rate(n, trials)
        figures |= _named(f"offpolicy_coverage_{method}", held)
        check(held.high >= CLAIMED, f"intervals of {method} hold the truth in {held}")
    return figures


def _agrees_with_analysis(world: People) -> None:
    """The trials' shortcut and ``training.experiments.analysis`` say the same of one experiment."""
    import pyarrow as pa

    from benchmarks.trials import looks
    from raypipe.clock import DAY_MS
    from raypipe.experiments.capping import capped
    from raypipe.experiments.sequential import Mixture
    from raypipe.experiments.spec import Arm, Cap, Direction, Experiment, Kind, Metric
    from training.experiments.analysis import analyse

    metric = Metric("spent", "revenue", Kind.MEAN, Direction.UP, cap=Cap(quantile=CAP))
    arms = (Arm(looks.CONTROL, 0.5), Arm(looks.ARM, 0.5))
    experiment = Experiment("trial", 1, "unit", arms, (metric,), 28 * DAY_MS, EFFECT)
    n = len(world.spent)
    treated = looks.coin((1, n), np.random.default_rng(SEED))
    table = pa.table(
        {
            "unit": [str(i) for i in range(n)],
            "arm": np.where(treated[0], looks.ARM, looks.CONTROL),
            "exposed_at": np.zeros(n, np.int64),
            "spent": world.spent,
            "spent__before": world.before,
            "spent__mature": np.ones(n, np.bool_),
        }
    )
    finding = analyse(experiment, table, DAY_MS, n).findings[0]
    columns = np.array([capped(v, quantile=CAP).values for v in (world.spent, world.before)])
    effect = looks.effect_of(looks.by_day(columns[:, None], treated)[0])
    width = Mixture.tuned(n, looks.ALPHA).critical(n, looks.ALPHA)
    same = np.allclose((finding.low, finding.high), effect.interval(width), rtol=1e-9)
    check(same, f"trials have {effect.interval(width)}, analysis {finding.low, finding.high}")


def _named(name: str, rate: Rate) -> dict[str, float]:
    return {name: rate.share, f"{name}_low": rate.low, f"{name}_high": rate.high}
