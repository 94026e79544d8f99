"""From the best trial to a model in use: thresholds, figures, artefact, current version, report."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from raypipe.lake import Place
from raypipe.project import Project
from training import artefact, registry
from training.dataset import Dataset
from training.evaluate import (
    confusion,
    evaluate,
    operating_threshold,
    pr_curve,
    roc_curve,
    threshold_at_fpr,
)
from training.plan import FIXED, Options, SweepResult
from training.report import TrainReport, write
from training.split import Part, Split

if TYPE_CHECKING:
    import xgboost


def publish(
    project: Project,
    lake: Place,
    options: Options,
    split: Split,
    dataset: Dataset,
    result: SweepResult,
    created_ms: int,
) -> TrainReport:
    """Thresholds from validation, figures from test, then artefact, current version, report."""
    import xgboost

    fingerprint = dataset.fingerprint()
    booster = xgboost.Booster()
    booster.load_model(bytearray(result.model))
    key = options.key or project.views[0].key
    rows = {p.name: p.rows(dataset.event_time) for p in split.parts}
    scores = {p: booster.inplace_predict(dataset.x[rows[p]]) for p in ("validation", "test")}
    figures = {
        p: evaluate(
            dataset.y[rows[p]],
            scores[p],
            dataset.event_time[rows[p]],
            key=(key, dataset.keys[key][rows[p]]),
            k=options.top_k,
        )
        for p in scores
    }
    truth = dataset.y[rows["validation"]]
    review = operating_threshold(
        truth, scores["validation"], options.review_fpr, options.review_precision
    )
    # Whatever is blocked would be reviewed too.
    block = max(review, threshold_at_fpr(truth, scores["validation"], options.block_fpr))
    points = {}
    for name, limit, threshold in (
        ("review", options.review_fpr, review),
        ("block", options.block_fpr, block),
    ):
        counts = confusion(dataset.y[rows["test"]], scores["test"], threshold)
        points[name] = {"fpr_limit": limit, "threshold": threshold, **counts.describe()}
    data = {
        "rows": len(dataset),
        "positives": dataset.positives,
        "features": len(dataset.names),
        "fingerprint": fingerprint,
        **asdict(dataset.origin),
    }
    parts = tuple(_describe(p, dataset, rows[p.name]) for p in split.parts)
    version = artefact.write(
        lake / "models",
        result.model,
        project=project,
        name=options.model,
        created_ms=created_ms,
        training={"data": data, "parts": list(parts), "gap_ms": split.gap_ms},
        data_fingerprint=fingerprint,
        parameters={**FIXED, **result.best.parameters, "rounds": result.best.rounds},
        metrics={**figures, "operating_points": points},
        thresholds={n: p["threshold"] for n, p in points.items()},
    )
    registry.promote(lake / "models", options.model, version.name)
    folder = lake / "reports" / f"{options.model}-{version.name}"
    report = TrainReport(
        model=options.model,
        version=version.name,
        sha256=hashlib.sha256(result.model).hexdigest(),
        project=project.name,
        created_ms=created_ms,
        artefact=version.url,
        data=data,
        split=parts,
        gap_ms=split.gap_ms,
        test=figures["test"],
        validation=figures["validation"],
        operating_points=points,
        curves={
            "pr": pr_curve(dataset.y[rows["test"]], scores["test"]),
            "roc": roc_curve(dataset.y[rows["test"]], scores["test"]),
        },
        importance=_importance(booster),
        sweep=tuple(t.describe() for t in result.trials),
        libraries=artefact.libraries(),
        warnings=(split.warning,) if split.warning else (),
        directory=folder.url,
    )
    write(report, folder)
    return report


def _describe(part: Part, dataset: Dataset, rows: npt.NDArray[np.int64]) -> dict[str, Any]:
    return {**asdict(part), "rows": len(rows), "positives": int(dataset.y[rows].sum())}


def _importance(booster: xgboost.Booster) -> tuple[dict[str, Any], ...]:
    """Each used feature's share of the total gain, largest first."""
    gains: dict[str, Any] = booster.get_score(importance_type="total_gain")
    total = sum(gains.values())
    ranked = sorted(gains.items(), key=lambda g: (-g[1], g[0]))
    return tuple({"feature": name, "share": gain / total} for name, gain in ranked)
