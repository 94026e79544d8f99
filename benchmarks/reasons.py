"""Reasons of one row: tabulated TreeSHAP beside XGBoost's own pred_contribs, and the score itself.

What a replica calls for a decision that is not approved, on one thread: a row goes in, each
feature's contribution comes out. The peer is what XGBoost offers for that, and ``shap``'s
TreeExplainer where it is installed. Scores: the C function that a replica calls, beside
``inplace_predict``. LightGBM's counterparts stand beside them. Closed loop.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness import Result, alternate, check

if TYPE_CHECKING:
    import xgboost

SUITE = "reasons"
SEED = 29
FEATURES, TREES, DEPTH = 40, 300, 6
TOLERANCE = 1e-5

Rows = npt.NDArray[np.float32]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes; the defaults are those of committed results."""
    parser.add_argument("--rows", type=int, help="rows a repeat")
    parser.add_argument("--repeats", type=int, default=5)


def run(args: argparse.Namespace) -> Result:
    """Train both libraries' models, compare all values, then time one row after the other."""
    os.environ["OMP_NUM_THREADS"] = "1"
    from serving.scoring import forest, lgb, xgb
    from serving.scoring.cut import cut
    from serving.scoring.table import Table

    rng = np.random.default_rng(SEED)
    count = args.rows or (60 if args.quick else 400)
    trained, rows = 4_000 if args.quick else 20_000, _data(rng, count)[0]
    x, y = _data(rng, trained)
    booster, other = _xgboost(x, y, DEPTH), _lightgbm(x, y)
    differences = [_difference(_xgboost(x[:4_000], y[:4_000], d), rows) for d in (3, 5, 8)]

    started = time.perf_counter()
    pieces = cut(forest.of_xgboost(booster))
    table = Table(pieces, FEATURES)
    build_s = time.perf_counter() - started
    other_table = Table(cut(forest.of_lightgbm(other)), FEATURES)
    explain = {
        "table": table.shares,
        "pred_contribs": lambda row: xgb.contributions(booster, row[None])[0],
        "lightgbm table": other_table.shares,
        "lightgbm pred_contrib": lambda row: lgb.contributions(other, row[None])[0],
    }
    score: dict[str, Callable[[Rows], Any]] = {
        "xgboost C function": xgb.DenseRow(booster, FEATURES),
        "xgboost inplace_predict": xgb.InplaceRow(booster, FEATURES),
        "lightgbm single row": lgb.FastRow(other, FEATURES),
        "lightgbm predict": lgb.PlainRow(other, FEATURES),
    }
    peer = _shap(booster)
    if peer is not None:
        explain["shap TreeExplainer"] = peer
        _check_equal(explain, "table", "shap TreeExplainer", rows, TOLERANCE)
    differences += [
        _check_equal(explain, "table", "pred_contribs", rows, TOLERANCE),
        _check_equal(explain, "lightgbm table", "lightgbm pred_contrib", rows, TOLERANCE),
    ]
    _check_equal(score, "xgboost C function", "xgboost inplace_predict", rows, 0.0)
    _check_equal(score, "lightgbm single row", "lightgbm predict", rows, 0.0)

    taken: dict[str, list[npt.NDArray[np.float64]]] = {}
    alternate(
        {name: _timed(name, call, rows, taken) for name, call in {**explain, **score}.items()},
        repeats=args.repeats,
    )
    # Warm-up rounds are in there too: they come first.
    runs = {name: each[-args.repeats :] for name, each in taken.items()}
    return _result(runs, max(differences), table.size, build_s, peer is not None)


def figures_of_one_row(rows: int = 60, repeats: int = 5) -> dict[str, float]:
    """``reasons_max_difference`` and ``reasons_gain_pred_contribs``, as ``run`` finds them, on
    fewer rows; for a suite that tells of decisions as a whole."""
    found = run(argparse.Namespace(quick=True, rows=rows, repeats=repeats)).figures
    names = ("reasons_max_difference", "reasons_gain_pred_contribs")
    return {name: float(found[name] or 0) for name in names}


