"""The page of recommenders side by side, and the figures behind it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from raypipe.errors import UsageError
from raypipe.lake import Place
from training.recommend.evaluate import Evaluation
from training.recommend.report import describe, write


def evaluation(shift: float, users: int = 90) -> Evaluation:
    rng = np.random.default_rng(0)
    figures = {n: rng.random(users) * 0.5 + shift for n in ("recall", "ndcg", "map", "hit")}
    beyond = {"coverage": 0.25 + shift, "novelty": 3.5, "popularity_lift": 1.5, "gini": 0.75}
    segment = np.repeat([0, 1, 3], users // 3)
    names = ("0", "1 to 2", "3 to 19", "20 & <more>")
    return Evaluation(np.arange(users), {5: figures}, {5: beyond}, segment, names)


BOTH = {"popularity": evaluation(0.0), "two stages": evaluation(0.1)}


class Reader(HTMLParser):
    """Texts of a page, and whether every tag that opens also closes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.outside += [v or "" for n, v in attrs if n in ("src", "href")]
        if tag not in ("meta", "line", "circle", "polyline", "polygon"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_gains_are_paired_and_by_segment() -> None:
    found = describe(BOTH, 5)
    assert list(found["figures"]) == ["all", "0", "1 to 2", "20 & <more>"]
    base = BOTH["popularity"].figures[5]["ndcg"]
    mean = found["figures"]["1 to 2"]["popularity"]["ndcg"]
    assert mean["mean"] == pytest.approx(base[30:60].mean())
    assert mean["low"] < mean["mean"] < mean["high"]
    assert mean["users"] == 30
    for gain in (found["gains"][s]["two stages"] for s in found["figures"]):
        # The same shift for everyone: paired, nothing is left to chance.
        assert (gain["low"], gain["high"]) == pytest.approx((0.1, 0.1))
    assert "popularity" not in found["gains"]["all"]
    assert found["beyond"]["two stages"]["coverage"] == 0.35


def test_the_page_holds_its_figures_and_asks_for_nothing(tmp_path: Path) -> None:
    write("Shop <7>", BOTH, 5, Place.at(tmp_path))
    found = json.loads((tmp_path / "report.json").read_text())
    assert found == {"title": "Shop <7>", **json.loads(json.dumps(describe(BOTH, 5)))}
    page = (tmp_path / "report.html").read_text()
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert reader.outside == []
    assert "Shop <7>" in reader.texts
    assert "20 & <more>" in reader.texts
    assert f"{found['figures']['all']['two stages']['ndcg']['mean']:.4f}" in reader.texts
    assert page.count('<g class="good">') == len(found["figures"])
    assert "popularity lift" in reader.texts


def test_one_alone_is_shown_without_gains(tmp_path: Path) -> None:
    write("One", {"blend": BOTH["popularity"]}, 5, Place.at(tmp_path))
    page = (tmp_path / "report.html").read_text()
    assert "Gain of" not in page
    assert page.count('<g class="plain">') == 4


def test_what_can_not_be_compared_is_refused() -> None:
    with pytest.raises(UsageError, match="no evaluation"):
        describe({}, 5)
    with pytest.raises(UsageError, match=r"'two stages' has no lists of 9(.|\n)*It has 5"):
        describe({"two stages": BOTH["two stages"]}, 9)
    with pytest.raises(UsageError, match="different users"):
        describe({**BOTH, "few": evaluation(0.0, 60)}, 5)
    with pytest.raises(UsageError, match=r"nobody is of segment '3 to 19'(.|\n)*1 to 2"):
        BOTH["popularity"].only("3 to 19")
