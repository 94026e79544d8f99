"""The methods of experiments against slow and obvious ways, and against chance itself."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binom, norm

from benchmarks.trials import looks
from benchmarks.trials.looks import ALPHA
from raypipe.errors import UsageError
from raypipe.experiments.bandit import Posterior, thompson
from raypipe.experiments.capping import capped
from raypipe.experiments.crossing import Walk
from raypipe.experiments.cuped import adjust, filled
from raypipe.experiments.effects import Effect, Estimate, linearised
from raypipe.experiments.moments import Moments
from raypipe.experiments.multiplicity import benjamini_hochberg, holm
from raypipe.experiments.offpolicy import doubly_robust, ips, snips
from raypipe.experiments.power import Baseline, detectable, units_for
from raypipe.experiments.sequential import Mixture
from raypipe.experiments.srm import CONCENTRATION, check_ratio

numbers = st.floats(-1e4, 1e4)
rows = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=30)
estimates = st.builds(Estimate, st.floats(-50, 50), st.floats(0.01, 10), st.just(1_000))
p_values = st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.02, 0.03, 0.2, 1.0]), max_size=8)
ALMOST_NEVER = 1e-6
"""How seldom a count may be this far off before a test calls it wrong."""


def unlikely(hits: int, trials: int, rate: float) -> bool:
    few, many = binom.ppf([ALMOST_NEVER, 1 - ALMOST_NEVER], trials, rate)
    return not few <= hits <= many


@given(rows, st.data())
def test_moments_of_parts_add_up_to_numpys(
    pairs: list[tuple[float, float]], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(pairs)))
    table = np.array(pairs)
    whole = Moments.of(*table[:cut].T) + Moments.of(*table[cut:].T)
    assert whole.n == len(pairs)
    assert np.allclose(whole.mean, table.mean(axis=0), atol=1e-6)
    assert np.allclose(whole.covariance, np.cov(table.T), rtol=1e-6, atol=1e-3)


@given(estimates, estimates, st.floats(1.0, 6.0))
def test_ends_of_the_lift_are_where_z_is_the_width(
    control: Estimate, treated: Estimate, width: float
) -> None:
    effect = Effect(control, treated)
    low, high = effect.lift_interval(width)
    if math.isinf(low):
        assert control.value**2 <= width**2 * control.variance
        return
    sign = math.copysign(1.0, control.value)
    for end in (low, high):
        assert abs(effect.z(1.0 + sign * end)) == pytest.approx(width, abs=1e-4)
    assert effect.lift in effect.lift_interval(width)
    if abs(abs(effect.z()) - width) > 1e-6:
        assert (0.0 in effect.lift_interval(width)) == (0.0 in effect.interval(width))


@given(st.floats(-30, 30), st.floats(1, 1e7), st.floats(1e-6, 0.4), st.floats(1e-6, 1.0))
def test_a_p_value_below_alpha_is_an_interval_that_leaves_the_doubted_out(
    z: float, n: float, alpha: float, rho2: float
) -> None:
    boundary = Mixture(rho2)
    width = boundary.critical(n, alpha)
    assume(abs(abs(z) - width) > 1e-6)
    assert (boundary.p_value(z, n) < alpha) == (abs(z) > width)


@given(st.floats(10, 1e8), st.floats(1e-4, 0.3))
def test_no_other_boundary_is_tighter_where_one_is_tuned(n: float, alpha: float) -> None:
    rho2 = Mixture.tuned(n, alpha).rho2
    best = Mixture(rho2).critical(n, alpha)
    assert all(Mixture(rho2 * f).critical(n, alpha) >= best for f in (0.5, 0.9, 0.99, 1.01, 1.1, 2))


@given(p_values)
def test_holm_and_benjamini_hochberg_are_their_definitions(p: list[float]) -> None:
    alpha = 0.05
    ordered = sorted(p)
    stop = next((i for i, v in enumerate(ordered) if v > alpha / (len(p) - i)), len(p))
    found = holm(p, alpha)
    assert [c.significant for c in found] == [v in ordered[:stop] for v in p]
    most = max((i + 1 for i, v in enumerate(ordered) if v <= alpha * (i + 1) / len(p)), default=0)
    discovered = benjamini_hochberg(p, alpha)
    assert sum(c.significant for c in discovered) == most
    for c in (*found, *discovered):
        assert c.significant == (c.p <= c.level + 1e-15) == (c.adjusted <= alpha)


def test_evidence_of_a_mismatch_is_that_of_one_unit_after_the_other() -> None:
    shares = {"a": 0.2, "b": 0.5, "c": 0.3}
    units = {"a": 300, "b": 400, "c": 300}
    rng = np.random.default_rng(5)
    names = rng.permutation(np.repeat(list(units), list(units.values())))
    seen, evidence = dict.fromkeys(shares, 0), Fraction(1)
    for i, name in enumerate(names.tolist()):
        expected = (CONCENTRATION * shares[name] + seen[name]) / (CONCENTRATION + i)
        evidence *= Fraction(expected) / Fraction(shares[name])
        seen[name] += 1
    assert check_ratio(units, shares).p == pytest.approx(min(1.0, 1 / float(evidence)), rel=1e-9)


def test_a_right_split_is_hardly_ever_called_a_mismatch_at_any_look() -> None:
    rng, alarms, trials = np.random.default_rng(6), 0, 200
    for _ in range(trials):
        treated = np.cumsum(rng.binomial(400, 0.3, 28))
        alarms += any(
            check_ratio(
                {"a": 400 * (i + 1) - int(n), "b": int(n)}, {"a": 0.7, "b": 0.3}, 0.05
            ).mismatch
            for i, n in enumerate(treated.tolist())
        )
    assert binom.sf(alarms - 1, trials, 0.05) > ALMOST_NEVER


def test_crossing_is_what_simulated_walks_do() -> None:
    rng, walks = np.random.default_rng(7), 40_000
    times, boundary, drift = [0.1, 0.3, 0.35, 1.0], [2.5, 2.2, 2.4, 2.0], 1.5
    steps = np.diff([0.0, *times])
    path = np.cumsum(rng.normal(drift * steps, np.sqrt(steps), (walks, 4)), axis=1) / np.sqrt(times)
    found = Walk(boundary, times).crossing(drift)
    inside = np.ones(walks, bool)
    for look in range(4):
        above, below = path[:, look] > boundary[look], path[:, look] < -boundary[look]
        assert not unlikely(int((inside & above).sum()), walks, float(found.above[look]))
        assert not unlikely(int((inside & below).sum()), walks, float(found.below[look]))
        inside &= ~(above | below)


def heavy(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Spending before and during: lognormal, half of the units spend nothing."""
    habit = rng.normal(0, 1, shape)
    before, spent = (
        np.exp(habit + rng.normal(0, 0.5, shape)) * (rng.random(shape) < 0.8) for _ in range(2)
    )
    return capped(before.ravel(), quantile=0.999).values.reshape(shape), spent


