"""The sweep over learners of orders on a real Ray session."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raypipe.errors import UsageError
from raypipe.lake import Place
from tests.unit.recommend_kit import figures_by_hand, made_up_table
from training.recommend.ranking.moments import Moments
from training.recommend.ranking.spans import Span
from training.recommend.rows import Rows

TRUTH = 50
"""Items that the candidates have and those that they lack."""


def span(count: int, seed: int) -> Span:
    """Visits that also took an item that was no candidate."""
    table = made_up_table(count, seed)
    taken = table.grade > 0
    row = np.concatenate([table.moment[taken], np.arange(count)])
    item = np.concatenate([table.candidates.columns[taken], np.full(count, TRUTH)])
    truth = Rows.of(row, item, np.ones(len(row)), (count, TRUTH + 1))
    nobody = np.zeros(count, np.int64)
    at = Moments(nobody.astype(np.int32), nobody, np.arange(count), truth)
    wider = Rows(
        table.candidates.starts, table.candidates.columns, table.candidates.values, TRUTH + 1
    )
    known = Rows(np.zeros(count + 1, np.int64), np.zeros(0), np.zeros(0), TRUTH + 1)
    return Span(at, known, type(table)(table.names, table.x, wider, table.grade))


@pytest.mark.ray
def test_both_learners_are_tried_and_the_best_is_grown_again(
    tmp_path: Path, ray_session: None
) -> None:
    from training.recommend.ranking.tuning import LEARNERS, TuningPlan, full_ndcg, tuned

    learn, choose = span(150, 0), span(60, 1)
    plan = TuningPlan(trials=3, max_rounds=20, grace_rounds=10, report_every=10, concurrency=2)
    lines: list[str] = []
    found = tuned(learn, choose, plan, storage=Place.at(tmp_path), trial_ended=lines.append)
    assert len(found.trials) == 3
    assert {t.parameters["learner"] for t in found.trials} == set(LEARNERS)
    assert all("of all items" in line for line in lines)
    assert len(lines) == 3
    metrics = [t.metric for t in found.trials if t.metric is not None]
    assert metrics == sorted(metrics, reverse=True)
    assert found.order.trees == found.best.rounds

    ordered = found.order.ordered(choose.table, plan.k)
    by_hand = [
        figures_by_hand(
            ordered.row(m)[0].tolist(), set(choose.at.truth.row(m)[0].tolist()), plan.k
        )["ndcg"]
        for m in range(60)
    ]
    assert found.best.metric == pytest.approx(np.mean(by_hand))
    # What the candidates lack counts: nobody finds all that was taken.
    assert found.best.metric == full_ndcg(found.order, choose, plan.k) < 0.99


def test_a_sweep_of_nothing_is_refused() -> None:
    from training.recommend.ranking.tuning import TuningPlan

    with pytest.raises(UsageError, match="trials is 0"):
        TuningPlan(trials=0)
