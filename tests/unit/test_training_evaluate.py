"""Figures against brute force, scikit-learn and cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xgboost
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from raypipe.clock import DAY_MS
from raypipe.errors import StageError
from tests.unit.training_kit import dataset
from training.evaluate import (
    FPR_LIMITS,
    confusion,
    evaluate,
    operating_threshold,
    pr_curve,
    precision_at_k,
    roc_curve,
    threshold_at_fpr,
)
from training.plan import FIRST_POINT, FIXED
from training.split import time_split


def arrays(y: list[int], score: list[float]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(y, np.uint8), np.array(score, np.float32)


# Few different scores, so that most examples have ties.
scored = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([0.1, 0.2, 0.3, 0.5, 0.9])), min_size=1
)


@given(scored, st.floats(0, 0.99))
def test_threshold_is_the_lowest_genuine_score_with_at_most_k_above(
    rows: list[tuple[int, float]], limit: float
) -> None:
    genuine = [s for label, s in rows if label == 0]
    if not genuine:
        return
    y, score = arrays([label for label, _ in rows], [s for _, s in rows])
    allowed = int(limit * len(genuine))
    expected = min(t for t in genuine if sum(s > t for s in genuine) <= allowed)
    threshold = threshold_at_fpr(y, score, limit)
    assert threshold == np.float32(expected)
    assert confusion(y, score, threshold).fp <= allowed


def test_threshold_by_hand() -> None:
    y, score = arrays([0] * 10 + [1], [0.9, 0.8, 0.8, 0.8, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0, 0.85])
    assert threshold_at_fpr(y, score, 0.0) == np.float32(0.9)
    assert threshold_at_fpr(y, score, 0.1) == np.float32(0.8)
    # Flagging at 0.5 would take four; three are allowed, but ties at 0.8 leave one.
    assert threshold_at_fpr(y, score, 0.3) == np.float32(0.8)
    assert confusion(y, score, threshold_at_fpr(y, score, 0.3)).fp == 1
    assert threshold_at_fpr(y, score, 0.4) == np.float32(0.5)


@pytest.mark.parametrize(("y", "limit"), [([1, 1], 0.1), ([0, 1], 1.0), ([0, 1], -0.1)])
def test_impossible_thresholds_are_refused(y: list[int], limit: float) -> None:
    with pytest.raises(StageError, match="no threshold"):
        threshold_at_fpr(*arrays(y, [0.1, 0.2]), limit)


def test_confusion_and_its_rates_by_hand() -> None:
    y, score = arrays([1, 1, 1, 0, 0, 0, 0, 0, 0, 0], [0.9, 0.5, 0.2, 0.9, 0.5, 0.1, 0, 0, 0, 0])
    counts = confusion(y, score, 0.5)
    assert counts.describe() == {
        "tp": 1,
        "fp": 1,
        "tn": 6,
        "fn": 2,
        "accuracy": 0.7,
        "base_accuracy": 0.7,
        "fpr": pytest.approx(1 / 7),
        "recall": pytest.approx(1 / 3),
        "precision": 0.5,
    }


def test_precision_of_no_flag_is_not_a_number() -> None:
    y, score = arrays([1, 0], [0.9, 0.9])
    assert confusion(y, score, 0.9).precision is None


def test_a_threshold_read_back_from_json_flags_the_same() -> None:
    rng = np.random.default_rng(0)
    y, score = (rng.random(3000) < 0.1).astype(np.uint8), rng.random(3000).astype(np.float32)
    threshold = threshold_at_fpr(y, score, 0.01)
    flagged = sum(float(s) > float(repr(threshold)) for s in score[y == 0])
    assert flagged == int(0.01 * (y == 0).sum()) > 0


def notes_cp_at_k(day: np.ndarray, key: np.ndarray, y: np.ndarray, p: np.ndarray, k: int) -> float:
    """Card precision of the Fraud Detection Handbook, by pandas."""
    z = pd.DataFrame({"day": day, "c": key, "y": y, "p": p})
    found: set[int] = set()
    out = []
    for _, g in z.groupby("day"):
        top = g[~g.c.isin(found)].groupby("c").max().sort_values("p", ascending=False).head(k)
        hit = top.index[top.y == 1]
        out.append(len(hit) / k)
        found |= set(hit)
    return float(np.mean(out))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 5, 30])
def test_precision_at_k_is_the_handbooks(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    n = 600
    day, key = rng.integers(0, 6, n), rng.integers(0, 80, n).astype(np.int32)
    score = rng.permutation(n).astype(np.float32)
    y = (rng.random(n) < score / n / 3).astype(np.uint8)
    assert precision_at_k(day, key, y, score, k) == pytest.approx(
        notes_cp_at_k(day, key, y, score, k)
    )


def test_precision_at_k_by_hand() -> None:
    day = np.array([0, 0, 0, 0, 1, 1, 1])
    key = np.array([1, 1, 2, 3, 1, 2, 4], np.int32)
    y, score = arrays([0, 1, 0, 1, 1, 1, 0], [0.9, 0.1, 0.8, 0.2, 0.99, 0.5, 0.4])
    # Day 0: keys 1 and 2 lead, 1 is positive. Day 1: 1 is known, 2 and 4 remain, 2 is positive.
    assert precision_at_k(day, key, y, score, 2) == 0.5
    # Without a key nobody can be called.
    key[:4] = -1
    assert precision_at_k(day, key, y, score, 2) == pytest.approx((0 + 2 / 2) / 2)


@pytest.mark.parametrize("digits", [1, 7])
def test_ranking_figures_are_scikit_learns(digits: int) -> None:
    rng = np.random.default_rng(5)
    n = 4000
    y = (rng.random(n) < 0.05).astype(np.uint8)
    score = np.round(rng.random(n) * 0.5 + y * 0.3 * rng.random(n), digits).astype(np.float32)
    times = np.sort(rng.integers(0, 3 * DAY_MS, n))
    figures = evaluate(
        y, score, times, key=("card", rng.integers(0, 300, n).astype(np.int32)), k=20
    )
    assert figures["average_precision"] == pytest.approx(average_precision_score(y, score))
    assert figures["roc_auc"] == pytest.approx(roc_auc_score(y, score))
    assert figures["positives"] == y.sum()
    assert figures["key_precision"]["key"] == "card"
    assert [row["limit"] for row in figures["at_fpr"]] == list(FPR_LIMITS)
    genuine, positive = score[y == 0], score[y == 1]
    for row in figures["at_fpr"]:
        fp, tp = (genuine > row["threshold"]).sum(), (positive > row["threshold"]).sum()
        assert fp / len(genuine) == row["fpr"] <= row["limit"]
        assert row["recall"] == tp / len(positive)
        assert row["precision"] == (tp / (tp + fp) if tp + fp else None)


@pytest.mark.parametrize("y", [[0, 0, 0], [1, 1, 1]])
def test_one_class_can_not_be_evaluated(y: list[int]) -> None:
    with pytest.raises(StageError, match="can't be evaluated"):
        evaluate(*arrays(y, [0.1, 0.2, 0.3]), np.zeros(3, np.int64))


def test_curves_are_thin_and_keep_their_ends() -> None:
    rng = np.random.default_rng(1)
    y = (rng.random(20_000) < 0.03).astype(np.uint8)
    score = (rng.random(20_000) + y * rng.random(20_000)).astype(np.float32)
    pr, roc = pr_curve(y, score), roc_curve(y, score)
    assert roc[0] == (0.0, (score[y == 1] > score[y == 0].max()).mean())
    assert roc[-1] == (1.0, 1.0)
    assert pr[0] == (0.0, 1.0)
    assert pr[-1][0] == 1.0
    for curve in (pr, roc):
        assert 50 < len(curve) <= 250
        assert [x for x, _ in curve] == sorted(x for x, _ in curve)
    for fpr, recall in roc[:-1]:
        # Every kept point is a real one: the best recall that this many false positives allow.
        threshold = np.sort(score[y == 0])[::-1][round(fpr * (y == 0).sum())]
        assert recall == (score[y == 1] > threshold).mean()


def trained_auc(shuffled: bool) -> float:
    data = dataset(6_000)
    y = np.random.default_rng(0).permutation(data.y) if shuffled else data.y
    split = time_split(data.event_time, y, horizon_ms=3_600_000)
    train, test = split.train.rows(data.event_time), split.test.rows(data.event_time)
    matrix = xgboost.DMatrix(data.x[train], y[train], nthread=1)
    booster = xgboost.train({**FIXED, **FIRST_POINT, "seed": 1}, matrix, 60)
    score = booster.inplace_predict(data.x[test])
    auc: float = evaluate(y[test], score, data.event_time[test])["roc_auc"]
    return auc


def test_signal_is_found_and_shuffled_labels_give_chance() -> None:
    assert trained_auc(shuffled=False) > 0.9
    assert abs(trained_auc(shuffled=True) - 0.5) < 0.08


def test_operating_threshold_keeps_both_limits_and_flags_the_most() -> None:
    rng = np.random.default_rng(4)
    for _ in range(200):
        y = (rng.random(60) < 0.3).astype(np.uint8)
        if not 0 < y.sum() < len(y):
            continue
        # Few distinct scores: ties on both sides of the threshold.
        score = np.round(rng.random(60) * 0.6 + y * 0.3, 1).astype(np.float32)
        limit, least = 0.2, 0.6

        def kept(
            threshold: float, y: np.ndarray = y, score: np.ndarray = score
        ) -> tuple[float, float, int]:
            flags = [s > np.float32(threshold) for s in score]
            right = sum(1 for f, t in zip(flags, y, strict=True) if f and t)
            wrong = sum(flags) - right
            return wrong / int((y == 0).sum()), right / max(sum(flags), 1), sum(flags)

        best = max(
            (
                kept(t)[2]
                for t in [-1.0, *sorted(set(score.tolist()))]
                if kept(t)[0] <= limit and kept(t)[1] >= least
            ),
            default=None,
        )
        fpr, precision, flagged = kept(operating_threshold(y, score, limit, least))
        if best is not None:
            assert (fpr <= limit, precision >= least, flagged) == (True, True, best)