def test_daily_looks_without_an_effect_find_one_in_at_most_alpha_and_t_tests_in_far_more() -> None:
    rng, trials, a_day = np.random.default_rng(8), 150, 200
    boundary = Mixture.tuned(28 * a_day, ALPHA)
    ours = growing = naive = 0
    for _ in range(trials):
        before, spent = heavy(rng, (28, a_day))
        treated = looks.coin((28, a_day), rng)
        kept = np.minimum(spent, np.quantile(spent, 0.999))
        ours += any(looks.outside(looks.by_day(np.array([kept, before]), treated), boundary))
        rows = rng.poisson(2, spent.shape) + 1.0
        ratio = looks.by_day(np.array([kept * rows, rows, before]), treated)
        growing += any(looks.outside(ratio, boundary, ratio=True))
        naive += looks.naive(looks.by_day(spent[None], treated))
    for hits in (ours, growing):
        assert binom.sf(hits - 1, trials, ALPHA) > ALMOST_NEVER
    assert binom.cdf(naive, trials, 0.15) > 0.5


def test_a_planted_effect_is_found_as_often_as_planned() -> None:
    rng, trials = np.random.default_rng(9), 300
    plan = units_for(Baseline(1.0, 1.0), 0.1, {"a": 0.5, "b": 0.5}, power=0.8)
    a_day = plan.units // 28
    boundary = Mixture.tuned(plan.units, ALPHA)
    found = 0
    for _ in range(trials):
        treated = looks.coin((28, a_day), rng)
        values = rng.exponential(1.0, (28, a_day)) + 0.1 * treated
        found += any(z > 0 for z in looks.outside(looks.by_day(values[None], treated), boundary))
    assert not unlikely(found, trials, 0.8)


