"""Lists against the obvious way to make them: order, caps, sponsored places, and probabilities."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from raypipe.experiments.offpolicy import ips
from serving.recommend.diversity import Diversity
from serving.recommend.exploration import Exploration, seed_of
from serving.recommend.selection import choose, likelihood
from tests.unit.selection_oracle import Case, arguments


def drawn_case(seed: int, *, items: int, candidates: int, k: int) -> Case:
    """Something of everything, by chance."""
    rng = np.random.default_rng(seed)
    codes = rng.permutation(items)
    scores = np.sort(rng.normal(size=candidates).astype(np.float32))[::-1]
    category = {i: None if rng.random() < 0.1 else int(rng.integers(3)) for i in range(items)}
    brand = {i: None if rng.random() < 0.1 else int(rng.integers(5)) for i in range(items)}
    near = {
        i: {int(j): float(np.float32(rng.random())) for j in rng.choice(items, 4, replace=False)}
        for i in range(items)
    }
    return Case(
        scores={int(c): float(s) for c, s in zip(codes[:candidates], scores, strict=True)},
        category=category,
        brand=brand,
        k=k,
        barred={int(c) for c in codes[rng.random(items) < 0.15]},
        sponsored=[int(c) for c in codes[candidates - 1 : candidates + 2]],
        sponsored_places=[(), (1,), (2, 3)][int(rng.integers(3))],
        cap_category=[None, 1, 2][int(rng.integers(3))],
        cap_brand=[None, 1][int(rng.integers(2))],
        strict=bool(rng.integers(2)),
        weight=float(rng.choice([1.0, 0.7, 0.3, 0.0])),
        parts=[(0.6, 0.4, 0.0), (0.3, 0.2, 0.5), (0.0, 0.0, 1.0)][int(rng.integers(3))],
        neighbours=near,
    )


@pytest.mark.parametrize("seed", range(60))
def test_a_list_is_that_of_the_obvious_way(seed: int) -> None:
    case = drawn_case(seed, items=30, candidates=24, k=12)
    shown = choose(**arguments(case))
    assert shown.codes.tolist() == case.best_list()
    assert not shown.explored
    assert shown.propensity.tolist() == [1.0] * len(shown)


@pytest.mark.parametrize("seed", range(40))
def test_propensities_are_those_of_all_lists_counted_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = replace(
        drawn_case(seed, items=6, candidates=5, k=3),
        share=float(rng.choice([0.3, 1.0])),
        temperature=float(rng.choice([0.05, 0.4, 5.0])),
        free=[(), (1,), (2, 3)][seed % 3],
    )
    every = case.all_lists()
    assert sum(every.values()) == pytest.approx(1.0)
    given = arguments(case)
    for listed, probability in every.items():
        found = likelihood(np.array(listed, np.int64), **given)
        assert np.prod(found) == pytest.approx(probability, rel=1e-9)
    for draw in range(10):
        shown = choose(**arguments(case, seed=seed_of(f"request {draw}")))
        listed = tuple(shown.codes.tolist())
        assert np.prod(shown.propensity) == pytest.approx(every[listed], rel=1e-9)
        assert ((shown.propensity > 0) & (shown.propensity <= 1)).all()


def test_a_list_that_cannot_be_has_no_probability() -> None:
    case = replace(drawn_case(3, items=6, candidates=5, k=3), share=0.5, barred={0})
    given = arguments(case)
    assert likelihood(np.array([0, 1, 2]), **given)[0] == 0.0
    assert likelihood(np.array([5, 5, 5]), **given)[1:].tolist() == [0.0, 0.0]
    assert likelihood(np.array([77]), **given).tolist() == [0.0]


def test_lists_come_as_often_as_their_propensities_say() -> None:
    case = replace(
        drawn_case(15, items=6, candidates=5, k=2),
        share=0.6,
        temperature=0.5,
        strict=False,
        cap_category=1,
    )
    every = case.all_lists()
    assert len(every) > 8
    count = 10_000
    given = arguments(case)
    asked = given["asked"]
    seen: Counter[tuple[int, ...]] = Counter()
    explored = 0
    for number in range(count):
        given["asked"] = replace(asked, seed=seed_of(str(number)))
        shown = choose(**given)
        seen[tuple(shown.codes.tolist())] += 1
        explored += shown.explored
    assert set(seen) <= set(every)
    for listed, p in every.items():
        assert abs(seen[listed] - count * p) <= 5 * np.sqrt(count * p * (1 - p)) + 1
    assert abs(explored - 0.6 * count) < 5 * np.sqrt(count * 0.24)


def test_logged_propensities_tell_what_another_selection_would_have_earned() -> None:
    case = replace(
        drawn_case(21, items=8, candidates=8, k=3),
        share=1.0,
        temperature=0.3,
        sponsored_places=(),
        strict=False,
    )
    worth = dict(enumerate([0.1, 0.9, 0.2, 0.4, 0.8, 0.3, 0.5, 0.7]))
    other = replace(case, share=0.4, temperature=0.8, weight=0.5)
    truth = sum(p * sum(worth[i] for i in listed) for listed, p in other.all_lists().items())
    given, wanted = arguments(case), arguments(other)
    reward, propensity, target = [], [], []
    for number in range(2_500):
        given["asked"] = replace(given["asked"], seed=seed_of(f"visit {number}"))
        shown = choose(**given)
        reward.append(sum(worth[i] for i in shown.codes.tolist()))
        propensity.append(float(np.prod(shown.propensity)))
        target.append(float(np.prod(likelihood(shown.codes, **wanted))))
    plain = float(np.mean(reward))
    found = ips(reward, propensity, target)
    assert found.interval.low < truth < found.interval.high
    assert abs(found.value - truth) < abs(plain - truth)


def test_a_seed_gives_one_list_and_others_give_others() -> None:
    case = replace(
        drawn_case(4, items=30, candidates=24, k=10),
        share=1.0,
        temperature=0.3,
        barred=set(),
    )
    lists = [choose(**arguments(case, seed_of(f"r{n}"))) for n in (1, 1, 2)]
    assert lists[0].codes.tolist() == lists[1].codes.tolist()
    assert lists[0].propensity.tolist() == lists[1].propensity.tolist()
    assert lists[0].codes.tolist() != lists[2].codes.tolist()


def test_a_long_drawn_list_keeps_its_propensities() -> None:
    """The product of so many is below the smallest float; that of each place is not."""
    count = 1_000
    case = Case(
        scores={i: float(count - i) for i in range(count)},
        category=dict.fromkeys(range(count)),
        brand=dict.fromkeys(range(count)),
        k=300,
        share=1.0,
        temperature=50.0,
    )
    shown = choose(**arguments(case, seed_of("long")))
    assert np.prod(shown.propensity) == 0.0
    left = count - np.arange(300)
    assert np.allclose(shown.propensity * left, 1.0, rtol=0.05)


def test_less_relevance_makes_lists_of_more_categories() -> None:
    case = replace(
        drawn_case(10, items=60, candidates=60, k=10),
        sponsored_places=(),
        cap_category=None,
        cap_brand=None,
        barred=set(),
    )
    given = arguments(case)
    pairs = []
    for weight in (1.0, 0.7, 0.3):
        given["selection"] = replace(
            given["selection"], diversity=Diversity(weight), exploration=Exploration()
        )
        codes = choose(**given).codes
        kinds = given["items"].category[codes]
        same = (kinds[:, None] == kinds[None, :]) & (kinds[:, None] >= 0)
        pairs.append(int(same.sum()))
    assert pairs[0] > pairs[1] > pairs[2]


def test_whatever_types_come_the_list_is_the_same() -> None:
    case = drawn_case(2, items=30, candidates=24, k=8)
    given = arguments(case)
    codes = choose(**given).codes.tolist()
    frozen = given["codes"].astype(np.int32)
    frozen.flags.writeable = False
    strided = np.repeat(given["scores"].astype(np.float64), 2)[::2]
    assert choose(**given | {"codes": frozen, "scores": strided}).codes.tolist() == codes
