"""From a log to a version in use: what is learned from, what is measured, what is new."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from features.commerce import project
from raypipe.clock import DAY_MS, ManualClock
from raypipe.errors import StageError
from raypipe.lake import Place
from raypipe.runtime.progress import reporter
from tests.unit.recommend_kit import tastes
from training import registry
from training.recommend import artefact
from training.recommend.fit import Options, fit
from training.recommend.neighbours import RP3Beta

NOW = 1_790_000_000_000
OPTIONS = Options(method=RP3Beta(20), ks=(5,))
Tables = Callable[[str], ds.Dataset]


def log(days: int = 30, newcomers: int = 5) -> Tables:
    """Forty articles of four categories, a fifth category that nobody has seen, and views."""
    found: dict[str, list[dict[str, Any]]] = {"page_view": [], "listing": []}
    rng = np.random.default_rng(0)
    for user, item in zip(*np.nonzero(tastes(120)), strict=True):
        at = NOW + int(rng.integers(0, days * DAY_MS))
        row = {"customer_id": f"c{user}", "item_id": f"i{item:02}", "event_time": at}
        found["page_view"].append(row)
    for item in range(40 + newcomers):
        listing = {"item_id": f"i{item:02}", "category": f"k{item % 4}", "available": True}
        found["listing"].append(listing | {"event_time": NOW, "brand": f"b{item % 8}"})

    def table(kind: str) -> ds.Dataset:
        rows = [{"offset": n, **row} for n, row in enumerate(found.get(kind, []))]
        fields = [pa.field("offset", pa.int64()), *project.event(kind).arrow_schema]
        return ds.dataset(pa.Table.from_pylist(rows, pa.schema(fields)))

    return table


def test_a_fit_writes_a_version_in_use_with_figures_of_the_newest_days(tmp_path: Path) -> None:
    lake, clock = Place.at(tmp_path), ManualClock(NOW + 31 * DAY_MS)
    made = fit(log(), lake, OPTIONS, reporter(quiet=True), clock=clock)
    assert registry.locate(lake / artefact.FOLDER, "shop") == made.version
    loaded = artefact.load(made.version)
    assert loaded.items.to_pylist() == [f"i{n:02}" for n in range(45)]
    assert made.blend.gain(made.popular, "ndcg", 5).low > 0
    stored = loaded.manifest.metrics
    assert stored["blend"]["at_5"]["segments"]["all"]["ndcg"]["mean"] == made.blend.mean("ndcg", 5)
    assert loaded.manifest.method["retrieval"]["neighbours"] == 20
    assert loaded.manifest.training["users"] == 120


def test_new_articles_come_to_whom_they_suit(tmp_path: Path) -> None:
    made = fit(log(), Place.at(tmp_path), OPTIONS, reporter(quiet=True))
    loaded = artefact.load(made.version)
    content = next(p for p in loaded.retriever.parts if p.name == "content").retriever
    found = content.retrieve(loaded.history({"i02": 1.0, "i06": 1.0}), 3)
    ids = [loaded.items[i].as_py() for i in found.columns.tolist()]
    assert ids[0] == "i42"  # the one new article of their category
    assert set(ids) <= {f"i{n}" for n in range(40, 45)}
    without = fit(
        log(newcomers=0), Place.at(tmp_path / "b"), Options(attributes=()), reporter(quiet=True)
    )
    assert [p.name for p in artefact.load(without.version).retriever.parts] == ["main", "popular"]


def test_what_is_measured_knows_nothing_of_the_days_that_are_guessed(tmp_path: Path) -> None:
    """A crowd that comes in the newest days and buys one article changes nobody else's figures."""
    made = fit(log(), Place.at(tmp_path), OPTIONS, reporter(quiet=True))
    end = artefact.load(made.version).manifest.training["end_ms"]

    def crowded(kind: str) -> ds.Dataset:
        table = log()(kind).to_table()
        if kind == "page_view":
            late = {"item_id": "i03", "event_time": end - 1, "offset": 0}
            rows = [late | {"customer_id": f"z{n}"} for n in range(500)]
            table = pa.concat_tables([table, pa.Table.from_pylist(rows, table.schema)])
        return ds.dataset(table)

    other = fit(crowded, Place.at(tmp_path / "b"), OPTIONS, reporter(quiet=True))
    asked = len(made.blend.users)
    assert len(other.blend.users) == asked + 500
    for ours, theirs in ((made.blend, other.blend), (made.popular, other.popular)):
        for name, values in ours.figures[5].items():
            assert values.tolist() == theirs.figures[5][name][:asked].tolist()
    assert other.blend.describe(repeats=10)["at_5"]["segments"]["0"]["ndcg"]["users"] >= 500


def test_a_history_that_lies_in_the_test_days_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="newest 7 days, which are to be guessed"):
        fit(log(days=3), Place.at(tmp_path), OPTIONS, reporter(quiet=True))
