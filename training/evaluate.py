"""How good a score is where it matters: at few false positives.

Accuracy alone says nothing with rare positives (calling every event genuine has 99 % and finds
none), so every figure here comes with the one it must be compared with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raypipe.clock import DAY_MS
from raypipe.errors import StageError

Labels = npt.NDArray[np.uint8]
Scores = npt.NDArray[np.float32]

FPR_LIMITS = (0.001, 0.005, 0.01)
"""False positive rates at which recall and precision are reported."""

_CURVE_POINTS = 240


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts of flagged and passed events by their truth."""

    tp: int
    fp: int
    tn: int
    fn: int

    @property
    def total(self) -> int:
        """All events."""
        return self.tp + self.fp + self.tn + self.fn

    @property
    def accuracy(self) -> float:
        """Share of right answers; meaningless without :attr:`base_accuracy` beside it."""
        return (self.tp + self.tn) / self.total

    @property
    def base_accuracy(self) -> float:
        """Accuracy of flagging nothing."""
        return (self.tn + self.fp) / self.total

    @property
    def fpr(self) -> float:
        """Share of genuine events that are flagged."""
        return self.fp / (self.fp + self.tn)

    @property
    def recall(self) -> float:
        """Share of positive events that are flagged."""
        return self.tp / (self.tp + self.fn)

    @property
    def precision(self) -> float | None:
        """Share of flagged events that are positive; None when nothing is flagged."""
        flagged = self.tp + self.fp
        return self.tp / flagged if flagged else None

    def describe(self) -> dict[str, Any]:
        """Counts and rates as plain data."""
        return {
            "tp": self.tp,
            "fp": self.fp,
            "tn": self.tn,
            "fn": self.fn,
            "accuracy": self.accuracy,
            "base_accuracy": self.base_accuracy,
            "fpr": self.fpr,
            "recall": self.recall,
            "precision": self.precision,
        }


def confusion(y: Labels, score: Scores, threshold: float) -> Confusion:
    """Flag scores strictly above the threshold and count.

    >>> y, p = np.array([0, 0, 1, 1], "u1"), np.array([0.1, 0.5, 0.5, 0.9], "f4")
    >>> confusion(y, p, 0.5)
    Confusion(tp=1, fp=0, tn=2, fn=1)
    """
    flagged, positive = score > np.float32(threshold), y == 1
    tp = int((flagged & positive).sum())
    fp = int(flagged.sum()) - tp
    fn = int(positive.sum()) - tp
    return Confusion(tp, fp, len(y) - tp - fp - fn, fn)


def threshold_at_fpr(y: Labels, score: Scores, limit: float) -> float:
    """The lowest threshold that flags at most a share ``limit`` of the genuine events.

    With n genuine events and k = floor(limit * n) it is the (k+1)-th highest genuine score; scores
    strictly above it are flagged, so ties never exceed k false positives.

    >>> y, p = np.array([0, 0, 0, 0, 1], "u1"), np.array([0.1, 0.3, 0.3, 0.7, 0.5], "f4")
    >>> round(threshold_at_fpr(y, p, 0.25), 6)
    0.3
    """
    genuine = score[y == 0]
    if not 0 <= limit < 1 or not len(genuine):
        raise StageError(f"no threshold for an FPR of {limit} over {len(genuine)} genuine events")
    place = len(genuine) - 1 - int(np.floor(limit * len(genuine)))
    return float(np.partition(genuine, place)[place])


def operating_threshold(
    y: Labels, score: Scores, fpr_limit: float = 0.005, least_precision: float = 0.6
) -> float:
    """The lowest threshold within a false positive limit whose flags are right often enough.

    At a precision over a half, flagging is more accurate than flagging nothing; the default keeps
    some distance from that. When no threshold is precise enough, the one of highest precision is
    taken. Scores strictly above it are flagged.

    >>> y, p = np.array([0, 0, 1, 0, 1], "u1"), np.array([0.1, 0.2, 0.3, 0.4, 0.5], "f4")
    >>> round(operating_threshold(y, p, 0.34), 6)
    0.2
    """
    lowest = np.float32(threshold_at_fpr(y, score, fpr_limit))
    order = np.argsort(-score, kind="stable")
    ranked, hits = score[order], np.cumsum(y[order] == 1)
    # Only after the last of equal scores can a threshold lie.
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True) & (ranked > lowest))
    if not len(ends):
        return float(lowest)
    precision = hits[ends] / (ends + 1)
    good = np.flatnonzero(precision >= least_precision)
    last = ends[good[-1]] if len(good) else ends[np.argmax(precision)]
    return (
        float(ranked[last + 1])
        if last + 1 < len(ranked)
        else float(np.nextafter(ranked[last], -np.inf))
    )