def test_plans_hold_together() -> None:
    baseline, shares = Baseline(2.0, 9.0), {"old": 0.3, "new": 0.1}
    plan = units_for(baseline, 0.05, shares)
    assert plan.by_arm["old"] == pytest.approx(3 * plan.by_arm["new"], abs=3)
    assert detectable(baseline, plan.units, shares) == pytest.approx(0.05, rel=1e-3)
    assert plan.fixed_units < plan.expected_units < plan.units
    assert units_for(baseline, -0.05, shares).units == plan.units
    with pytest.raises(UsageError, match="a plan for an effect of 0"):
        units_for(baseline, 0.0, shares)


def test_cuped_keeps_the_effect_and_drops_what_was_so_before() -> None:
    rng = np.random.default_rng(10)
    differences, plain, claimed = [], [], []
    for _ in range(400):
        past = rng.normal(10, 3, 600)
        y = past + rng.normal(0, 2, 600)
        past[rng.random(600) < 0.2] = np.nan
        arm = rng.random(600) < 0.4
        y[arm] += 0.5
        x = filled(past)
        found = adjust({"a": Moments.of(y[~arm], x[~arm]), "b": Moments.of(y[arm], x[arm])})
        differences.append(found.arms["b"].value - found.arms["a"].value)
        plain.append(y[arm].mean() - y[~arm].mean())
        claimed.append(math.hypot(*(math.sqrt(e.variance) for e in found.arms.values())))
    assert np.mean(differences) == pytest.approx(0.5, abs=4 * np.std(differences) / 20)
    assert np.std(differences) == pytest.approx(np.mean(claimed), rel=0.15)
    assert np.var(differences) < 0.65 * np.var(plain)


def test_a_covariate_that_tells_nothing_changes_nothing() -> None:
    a, b = Moments.of([1.0, 2.0, 4.0], [0.0] * 3), Moments.of([2.0, 5.0], [0.0] * 2)
    found = adjust({"a": a, "b": b})
    assert found.theta == 0.0
    assert found.variance_ratio == 1.0
    assert found.arms["b"].value == 3.5


def test_a_ratio_is_as_spread_as_its_linear_form_says() -> None:
    rng = np.random.default_rng(11)
    ratios, claimed = [], []
    for _ in range(500):
        visits = rng.poisson(3, 800) + 1.0
        bought = rng.binomial(visits.astype(int), rng.beta(2, 8, 800)).astype(float)
        m = linearised(Moments.of(bought, visits))
        assert m.mean[0] == pytest.approx(bought.sum() / visits.sum())
        ratios.append(m.mean[0])
        claimed.append(math.sqrt(m.covariance[0, 0] / m.n))
    assert np.std(ratios) == pytest.approx(np.mean(claimed), rel=0.15)
    with pytest.raises(UsageError, match="sum to zero"):
        linearised(Moments.of([1.0, 1.0], [0.0, 0.0]))


def test_shares_are_what_drawing_from_the_posteriors_gives() -> None:
    arms = {
        "a": Posterior.of_counts(30, 70),
        "b": Posterior.of_counts(36, 64),
        "c": Posterior.of_counts(3, 4),
    }
    found = thompson(arms, floor=0.1)
    rng, draws = np.random.default_rng(12), 40_000
    drawn = np.array([p.distribution.rvs(draws, random_state=rng) for p in arms.values()])
    for lower, best in ((False, drawn.argmax(axis=0)), (True, drawn.argmin(axis=0))):
        shares = thompson(arms, floor=0.1, lower_is_better=lower)
        for i, share in enumerate(shares.best.values()):
            assert not unlikely(int((best == i).sum()), draws, share)
    assert sum(found.share.values()) == pytest.approx(1.0, abs=1e-12)
    assert min(found.share.values()) >= 0.1
    means = {n: Posterior.of_mean(Estimate(m, 0.04, 100)) for n, m in (("a", 1.0), ("b", 1.2))}
    apart = norm.cdf(0.2 / math.sqrt(0.08))
    assert thompson(means).best["b"] == pytest.approx(apart, abs=1e-9)


