"""The report of a training run: ``report.json`` and one self-contained HTML page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from raypipe.lake import Place
from training.charts import FPR, UNIT, Chart, Mark, chart
from training.pages import page

_TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class TrainReport:
    """What was trained on what, how it was found, and how good it is.

    Figures are of the test part unless they say otherwise. ``operating_points`` are set on
    validation (``fpr_limit``, ``threshold``) and measured on test.
    """

    model: str
    version: str
    sha256: str
    project: str
    created_ms: int
    artefact: str
    data: Mapping[str, Any]
    split: tuple[Mapping[str, Any], ...]
    gap_ms: int
    test: Mapping[str, Any]
    validation: Mapping[str, Any]
    operating_points: Mapping[str, Mapping[str, Any]]
    curves: Mapping[str, list[tuple[float, float]]]
    importance: tuple[Mapping[str, Any], ...]
    sweep: tuple[Mapping[str, Any], ...]
    libraries: Mapping[str, str]
    warnings: tuple[str, ...]
    directory: str
    """Where ``report.json`` and ``report.html`` lie."""

    def describe(self) -> dict[str, Any]:
        """Plain data, the content of ``report.json``."""
        return asdict(self)


def write(report: TrainReport, folder: Place) -> None:
    """Write both files into the folder."""
    text = json.dumps(report.describe(), indent=2, allow_nan=False)
    (folder / "report.json").write(text.encode())
    (folder / "report.html").write(render(report).encode())


def render(report: TrainReport) -> str:
    """The HTML page."""
    return page(_TEMPLATE, r=report, charts=_charts(report), timeline=_timeline(report))


def _charts(report: TrainReport) -> tuple[Chart, Chart]:
    points = report.operating_points.items()
    return (
        chart(
            "Precision and recall",
            ("recall", "precision"),
            (UNIT, UNIT),
            report.curves["pr"],
            [Mark(p["recall"], p["precision"] or 0.0, n) for n, p in points],
            baseline=report.test["base_rate"],
        ),
        chart(
            "ROC, logarithmic in false positives",
            ("false positive rate", "recall"),
            (FPR, UNIT),
            report.curves["roc"],
            [Mark(p["fpr"], p["recall"], n) for n, p in points],
            steps=True,
        ),
    )


def _timeline(report: TrainReport) -> list[dict[str, Any]]:
    start = report.split[0]["start_ms"]
    length = report.split[-1]["end_ms"] - start
    return [
        {
            **part,
            "left": 100 * (part["start_ms"] - start) / length,
            "width": 100 * (part["end_ms"] - part["start_ms"]) / length,
        }
        for part in report.split
    ]
