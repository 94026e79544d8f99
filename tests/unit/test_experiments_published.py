"""The methods of experiments on worked examples that others published; each names its source."""

from __future__ import annotations

import doctest
import importlib
import math
import pkgutil

import numpy as np
import pytest
from scipy.special import betaln

import raypipe.experiments
from raypipe.experiments.bandit import Posterior, thompson
from raypipe.experiments.crossing import Walk
from raypipe.experiments.cuped import adjust
from raypipe.experiments.effects import Effect, estimate, linearised
from raypipe.experiments.moments import Moments
from raypipe.experiments.multiplicity import benjamini_hochberg, holm
from raypipe.experiments.offpolicy import doubly_robust, ips, snips
from raypipe.experiments.power import Baseline, units_for
from raypipe.experiments.sequential import Mixture
from raypipe.experiments.srm import check_ratio

Z = 1.959964
MODULES = sorted(m.name for m in pkgutil.iter_modules(raypipe.experiments.__path__))


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_give_what_they_show(name: str) -> None:
    assert not doctest.testmod(importlib.import_module(f"raypipe.experiments.{name}")).failed


def test_welchs_t_of_students_sleep_data() -> None:
    # Student, Biometrika 6, 1908; R's documentation of t.test: t = -1.8608, of extra ~ group.
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    effect = Effect(estimate(Moments.of(second)), estimate(Moments.of(first)))
    assert effect.z() == pytest.approx(-1.8608, abs=5e-5)
    assert effect.difference == pytest.approx(0.75 - 2.33)


def test_difference_and_ratio_of_two_shares() -> None:
    # Agresti, An introduction to categorical data analysis, 2nd ed., section 2.2: heart attacks
    # with placebo, 189 of 11,034, and aspirin, 104 of 11,037. Difference 0.005 to 0.011; relative
    # risk 1.82, 1.43 to 2.30 by its logarithm, which Fieller's set meets to the second digit.
    def arm(hits: int, n: int) -> Moments:
        return Moments.of(np.repeat([1.0, 0.0], [hits, n - hits]))

    effect = Effect(estimate(arm(104, 11_037)), estimate(arm(189, 11_034)))
    assert effect.difference == pytest.approx(0.0077, abs=5e-5)
    assert effect.error == pytest.approx(0.0015, abs=5e-5)
    assert effect.interval(Z) == pytest.approx((0.005, 0.011), abs=5e-4)
    assert 1.0 + effect.lift == pytest.approx(1.82, abs=5e-3)
    assert tuple(1.0 + b for b in effect.lift_interval(Z)) == pytest.approx((1.43, 2.30), abs=0.04)


def test_error_of_a_ratio() -> None:
    # Rice, Mathematical statistics and data analysis, 3rd ed., section 7.4: 100 households with
    # mean mortgage payments of 868 (sd 250) and incomes of 3,100 (sd 1,200), correlation 0.85;
    # R = 0.28 and its standard error 0.006.
    covariance = 0.85 * 250 * 1200
    both = Moments.known(100, [868, 3100], [[250**2, covariance], [covariance, 1200**2]])
    ratio = estimate(linearised(both))
    assert ratio.value == pytest.approx(0.28, abs=5e-4)
    assert math.sqrt(ratio.variance) == pytest.approx(0.006, abs=5e-4)


def test_cuped_is_the_analysis_of_covariance() -> None:
    # Snedecor & Cochran, Statistical methods, 6th ed., p. 422, as worked in the SAS/STAT user's
    # guide, PROC GLM, analysis of covariance: scores (before, after) of leprosy patients.
    scores = {
        "A": "11 6 8 0 5 2 14 8 19 11 6 4 10 13 6 1 11 8 3 0",
        "D": "6 0 6 2 7 3 8 1 18 18 8 4 19 14 8 9 5 1 15 9",
        "F": "16 13 13 10 11 18 9 5 21 23 16 12 12 5 12 16 7 1 12 20",
    }
    arms = {}
    for name, text in scores.items():
        before, after = np.array(text.split(), float).reshape(-1, 2).T
        arms[name] = Moments.of(after, before)
    found = adjust(arms)
    assert found.theta == pytest.approx(0.987183811, abs=1e-9)
    value = {name: e.value for name, e in found.arms.items()}
    assert value["A"] - value["F"] == pytest.approx(-3.446138280, abs=1e-9)
    assert value["D"] - value["F"] == pytest.approx(-3.337166948, abs=1e-9)
    # Its LSMEANS, at the mean of the covariate over all.
    assert value == pytest.approx({"A": 6.7149635, "D": 6.8239348, "F": 10.1611017}, abs=1e-7)
    # Its error sum of squares, 417.2026, of 26 degrees of freedom.
    within = sum(float(m.products[0, 0]) for m in arms.values())
    assert found.variance_ratio * within == pytest.approx(417.202597, abs=1e-6)


def test_a_mismatch_of_units() -> None:
    # Kohavi, Tang & Xu, Trustworthy online controlled experiments, 2020, chapter 21: 821,588 and
    # 815,482 users of a split in halves have a p value of 1.8e-6.
    halves = {"control": 0.5, "treatment": 0.5}
    found = check_ratio({"control": 821_588, "treatment": 815_482}, halves)
    assert found.p_now == pytest.approx(1.8e-6, abs=5e-8)
    assert found.p > found.p_now
    assert found.mismatch
    assert not check_ratio({"control": 821_588, "treatment": 820_482}, halves).mismatch


