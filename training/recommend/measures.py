"""How good ranked lists are, one user at a time, and what they do to the catalogue.

There is one way in: lists that were ranked over all items. Figures over sampled negatives order
methods otherwise than full ranking does (Krichene & Rendle, On sampled metrics for item
recommendation, KDD 2020), so none can be made here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from training.recommend.rows import Rows

Doubles = npt.NDArray[np.float64]


def hits(ranked: Rows, truth: Rows) -> npt.NDArray[np.bool_]:
    """Whether each ranked item was to be guessed, [entries of ranked]."""
    wanted = truth.row_of * truth.width + truth.columns
    found: npt.NDArray[np.bool_] = np.isin(ranked.row_of * ranked.width + ranked.columns, wanted)
    return found


def by_user(ranked: Rows, truth: Rows, k: int) -> dict[str, Doubles]:
    """Recall, NDCG, average precision and hit at k of each row, float64 [n]; 0 without truth.

    With n items to guess and the hits of the first k: recall divides by n; NDCG by the gain of
    min(k, n) hits at the top (Järvelin & Kekäläinen, TOIS 2002); average precision by min(k, n).

    >>> one = Rows(np.array([0, 3]), np.array([4, 1, 2]), np.array([3.0, 2.0, 1.0]), 5)
    >>> wanted = Rows(np.array([0, 2]), np.array([0, 1]), np.ones(2), 5)
    >>> {name: round(float(v[0]), 4) for name, v in by_user(one, wanted, 3).items()}
    {'recall': 0.5, 'ndcg': 0.3869, 'map': 0.25, 'hit': 1.0}
    """
    rank = np.arange(len(ranked.columns)) - np.repeat(ranked.starts[:-1], ranked.sizes)
    good = hits(ranked, truth) & (rank < k)
    row, rank = ranked.row_of[good], rank[good]
    count = len(ranked)
    found = np.bincount(row, minlength=count)
    # Of a row's hits in order the first has 1 hit up to there, the second 2.
    order = np.arange(len(row)) - np.repeat(np.cumsum(found) - found, found) + 1
    size = truth.sizes
    ideal = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(k) + 2))])
    best = np.minimum(size, k)
    return {
        "recall": _over(found, size),
        "ndcg": _over(np.bincount(row, 1 / np.log2(rank + 2), count), ideal[best]),
        "map": _over(np.bincount(row, order / (rank + 1), count), best),
        "hit": (found > 0).astype(np.float64),
    }


def beyond_accuracy(ranked: Rows, train: Rows, k: int) -> dict[str, float]:
    """What lists do to the catalogue, over the first k items of all rows.

    - ``coverage``: share of all items that anybody is shown.
    - ``novelty``: mean of -log2(share of users that have the item); an item that nobody has counts
      as one that half a user has (self-information: Zhou et al., PNAS 2010).
    - ``popularity``: mean number of users of a shown item, and ``popularity_lift``: by how much it
      is over that of the items people have (Abdollahpouri et al., 2019).
    - ``gini``: inequality of how often items are shown, 0 all alike, towards 1 few (Fleder &
      Hosanagar, Management Science 2009).

    Raises nothing; all 0 where nothing is shown.
    """
    rank = np.arange(len(ranked.columns)) - np.repeat(ranked.starts[:-1], ranked.sizes)
    shown = ranked.columns[rank < k]
    users = np.bincount(train.columns, minlength=train.width).astype(np.float64)
    if not len(shown) or not len(train.columns):
        return dict.fromkeys(("coverage", "novelty", "popularity", "popularity_lift", "gini"), 0.0)
    times = np.sort(np.bincount(shown, minlength=train.width))
    places = np.arange(1, train.width + 1)
    mean, had = float(users[shown].mean()), float(users[train.columns].mean())
    return {
        "coverage": float((times > 0).mean()),
        "novelty": float(-np.log2(np.maximum(users[shown], 0.5) / len(train)).mean()),
        "popularity": mean,
        "popularity_lift": mean / had - 1,
        "gini": float(((2 * places - train.width - 1) * times).sum() / (train.width * times.sum())),
    }


def _over(part: npt.NDArray[np.number], whole: npt.NDArray[np.number]) -> Doubles:
    some = whole > 0
    out = np.zeros(len(part))
    out[some] = part[some] / whole[some]
    return out
