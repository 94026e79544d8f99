"""Selection files: YAML text becomes a selection, every refusal names the file and the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from raypipe.errors import DeclarationError
from raypipe.yaml_nodes import Node, documents, read_text
from serving.recommend.diversity import Diversity
from serving.recommend.exploration import Exploration
from serving.recommend.rules import Caps, Rules
from serving.recommend.selection import Selection

T = TypeVar("T")

KEYS = (
    *("name", "version", "rebuy_after", "show_out_of_stock", "caps", "sponsored"),
    *("diversity", "exploration"),
)
CAP_KEYS = ("category", "brand", "strict")
DIVERSITY_KEYS = ("lambda", "category", "brand", "neighbours")
EXPLORATION_KEYS = ("share", "temperature", "places")


def read_selection(path: Path) -> Selection:
    """The selection of a file; raises DeclarationError that names the line."""
    return parse_selection(read_text(path, "selection"), str(path))


def parse_selection(text: str, file: str = "selection") -> Selection:
    """The selection of a YAML text; raises DeclarationError that names the line.

    >>> parse_selection("{name: shop, version: 2, diversity: {lambda: 0.7}}").diversity.relevance
    0.7
    """
    found = documents(text, file)
    if len(found) != 1:
        raise DeclarationError(
            f"{file} holds {len(found)} documents", hint="One selection is expected."
        )
    at = found[0]
    raw = at.mapping("a selection", KEYS)
    for name in ("name", "version"):
        if name not in raw:
            at.fail(f"the selection lacks {name!r}", "Answers record both.")
    return Selection(
        name=raw["name"].name("name"),
        version=raw["version"].whole("version"),
        rules=_rules(at, raw),
        diversity=_diversity(raw["diversity"]) if "diversity" in raw else Diversity(),
        exploration=_exploration(raw["exploration"]) if "exploration" in raw else Exploration(),
    )


def _rules(at: Node, raw: dict[str, Node]) -> Rules:
    given: dict[str, Any] = {}
    if "rebuy_after" in raw:
        given["rebuy_ms"] = raw["rebuy_after"].duration("rebuy_after")
    if "show_out_of_stock" in raw:
        given["show_out_of_stock"] = raw["show_out_of_stock"].flag("show_out_of_stock")
    if "caps" in raw:
        given["caps"] = _caps(raw["caps"])
    if "sponsored" in raw:
        given["sponsored"] = _places(raw["sponsored"], "sponsored")
    return _made(raw.get("sponsored", at), Rules, given)


def _caps(at: Node) -> Caps:
    raw = at.mapping("caps", CAP_KEYS)
    given: dict[str, Any] = {n: raw[n].whole(n) for n in ("category", "brand") if n in raw}
    if "strict" in raw:
        given["strict"] = raw["strict"].flag("strict")
    return Caps(**given)


def _diversity(at: Node) -> Diversity:
    raw = at.mapping("diversity", DIVERSITY_KEYS)
    given = {n: node.number(n) for n, node in raw.items()}
    if "lambda" in given:
        given["relevance"] = given.pop("lambda")
    return _made(at, Diversity, given)


def _exploration(at: Node) -> Exploration:
    raw = at.mapping("exploration", EXPLORATION_KEYS)
    given: dict[str, Any] = {n: raw[n].number(n) for n in ("share", "temperature") if n in raw}
    if "places" in raw:
        given["places"] = _places(raw["places"], "places")
    return _made(at, Exploration, given)


def _places(at: Node, what: str) -> tuple[int, ...]:
    return tuple(node.whole(f"a place of {what}") for node in at.items())


def _made(at: Node, kind: type[T], given: dict[str, Any]) -> T:
    """What the values make; its own refusals get the line."""
    try:
        return kind(**given)
    except DeclarationError as e:
        at.fail(e.detail, e.hint)