def test_false_discoveries_of_fifteen_questions() -> None:
    # Benjamini & Hochberg, JRSS B 57, 1995: of these, their procedure finds the first
    # four at 0.05 and Bonferroni's the first three.
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240]
    p += [0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    shown = [c.significant for c in benjamini_hochberg(p, 0.05)]
    assert shown == [True] * 4 + [False] * 11
    assert [c.significant for c in holm(p, 0.05)] == [True] * 3 + [False] * 12
    assert benjamini_hochberg(p, 0.05)[0].level == pytest.approx(4 / 15 * 0.05)


@pytest.mark.parametrize(
    ("looks", "found"),
    [(1, 0.050), (2, 0.083), (3, 0.107), (4, 0.126), (5, 0.142), (10, 0.193), (20, 0.248)],
)
def test_what_repeated_t_tests_find_without_an_effect(looks: int, found: float) -> None:
    # Armitage, McPherson & Rowe, JRSS A 132, 1969: tests at 5 %.
    times = [(i + 1) / looks for i in range(looks)]
    assert Walk([Z] * looks, times).crossing().total == pytest.approx(found, abs=5e-4)


@pytest.mark.parametrize(
    ("looks", "pocock", "inflation"), [(2, 2.178, 1.110), (5, 2.413, 1.228), (10, 2.555, 1.301)]
)
def test_boundaries_and_power_of_pococks_tests(looks: int, pocock: float, inflation: float) -> None:
    # Jennison & Turnbull, Group sequential methods, 2000, tables 2.1 and 2.2: constants for 0.05,
    # and how many times the units of one look a power of 0.8 needs.
    times = [(i + 1) / looks for i in range(looks)]
    assert Walk([pocock] * looks, times).crossing().total == pytest.approx(0.05, abs=1e-4)
    drift = (1.959964 + 0.841621) * math.sqrt(inflation)
    assert Walk([pocock] * looks, times).crossing(drift).above.sum() == pytest.approx(0.8, abs=1e-3)


def test_boundary_of_o_brien_and_fleming() -> None:
    # The same, table 2.3: C = 2.040 for five looks, C sqrt(5/k) at look k.
    boundary = [2.040 * math.sqrt(5 / k) for k in range(1, 6)]
    assert Walk(boundary, [k / 5 for k in range(1, 6)]).crossing().total == pytest.approx(
        0.05, abs=1e-4
    )


@pytest.mark.parametrize("n", [1, 10, 1_000])
@pytest.mark.parametrize("m", [1, 100])
def test_the_boundary_is_robbins(n: int, m: int) -> None:
    # Robbins, Ann. Math. Statist. 41, 1970: a sum of n standard normals ever reaches
    # sqrt((n + m)(a^2 + log(n/m + 1))) in size with a chance of at most exp(-a^2 / 2).
    a2 = 6.0
    robbins = math.sqrt((n + m) * (a2 + math.log(n / m + 1)))
    ours = Mixture(1 / m).critical(n, math.exp(-a2 / 2)) * math.sqrt(n)
    assert ours == pytest.approx(robbins)


@pytest.mark.parametrize(
    ("mean", "sd", "published"), [(0.05, math.sqrt(0.05 * 0.95), 121_600), (3.75, 30.0, 409_600)]
)
def test_units_of_one_look(mean: float, sd: float, published: int) -> None:
    # Kohavi, Longbotham, Sommerfield & Henne, Data Min. Knowl. Disc. 18, 2009: a
    # change of 5 % of a conversion of 5 %, and of 3.75 spent with sd 30; users an arm by the rule
    # n = 16 sd^2 / change^2, where 16 rounds 15.7 up.
    plan = units_for(Baseline(mean, sd**2), 0.05, {"a": 0.5, "b": 0.5})
    assert plan.fixed_units / 2 == pytest.approx(published * 15.698 / 16, rel=1e-4)


def test_weights_of_twenty_patients() -> None:
    # Hernan & Robins, Causal inference: what if, 2020, table 2.2: heart transplants given
    # by severity. Weighted, the risk is 1/2 with and without; as it is, 7/13 and 3/7.
    counts = {(0, 0): (4, 1), (0, 1): (4, 1), (1, 0): (3, 2), (1, 1): (9, 6)}
    severe, given, died = [], [], []
    for (s, g), (n, deaths) in counts.items():
        severe += [s] * n
        given += [g] * n
        died += [1] * deaths + [0] * (n - deaths)
    s, g, y = (np.array(v, float) for v in (severe, given, died))
    assert y[g == 1].mean() == pytest.approx(7 / 13)
    to_be_given = np.where(s == 1, 0.75, 0.5)
    risk = np.where(s == 1, 2 / 3, 1 / 4)
    for treat in (1.0, 0.0):
        propensity = np.where(g == 1, to_be_given, 1 - to_be_given)
        target = (g == treat).astype(float)
        assert ips(y, propensity, target).value == pytest.approx(0.5)
        assert snips(y, propensity, target).value == pytest.approx(0.5)
        assert doubly_robust(y, propensity, target, risk, risk).value == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("a", "b"), [((3, 9), (5, 7)), ((120, 880), (145, 855)), ((0, 2), (40, 1))]
)
def test_the_chance_to_be_the_better_of_two(a: tuple[int, int], b: tuple[int, int]) -> None:
    # Miller, Formulas for Bayesian A/B testing, 2014: an exact sum over the successes of b.
    (a1, b1), (a2, b2) = ((1 + s, 1 + f) for s, f in (a, b))
    miller = sum(
        math.exp(betaln(a1 + i, b1 + b2) - math.log(b2 + i) - betaln(1 + i, b2) - betaln(a1, b1))
        for i in range(a2)
    )
    found = thompson({"a": Posterior.of_counts(*a), "b": Posterior.of_counts(*b)})
    assert found.best["b"] == pytest.approx(miller, abs=1e-9)
    assert found.error < 1e-9
