"""A retriever on Gowalla's published split, all items ranked, beside the published rows.

The protocol is that of LightGCN's and BARS' tables: rank all items but a user's training items,
Recall@20 over all of a user's test items, NDCG@20, mean over all users. Parameters are chosen on a
fifth of each user's training items, by NDCG@20, and then fitted on all of them; the test part is
looked at once. The data set isn't part of raypipe; name the folder with `train.parquet` and
`test.parquet`, columns `user` and `item`.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.harness import Result, alternate, check, summarise

if TYPE_CHECKING:
    from training.recommend.evaluate import Evaluation
    from training.recommend.neighbours import RP3Beta
    from training.recommend.port import Method, Retriever
    from training.recommend.products import Run
    from training.recommend.rows import Rows

SUITE = "gowalla"
K = 20
SHAPE = (29_858, 40_981)
PAIRS = (810_128, 217_242)

MOST_POPULAR = (0.0416, 0.0317)
"""Recall and NDCG of the most popular items under this protocol: the check of the evaluation."""

PUBLISHED = (
    ("ItemCF", 0.1570, 0.1214),
    ("NGCF", 0.1570, 0.1327),
    ("MF-BPR", 0.1627, 0.1378),
    ("SLIM", 0.1699, 0.1382),
    ("YoutubeDNN", 0.1754, 0.1473),
    ("EASE^R", 0.1765, 0.1467),
    ("LightGCN", 0.1820, 0.1547),
    ("MF-CCL", 0.1837, 0.1493),
    ("GF-CF", 0.1849, 0.1518),
    ("UltraGCN", 0.1862, 0.1580),
    ("SimpleX", 0.1872, 0.1557),
)
"""Recall@20 and NDCG@20 as BARS prints them (openbenchmark/BARS, Matching, gowalla_m1)."""

GRID = (300, 800), (0.5, 0.6, 0.7), (0.2, 0.3), (False, True)
"""Neighbours, alpha, beta, normalised."""
HELD_OUT = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the data set lies."""
    parser.add_argument("--data", type=Path, required=True, help="folder with the two tables")
    parser.add_argument("--repeats", type=int, default=5, help="measured fits on each way")


def run(args: argparse.Namespace) -> Result:
    """Choose parameters on held-out training items, fit, rank everything, measure."""
    from benchmarks.memory import Peak
    from raypipe.config import Settings
    from raypipe.runtime import session
    from training.recommend.neighbours import RP3Beta
    from training.recommend.popularity import MostPopular
    from training.recommend.products import in_process, on_ray

    train, test = _read(args.data)
    popular = _evaluated(MostPopular().fit(train), train, test)
    found = tuple(round(popular.mean(m, K), 4) for m in ("recall", "ndcg"))
    check(found == MOST_POPULAR, f"the evaluation isn't the protocol's: most popular has {found}")

    method = RP3Beta(300, 0.6, 0.3) if args.quick else _chosen(train)
    with tempfile.TemporaryDirectory(prefix="raypipe-bench-") as home:
        session.start(Settings(home=Path(home)))
        try:
            fitted: dict[str, Retriever] = {}

            def fit(way: str, run: Run) -> None:
                fitted[way] = method.fit(train, run)

            with Peak() as peak:
                samples = alternate(
                    {
                        "on Ray": partial(fit, "on Ray", on_ray),
                        "one thread": partial(fit, "one thread", in_process),
                    },
                    repeats=2 if args.quick else args.repeats,
                )
        finally:
            session.stop()
    check(
        all(
            np.array_equal(fitted["on Ray"].arrays()[n], a)
            for n, a in fitted["one thread"].arrays().items()
        ),
        "tasks and one thread made different tables",
    )
    ours = _evaluated(fitted["on Ray"], train, test)
    figures = {
        "recall_at_20": ours.mean("recall", K),
        "ndcg_at_20": ours.mean("ndcg", K),
        "train_s": summarise(samples["on Ray"]).median,
        "train_one_thread_s": summarise(samples["one thread"]).median,
        "peak_gb": peak.gib,
        "coverage_at_20": ours.beyond[K]["coverage"],
    }
    others = [] if args.quick else _others(train, test)
    return Result(SUITE, figures, samples, _notes(method, ours, popular, others))


def _read(folder: Path) -> tuple[Rows, Rows]:
    from training.recommend.pairs import read_pairs
    from training.recommend.splits import given

    learn = read_pairs(folder / "train.parquet")
    split = given(learn, read_pairs(folder / "test.parquet", known=learn))
    train = split.train.matrix()
    counts = (len(train.columns), len(split.truth.columns))
    check(counts == PAIRS and learn.shape == SHAPE, f"not the published split: {counts} pairs")
    return train, split.truth


def _evaluated(retriever: Retriever, train: Rows, truth: Rows) -> Evaluation:
    from training.recommend.evaluate import evaluate

    return evaluate(retriever, train, truth, ks=(K,))


def _chosen(train: Rows) -> RP3Beta:
    """The best of a small grid on a fifth of the training pairs, drawn by seed."""
    from training.recommend.neighbours import RP3Beta
    from training.recommend.rows import Rows

    held = np.random.default_rng(7).random(len(train.columns)) < HELD_OUT
    shape = (len(train), train.width)
    learn, guess = (
        Rows.of(train.row_of[part], train.columns[part], train.values[part], shape)
        for part in (~held, held)
    )
    tried = [RP3Beta(k, alpha, beta, n) for k, alpha, beta, n in product(*GRID)]
    return max(tried, key=lambda m: _evaluated(m.fit(learn), learn, guess).mean("ndcg", K))


def _others(train: Rows, test: Rows) -> list[tuple[str, Evaluation]]:
    from training.recommend.ease import Ease
    from training.recommend.factors import Ials
    from training.recommend.neighbours import ItemKNN

    methods: tuple[Method, ...] = (
        ItemKNN(500, 10.0),
        Ials(factors=128, iterations=15),
        Ease(memory_mb=512),
    )
    return [(str(m), _evaluated(m.fit(train), train, test)) for m in methods]


def _notes(
    method: Method, ours: Evaluation, popular: Evaluation, others: list[tuple[str, Evaluation]]
) -> list[str]:
    rows = [f"{'':34}{'Recall@20':>10}{'NDCG@20':>10}"]
    rows += [f"published: {name:23}{r:10.4f}{n:10.4f}" for name, r, n in PUBLISHED]
    for name, e in (("most popular", popular), *others, (f"raypipe, {method.name}", ours)):
        rows.append(f"{name:34}{e.mean('recall', K):10.4f}{e.mean('ndcg', K):10.4f}")
    for figure in ("recall", "ndcg"):
        i = ours.interval(figure, K)
        rows.append(f"{figure}@20 {i.mean:.4f}, 95 % of bootstraps {i.low:.4f} to {i.high:.4f}")
    rows.append(f"{method}")
    return rows