def precision_at_k(
    day: npt.NDArray[np.int64],
    key: npt.NDArray[np.int32],
    y: Labels,
    score: Scores,
    k: int = 100,
) -> float:
    """Mean over days of the share of positive keys among the k with the highest score.

    A key (a card) has its highest score of the day and is positive when any of its events that day
    is. A positive key that was among the k is found and left out on later days. Equal scores rank
    by key. The divisor is k even on a day with fewer keys.
    """
    found = np.empty(0, key.dtype)
    shares = []
    for d in np.unique(day):
        rows = np.flatnonzero((day == d) & (key >= 0) & ~np.isin(key, found))
        keys, place = np.unique(key[rows], return_inverse=True)
        best = np.full(len(keys), -np.inf, np.float32)
        np.maximum.at(best, place, score[rows])
        positive = np.zeros(len(keys), np.bool_)
        np.logical_or.at(positive, place, y[rows] == 1)
        top = np.argsort(-best, kind="stable")[:k]
        hits = keys[top[positive[top]]]
        shares.append(len(hits) / k)
        found = np.concatenate([found, hits])
    return float(np.mean(shares))


def evaluate(
    y: Labels,
    score: Scores,
    event_time: npt.NDArray[np.int64],
    *,
    key: tuple[str, npt.NDArray[np.int32]] | None = None,
    k: int = 100,
) -> dict[str, Any]:
    """Ranking figures of one part of the history, as plain data.

    ``key`` is the name and the codes [n] of the column whose precision@k a day is reported.
    Raises StageError when only one class is present: no figure means anything then.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    positives = int(y.sum())
    if not 0 < positives < len(y):
        raise StageError(f"{positives} positives among {len(y)} rows can't be evaluated")
    at = []
    for limit in FPR_LIMITS:
        threshold = threshold_at_fpr(y, score, limit)
        at.append({"limit": limit, "threshold": threshold, **_rates(y, score, threshold)})
    out: dict[str, Any] = {
        "rows": len(y),
        "positives": positives,
        "base_rate": positives / len(y),
        "average_precision": float(average_precision_score(y, score)),
        "roc_auc": float(roc_auc_score(y, score)),
        "at_fpr": at,
    }
    if key is not None:
        out["key_precision"] = {
            "key": key[0],
            "k": k,
            "value": precision_at_k(event_time // DAY_MS, key[1], y, score, k),
        }
    return out


def _rates(y: Labels, score: Scores, threshold: float) -> dict[str, float | None]:
    counts = confusion(y, score, threshold)
    return {"fpr": counts.fpr, "recall": counts.recall, "precision": counts.precision}


def pr_curve(y: Labels, score: Scores) -> list[tuple[float, float]]:
    """(recall, precision) from recall 0 to 1, thinned to what a plot can show."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(y, score)
    return _thin(recall[::-1], precision[::-1], recall[::-1])


def roc_curve(y: Labels, score: Scores) -> list[tuple[float, float]]:
    """The steps of the ROC curve: each FPR with the best recall at it.

    Thinned evenly over the logarithm of FPR, because decisions are made at its low end.
    """
    from sklearn.metrics import roc_curve as full_curve

    fpr, tpr, _ = full_curve(y, score, drop_intermediate=False)
    last = np.append(fpr[1:] != fpr[:-1], True)
    fpr, tpr = fpr[last], tpr[last]
    return _thin(fpr, tpr, np.log10(np.maximum(fpr, 1e-5)))


def _thin(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], position: npt.NDArray[np.float64]
) -> list[tuple[float, float]]:
    wanted = np.linspace(position[0], position[-1], _CURVE_POINTS)
    places = np.unique(np.clip(np.searchsorted(position, wanted), 0, len(x) - 1))
    places = np.union1d(places, [0, len(x) - 1])
    return [(float(x[i]), float(y[i])) for i in places]
