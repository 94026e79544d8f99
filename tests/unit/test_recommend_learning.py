"""What orders are taught, by loops over single candidates; and that both learners learn it."""

from __future__ import annotations

import numpy as np
import pytest

from raypipe.errors import StageError, UsageError
from tests.unit.recommend_kit import made_up_table
from training.recommend.ranking import ranker
from training.recommend.ranking.features import Table
from training.recommend.ranking.lambdarank import LightGBM
from training.recommend.ranking.lessons import by_click, by_moment
from training.recommend.ranking.port import Growth, Learner, Order
from training.recommend.ranking.ranker import XGBoost
from training.recommend.rows import Rows

SETTINGS = {"max_depth": 3, "learning_rate": 0.1, "min_child_weight": 1.0, "subsample": 0.9}
LEARNERS = pytest.mark.parametrize("learner", [XGBoost(), LightGBM()], ids=lambda x: x.name)


def small(seed: int) -> Table:
    """Lists of zero to five candidates, some without anything taken, some with everything."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 6, 12)
    count = int(sizes.sum())
    grade = rng.choice([0.0, 0.0, 1.0, 3.0], count)
    columns = np.concatenate([rng.permutation(9)[:n] for n in sizes])
    rows = Rows(np.concatenate([[0], np.cumsum(sizes)]), columns, np.ones(count), 9)
    x = np.arange(count, dtype=np.float32)[:, None]
    return Table(("number",), x, rows, grade)


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_moments_or_single_clicks(seed: int) -> None:
    table = small(seed)
    seen = np.random.default_rng(seed).uniform(0.05, 1.0, len(table))
    moments, clicks = [], []
    for moment in range(len(table.candidates)):
        rows = np.flatnonzero(table.moment == moment)
        left = [int(r) for r in rows if table.grade[r] == 0]
        taken = [int(r) for r in rows if table.grade[r] > 0]
        if taken:
            moments.append((moment, [int(r) for r in rows]))
        clicks += [(min(1 / seen[r], 5.0), [r, *left]) for r in taken]

    lesson = by_click(table, seen, most=5.0)
    assert [lesson.x[lesson.group == g, 0].tolist() for g in range(len(lesson.sizes))] == [
        rows for _, rows in clicks
    ]
    assert lesson.grade.tolist() == [table.grade[r] for _, rows in clicks for r in rows]
    assert lesson.weight == pytest.approx([w for w, _ in clicks])

    weight = np.arange(1.0, len(table.candidates) + 1)
    plain = by_moment(table, weight)
    assert [plain.x[plain.group == g, 0].tolist() for g in range(len(plain.sizes))] == [
        rows for _, rows in moments
    ]
    assert plain.weight is not None
    assert plain.weight.tolist() == [m + 1 for m, _ in moments]
    assert by_moment(table).weight is None


def test_chances_that_are_none_are_refused() -> None:
    table = small(0)
    for chance, most in ((0.0, 5.0), (1.1, 5.0), (0.5, 0.5)):
        with pytest.raises(UsageError, match="weights up to"):
            by_click(table, np.full(len(table), chance), most=most)
    with pytest.raises(UsageError, match=r"chances of shape \(3,\)"):
        by_click(table, np.ones(3), most=5.0)
    with pytest.raises(UsageError, match="Give one of them"):
        ranker.fit(table, weights=np.ones(12), seen=np.ones(len(table)))
    nothing = Table(table.names, table.x, table.candidates, np.zeros(len(table)))
    with pytest.raises(StageError, match="candidates was taken"):
        by_click(nothing, np.ones(len(table)), most=5.0)


def at_the_top(order: Order, table: Table) -> float:
    """Share of the first three of each list that were taken."""
    ordered = order.ordered(table, 3)
    taken = {
        (int(m), int(c))
        for m, c, g in zip(table.moment, table.candidates.columns, table.grade, strict=True)
        if g > 0
    }
    pairs = zip(ordered.row_of.tolist(), ordered.columns.tolist(), strict=True)
    return sum(p in taken for p in pairs) / len(ordered.columns)


@LEARNERS
def test_a_learner_finds_the_signal_and_tells_how_it_goes(learner: Learner) -> None:
    told: list[tuple[int, int, float]] = []
    later = made_up_table(80, 1)

    def tell(rounds: int, order: Order) -> None:
        told.append((rounds, order.trees, at_the_top(order, later)))

    table = made_up_table(150, 0)
    lesson = by_moment(table)
    growth = Growth(25, seed=3, threads=1, every=10, told=tell)
    order = learner.learn(lesson, table.names, SETTINGS, growth)
    assert [rounds for rounds, _, _ in told] == [rounds for _, rounds, _ in told] == [10, 20, 25]
    assert told[-1][2] == at_the_top(order, later) > 2 * later.grade.mean()
    again = learner.learn(lesson, table.names, SETTINGS, Growth(25, seed=3, threads=1))
    assert again.ordered(later, 9).columns.tolist() == order.ordered(later, 9).columns.tolist()
    with pytest.raises(StageError, match="other columns"):
        order.ordered(small(0), 3)


@LEARNERS
def test_a_groups_weight_counts(learner: Learner) -> None:
    """Of two halves that want opposite things the one that weighs more is followed."""
    base = made_up_table(200, 3)
    turned = np.where(base.moment < 100, base.x[:, 1], 1 - base.x[:, 1])
    x = np.stack([base.x[:, 0], turned], axis=1).astype(np.float32)
    both = Table(base.names, x, base.candidates, base.grade)
    later = made_up_table(60, 4)
    found = []
    for first in (20.0, 0.05):
        weights = np.where(np.arange(200) < 100, first, 1.0)
        order = learner.learn(by_moment(both, weights), both.names, SETTINGS, Growth(20, threads=1))
        found.append(at_the_top(order, later))
    assert found[0] > later.grade.mean() > found[1]
