"""A small shop of tastes, and slow and obvious ways to do what training.recommend does fast."""

from __future__ import annotations

import math

import numpy as np

from training.recommend.ranking.features import Table
from training.recommend.rows import Rows


def tastes(users: int = 60, items: int = 40, groups: int = 4, seed: int = 0) -> np.ndarray:
    """0/1 [users, items]: each user takes mostly items of one group."""
    rng = np.random.default_rng(seed)
    likes = rng.integers(0, groups, users)[:, None] == (np.arange(items) % groups)[None, :]
    chance = np.where(likes, 0.5, 0.04)
    taken: np.ndarray = (rng.random((users, items)) < chance).astype(np.float32)
    return taken


def rows_of(dense: np.ndarray) -> Rows:
    """A dense matrix as rows."""
    row, column = np.nonzero(dense)
    return Rows.of(row, column, dense[row, column], dense.shape)


def lists(rows: Rows) -> list[list[int]]:
    """The columns of each row, in their order."""
    return [rows.row(r)[0].tolist() for r in range(len(rows))]


def ranked(scores: np.ndarray, barred: np.ndarray, k: int) -> list[list[int]]:
    """By hand: positive float32 scores, best first, equal ones by column, none that is barred."""
    out = []
    for line, bars in zip(scores, barred, strict=True):
        found = [(-float(np.float32(s)), c) for c, s in enumerate(line) if np.float32(s) > 0]
        out.append([c for _, c in sorted(found) if not bars[c]][:k])
    return out


def figures_by_hand(items: list[int], wanted: set[int], k: int) -> dict[str, float]:
    """Recall, NDCG, average precision and hit of one list, by their definitions."""
    top = items[:k]
    found = [i in wanted for i in top]
    dcg = sum(1 / math.log2(place + 2) for place, hit in enumerate(found) if hit)
    ideal = sum(1 / math.log2(place + 2) for place in range(min(k, len(wanted))))
    precisions = [sum(found[: p + 1]) / (p + 1) for p, hit in enumerate(found) if hit]
    return {
        "recall": sum(found) / len(wanted),
        "ndcg": dcg / ideal,
        "map": sum(precisions) / min(k, len(wanted)),
        "hit": float(any(found)),
    }


def made_up_table(count: int, seed: int) -> Table:
    """Candidates of which the ones with a high signal are taken; the retriever knows nothing."""
    rng = np.random.default_rng(seed)
    starts = np.arange(count + 1) * 30
    signal, noise = rng.random(count * 30), rng.random(count * 30)
    columns = np.concatenate([rng.permutation(50)[:30] for _ in range(count)])
    taken = rng.random(count * 30) < signal**8
    x = np.stack([noise, signal], axis=1).astype(np.float32)
    rows = Rows(starts, columns, np.ones(count * 30), 50)
    return Table(("noise", "signal"), x, rows, taken.astype(float))