@pytest.mark.parametrize("floor", [0.0, 0.5, 0.7])
def test_a_floor_that_cannot_be_is_refused(floor: float) -> None:
    arms = {"a": Posterior.of_counts(1, 1), "b": Posterior.of_counts(1, 1)}
    with pytest.raises(UsageError, match="a floor of"):
        thompson(arms, floor=floor)


def test_off_policy_intervals_hold_the_truth_as_often_as_they_claim() -> None:
    rng, trials, n = np.random.default_rng(13), 400, 800
    hits = dict.fromkeys(("ips", "snips", "dr"), 0)
    truth = 0.8 * 2.0 + 0.2 * 0.5
    widths: dict[str, list[float]] = {name: [] for name in hits}
    for _ in range(trials):
        x = rng.random(n)
        chance = 0.1 + 0.6 * x
        second = rng.random(n) < chance
        reward = rng.exponential(1.0, n) * np.where(second, 4.0 * x, 0.5)
        propensity = np.where(second, chance, 1.0 - chance)
        target = np.where(second, 0.8, 0.2)
        guess = np.where(second, 3.0 * x, 0.7)
        for value in (
            ips(reward, propensity, target),
            snips(reward, propensity, target),
            doubly_robust(reward, propensity, target, guess, 0.8 * 3.0 * x + 0.2 * 0.7),
        ):
            hits[value.method] += truth in value.interval
            widths[value.method].append(value.error)
    assert not {m: h for m, h in hits.items() if unlikely(h, trials, 0.95)}
    assert np.mean(widths["dr"]) < np.mean(widths["ips"])


def test_rare_losses_are_held_on_their_side_too() -> None:
    rng, trials, n = np.random.default_rng(15), 2_000, 2_000
    missed = normal = 0
    for _ in range(trials):
        reward = np.where(rng.random(n) < 0.015, -rng.exponential(100.0, n), 2.0)
        found = ips(reward, np.full(n, 0.5), np.full(n, 0.5))
        truth = 0.985 * 2.0 - 0.015 * 100.0
        missed += truth < found.interval.low
        normal += truth < found.value - 1.96 * found.error
    assert missed < 0.05 * trials < normal


def test_a_constant_reward_is_known_by_snips_alone() -> None:
    propensity, target = np.array([0.5, 0.25, 0.9]), np.array([0.1, 0.7, 0.2])
    found = snips(np.full(3, 7.0), propensity, target)
    assert found.interval == pytest.approx((7.0, 7.0))
    assert ips(np.full(3, 7.0), propensity, target).error > 1.0
    weights = target / propensity
    assert found.effective == pytest.approx(weights.sum() ** 2 / (weights**2).sum())


@pytest.mark.parametrize(
    ("propensity", "target"), [([0.0, 0.5], [0.1, 0.1]), ([0.5, 0.5], [1.1, 0.0]), ([0.5], [0.5])]
)
def test_what_no_policy_can_have_done_is_refused(
    propensity: list[float], target: list[float]
) -> None:
    with pytest.raises(UsageError, match="propensit"):
        ips([1.0] * len(propensity), propensity, target)


def test_trials_have_the_moments_of_their_units() -> None:
    rng = np.random.default_rng(14)
    columns, treated = rng.normal(50, 5, (2, 3, 40)), looks.coin((3, 40), rng)
    for day, arms in enumerate(looks.by_day(columns, treated)):
        for name, mine in ((looks.ARM, treated), (looks.CONTROL, ~treated)):
            some = mine[: day + 1].ravel()
            expected = Moments.of(*(c[: day + 1].ravel()[some] for c in columns))
            assert arms[name].n == expected.n
            assert np.allclose(arms[name].mean, expected.mean)
            assert np.allclose(arms[name].products, expected.products)