def _result(
    runs: Mapping[str, list[npt.NDArray[np.float64]]],
    difference: float,
    size: int,
    build_s: float,
    with_shap: bool,
) -> Result:
    def us(name: str, q: float) -> float:
        return float(np.median([np.percentile(each, q) for each in runs[name]]) * 1e6)

    def gain(peer: str, ours: str) -> float:
        return us(peer, 50) / us(ours, 50)

    figures: dict[str, float] = {
        "reasons_max_difference": difference,
        "reasons_gain_pred_contribs": gain("pred_contribs", "table"),
        "lightgbm_reasons_gain_pred_contrib": gain("lightgbm pred_contrib", "lightgbm table"),
        "score_gain_inplace_predict": gain("xgboost inplace_predict", "xgboost C function"),
        "lightgbm_score_gain_predict": gain("lightgbm predict", "lightgbm single row"),
        "table_mib": size / 2**20,
        "table_build_s": build_s,
    }
    if with_shap:
        figures["reasons_gain_shap"] = gain("shap TreeExplainer", "table")
    for name in runs:
        for q in (50, 99):
            figures[f"{name.replace(' ', '_').lower()}_us_p{q}"] = us(name, q)
    notes = [
        f"{TREES} trees of depth {DEPTH} over {FEATURES} features, one thread, warm caches",
        "differences also on models of depth 3, 5 and 8; scores are equal in every bit",
    ]
    if not with_shap:
        notes.append("shap is not installed: its TreeExplainer was not measured")
    return Result(
        SUITE,
        figures,
        {f"{n} p50 us": [float(np.median(e)) * 1e6 for e in each] for n, each in runs.items()},
        notes,
        seconds_per_sample=False,
    )


def _timed(
    name: str,
    call: Callable[[Rows], object],
    rows: Rows,
    taken: dict[str, list[npt.NDArray[np.float64]]],
) -> Callable[[], None]:
    def run() -> None:
        ends = np.empty(len(rows) + 1)
        ends[0] = time.perf_counter()
        for number, row in enumerate(rows, 1):
            call(row)
            ends[number] = time.perf_counter()
        taken.setdefault(name, []).append(np.diff(ends))

    return run


def _check_equal(
    ways: Mapping[str, Callable[[Rows], Any]], one: str, two: str, rows: Rows, tolerance: float
) -> float:
    a, b = (np.array([ways[name](row) for row in rows], np.float64) for name in (one, two))
    off = float(np.abs(a - b).max())
    check(off <= tolerance, f"{one} and {two} differ by {off}, over {tolerance}")
    return off


def _difference(booster: xgboost.Booster, rows: Rows) -> float:
    from serving.scoring import forest, xgb
    from serving.scoring.cut import cut
    from serving.scoring.table import Table

    table = Table(cut(forest.of_xgboost(booster)), FEATURES)
    found = np.array([table.shares(row) for row in rows])
    off = float(np.abs(found - xgb.contributions(booster, rows)).max())
    check(off <= TOLERANCE, f"the table is off by {off}, over {TOLERANCE}")
    return off


def _data(rng: np.random.Generator, count: int) -> tuple[Rows, Rows]:
    """Rows with a tenth of the cells missing, and rare labels that some columns tell of."""
    x = rng.normal(size=(count, FEATURES)).astype(np.float32)
    strength = x[:, :8].sum(axis=1) + x[:, 8] * x[:, 9] + rng.normal(0, 2, count)
    x[rng.random(x.shape) < 0.1] = np.nan
    return x, (strength > np.quantile(strength, 0.95)).astype(np.float32)


def _xgboost(x: Rows, y: Rows, depth: int) -> xgboost.Booster:
    import xgboost

    parameters = {
        "objective": "binary:logistic",
        "max_depth": depth,
        "learning_rate": 0.1,
        "base_score": 0.5,
        "nthread": 1,
        "seed": SEED,
    }
    trees = TREES if depth == DEPTH else 60
    return xgboost.train(parameters, xgboost.DMatrix(x, y, nthread=1), trees)


def _lightgbm(x: Rows, y: Rows) -> Any:
    import lightgbm

    parameters = {
        "objective": "binary",
        "num_leaves": 31,
        "learning_rate": 0.1,
        "num_threads": 1,
        "verbosity": -1,
        "seed": SEED,
    }
    trained = lightgbm.train(parameters, lightgbm.Dataset(x, y), TREES)
    return lightgbm.Booster(model_str=trained.model_to_string())


def _shap(booster: xgboost.Booster) -> Callable[[Rows], Any] | None:
    try:
        import shap  # type: ignore[import-not-found]
    except ImportError:
        return None
    explainer = shap.TreeExplainer(booster)
    return lambda row: explainer.shap_values(row[None], check_additivity=False)[0]
