"""Selection files: what they say, and what they are told when they say nonsense."""

from __future__ import annotations

from pathlib import Path

import pytest

import features
from raypipe.clock import DAY_MS
from raypipe.errors import DeclarationError
from serving.recommend.diversity import Diversity
from serving.recommend.exploration import Exploration
from serving.recommend.reading import parse_selection, read_selection
from serving.recommend.rules import Caps, Rules
from serving.recommend.selection import Selection

HEAD = "name: shop\nversion: 3\n"


def test_a_file_says_everything() -> None:
    text = HEAD + (
        "rebuy_after: 30d\nshow_out_of_stock: true\ncaps: {category: 4, brand: 2, strict: true}\n"
        "sponsored: [3, 8]\ndiversity: {lambda: 0.7, category: 0.5, brand: 0.2, neighbours: 0.3}\n"
        "exploration: {share: 0.1, temperature: 0.2, places: 5}\n"
    )
    found = parse_selection(text)
    assert found == Selection(
        "shop",
        3,
        Rules(30 * DAY_MS, True, Caps(4, 2, True), (3, 8)),
        Diversity(0.7, 0.5, 0.2, 0.3),
        Exploration(0.1, 0.2, (5,)),
    )
    assert found.reference == "shop@3"


def test_what_is_not_said_is_the_default() -> None:
    assert parse_selection(HEAD) == Selection("shop", 3)


def test_the_shop_has_one() -> None:
    file = Path(str(features.__file__)).with_name("selections") / "commerce.yaml"
    found = read_selection(file)
    assert found.diversity.relevance < 1
    assert found.exploration.share > 0
    assert found.rules.caps.category > 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: shop\n", "here:1: the selection lacks 'version'"),
        (HEAD + "divercity: {}\n", "here:3: a selection has unknown 'divercity'"),
        (HEAD + "rebuy_after: 30\n", "here:3: rebuy_after is '30'"),
        (HEAD + "caps: {category: 0}\n", "here:3: category is 0"),
        (HEAD + "sponsored: [8, 3]\n", r"here:3: sponsored places are \[8, 3\]"),
        (HEAD + "\ndiversity: {lambda: 7}\n", "here:4: lambda, the weight of relevance, is 7"),
        (HEAD + "diversity: {brand: 0.9}\n", "here:3: category, brand and neighbours weigh"),
        (HEAD + "exploration: {temperature: 0}\n", "here:3: the temperature is 0"),
        (HEAD + "---\n" + HEAD, "here holds 2 documents"),
        ("", "here holds 0 documents"),
    ],
)
def test_refusals_name_the_line(text: str, says: str) -> None:
    with pytest.raises(DeclarationError, match=says):
        parse_selection(text, "here")


def test_the_lambda_that_is_refused_is_called_as_it_is_written() -> None:
    with pytest.raises(DeclarationError) as e:
        parse_selection(HEAD + "diversity: {lambda: 7}\n")
    assert "lambda" in str(e.value)
